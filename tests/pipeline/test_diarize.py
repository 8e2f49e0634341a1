"""Diarization: real turns on real speech, pyannote's own results, local files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from pipeline import _pyannote
from pipeline._pyannote import BoundedDiarization, SideBySide
from pipeline.diarize import Diarizer
from pipeline.types import ModelError, Turn
from tests.pipeline.recordings import heard_at, spans_of_truth

# pyannote is imported by now, as pipeline._torchaudio prepares it.
from pyannote.audio.core.task import Problem, Resolution, Specifications  # isort: skip
from pyannote.audio.models.embedding import WeSpeakerResNet34  # isort: skip
from pyannote.audio.pipelines import SpeakerDiarization  # isort: skip
from pyannote.audio.pipelines.speaker_verification import (  # isort: skip
    ONNXWeSpeakerPretrainedSpeakerEmbedding,
)
from pyannote.core import Annotation, Segment, SlidingWindow, SlidingWindowFeature, Timeline  # isort: skip
from pyannote.metrics.diarization import DiarizationErrorRate  # isort: skip

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return models_dir / "demo" / "diarization"


@pytest.fixture(scope="module")
def diarize(model: Path) -> Diarizer:
    return Diarizer(model)


@pytest.fixture(scope="module")
def call(conversation: Path) -> Floats:
    return heard_at(24_000, conversation)


@pytest.fixture(scope="module")
def turns(diarize: Diarizer, call: Floats) -> list[Turn]:
    return diarize(call)


def annotation(turns: list[Turn] | tuple[Turn, ...]) -> Annotation:
    found = Annotation()
    for i, turn in enumerate(turns):
        found[Segment(turn.start, turn.end), i] = turn.speaker
    return found


def test_the_error_on_a_real_conversation_is_small(turns: list[Turn], conversation: Path) -> None:
    """At most 8 % of the speech is missed, added or confused: no collar, overlap counted."""
    error = DiarizationErrorRate(collar=0, skip_overlap=False)
    truth = annotation(spans_of_truth(conversation))
    assert error(truth, annotation(turns), uem=Timeline([Segment(0, 30)])) <= 0.08


def test_both_speakers_of_the_conversation_are_found(turns: list[Turn]) -> None:
    """Two people speak, and the first to speak is SPEAKER_00."""
    assert {turn.speaker for turn in turns} == {"SPEAKER_00", "SPEAKER_01"}
    assert turns[0].speaker == "SPEAKER_00"


def test_turns_are_in_order_and_within_the_recording(turns: list[Turn]) -> None:
    """By start, end and speaker; whole milliseconds; none empty."""
    assert turns == sorted(turns, key=lambda turn: (turn.start, turn.end, turn.speaker))
    assert all(0 <= turn.start < turn.end <= 30 for turn in turns)
    times = [time for turn in turns for time in (turn.start, turn.end)]
    assert times == [round(time, 3) for time in times]


def test_overlapping_speech_belongs_to_both_speakers(turns: list[Turn]) -> None:
    """At 10.8 s and 28.2 s both speak, and both have a turn there."""
    for time in (10.8, 28.2):
        assert {turn.speaker for turn in turns if turn.start < time < turn.end} == {
            "SPEAKER_00",
            "SPEAKER_01",
        }


def test_one_speaker_is_one_speaker(diarize: Diarizer, jfk: Path) -> None:
    """A speech by one man, with long pauses, has one speaker."""
    turns = diarize(heard_at(24_000, jfk))
    assert {turn.speaker for turn in turns} == {"SPEAKER_00"}
    assert sum(turn.duration for turn in turns) > 6


def test_equal_sound_gives_equal_turns(diarize: Diarizer, call: Floats, turns: list[Turn]) -> None:
    """A second run finds the same."""
    assert diarize(call) == turns


@pytest.mark.parametrize("samples", [0, 1, 2, 300, 4_800, 48_000])
def test_without_speech_there_are_no_turns(diarize: Diarizer, samples: int) -> None:
    """Nothing, less than a frame, and silence all give an empty list."""
    assert diarize(np.zeros(samples, np.float32)) == []


@pytest.mark.parametrize("seconds", [0.02, 0.2, 1.0, 1.5])
def test_a_moment_of_speech_is_one_speaker(diarize: Diarizer, call: Floats, seconds: float) -> None:
    """Speech too short to cluster is one speaker's, and ends with the recording."""
    moment = call[11 * 24_000 : 11 * 24_000 + round(seconds * 24_000)]
    turns = diarize(moment)
    assert {turn.speaker for turn in turns} <= {"SPEAKER_00"}
    assert all(turn.end <= seconds for turn in turns)
    assert turns or seconds < 0.2


# What is faster here must be what pyannote itself computes.


@pytest.fixture(scope="module")
def pipeline(diarize: Diarizer) -> BoundedDiarization:
    return diarize._pipeline


@pytest.fixture(scope="module")
def file(conversation: Path) -> dict[str, Any]:
    samples = heard_at(16_000, conversation)[8 * 16_000 : 20 * 16_000 + 1234]
    return {"waveform": torch.from_numpy(samples)[None], "sample_rate": 16_000, "uri": "call"}


@pytest.fixture(scope="module")
def segmentation(pipeline: BoundedDiarization, file: dict[str, Any]) -> SlidingWindowFeature:
    return pipeline.get_segmentations(file)


def test_embeddings_by_an_onnx_net_are_those_of_pyannote(
    pipeline: BoundedDiarization,
    file: dict[str, Any],
    segmentation: SlidingWindowFeature,
    model: Path,
) -> None:
    """pyannote's own class for ONNX gives the same embedding of each active speaker."""
    upstream = SpeakerDiarization(
        segmentation=pipeline._segmentation.model,
        clustering="OracleClustering",  # with which it does not choose an embedding by itself
        plda=_pyannote._NoPlda(),
        embedding_batch_size=32,
    )
    path = model / "wespeaker-campplus.onnx"
    upstream._embedding = ONNXWeSpeakerPretrainedSpeakerEmbedding(str(path))
    upstream._audio = pipeline._audio
    active = segmentation.data.any(axis=1)
    assert active.sum() >= 6
    for exclude_overlap in (True, False):
        ours = pipeline.get_embeddings(file, segmentation, exclude_overlap)
        theirs = upstream.get_embeddings(file, segmentation, exclude_overlap)
        np.testing.assert_allclose(ours[active], theirs[active], atol=1e-3)


def test_embeddings_by_a_torch_net_are_those_of_pyannote(
    clone: Path, file: dict[str, Any], segmentation: SlidingWindowFeature
) -> None:
    """One look at a window gives the embeddings that pyannote takes one look per speaker for."""
    pipeline = Diarizer(clone)._pipeline
    two = SlidingWindowFeature(segmentation.data[:2], segmentation.sliding_window)
    ours = pipeline.get_embeddings(file, two, True)
    theirs = SpeakerDiarization.get_embeddings(pipeline, file, two, True)
    active = two.data.any(axis=1)
    np.testing.assert_allclose(ours[active], theirs[active], atol=1e-4)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("speakers", [1, 2, 7])
def test_reconstruction_is_that_of_pyannote(
    pipeline: BoundedDiarization, speakers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frame by frame and speaker by speaker, in blocks of any length."""
    monkeypatch.setattr(_pyannote, "_FRAMES_AT_ONCE", 1000)
    random = np.random.default_rng(speakers)
    active = np.repeat(random.random((40, 19, 3)) < 0.4, 31, axis=1).astype(np.float32)
    windows = SlidingWindowFeature(active, SlidingWindow(start=0, duration=10, step=1))
    clusters = random.integers(0, speakers, (40, 3))
    clusters[active.sum(axis=1) == 0] = -2
    frames = pipeline._segmentation.model.receptive_field
    count = pipeline.speaker_count(windows, frames, warm_up=(0, 0))
    count.data = count.data.astype(np.int8)
    ours = pipeline.reconstruct(windows, clusters, count)
    theirs = SpeakerDiarization.reconstruct(pipeline, windows, clusters, count)
    assert ours.data.sum() > 1000
    np.testing.assert_array_equal(ours.data, theirs.data)
    assert ours.sliding_window.step == theirs.sliding_window.step


def test_many_embeddings_are_thinned_out_before_clustering(
    pipeline: BoundedDiarization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every window gets its speaker though only 40 of 200 embeddings are clustered."""
    truth = np.arange(200) // 20 % 2
    centres = np.eye(2, 192)[:, None] * 3
    noise = np.random.default_rng(0).normal(0, 0.1, (200, 1, 192))
    embeddings = centres[truth] + noise
    active = SlidingWindowFeature(
        np.ones((200, 50, 1), np.float32), SlidingWindow(start=0, duration=10, step=1)
    )
    monkeypatch.setattr(_pyannote, "CLUSTERED_AT_MOST", 40)
    seen = pipeline.clustering.filter_embeddings(embeddings, segmentations=active)
    assert len(seen[0]) == 40
    assert (seen[1][0], seen[1][-1]) == (0, 199)
    clusters, _, _ = pipeline.clustering(embeddings=embeddings, segmentations=active)
    found = clusters[:, 0]
    assert np.array_equal(found, truth) or np.array_equal(found, 1 - truth)


def test_parts_run_side_by_side_come_back_in_order() -> None:
    """A batch is cut into parts of at most `together` items, enough for every thread."""
    seen: list[int] = []

    def net(first: torch.Tensor, second: torch.Tensor) -> Floats:
        seen.append(len(first))
        sums: Floats = (first + second).numpy()
        return sums

    given = torch.arange(19.0)
    run = SideBySide(device="cpu", threads=2)
    np.testing.assert_array_equal(run(net, given, given, together=4), 2 * given)
    assert sorted(seen) == [3, 4, 4, 4, 4]
    seen.clear()
    run(net, given, given, together=100)
    assert sorted(seen) == [9, 10]


# Loading, from folders of each kind.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding net as pyannote saves it, with random weights."""
    torch.manual_seed(0)
    net = WeSpeakerResNet34()
    specifications = Specifications(
        Problem.REPRESENTATION, Resolution.CHUNK, duration=10.0, classes=["a", "b"]
    )
    saved = {
        "state_dict": net.state_dict(),
        "hyper_parameters": dict(net.hparams),
        "pytorch-lightning_version": "2.6.0",
        "pyannote.audio": {
            "versions": {"torch": "2.8.0", "pyannote.audio": "4.0.0"},
            "architecture": {"module": type(net).__module__, "class": "WeSpeakerResNet34"},
            "specifications": specifications,
        },
    }
    path = tmp_path_factory.mktemp("net") / "pytorch_model.bin"
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def clone(checkpoint: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as speaker-diarization-community-1, with VBx and a PLDA."""
    folder = tmp_path_factory.mktemp("speaker-diarization-community-1")
    for name, net in (
        ("segmentation", model / "segmentation-3.0" / "pytorch_model.bin"),
        ("embedding", checkpoint),
    ):
        (folder / name).mkdir()
        (folder / name / "pytorch_model.bin").symlink_to(net)
    (folder / "plda").mkdir()
    random = np.random.default_rng(0)
    np.savez(
        folder / "plda" / "xvec_transform.npz",
        mean1=np.zeros(256),
        mean2=np.zeros(128),
        lda=random.normal(0, 1, (256, 128)),
    )
    spread = np.sort(random.uniform(0.1, 10, 128))
    np.savez(folder / "plda" / "plda.npz", mu=np.zeros(128), tr=np.eye(128), psi=spread)
    params = {
        "clustering": "VBxClustering",
        "segmentation": "$model/segmentation",
        "segmentation_batch_size": 1,
        "embedding": "$model/embedding",
        "embedding_batch_size": 1,
        "embedding_exclude_overlap": True,
        "plda": "$model/plda",
    }
    write_config(folder, params, {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8})
    return folder


def write_config(folder: Path, params: dict[str, Any], clustering: dict[str, Any]) -> None:
    config = {
        "pipeline": {"name": "pyannote.audio.pipelines.SpeakerDiarization", "params": params},
        "params": {"clustering": clustering, "segmentation": {"min_duration_off": 0.0}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def hub_config(folder: Path, embedding: str = "pyannote/wespeaker-voxceleb-resnet34-LM") -> None:
    """A config.yaml like that of speaker-diarization-3.1, which names its nets on the hub."""
    params = {
        "clustering": "AgglomerativeClustering",
        "segmentation": "pyannote/segmentation-3.0",
        "embedding": embedding,
        "embedding_exclude_overlap": True,
    }
    write_config(folder, params, {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7})


def test_a_clone_of_community_1_is_loaded(clone: Path, call: Floats) -> None:
    """Its config.yaml says how; the batch size is ours."""
    diarize = Diarizer(clone, batch=7)
    assert diarize._pipeline.segmentation_batch_size == 7
    assert diarize._pipeline.embedding_batch_size == 7
    turns = diarize(call[8 * 24_000 : 19 * 24_000])
    assert turns[0].speaker == "SPEAKER_00"
    assert max(turn.end for turn in turns) > 10


def test_nets_named_on_a_hub_are_found_beside_the_folder(
    tmp_path: Path, model: Path, checkpoint: Path
) -> None:
    """A clone of 3.1 works next to clones of the two nets that its config.yaml names."""
    folder = tmp_path / "speaker-diarization-3.1"
    folder.mkdir()
    hub_config(folder)
    (tmp_path / "segmentation-3.0").symlink_to(model / "segmentation-3.0")
    beside = tmp_path / "wespeaker-voxceleb-resnet34-LM"
    beside.mkdir()
    (beside / "pytorch_model.bin").symlink_to(checkpoint)
    assert Diarizer(folder)(np.zeros(24_000, np.float32)) == []


def test_the_name_of_the_folder_does_not_choose_the_kind_of_net(
    tmp_path: Path, model: Path, call: Floats, turns: list[Turn]
) -> None:
    """The demo's nets, named in a config.yaml, in a folder whose name pyannote would misread."""
    folder = tmp_path / "pyannote-nvidia"
    folder.mkdir()
    (folder / "segmentation-3.0").symlink_to(model / "segmentation-3.0")
    (folder / "campplus.onnx").symlink_to(model / "wespeaker-campplus.onnx")
    hub_config(folder, embedding="campplus.onnx")
    assert Diarizer(folder)(call) == turns


def test_a_net_that_is_nowhere_is_named(tmp_path: Path, model: Path) -> None:
    """It is not looked for on a hub; the error says what is missing, where, and what to do."""
    hub_config(tmp_path)
    (tmp_path / "segmentation-3.0").symlink_to(model / "segmentation-3.0")
    with pytest.raises(ModelError, match=r"wespeaker-voxceleb.*neither.*emiliad models pull"):
        Diarizer(tmp_path)


def test_missing_files_are_named(tmp_path: Path, model: Path) -> None:
    """No folder, an empty one, and one without its embedding net."""
    with pytest.raises(ModelError, match=r"nowhere.*emiliad models pull"):
        Diarizer(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"segmentation-3\.0.*emiliad models pull"):
        Diarizer(tmp_path)
    (tmp_path / "segmentation-3.0").symlink_to(model / "segmentation-3.0")
    with pytest.raises(ModelError, match=r"wespeaker-campplus\.onnx.*emiliad models pull"):
        Diarizer(tmp_path)


@pytest.mark.parametrize("broken", ["pytorch_model.bin", "wespeaker-campplus.onnx", "config.yaml"])
def test_unreadable_files_are_reported(tmp_path: Path, model: Path, broken: str) -> None:
    """A damaged file gives a ModelError, whatever the library makes of it."""
    (tmp_path / "segmentation-3.0").mkdir()
    for name in ("segmentation-3.0/pytorch_model.bin", "wespeaker-campplus.onnx", "config.yaml"):
        if name.endswith(broken):
            (tmp_path / name).write_bytes(b"{not a model")
        elif (model / name).exists():
            (tmp_path / name).symlink_to(model / name)
    with pytest.raises(ModelError, match=r"cannot read.*emiliad models pull"):
        Diarizer(tmp_path)


def test_another_kind_of_pipeline_is_refused(tmp_path: Path) -> None:
    """Only a SpeakerDiarization yields speakers' turns."""
    (tmp_path / "config.yaml").write_text(
        "pipeline: {name: pyannote.audio.pipelines.VoiceActivityDetection, params: {}}"
    )
    with pytest.raises(ModelError, match=r"VoiceActivityDetection, not a SpeakerDiarization"):
        Diarizer(tmp_path)


# The library's surroundings.

OFFLINE = """
import json, os, sys
used = []
sys.addaudithook(lambda event, _: used.append(event) if event.startswith("socket.") else None)
import numpy as np
from pathlib import Path
from pipeline.diarize import Diarizer
Diarizer(Path(sys.argv[1]))(np.random.default_rng(0).normal(0, 0.1, 24000).astype("float32"))
asked = [event for event in used if event in ("socket.connect", "socket.getaddrinfo")]
print(json.dumps([asked, os.environ["PYANNOTE_METRICS_ENABLED"], os.environ["HF_HUB_OFFLINE"]]))
"""


def test_nothing_is_sent_and_nothing_fetched(model: Path) -> None:
    """Import, loading and a run open no connection and look up no name; telemetry is off."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[], "0", "1"]


TORCHAUDIO = """
import sys
from pipeline._torchaudio import import_torchaudio
import_torchaudio()
first = sys.modules["torchaudio"]
import_torchaudio()
assert sys.modules["torchaudio"] is first
extension = sys.modules["torchaudio._extension"]
print(getattr(extension, "__file__", None) is not None, extension._IS_TORCHAUDIO_EXT_AVAILABLE)
"""


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ("_IS_TORCHAUDIO_EXT_AVAILABLE = True", "True True"),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "False False"),
        ("raise RuntimeError('compiled with different CUDA versions')", "False False"),
    ],
)
def test_torchaudio_keeps_an_extension_that_loads(
    tmp_path: Path, extension: str, expected: str
) -> None:
    """The stand-in for the extension is used only where the extension cannot load."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("from . import _extension")
    (package / "_extension.py").write_text(extension)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{TORCHAUDIO}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_torchaudio_says_what_it_lacks() -> None:
    """A function that needs the absent extension raises when it is called, not before."""
    from pipeline._torchaudio import _absent_extension

    def align() -> None: ...

    refused = _absent_extension().fail_if_no_align(align)
    with pytest.raises(RuntimeError, match="align needs torchaudio's C\\+\\+ extension"):
        refused()
