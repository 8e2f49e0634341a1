"""Daemons on a real S3 server: the whole way, several at once, and through an ill network."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy
from tests.emiliad.rig import Daemon
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server

TASKS = 30


@pytest.fixture
def bucket(weed_bucket: Server, tmp_path: Path) -> S3Bucket:
    return S3Bucket(tmp_path, weed_bucket)


def run_three(bucket: S3Bucket, **env: str) -> list[Daemon]:
    """Runs three nodes until nothing is left to do."""
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(
                bucket.daemon(
                    "--exit-when-empty", SCRATCH_DIR=str(bucket.root / f"scratch-{number}"), **env
                )
            )
            for number in range(3)
        ]
        codes = [daemon.ends() for daemon in daemons]
        assert codes == [0, 0, 0], "\n".join(daemon.log.read_text()[-2000:] for daemon in daemons)
    return daemons


def completions(daemons: list[Daemon]) -> Counter[str]:
    return Counter(
        event["episode_id"] for daemon in daemons for event in daemon.events("task.completed")
    )


def test_raw_audio_becomes_segments_on_s3(bucket: S3Bucket) -> None:
    """Enqueue, run, status, on R2's protocol."""
    bucket.put_audio("one.mp3")
    bucket.put_audio("zwei Wörter.wav", language="de")
    enqueued = bucket.emiliad("enqueue")
    assert "2 created" in enqueued.stderr, enqueued.stderr
    done = bucket.emiliad("run", "--exit-when-empty")
    assert done.returncode == 0, done.stderr
    assert bucket.tasks("completed").keys() == {"one", "zwei Wörter"}
    assert bucket.status()["completed"] == 2
    bucket.verify_settled()


def test_three_daemons_on_s3_commit_thirty_tasks_once_each(bucket: S3Bucket) -> None:
    """Every task is completed by exactly one attempt, and its outputs are that attempt's."""
    for number in range(TASKS):
        bucket.put_audio(f"{number:02}.mp3")
    bucket.emiliad("enqueue")
    daemons = run_three(bucket)
    assert completions(daemons) == dict.fromkeys((f"{n:02}" for n in range(TASKS)), 1)
    assert sum(1 for daemon in daemons if daemon.events("task.completed")) >= 2
    bucket.verify_settled()


def test_an_ill_network_costs_time_and_nothing_else(weed_bucket: Server, tmp_path: Path) -> None:
    """One request in ten is reset, refused, answered by an error though applied, or cut."""
    rng = random.Random(7)
    faults = [
        Fault("reset"),
        Fault("reset", applied=False),
        Fault(500),
        Fault(503),
        Fault(429, applied=False),
        Fault("cut"),
        Fault(late_s=2.5),
    ]

    def rule(exchange: Exchange) -> Fault | None:
        return rng.choice(faults) if rng.random() < 0.1 else None

    with FaultProxy(weed_bucket.endpoint, rule).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        for number in range(12):
            bucket.put_audio(f"{number:02}.mp3")
        enqueued = bucket.emiliad("enqueue")
        assert enqueued.returncode == 0, enqueued.stderr
        daemons = run_three(bucket, STORE_TIMEOUT_S="2", LEASE_TTL_S="4", MAX_ATTEMPTS="10")
    assert len(proxy.applied) < len(proxy.seen)  # some never arrived
    assert bucket.tasks("completed").keys() == {f"{n:02}" for n in range(12)}
    assert not [task for task, times in completions(daemons).items() if times > 1]
    assert bucket.tasks("todo") == {}
    for episode, record in bucket.tasks("completed").items():
        bucket.verify_outputs(episode, record)
