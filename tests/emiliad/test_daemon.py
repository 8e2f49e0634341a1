"""The daemon under real signals: killed, stopped, and several at once on one store."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.emiliad.rig import Bucket, alive, wait_until


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def test_a_killed_executor_costs_an_attempt_not_the_task(bucket: Bucket) -> None:
    """SIGKILL of the executor in mid-task: another child is started, the task is done again."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    with bucket.daemon("--exit-when-empty", FAKE_SECONDS="2", LOG_LEVEL="debug") as daemon:
        daemon.until("executor.began")
        os.kill(daemon.executors()[0], signal.SIGKILL)
        daemon.until("task.retried", episode_id="one", kind="crash")
        assert daemon.ends() == 0
        assert len(daemon.executors()) == 2
    assert bucket.tasks("completed")["one"]["attempt"] == 2
    bucket.verify_settled()


def test_a_killed_daemons_task_is_completed_by_the_next(bucket: Bucket) -> None:
    """SIGKILL of the daemon in mid-task leaves no executor alive; the next start takes it over."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    with bucket.daemon(FAKE_SECONDS="30", LOG_LEVEL="debug") as daemon:
        daemon.until("executor.began")
        (executor,) = daemon.executors()
        daemon.signal(signal.SIGKILL)
        wait_until(lambda: not alive(executor), lambda: "the executor outlived its daemon")
    assert bucket.tasks("todo").keys() == {"one"}

    assert bucket.emiliad("run", "--exit-when-empty").returncode == 0
    assert bucket.tasks("completed").keys() == {"one"}
    bucket.verify_settled()


def test_another_node_takes_over_when_the_lease_expires(bucket: Bucket) -> None:
    """A dead node's task waits for the TTL, then an owner with another scratch completes it."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    with bucket.daemon(FAKE_SECONDS="30", LOG_LEVEL="debug") as daemon:
        daemon.until("executor.began")
        daemon.signal(signal.SIGKILL)
    other = {"SCRATCH_DIR": str(bucket.root / "other")}
    assert bucket.emiliad("run", "--exit-when-empty", **other).returncode == 0
    assert bucket.tasks("completed")["one"]["attempt"] == 1  # a lost owner is no failure
    bucket.verify_settled(scratch="other")


def test_a_file_that_crashes_every_executor_is_given_up(bucket: Bucket) -> None:
    """After MAX_ATTEMPTS crashes the task is a dead letter; the others are unharmed."""
    bucket.put_audio("segfault.mp3")
    bucket.put_audio("good.mp3")
    bucket.emiliad("enqueue")
    assert bucket.emiliad("run", "--exit-when-empty", MAX_ATTEMPTS="2").returncode == 1
    letter = bucket.tasks("failed")["segfault"]
    assert [attempt["kind"] for attempt in letter["attempts"]] == ["crash", "crash"]
    assert "SIGSEGV" in letter["attempts"][-1]["reason"]
    assert bucket.tasks("completed").keys() == {"good"}
    bucket.verify_settled()


def test_every_kind_of_misbehaviour_ends_as_it_should(bucket: Bucket) -> None:
    """Whatever a pipeline does wrong, its task is dead-lettered with the kind, nothing else is."""
    kinds = {
        "raises": "error",
        "bad_audio": "bad_audio",
        "exit42": "crash",
        "oom": "out_of_memory",
        "garbage": "garbage",
    }
    for name in (*kinds, "prints", "good"):
        bucket.put_audio(f"{name}.mp3")
    bucket.emiliad("enqueue")
    done = bucket.emiliad("run", "--exit-when-empty", MAX_ATTEMPTS="1")
    assert done.returncode == 1
    failed = bucket.tasks("failed")
    assert {name: letter["attempts"][-1]["kind"] for name, letter in failed.items()} == kinds
    assert bucket.tasks("completed").keys() == {"good", "prints"}
    bucket.verify_settled()


def test_sigterm_drains(bucket: Bucket) -> None:
    """Running work is finished, waiting work is handed back, nothing is held; exit code 0."""
    for number in range(5):
        bucket.put_audio(f"{number}.mp3")
    bucket.emiliad("enqueue")
    with bucket.daemon(FAKE_SECONDS="3", LOG_LEVEL="debug") as daemon:
        daemon.until("executor.began")
        wait_until(lambda: len(bucket.tasks("in_progress")) >= 3)
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0
        assert len(daemon.events("task.completed")) == 1
        assert len(daemon.events("task.released")) >= 1
    assert len(bucket.tasks("completed")) == 1
    states = Counter(claim["state"] for claim in bucket.tasks("in_progress").values())
    assert states["leased"] == 0
    assert len(bucket.tasks("todo")) == 4


@pytest.mark.parametrize("how", ["second signal", "deadline"])
def test_work_that_cannot_end_in_time_is_handed_back(bucket: Bucket, how: str) -> None:
    """A second signal, or the end of DRAIN_TIMEOUT_S, releases running work; no child survives."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    drain = "0.5" if how == "deadline" else "60"
    with bucket.daemon(FAKE_SECONDS="60", LOG_LEVEL="debug", DRAIN_TIMEOUT_S=drain) as daemon:
        daemon.until("executor.began")
        (executor,) = daemon.executors()
        daemon.signal(signal.SIGTERM)
        if how == "second signal":
            daemon.until("daemon.drain")
            daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0
        assert not alive(executor)
        assert len(daemon.events("task.released")) == 1
    claim = bucket.tasks("in_progress")["one"]
    assert (claim["state"], claim["attempt"]) == ("free", 0)
    assert bucket.emiliad("run", "--exit-when-empty").returncode == 0
    assert bucket.tasks("completed")["one"]["attempt"] == 1


def test_three_daemons_commit_thirty_tasks_once_each(bucket: Bucket) -> None:
    """Every task is completed by exactly one attempt, and its outputs are that attempt's."""
    for number in range(30):
        bucket.put_audio(f"{number:02}.mp3")
    bucket.emiliad("enqueue")
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(
                bucket.daemon("--exit-when-empty", SCRATCH_DIR=str(bucket.root / f"scratch-{n}"))
            )
            for n in range(3)
        ]
        assert [daemon.ends() for daemon in daemons] == [0, 0, 0]
        completions = Counter(
            event["episode_id"] for daemon in daemons for event in daemon.events("task.completed")
        )
        workers = [len(daemon.events("task.completed")) for daemon in daemons]
    assert completions == dict.fromkeys((f"{n:02}" for n in range(30)), 1)
    assert sum(1 for share in workers if share) >= 2, workers
    bucket.verify_settled()


def test_a_vanished_raw_file_is_a_dead_letter(bucket: Bucket) -> None:
    """A todo whose audio is not there says so at once."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    (bucket.root / "bucket/raw_audio/en/one.mp3").unlink()
    assert bucket.emiliad("run", "--exit-when-empty").returncode == 1
    (attempt,) = bucket.tasks("failed")["one"]["attempts"]
    assert attempt["kind"] == "missing_audio"
    assert "raw_audio/en/one.mp3" in attempt["reason"]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"STORE_URL": ""}, "STORE_URL"),
        ({"STORE_URL": "ftp://x"}, "ftp://x"),
        ({"PREFETCH_DEPTH": "many", "LEASE_TTL_S": "-1"}, "LEASE_TTL_S"),
        ({"DEVICE": "cuda"}, "DEVICE=cuda"),
        ({"SCRATCH_DIR": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_a_wrong_configuration_is_one_message(
    bucket: Bucket, env: dict[str, str], said: str
) -> None:
    """Exit code 2 and a sentence that names what is wrong; no traceback."""
    done = bucket.emiliad("run", "--exit-when-empty", **env)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_every_malformed_setting_is_named_at_once(bucket: Bucket) -> None:
    """One message lists all offenders, and shows no secret's value."""
    done = bucket.emiliad(
        "run", PREFETCH_DEPTH="many", LEASE_TTL_S="-1", DEVICE="gpu", HF_TOKEN="x"
    )
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("PREFETCH_DEPTH", "LEASE_TTL_S", "DEVICE"))


def test_a_pipeline_that_cannot_be_loaded_ends_the_daemon(bucket: Bucket) -> None:
    """A wrong PIPELINE is told in one sentence, and no task is touched."""
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    done = bucket.emiliad("run", "--exit-when-empty", PIPELINE="nowhere:Nothing")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert bucket.tasks("in_progress") == {}
