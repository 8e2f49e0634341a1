"""The flow of tasks through a daemon: never more than it can bear, never less than it could do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emiliad.config import Config
from emiliad.widths import Widths, requests
from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy
from tests.emiliad.rig import Bucket, Daemon, small_disk, wait_until
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server


def full(daemon: Daemon, bucket: Bucket) -> int:
    """Waits until a daemon whose executors never end holds as much as it will; how much it is."""
    waiting = daemon.status()["widths"]["ahead"]
    wait_until(
        lambda: daemon.metric("queue_depth", '{queue="prefetched"}') == waiting,
        lambda: daemon.log.read_text(),
    )
    return sum(claim["state"] == "leased" for claim in bucket.tasks("in_progress").values())


@pytest.mark.parametrize("executors", [1, 3])
def test_a_daemon_never_holds_more_than_it_says(tmp_path: Path, executors: int) -> None:
    """Claims, what is ahead of the executors, executors, uploads: the sum is a bound on leases."""
    bucket = Bucket(tmp_path)
    for number in range(30):
        bucket.put_audio(f"{number:02}.mp3")
    bucket.emiliad("enqueue")
    env = {"CPU_EXECUTORS": str(executors), "FAKE_SECONDS": "60", "DRAIN_TIMEOUT_S": "0"}
    with bucket.daemon(LOG_LEVEL="debug", **env) as daemon:
        wait_until(lambda: len(daemon.events("executor.began")) == executors)
        held = full(daemon, bucket)
        status = daemon.status()
        assert executors < held <= status["most_leases"]
        assert held == status["leases"]["held"] == daemon.metric("leases_held")
        widths = status["widths"]
        assert held <= executors + widths["ahead"] + widths["claims"]  # nothing is uploaded


def test_uploads_that_hang_hold_the_flow_back(weed_bucket: Server, tmp_path: Path) -> None:
    """When no upload ends, executors end their tasks only until the uploads are taken; the leases
    stay within the bound."""

    def hung(exchange: Exchange) -> Fault | None:
        pack = exchange.method == "PUT" and "/processing_outputs/" in exchange.path
        return Fault("hang", applied=False) if pack else None

    with FaultProxy(weed_bucket.endpoint, hung).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        for number in range(20):
            bucket.put_audio(f"{number:02}.mp3")
        bucket.emiliad("enqueue")
        env = {"UPLOAD_EPISODES": "2", "DRAIN_TIMEOUT_S": "0", "LEASE_TTL_S": "300"}
        with bucket.daemon(LOG_LEVEL="debug", **env) as daemon:
            wait_until(lambda: daemon.metric("queue_depth", '{queue="upload"}') == 2)
            held = full(daemon, bucket)
            # Two are uploaded, one is finished and waits for its upload, the rest waits before it.
            assert len(daemon.events("executor.began")) == 3
            bound = daemon.status()
            assert held <= bound["most_leases"] == 2 + 1 + 2 + 1
            assert bound["flow"]["upload"] == 2


def test_an_executor_does_not_wait_for_the_upload_of_its_last_task(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """While one episode's upload hangs, the next ones are processed, uploaded and completed."""
    first: list[str] = []

    def hung(exchange: Exchange) -> Fault | None:
        if exchange.method == "PUT" and "/processing_outputs/" in exchange.path:
            first.append(exchange.path)
            if exchange.path == first[0]:
                return Fault("hang", applied=False)
        return None

    with FaultProxy(weed_bucket.endpoint, hung).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        for number in range(8):
            bucket.put_audio(f"{number:02}.mp3")
        bucket.emiliad("enqueue")
        with bucket.daemon(LOG_LEVEL="debug", DRAIN_TIMEOUT_S="0") as daemon:
            wait_until(
                lambda: len(daemon.events("task.completed")) == 7,
                lambda: daemon.log.read_text(),
            )
            assert first  # an upload did hang, and it is the one that is missing
            hanging = first[0].rpartition("/processing_outputs/")[2].partition("/")[0]
            completed = {event["episode_id"] for event in daemon.events("task.completed")}
            assert completed == {f"{number:02}" for number in range(8)} - {hanging}


def test_downloads_go_on_beside_a_slow_one(weed_bucket: Server, tmp_path: Path) -> None:
    """A file that trickles in does not keep the executors from the others."""

    def slow(exchange: Exchange) -> Fault | None:
        trickles = exchange.method == "GET" and exchange.path.endswith("/slow-download.mp3")
        return Fault(drip_s=5.0) if trickles else None

    with FaultProxy(weed_bucket.endpoint, slow).running() as proxy:
        bucket = S3Bucket(tmp_path, weed_bucket, proxy.endpoint)
        bucket.put_audio("slow-download.mp3", bytes(5_000_000))
        for number in range(6):
            bucket.put_audio(f"{number:02}.mp3")
        bucket.emiliad("enqueue")
        with bucket.daemon(FAKE_SLOW_SECONDS="0.1", DRAIN_TIMEOUT_S="0") as daemon:
            wait_until(
                lambda: len(daemon.events("task.completed")) == 6,
                lambda: daemon.log.read_text(),
            )
            assert daemon.status()["flow"]["claimed"] == 1


def test_audio_in_scratch_is_bounded_by_its_bytes(tmp_path: Path) -> None:
    """With a limit of 3 MB, files of 1 MB come three at a time, whatever PREFETCH_DEPTH allows; one
    of 5 MB comes all the same, alone."""
    bucket = Bucket(tmp_path)
    for number in range(8):
        bucket.put_audio(f"{number:02}.mp3", bytes(1_000_000))
    bucket.put_audio("giant.mp3", bytes(5_000_000))
    bucket.emiliad("enqueue")
    env = {"SCRATCH_LIMIT_GB": "0.003", "PREFETCH_DEPTH": "20", "PREFETCH_CONCURRENCY": "20"}
    crowds: list[list[int]] = []

    def seen() -> bool:
        files = (tmp_path / "scratch").glob("owner-*/tasks/*/audio.mp3")
        crowds.append([size for path in files if (size := _size(path))])
        return daemon.process.poll() is not None

    with bucket.daemon("--exit-when-empty", FAKE_SECONDS="0.2", **env) as daemon:
        wait_until(seen, lambda: daemon.log.read_text())
        assert daemon.ends() == 0
    assert bucket.tasks("completed").keys() == {*(f"{n:02}" for n in range(8)), "giant"}
    assert max(len(crowd) for crowd in crowds) == 3  # as many as the limit allows
    assert all(len(crowd) == 1 for crowd in crowds if sum(crowd) > 3_000_000)
    bucket.verify_settled()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def config(**settings: Any) -> Config:
    return Config(**settings)


def test_widths_grow_with_the_executors() -> None:
    """One GPU is fed by two downloads; eight with three workers each by twelve; settings win."""
    one, many = Widths.of(config(), 1), Widths.of(config(), 24)
    assert (one.claims, one.ahead, one.downloads, one.uploads) == (1, 2, 2, 4)
    assert (many.claims, many.ahead, many.downloads, many.uploads) == (6, 24, 12, 48)
    assert (one.most_leases, many.most_leases) == (8, 102)
    own = Widths.of(config(prefetch_depth=0, prefetch_concurrency=9, upload_episodes=1), 2)
    assert (own.ahead, own.downloads, own.waiting, own.uploads) == (1, 1, 0, 1)
    assert requests(config(), one) == 4 * 8 + 2 + 32
    assert requests(config(), many) == 128 + 12 + 32  # connections cost memory


def test_status_tells_the_truth_while_a_task_runs(tmp_path: Path) -> None:
    """What /status says is what the store, the disk and the process table say."""
    bucket = Bucket(tmp_path)
    bucket.put_audio("one.mp3", b"x" * 1234)
    bucket.put_audio("raises.mp3")
    bucket.emiliad("enqueue")
    env = {"FAKE_SLOW_SECONDS": "60", "MAX_ATTEMPTS": "1", "DRAIN_TIMEOUT_S": "0"}
    with bucket.daemon(LOG_LEVEL="debug", **env) as daemon:
        daemon.until("task.completed", episode_id="one")
        daemon.until("task.failed", episode_id="raises")
        bucket.put_audio("slow.mp3", b"x" * 4321)
        bucket.emiliad("enqueue")
        daemon.until("executor.began", episode_id="slow")
        wait_until(lambda: daemon.status()["scratch"]["bytes"] >= 4321)
        status = daemon.status()
        claim = bucket.tasks("in_progress")["slow"]
        (executor,) = status["executors"]
        assert status["state"] == "running"
        assert status["ready"]
        assert status["pid"] == daemon.process.pid
        assert status["owner"] == claim["owner"]
        assert status["store_url"] == (tmp_path / "bucket").as_uri()
        assert executor["state"] == "busy"
        assert executor["pid"] in daemon.executors()
        assert executor["task"]["episode_id"] == "slow"
        assert executor["task"]["audio_key"] == "raw_audio/en/slow.mp3"
        assert status["leases"]["held"] == 1
        assert status["flow"] == {"claimed": 0, "prefetched": 0, "upload": 0}
        assert status["store"]["healthy"]
        totals = status["totals"]
        assert (totals["completed"], totals["failed"], totals["released"]) == (1, 1, 0)
        assert status["queue"]["failed"] == 1
        assert daemon.metric("failed_tasks") == 1
        assert {row["episode_id"] for row in status["recent"]} == {"raises", "one"}
        assert daemon.metric("tasks_total", '{outcome="completed"}') == 1
        version = status["version"]
        assert daemon.metric("daemon_info", json_label("version", version)) == 1
        assert daemon.metric("store_requests_total", '{operation="put",result="ok"}') > 0
        assert daemon.metric("transfer_bytes_total", '{direction="in"}') >= 1234 + 4321
        assert daemon.metric("scratch_free_bytes") > 0
        wait_until(lambda: daemon.status()["oldest_renewal_s"] is not None)
        assert daemon.status()["oldest_renewal_s"] < 60


def json_label(name: str, value: str) -> str:
    return f"{{{name}={json.dumps(value)}}}"


def test_a_disk_that_fills_up_is_a_problem_that_is_told(tmp_path: Path) -> None:
    """A file that does not fit is handed back uncounted and named, the others go on; what is
    degraded shows in /status and the metrics, and no longer when a file fits again."""
    bucket = Bucket(tmp_path)
    with small_disk(tmp_path / "small", "2M"):
        large = bucket.put_audio("large.mp3", bytes(3_000_000))
        bucket.emiliad("enqueue")
        env = {"SCRATCH_DIR": str(tmp_path / "small"), "RETRY_BACKOFF_S": "2"}
        with bucket.daemon(**env) as daemon:
            daemon.until("scratch.full")
            (problem,) = daemon.status()["problems"]
            assert "3,000,000 bytes" in problem["text"]
            assert daemon.metric("scratch_full") == 1
            assert daemon.metric("ready") == 1
            large.write_bytes(b"small by now")
            daemon.until("task.completed", episode_id="large")
            assert daemon.metric("scratch_full") == 0
            assert daemon.status()["problems"] == []
    assert bucket.tasks("completed")["large"]["attempt"] == 1
