"""Doing all of it again: a new generation under other prefixes, beside the old one."""

from __future__ import annotations

from pathlib import Path

from tests.emiliad.rig import Bucket


def everything(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_new_generation_leaves_the_old_one_as_it_is(tmp_path: Path) -> None:
    """As docs/queue.md says: other prefixes, the same raw files; both are whole in the end."""
    first = Bucket(tmp_path)
    for name in ("one.mp3", "two.mp3", "bad_audio.mp3"):
        first.put_audio(name)
    first.emiliad("enqueue")
    assert first.emiliad("run", "--exit-when-empty").returncode == 1
    again = first.emiliad("enqueue")
    assert "0 created, 1 existing (1 failed), 2 done" in again.stderr
    before = everything(tmp_path / "bucket")

    prefixes = {"PROCESSED_PREFIX": "processed-v2/", "TASKS_BASE_PREFIX": "tasks-v2/"}
    assert "3 created" in first.emiliad("enqueue", **prefixes).stderr
    (tmp_path / "bucket/raw_audio/en/bad_audio.mp3").rename(
        tmp_path / "bucket/raw_audio/en/mended.mp3"
    )
    assert first.emiliad("run", "--exit-when-empty", **prefixes).returncode == 1
    assert "1 created" in first.emiliad("enqueue", **prefixes).stderr
    assert first.emiliad("run", "--exit-when-empty", **prefixes).returncode == 0
    assert first.emiliad("verify", **prefixes).returncode == 0

    after = everything(tmp_path / "bucket")
    old = {key: body for key, body in before.items() if key.startswith(("processed/", "tasks/"))}
    assert {key: body for key, body in after.items() if key in old} == old
    new = [key for key in after if key.startswith("processed-v2/en/")]
    assert {key.split("/")[2] for key in new} == {"one", "two", "mended"}
    for name in ("one", "two"):  # attempts differ in bytes
        path = f"en/{name}/all_segments.json"
        assert after[f"processed-v2/{path}"] != after[f"processed/{path}"]
    first.verify_settled()
