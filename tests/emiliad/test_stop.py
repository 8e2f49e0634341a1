"""The daemon told to stop, at every point of its work: exit code 0, and nothing held."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy
from tests.emiliad.rig import Bucket, Daemon, alive, wait_until
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server

LONG = {"FAKE_SECONDS": "60"}


def states(bucket: Bucket) -> Counter[str]:
    """How many claims stand in each state."""
    return Counter(claim["state"] for claim in bucket.tasks("in_progress").values())


def is_loading(daemon: Daemon) -> bool:
    return any(row["state"] == "loading" for row in daemon.status()["executors"])


def is_idle(daemon: Daemon) -> bool:
    return daemon.metric("ready") == 1


def is_processing(daemon: Daemon) -> bool:
    return bool(daemon.events("executor.began"))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("env", "tasks", "reached"),
    [
        ({"FAKE_LOAD": "hang"}, 1, is_loading),
        ({}, 0, is_idle),
        (LONG, 3, is_processing),
    ],
    ids=["loading", "idle", "processing"],
)
def test_a_stop_leaves_nothing_held(
    tmp_path: Path,
    env: Mapping[str, str],
    tasks: int,
    reached: Callable[[Daemon], bool],
    times: int,
) -> None:
    """SIGTERM, once or twice, in each phase: exit code 0, no lease, no child, no scratch."""
    bucket = Bucket(tmp_path)
    for number in range(tasks):
        bucket.put_audio(f"{number}.mp3")
    bucket.emiliad("enqueue")
    drain = {"DRAIN_TIMEOUT_S": "1"} if times == 1 else {"DRAIN_TIMEOUT_S": "600"}
    with bucket.daemon(LOG_LEVEL="debug", **drain, **env) as daemon:
        wait_until(lambda: reached(daemon), lambda: daemon.log.read_text())
        children = daemon.executors()
        daemon.signal(signal.SIGTERM)
        daemon.until("daemon.drain")
        for _ in range(times - 1):
            daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0
        assert "Traceback" not in daemon.log.read_text()
    assert states(bucket)["leased"] == 0
    assert not [pid for pid in children if alive(pid)]
    assert list((tmp_path / "scratch").glob("owner-*/tasks/*")) == []


@dataclass
class Road:
    """The rule of a proxy that lets everything pass until a test says otherwise."""

    fault: Callable[[Exchange], Fault | None] = lambda _: None

    def __call__(self, exchange: Exchange) -> Fault | None:
        return self.fault(exchange)


def slow_downloads(exchange: Exchange) -> Fault | None:
    raw = exchange.method == "GET" and "/raw_audio/en/" in exchange.path
    return Fault(drip_s=0.5) if raw else None


def hung_uploads(exchange: Exchange) -> Fault | None:
    pack = exchange.method == "PUT" and "/processing_outputs/" in exchange.path
    return Fault("hang", applied=False) if pack else None


def is_uploading(daemon: Daemon) -> bool:
    return daemon.metric("queue_depth", '{queue="upload"}') == 1


def is_prefetching(daemon: Daemon) -> bool:
    return daemon.metric("queue_depth", '{queue="claimed"}') >= 1


@pytest.mark.parametrize(
    ("fault", "reached"),
    [(slow_downloads, is_prefetching), (hung_uploads, is_uploading)],
    ids=["prefetching", "uploading"],
)
def test_a_stop_in_the_middle_of_a_transfer(
    weed_bucket: Server,
    tmp_path: Path,
    fault: Callable[[Exchange], Fault | None],
    reached: Callable[[Daemon], bool],
) -> None:
    """A download that takes minutes, an upload that never ends: the task is handed back."""
    with FaultProxy(weed_bucket.endpoint, Road(fault)).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        bucket.put_audio("one.mp3", bytes(10_000_000))
        bucket.emiliad("enqueue")
        with bucket.daemon(DRAIN_TIMEOUT_S="2", LOG_LEVEL="debug") as daemon:
            wait_until(lambda: reached(daemon), lambda: daemon.log.read_text())
            daemon.signal(signal.SIGTERM)
            assert daemon.ends() == 0
            (released,) = daemon.events("task.released")
    assert states(bucket) == {"free": 1}
    begun = reached is is_uploading  # an upload cut off is work lost
    assert released.get("interrupted", 0) == begun
    assert bucket.tasks("in_progress")["one"]["interrupted"] == begun
    assert list((tmp_path / "scratch").glob("owner-*/tasks/*")) == []


def test_what_was_committed_before_a_stop_is_published_by_others(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """The publication hangs: the claim is handed back, the attempt counts as completed, and the
    next node publishes it without doing it again."""

    def hung(exchange: Exchange) -> Fault | None:
        output = exchange.method == "PUT" and "/processed/" in exchange.path
        return Fault("hang", applied=False) if output else None

    with FaultProxy(weed_bucket.endpoint, Road(hung)).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        bucket.put_audio("one.mp3")
        bucket.emiliad("enqueue")
        with bucket.daemon(DRAIN_TIMEOUT_S="1") as daemon:
            wait_until(lambda: "one" in bucket.tasks("completed"))
            daemon.signal(signal.SIGTERM)
            assert daemon.ends() == 0
            assert len(daemon.events("task.completed")) == 1
        assert states(bucket) == {"free": 1}
    other = S3Bucket(tmp_path, weed_bucket)
    with other.daemon("--exit-when-empty", SCRATCH_DIR=str(tmp_path / "other")) as daemon:
        assert daemon.ends() == 0
        assert daemon.events("task.completed") == []
    other.verify_settled(scratch="other")


@pytest.mark.parametrize("busy", [True, False], ids=["processing", "waiting"])
def test_a_stop_while_the_store_is_silent(weed_bucket: Server, tmp_path: Path, busy: bool) -> None:
    """A store that takes requests and never answers keeps nobody from leaving: each would be
    waited for longer than this test waits."""
    road = Road()
    with FaultProxy(weed_bucket.endpoint, road).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        for number in range(3):
            bucket.put_audio(f"{number}.mp3")
        bucket.emiliad("enqueue")
        silence = {"STORE_TIMEOUT_S": "600", "LEASE_TTL_S": "3"}
        with bucket.daemon(LOG_LEVEL="debug", DRAIN_TIMEOUT_S="3", **silence, **LONG) as daemon:
            if busy:
                daemon.until("executor.began")
            else:
                daemon.until("health.listening")
            road.fault = lambda _: Fault("hang", applied=False)
            daemon.signal(signal.SIGTERM)
            assert daemon.ends() == 0
            assert "Traceback" not in daemon.log.read_text()
            assert "hangs" not in daemon.log.read_text()  # it was not ended by force


def test_more_signals_than_two_change_nothing(tmp_path: Path) -> None:
    """An impatient operator, or a terminal and a supervisor at once: still nothing is held."""
    bucket = Bucket(tmp_path)
    for number in range(3):
        bucket.put_audio(f"{number}.mp3")
    bucket.emiliad("enqueue")
    with bucket.daemon(LOG_LEVEL="debug", **LONG) as daemon:
        daemon.until("executor.began")
        while daemon.process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                daemon.signal(number)
            time.sleep(0.01)
        assert daemon.ends() == 0
    assert states(bucket)["leased"] == 0


def test_unstarted_work_is_free_while_running_work_goes_on(tmp_path: Path) -> None:
    """A drain hands back what waits at once, so that other nodes take it while this one drains."""
    bucket = Bucket(tmp_path)
    for number in range(4):
        bucket.put_audio(f"{number}.mp3")
    bucket.emiliad("enqueue")
    with bucket.daemon(LOG_LEVEL="debug", DRAIN_TIMEOUT_S="600", **LONG) as daemon:
        daemon.until("executor.began")
        wait_until(lambda: daemon.metric("queue_depth", '{queue="prefetched"}') == 2)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: states(bucket)["leased"] == 1, lambda: daemon.log.read_text())
        status = daemon.status()
        assert (status["state"], status["ready"]) == ("draining", False)
        assert status["leases"]["held"] == 1
        assert status["flow"] == {"claimed": 0, "prefetched": 0, "upload": 0}
        assert "draining" in daemon.ask("/readyz")
        assert daemon.metric("draining") == 1
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0


def test_a_task_that_stops_keep_cutting_off_is_told_of(tmp_path: Path) -> None:
    """Each interruption counts in the claim; from the third on the daemon that claims it says so.
    Work that was only waiting counts for nothing."""
    bucket = Bucket(tmp_path)
    bucket.put_audio("long.mp3")
    bucket.emiliad("enqueue")
    for times in (1, 2, 3):
        with bucket.daemon(LOG_LEVEL="debug", DRAIN_TIMEOUT_S="0", **LONG) as daemon:
            daemon.until("executor.began")
            assert daemon.metric("starving_tasks_total") == 0
            daemon.signal(signal.SIGTERM)
            assert daemon.ends() == 0
        claim: dict[str, Any] = bucket.tasks("in_progress")["long"]
        assert (claim["state"], claim["interrupted"], claim["attempt"]) == ("free", times, 0)
    with bucket.daemon(LOG_LEVEL="debug") as daemon:
        assert daemon.until("task.starving", episode_id="long")["interrupted"] == 3
        assert daemon.metric("starving_tasks_total") == 1
        daemon.until("task.completed", episode_id="long")
    assert bucket.tasks("in_progress") == {}
