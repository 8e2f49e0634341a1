"""`emiliad doctor`: one line a check, and an exit code that scripts can rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emiliad.rig import Bucket


def lines(bucket: Bucket, **env: str) -> tuple[int, dict[str, str]]:
    """The exit code, and `ok` or `broken` with its finding for each check."""
    done = bucket.emiliad("doctor", COLUMNS="1000", **env)
    found = {}
    for line in done.stderr.splitlines():
        verdict, _, rest = line.partition(" ")
        name, _, finding = rest.strip().partition(": ")
        found[name] = f"{verdict}: {finding}"
    return done.returncode, found


def test_a_sound_machine_is_all_ok_and_nothing_is_left_in_the_store(tmp_path: Path) -> None:
    """Scratch, store, conditional writes, GPUs: a line each, exit code 0, no litter."""
    bucket = Bucket(tmp_path)
    code, found = lines(bucket)
    assert code == 0, found
    assert list(found) == ["scratch", "store", "conditional writes", "GPUs"]
    assert all(line.startswith("ok: ") for line in found.values())
    kept = [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
    assert [path for path in kept if ".emiliad" not in path.parts] == []


def test_what_is_broken_is_named_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    """Exit code 1; each broken part says what to do."""
    code, found = lines(Bucket(tmp_path), SCRATCH_DIR="/proc/nowhere", DEVICE="cuda")
    assert code == 1
    assert found["scratch"].startswith("broken: ")
    assert "/proc/nowhere" in found["scratch"]
    assert "DEVICE=cuda" in found["GPUs"]
    assert found["conditional writes"].startswith("ok: ")


@pytest.mark.models
def test_every_model_is_proved_to_run(tmp_path: Path, models_dir: Path) -> None:
    """With the real pipeline, each model is loaded and run once, and the stages are named."""
    real = {"PIPELINE": "pipeline:Pipeline", "MODELS": "demo", "MODELS_DIR": str(models_dir)}
    code, found = lines(Bucket(tmp_path, real))
    assert code == 0, found
    assert all(
        stage in found["pipeline"]
        for stage in ("separate", "diarize", "segment", "transcribe", "score")
    )


def test_missing_models_are_told_once(tmp_path: Path) -> None:
    """Without models there is one line about them, and none about the pipeline."""
    real = {"PIPELINE": "pipeline:Pipeline", "MODELS": "demo", "MODELS_DIR": str(tmp_path / "none")}
    code, found = lines(Bucket(tmp_path, real))
    assert code == 1
    assert "emiliad models pull" in found["models"]
    assert "pipeline" not in found
