"""Bad input through real commands on real S3 servers: one sentence, or a dead letter, each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emiliad.queue.tasks import hashed_id
from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy
from tests.emiliad.rig import Bucket, wait_until
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import READER, READER_SECRET, Server

MISTAKES = {
    "wrong endpoint": ({"R2_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be"),
    "wrong keys": ({"R2_SECRET_ACCESS_KEY": "wrong"}, "refuses the keys"),
    "missing bucket": ({"R2_BUCKET": "nowhere"}, "there is no bucket nowhere"),
    "no write permission": (
        {"R2_ACCESS_KEY_ID": READER, "R2_SECRET_ACCESS_KEY": READER_SECRET},
        "does not let these keys write objects",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_daemon_says_in_one_sentence_what_is_wrong_with_its_bucket(
    request: pytest.FixtureRequest, tmp_path: Path, mistake: str
) -> None:
    """Exit code 1, one line on stderr, before anything is done."""
    # SeaweedFS makes a bucket that is written to; moto lets anyone write.
    name = "moto_server" if mistake == "missing bucket" else "weed_server"
    server: Server = request.getfixturevalue(name)
    env, said = MISTAKES[mistake]
    bucket = Bucket(tmp_path, server.with_bucket().environment())
    done = bucket.emiliad("run", "--exit-when-empty", **env)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("emiliad: ")
    assert said in line


def test_an_enqueue_that_may_not_write_says_so(weed_bucket: Server, tmp_path: Path) -> None:
    """And counts nothing as created."""
    bucket = S3Bucket(tmp_path, weed_bucket)
    bucket.put_audio("one.mp3")
    reader = {"R2_ACCESS_KEY_ID": READER, "R2_SECRET_ACCESS_KEY": READER_SECRET}
    done = bucket.emiliad("enqueue", **reader)
    assert done.returncode == 1
    assert "does not let these keys write objects" in done.stderr
    assert "created" not in done.stderr
    assert "Traceback" not in done.stderr


LONG = "y" * 240  # an id of more than 200 bytes
TODOS: dict[str, bytes] = {
    "text": b"this is no JSON",
    "short": json.dumps({"episode_id": "short", "language": "en"}).encode(),
    "gone": json.dumps(
        {"episode_id": "gone", "language": "en", "audio_key": "raw_audio/en/gone.mp3"}
    ).encode(),
    "stranger": json.dumps(
        {"episode_id": "a/b", "language": "en", "audio_key": "raw_audio/en/good.mp3"}
    ).encode(),
    "a/b": json.dumps(
        {"episode_id": "a/b", "language": "en", "audio_key": "raw_audio/en/good.mp3"}
    ).encode(),
    LONG: json.dumps(
        {"episode_id": LONG, "language": "en", "audio_key": "raw_audio/en/long.mp3"}
    ).encode(),
}
REASONS = {
    "text": ("bad_task", "not JSON"),
    "short": ("bad_task", "lacks the key audio_key"),
    "gone": ("missing_audio", "raw_audio/en/gone.mp3"),
    "stranger": ("bad_task", "says that it is 'a/b'"),
}


def test_bad_todos_become_dead_letters_and_harm_no_other(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """With the reason; an id that is too long is replaced, one with a slash is warned of, and raw
    keys of 1,024 bytes are like any other."""
    bucket = S3Bucket(tmp_path, weed_bucket)
    for name, body in TODOS.items():
        key = f"tasks/processing_todo/{name}.task"
        bucket.client.put_object(Bucket=weed_bucket.bucket, Key=key, Body=body)
    bucket.put_audio("good.mp3")
    bucket.put_audio("long.mp3")
    deep = f"{'d' * 251}/{'e' * 251}/{'f' * 251}/{'g' * 251}.mp3"
    largest = str(bucket.put_audio(deep))
    assert len(largest) == 1024
    scanned = bucket.emiliad("enqueue")
    assert scanned.returncode == 0, scanned.stderr
    with bucket.daemon("--exit-when-empty") as daemon:
        assert daemon.ends() == 1
        (warned,) = daemon.events("todo.ignored")
        assert "a/b.task" in warned["key"]
    letters = bucket.tasks("failed")
    assert letters.keys() == REASONS.keys()
    for name, (kind, reason) in REASONS.items():
        (attempt,) = letters[name]["attempts"]
        assert attempt["kind"] == kind
        assert reason in attempt["reason"]
    moved = hashed_id("raw_audio/en/long.mp3")
    assert bucket.tasks("completed").keys() >= {"good", moved, hashed_id(largest)}
    left = bucket.keys("tasks/processing_todo/")
    assert f"tasks/processing_todo/{LONG}.task" not in left
    assert "tasks/processing_todo/a/b.task" in left
    for episode, record in bucket.tasks("completed").items():
        bucket.verify_outputs(episode, record)


@pytest.mark.parametrize("episode", ["a/b", "../../etc/passwd", "x" * 1024, "/", " "])
def test_an_id_that_no_task_has_is_told(weed_bucket: Server, tmp_path: Path, episode: str) -> None:
    """`retry` of a name that cannot be: one sentence, exit code 1, on R2 and in a directory."""
    on_s3 = S3Bucket(tmp_path / "s3", weed_bucket)
    for bucket in (Bucket(tmp_path / "local"), on_s3):
        bucket.root.mkdir()
        done = bucket.emiliad("retry", episode)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()


def test_a_second_file_of_one_name_comes_while_the_first_is_finished(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """Both are done, each under an id of its own, and neither's outputs are the other's."""
    publishing: list[Exchange] = []

    def rule(exchange: Exchange) -> Fault | None:
        if exchange.method == "PUT" and "/processed/" in exchange.path:
            publishing.append(exchange)
            return Fault(late_s=1.0) if len(publishing) == 1 else None
        return None

    with FaultProxy(weed_bucket.endpoint, rule).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        direct = S3Bucket(tmp_path, weed_bucket)
        bucket.put_audio("one.mp3", b"first")
        assert direct.emiliad("enqueue").returncode == 0
        with bucket.daemon() as daemon:
            wait_until(lambda: bool(publishing))
            second = str(bucket.put_audio("one.wav", b"second" * 99, language="fr"))
            assert "1 created, 0 existing, 1 done" in direct.emiliad("enqueue").stderr
            daemon.until("task.completed", episode_id="one")
            daemon.until("task.completed", episode_id=hashed_id(second))
    records = bucket.tasks("completed")
    assert {name: record["audio_key"] for name, record in records.items()} == {
        "one": "raw_audio/en/one.mp3",
        hashed_id(second): second,
    }
    bucket.verify_outputs("one", records["one"])
    bucket.verify_outputs(hashed_id(second), records[hashed_id(second)])
    assert "2 done" in direct.emiliad("enqueue").stderr
