"""The story: what emiliad does for its user, told by the commands that he types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.emiliad.rig import Bucket


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def test_raw_audio_becomes_segments(bucket: Bucket) -> None:
    """Drop audio into the bucket, enqueue it, run the daemon: the segments are there."""
    bucket.put_audio("one.mp3")
    bucket.put_audio("two.wav", language="fr")

    assert bucket.emiliad("enqueue").returncode == 0
    assert bucket.tasks("todo")["one"]["audio_key"] == "raw_audio/en/one.mp3"

    assert bucket.emiliad("run", "--exit-when-empty").returncode == 0
    assert bucket.tasks("completed").keys() == {"one", "two"}
    rows = json.loads((bucket.outputs("two", "fr") / "all_segments.json").read_text())
    assert [row["audio"] for row in rows] == [f"two_{i:06d}.mp3" for i in range(len(rows))]
    bucket.verify_settled()


def test_enqueue_may_be_repeated(bucket: Bucket) -> None:
    """A second scan creates nothing, before or after the work is done."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    bucket.emiliad("enqueue")
    assert bucket.tasks("todo").keys() == {"one"}
    bucket.emiliad("run", "--exit-when-empty")
    bucket.emiliad("enqueue")
    assert bucket.tasks("todo") == {}


def test_a_bad_file_becomes_a_dead_letter_and_harms_no_other(bucket: Bucket) -> None:
    """What no attempt can mend is recorded with its reason at once; `retry` puts it back."""
    bucket.put_audio("bad_audio.mp3")
    bucket.put_audio("good.mp3")
    bucket.emiliad("enqueue")

    done = bucket.emiliad("run", "--exit-when-empty")

    assert done.returncode == 1
    assert bucket.tasks("completed").keys() == {"good"}
    letter = bucket.tasks("failed")["bad_audio"]
    assert letter["audio_key"] == "raw_audio/en/bad_audio.mp3"
    assert letter["attempts"][-1]["kind"] == "bad_audio"
    assert letter["attempts"][-1]["reason"]
    bucket.verify_settled()

    assert bucket.emiliad("retry", "bad_audio").returncode == 0
    assert bucket.tasks("failed") == {}
    assert bucket.tasks("todo").keys() == {"bad_audio"}


def test_status_tells_how_far_the_queue_is(bucket: Bucket) -> None:
    """Todo, in progress, completed and failed, for people and for machines."""
    for name in ("one.mp3", "two.mp3", "bad_audio.mp3"):
        bucket.put_audio(name)
    bucket.emiliad("enqueue")
    assert bucket.status()["todo"] == 3
    bucket.emiliad("run", "--exit-when-empty")
    status = bucket.status()
    assert (status["todo"], status["completed"], status["failed"]) == (0, 2, 1)
    assert status["audio_hours"] > 0
    assert "completed" in bucket.emiliad("status").stderr


def test_process_needs_no_queue(bucket: Bucket) -> None:
    """Local files in, one folder for each out, as the bucket would have it."""
    audio = bucket.put_audio("talk.mp3")
    out = bucket.root / "out"
    done = bucket.emiliad("process", str(audio), "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "talk" / "all_segments.json").read_text())
    assert all((out / "talk" / row["audio"]).exists() for row in rows)
    assert [path.name for path in out.iterdir()] == ["talk"]
