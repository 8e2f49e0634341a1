"""Bad input through the real daemon with the real pipeline: one sentence each, nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from tests.emiliad.rig import Bucket, small_disk

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Bucket:
    settings = {"PIPELINE": "pipeline:Pipeline", "MODELS": "demo", "MODELS_DIR": str(models_dir)}
    return Bucket(tmp_path_factory.mktemp("bad"), {**settings, "LEASE_TTL_S": "300"})


def silent_wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16_000 * 4))
    return path


def silent_film(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path


BROKEN = {
    "empty": "empty",
    "text": "not audio",
    "film": "no sound",
}
SPEECH = ['it\'s a "talk" 🎙', "two\nlines", "dots..inside", "n" * 250, "wrong extension"]


@pytest.fixture(scope="module")
def processed(bucket: Bucket, jfk: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """A bucket of good and bad files after one run of the daemon."""
    made = tmp_path_factory.mktemp("made")
    speech = jfk.read_bytes()
    bucket.put_audio("empty.mp3", b"")
    bucket.put_audio("text.mp3", b"this is a text, whatever its name says\n" * 99)
    bucket.put_audio("film.mp4", silent_film(made / "film.mp4").read_bytes())
    bucket.put_audio("silence.wav", silent_wav(made / "silence.wav").read_bytes())
    for name in SPEECH[:-1]:
        bucket.put_audio(f"{name}.flac", speech)
    bucket.put_audio("wrong extension.mp3", speech)
    assert bucket.emiliad("enqueue").returncode == 0
    done = bucket.emiliad("run", "--exit-when-empty")
    assert done.returncode == 1, done.stderr
    return bucket


def test_broken_files_are_dead_letters_with_their_reason(processed: Bucket) -> None:
    """One attempt each, for no other would help; the sentence names what is wrong."""
    letters = processed.tasks("failed")
    assert letters.keys() == BROKEN.keys()
    for name, letter in letters.items():
        (attempt,) = letter["attempts"]
        assert attempt["kind"] == "bad_audio"
        assert BROKEN[name] in attempt["reason"], attempt["reason"]
        assert "\n" not in attempt["reason"]


def test_good_files_beside_them_are_completed_whatever_their_name(processed: Bucket) -> None:
    """Spaces, quotes, newlines, emoji, dots, 250 bytes: each has its segments."""
    records = processed.tasks("completed")
    assert len(records) == len(SPEECH) + 1
    with_speech = [record for record in records.values() if record["segments"]]
    assert len(with_speech) == len(SPEECH)
    for episode, record in records.items():
        assert len(episode.encode()) <= 209
        assert not any(character < " " for character in episode)
        processed.verify_outputs(episode, record)


def test_silence_is_a_success(processed: Bucket) -> None:
    """An episode without speech has zero segments and is completed."""
    rows = json.loads((processed.outputs("silence") / "all_segments.json").read_text())
    assert rows == []


def test_nothing_is_left_behind(processed: Bucket) -> None:
    """No lease, no scratch, no litter, after good and bad alike."""
    processed.verify_settled()


def test_process_says_which_file_is_bad_and_does_the_others(
    bucket: Bucket, jfk: Path, tmp_path: Path
) -> None:
    """Exit code 1 and one sentence that names the file; the good one has its folder."""
    text = tmp_path / "text.mp3"
    text.write_text("no audio at all\n" * 99)
    out = tmp_path / "out"
    done = bucket.emiliad("process", str(text), str(jfk), "--out", str(out))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("emiliad: ")]
    assert str(text) in line
    assert [path.name for path in out.iterdir()] == ["jfk"]


def test_process_names_a_file_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    """A missing file is one sentence and exit code 1."""
    done = bucket.emiliad("process", str(tmp_path / "nowhere.mp3"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "nowhere.mp3" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["garbage", "missing"])
def test_an_unusable_model_ends_the_daemon_before_it_takes_work(
    bucket: Bucket, models_dir: Path, tmp_path: Path, how: str
) -> None:
    """One sentence that names the file and what to do, exit code 2, no task touched."""
    shutil.copytree(models_dir / "demo", tmp_path / "models" / "demo")
    model = tmp_path / "models" / "demo" / "dnsmos" / "sig_bak_ovr.onnx"
    if how == "garbage":
        model.write_bytes(os.urandom(model.stat().st_size))
    else:
        model.unlink()
    own = Bucket(tmp_path, {**bucket.settings, "MODELS_DIR": str(tmp_path / "models")})
    own.put_audio("one.mp3")
    own.emiliad("enqueue")
    done = own.emiliad("run", "--exit-when-empty")
    assert done.returncode == 2, done.stderr
    assert "sig_bak_ovr.onnx" in done.stderr
    assert "emiliad models pull" in done.stderr
    assert "Traceback" not in done.stderr
    assert own.tasks("in_progress") == {}


def test_full_scratch_costs_no_attempt(tmp_path: Path) -> None:
    """What does not fit is handed back uncounted, the daemon says so and lives, others go on."""
    own = Bucket(tmp_path)
    with small_disk(tmp_path / "small", "1M"):
        own.put_audio("large.mp3", bytes(3_000_000))
        own.put_audio("small.mp3")
        own.emiliad("enqueue")
        with own.daemon(SCRATCH_DIR=str(tmp_path / "small")) as daemon:
            daemon.until("scratch.full")
            daemon.until("task.completed", episode_id="small")
            assert daemon.process.poll() is None
    assert own.tasks("failed") == {}
    assert own.tasks("in_progress")["large"]["attempt"] == 0


def test_a_full_store_ends_the_daemon_with_everything_in_the_queue(tmp_path: Path) -> None:
    """One sentence, exit code 1, and no half-written object; the task is still to be done."""
    own = Bucket(tmp_path)
    with small_disk(tmp_path / "bucket", "256k"):
        own.put_audio("one.mp3")
        assert own.emiliad("enqueue").returncode == 0
        filler = tmp_path / "bucket" / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        done = own.emiliad("run", "--exit-when-empty")
        assert done.returncode == 1
        assert "full" in done.stderr or "No space" in done.stderr
        assert "Traceback" not in done.stderr
        assert own.tasks("todo").keys() == {"one"}
        assert own.tasks("completed") == {}
