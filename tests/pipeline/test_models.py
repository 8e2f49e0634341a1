"""Where the models are, whether they are whole, and what they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ModelError, PipelineConfig
from pipeline.models import SETS, identities, list_models, locate, verify
from pipeline.sources import HuggingFace

VAD = "vad/silero_vad_16k_sequence.onnx"


@pytest.fixture
def copied(models_dir: Path, tmp_path: Path) -> Path:
    """A MODELS_DIR with the real demo set, of which a test may damage its own copy."""
    shutil.copytree(models_dir / "demo", tmp_path / "demo", copy_function=os.link)
    return tmp_path


def damage(path: Path, body: bytes) -> None:
    """Replaces a file, leaving the one it was linked to as it is."""
    path.unlink()
    path.write_bytes(body)


def demo(models_dir: Path, **settings: object) -> PipelineConfig:
    return PipelineConfig(models="demo", models_dir=models_dir, **settings)  # type: ignore[arg-type]


@pytest.mark.models
def test_real_demo_set_is_whole(models_dir: Path) -> None:
    """Every file of the demo set is there, with the bytes that the catalogue says."""
    assert verify("demo", models_dir) == []
    assert {row.state for row in list_models(models_dir) if row.set == "demo"} == {"present"}


@pytest.mark.models
def test_demo_is_located(models_dir: Path) -> None:
    """Each stage gets the file or folder that it loads."""
    paths = locate(demo(models_dir))
    assert paths.separation.name == "passthrough.onnx"
    assert (paths.diarization / "segmentation-3.0" / "pytorch_model.bin").is_file()
    assert (paths.diarization / "wespeaker-campplus.onnx").is_file()
    assert paths.vad == models_dir / "demo" / VAD
    assert (paths.asr / "model.bin").is_file()
    assert paths.dnsmos.name == "sig_bak_ovr.onnx"


def test_everything_missing_is_named(tmp_path: Path) -> None:
    """The error names each missing file, the set, MODELS_DIR and what to type."""
    with pytest.raises(ModelError) as caught:
        locate(demo(tmp_path))
    said = str(caught.value)
    for file in SETS["demo"].files:
        assert file.path in said
    assert "the set demo" in said
    assert f"MODELS_DIR is {tmp_path}" in said
    assert "`MODELS=demo emiliad models pull`" in said


def test_only_what_is_used_must_be_there(tmp_path: Path) -> None:
    """The models of a set that are not the chosen ones may be missing."""
    with pytest.raises(ModelError) as caught:
        locate(PipelineConfig(models_dir=tmp_path))
    assert "whisper-medium" in str(caught.value)
    assert "speaker-diarization-community-1" in str(caught.value)
    assert "turbo" not in str(caught.value)
    assert "3.1" not in str(caught.value)


@pytest.mark.models
def test_truncated_model_is_named(copied: Path) -> None:
    """A model of the wrong length is found before any stage tries to load it."""
    damage(copied / "demo" / VAD, b"half")
    with pytest.raises(ModelError, match=f"{VAD} has 4 bytes instead of 1246165"):
        locate(demo(copied))


@pytest.mark.models
def test_corrupted_model_is_named(copied: Path) -> None:
    """One wrong byte in one file: `verify` names that file and both hashes, `list` shows it."""
    path = copied / "demo" / VAD
    body = bytearray(path.read_bytes())
    right = hashlib.sha256(body).hexdigest()
    body[1000] ^= 1
    damage(path, bytes(body))
    (problem,) = verify("demo", copied)
    assert (problem.file, problem.kind) == (VAD, "sha256")
    wrong = hashlib.sha256(body).hexdigest()
    assert str(problem) == f"{VAD} has the sha256 {wrong} instead of {right}"
    states = {row.role: row.state for row in list_models(copied) if row.set == "demo"}
    assert states.pop("vad") == "damaged"
    assert set(states.values()) == {"present"}


@pytest.mark.models
def test_corruption_that_keeps_the_time_is_found(copied: Path) -> None:
    """`verify` reads the bytes; it does not trust a file that looks unchanged."""
    path = copied / "demo" / "dnsmos" / "sig_bak_ovr.onnx"
    before = path.stat()
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    damage(path, bytes(body))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [problem.file for problem in verify("demo", copied)] == ["dnsmos/sig_bak_ovr.onnx"]


@pytest.mark.models
def test_folder_in_place_of_a_file_is_named(copied: Path) -> None:
    """What cannot be read as a file is reported, not raised."""
    (copied / "demo" / VAD).unlink()
    (copied / "demo" / VAD).mkdir()
    (problem,) = verify("demo", copied)
    assert str(problem) == f"{VAD} cannot be read"


def test_missing_set_is_listed_and_verified(tmp_path: Path) -> None:
    """Of a set that was never pulled every file is missing; sizes and homes are still told."""
    assert {problem.kind for problem in verify("emilia", tmp_path)} == {"missing"}
    rows = [row for row in list_models(tmp_path) if row.set == "emilia"]
    assert {row.state for row in rows} == {"missing"}
    assert all(row.size and row.licence and row.home.startswith("https://") for row in rows)


def test_unknown_set_is_refused(tmp_path: Path) -> None:
    """A set that there is not is named, with those that there are."""
    with pytest.raises(ModelError, match="no set of models 'nonsense': the sets are emilia, demo"):
        verify("nonsense", tmp_path)


# --- the user's own -------------------------------------------------------------------------------


@pytest.mark.models
def test_own_models_take_the_place_of_the_sets(models_dir: Path, tmp_path: Path) -> None:
    """SEPARATION_MODEL, DNSMOS_MODEL, ASR_MODEL and DIARIZATION_MODEL may be paths."""
    net = tmp_path / "my.onnx"
    net.write_bytes(b"net")
    whisper, pyannote = tmp_path / "whisper", tmp_path / "pyannote"
    for folder, names in (
        (whisper, ("model.bin", "config.json", "tokenizer.json")),
        (pyannote, ("config.yaml",)),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(name.encode())
    paths = locate(
        demo(
            models_dir,
            separation_model=net,
            dnsmos_model=net,
            asr_model=str(whisper),
            diarization_model=str(pyannote),
        )
    )
    assert (paths.separation, paths.dnsmos) == (net, net)
    assert (paths.asr, paths.diarization) == (whisper, pyannote)
    named = identities(paths, models_dir)
    assert named["separation"] == {"name": "my.onnx", "sha256": hashlib.sha256(b"net").hexdigest()}
    assert named["asr"]["name"] == "whisper"


@pytest.mark.models
def test_own_models_that_are_not_there_are_all_named(models_dir: Path, tmp_path: Path) -> None:
    """Each variable whose path is wrong is named, with what it lacks."""
    with pytest.raises(ModelError) as caught:
        locate(
            demo(
                models_dir,
                separation_model=tmp_path / "no.onnx",
                asr_model=str(tmp_path),
                diarization_model="4.2",
            )
        )
    said = str(caught.value)
    assert f"SEPARATION_MODEL: there is no readable file {tmp_path / 'no.onnx'}" in said
    assert f"ASR_MODEL: there is no tokenizer.json in {tmp_path}" in said
    assert "DIARIZATION_MODEL: '4.2' is neither a folder nor one of community-1, 3.1" in said


@pytest.mark.parametrize("name", ["large-v3-turbo", "whisper-large-v3-turbo"])
def test_model_of_another_set_can_be_chosen(tmp_path: Path, name: str) -> None:
    """ASR_MODEL may name a Whisper of a set; what is missing is said for that set."""
    with pytest.raises(ModelError) as caught:
        locate(demo(tmp_path, asr_model=name))
    for_turbo = str(caught.value).split("; ")[-2:]
    assert "the set emilia" in for_turbo[0]
    assert "asr/whisper-large-v3-turbo/model.bin" in for_turbo[0]
    assert for_turbo[1] == "run `MODELS=emilia emiliad models pull`"


# --- identities -----------------------------------------------------------------------------------


@pytest.mark.models
def test_identities_are_the_files_hashes(models_dir: Path) -> None:
    """A file's identity is its sha256; a folder's is that of its listing by `sha256sum`."""
    paths = locate(demo(models_dir))
    named = identities(paths, models_dir)
    assert list(named) == ["separation", "diarization", "vad", "asr", "dnsmos"]
    assert named["vad"] == {
        "name": "silero-vad-6.2.3",
        "sha256": hashlib.sha256(paths.vad.read_bytes()).hexdigest(),
    }
    listing = subprocess.run(
        ["sha256sum", "config.json", "model.bin", "tokenizer.json", "vocabulary.json"],
        cwd=paths.asr,
        capture_output=True,
        check=True,
    ).stdout
    assert named["asr"] == {"name": "whisper-base", "sha256": hashlib.sha256(listing).hexdigest()}


@pytest.mark.models
def test_unchanged_files_are_not_read_again(copied: Path) -> None:
    """While size and time are as recorded the recorded hash holds; after a change the true one."""
    path, record = copied / "demo" / VAD, copied / "demo" / "models.json"
    true = hashlib.sha256(path.read_bytes()).hexdigest()
    known = json.loads(record.read_text())
    found = path.stat()
    known["files"][VAD] = {
        "sha256": "recorded",
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
    }
    damage(record, json.dumps(known).encode())
    paths = locate(demo(copied))
    assert identities(paths, copied)["vad"]["sha256"] == "recorded"
    damage(path, path.read_bytes())
    assert identities(paths, copied)["vad"]["sha256"] == true


@pytest.mark.models
def test_identity_of_a_vanished_model_is_an_error(copied: Path) -> None:
    """A file that disappears after it was located is named."""
    paths = locate(demo(copied))
    paths.vad.unlink()
    with pytest.raises(ModelError, match=f"{VAD} cannot be read: No such file"):
        identities(paths, copied)


# --- the catalogue --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_set_serves_every_stage(name: str) -> None:
    """Each role has a model, and no two files of a set share a path."""
    chosen = SETS[name]
    for role in ("separation", "diarization", "vad", "asr", "dnsmos"):
        assert chosen.of_role(role)
    paths = [file.path for file in chosen.files]
    assert len(set(paths)) == len(paths)
    for model in chosen.models:
        assert all(file.path.startswith(model.path) for file in model.files)


def test_downloads_are_pinned() -> None:
    """Every download has a whole sha256 and a size; revisions are commits, not branches."""
    for file in SETS["emilia"].files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256 or ""), file.path
        assert file.size, file.path
        if isinstance(file.source, HuggingFace):
            assert re.fullmatch("[0-9a-f]{40}", file.source.revision), file.path


def test_looking_costs_no_library() -> None:
    """Neither finding nor pulling models imports numpy or an ML library."""
    code = (
        "import sys, pipeline.models, pipeline.fetch; "
        "print(*{'torch', 'numpy', 'onnx', 'onnxruntime', 'pyannote', 'faster_whisper', 'yaml'}"
        " & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"
