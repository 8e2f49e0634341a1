"""The daemon's view of itself: what the pages and the metrics are told."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from emiliad.board import Board
from emiliad.metrics import Metrics
from emiliad.types import Claim, Outcome, TaskRef
from ops import scenes
from pipeline.types import STAGES


@dataclass
class Desk:
    """A board, its metrics, and a clock that stands until it is moved."""

    now: float = 1_000_000.0
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.board = Board(self.metrics, clock=lambda: self.now, wall=lambda: self.now)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"emiliad_{name}", labels)

    def seen(self) -> dict[str, Any]:
        return self.board.snapshot()

    def executor(self, number: int = 0) -> dict[str, Any]:
        return dict(self.seen()["executors"][number])

    def task(self) -> dict[str, Any]:
        return dict(self.executor()["task"])

    def process(self, audio_seconds: float, pace: float, stages: tuple[str, ...] = STAGES) -> None:
        """A whole task on gpu0, each stage `pace` seconds of work per second of audio."""
        self.board.begin("gpu0", claim())
        for stage in stages:
            self.now += pace * audio_seconds
            self.board.stage("gpu0", stage, pace * audio_seconds, audio_seconds)
        self.board.end("gpu0")
        self.board.show("gpu0", "idle")


def claim(name: str = "talk", attempt: int = 1) -> Claim:
    return Claim(TaskRef(name, "en", f"raw_audio/en/{name}.mp3"), attempt)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_daemon_is_ready_with_one_executor_that_can_work(desk: Desk) -> None:
    """Loading is not ready, one loaded of two is, and so is one that is busy; metrics agree."""
    assert desk.board.not_ready() == "no executor has its models loaded yet"
    desk.board.show("gpu0", "loading")
    desk.board.show("gpu1", "loading")
    assert desk.value("ready") == 0
    desk.board.show("gpu1", "idle")
    assert desk.board.not_ready() is None
    assert desk.value("ready") == 1
    desk.board.begin("gpu1", claim())
    desk.board.show("gpu0", "dead", reason="no such GPU")
    assert desk.seen()["ready"] is True


def test_a_daemon_whose_executors_are_all_given_up_says_why(desk: Desk) -> None:
    """Readiness names the first reason."""
    for name in ("gpu0", "gpu1"):
        desk.board.show(name, "dead", reason=f"{name} has fallen off the bus")
    assert desk.board.not_ready() == "every executor is given up: gpu0 has fallen off the bus"


@pytest.mark.parametrize("state", ["draining", "stopping"])
def test_a_daemon_that_stops_is_not_ready(desk: Desk, state: str) -> None:
    """No work is to be sent to a daemon that leaves."""
    desk.board.show("gpu0", "idle")
    desk.board.enter(state)
    desk.board.show("gpu0", "dead")
    assert desk.board.not_ready() == f"the daemon is {state}"
    assert (desk.value("ready"), desk.value("draining")) == (0, 1)


def test_each_executor_is_counted_in_one_state(desk: Desk) -> None:
    """The gauge by state moves with an executor and never counts it twice."""
    for state in ("loading", "idle", "busy", "idle", "dead", "loading"):
        desk.board.show("gpu0", state)
        counted = {s: desk.value("executors", state=s) for s in ("loading", "idle", "busy", "dead")}
        assert counted == {s: float(s == state) for s in counted}


def test_busy_time_counts_while_a_task_still_runs(desk: Desk) -> None:
    """A rate over five minutes sees a task of an hour: stages, memory and looks add to it."""
    desk.board.show("gpu0", "idle")
    desk.now += 10
    desk.board.begin("gpu0", claim())
    desk.now += 60
    desk.board.memory("gpu0", 5)
    assert desk.value("executor_busy_seconds_total", executor="gpu0") == 60
    desk.now += 30
    desk.board.stage("gpu0", "separate", 30, 60)
    assert desk.value("executor_busy_seconds_total", executor="gpu0") == 90
    desk.now += 1
    assert desk.executor()["busy_s"] == 91
    assert desk.executor()["idle_s"] == 10
    assert desk.value("executor_busy_seconds_total", executor="gpu0") == 91
    assert desk.value("executor_idle_seconds_total", executor="gpu0") == 10


def test_a_task_shows_the_stage_that_runs(desk: Desk) -> None:
    """A stage is reported as it ends: the one after it runs since then."""
    desk.board.show("gpu0", "idle")
    desk.board.begin("gpu0", claim("talk", 2))
    assert (desk.task()["stage"], desk.task()["audio_seconds"]) == ("standardise", None)
    desk.now += 5
    desk.board.stage("gpu0", "standardise", 5.0, 600.0)
    desk.now += 7
    task = desk.task()
    assert (task["stage"], task["stage_s"], task["running_s"]) == ("separate", 7, 12)
    assert task["stages"] == [{"name": "standardise", "seconds": 5.0}]
    assert (task["episode_id"], task["attempt"], task["audio_seconds"]) == ("talk", 2, 600)
    assert (task["progress"], task["remaining_s"], task["realtime"]) == (None, None, 50)


def test_progress_is_guessed_from_the_tasks_before(desk: Desk) -> None:
    """Seven stages at 0.01 s per second: after one and a half of them of 1000 s, 55 s are left."""
    desk.board.show("gpu0", "idle")
    desk.process(500.0, 0.01)
    desk.board.begin("gpu0", claim())
    desk.now += 10
    desk.board.stage("gpu0", "standardise", 10.0, 1000.0)
    desk.now += 5
    task = desk.task()
    assert task["remaining_s"] == pytest.approx(55)
    assert task["progress"] == pytest.approx(15 / 70, abs=1e-3)
    assert task["realtime"] == pytest.approx(1000 / 70, abs=1e-2)


def test_a_stage_that_takes_longer_than_ever_leaves_what_comes_after_it(desk: Desk) -> None:
    """An overdue stage is about to end for ever; the guess never becomes negative."""
    desk.board.show("gpu0", "idle")
    desk.process(100.0, 0.01)
    desk.board.begin("gpu0", claim())
    desk.board.stage("gpu0", "standardise", 1.0, 100.0)
    desk.now += 10_000
    assert desk.task()["remaining_s"] == pytest.approx(5.0)
    for stage in STAGES[1:]:
        desk.board.stage("gpu0", stage, 1.0, 100.0)
    assert (desk.task()["remaining_s"], desk.task()["progress"]) == (0, 1)


def test_a_replacement_pipelines_stages_are_learnt(desk: Desk) -> None:
    """Stages that nobody has heard of are shown in the order in which they came."""
    desk.board.show("gpu0", "idle")
    assert desk.seen()["stages"] == [*STAGES]
    desk.process(10.0, 0.1, ("decode", "sing"))
    assert desk.seen()["stages"] == ["decode", "sing"]
    desk.board.begin("gpu0", claim())
    desk.board.stage("gpu0", "decode", 1.0, 10.0)
    assert desk.task()["stage"] == "sing"


def test_a_pipeline_that_reports_no_stage_has_none(desk: Desk) -> None:
    """A bar of stages that never begin would be a lie."""
    desk.board.show("gpu0", "idle")
    desk.process(10.0, 0.1, ())
    desk.board.begin("gpu0", claim())
    assert desk.seen()["stages"] == []
    assert desk.task()["stage"] is None


def test_completions_do_not_wash_failures_away(desk: Desk) -> None:
    """The latest fifty of each kind are kept, and shown in the order in which they ended."""
    facts = {"kind": "bad_audio", "reason": "silent", "stages": {"x": 1.0}}
    desk.board.ended(claim("first"), Outcome.FAILED, facts)
    for number in range(200):
        desk.board.ended(claim(f"e{number}"), Outcome.COMPLETED, {"audio_seconds": 1.0})
    recent = desk.seen()["recent"]
    assert len(recent) == 51
    assert [row["episode_id"] for row in recent[:2]] == ["e199", "e198"]
    assert recent[-1]["reason"] == "silent"
    assert "stages" not in recent[-1]


def test_the_last_hour_is_told_minute_by_minute(desk: Desk) -> None:
    """Sixty minutes, empty ones too; what is older than an hour is gone."""
    desk.now = 60.0 * 1000
    desk.board.ended(claim(), Outcome.COMPLETED, {"audio_seconds": 100.0, "segments": 7})
    desk.board.ended(claim(), Outcome.COMPLETED, {"audio_seconds": 50.0, "segments": 3})
    desk.board.ended(claim(), Outcome.RELEASED, {"reason": "the daemon stops"})
    desk.now += 120
    desk.board.ended(claim(), Outcome.COMPLETED, {"audio_seconds": float("nan")})
    minutes = desk.seen()["throughput"]
    assert len(minutes) == 60
    assert [minute["audio_seconds"] for minute in minutes[-3:]] == [150, 0, 0]
    assert [minute["episodes"] for minute in minutes[-3:]] == [2, 0, 1]
    desk.now += 3600
    assert sum(minute["episodes"] for minute in desk.seen()["throughput"]) == 0
    totals = desk.seen()["totals"]
    assert (totals["completed"], totals["released"], totals["segments"]) == (3, 1, 10)
    assert totals["audio_seconds"] == 150


def test_a_store_that_fails_is_a_problem_until_it_answers(desk: Desk) -> None:
    """One success after a failure ends it; a failure that nothing followed is forgotten in time."""
    desk.board.store_answered("get", "ok", 0.01)
    desk.now += 5
    desk.board.store_answered("put", "timeout", 15.0)
    desk.now += 15
    desk.board.store_answered("list", "throttled", 0.1)
    seen = desk.seen()
    assert seen["store"]["healthy"] is False
    assert seen["problems"] == [{"text": "the store fails (list: throttled)", "for_s": 15}]
    desk.board.store_answered("get", "not_found", 0.01)
    assert desk.seen()["store"]["healthy"] is True
    desk.board.store_answered("get", "timeout", 15.0)
    desk.now += 61
    assert desk.seen()["problems"] == []


def test_a_problem_lasts_from_when_it_was_first_noted(desk: Desk) -> None:
    """A sentence that changes is the same problem; None ends it."""
    desk.board.problem("scratch", "5 GB are left")
    desk.now += 10
    desk.board.problem("scratch", "4 GB are left")
    assert desk.seen()["problems"] == [{"text": "4 GB are left", "for_s": 10}]
    desk.board.problem("scratch", None)
    desk.board.problem("scratch", None)
    assert desk.seen()["problems"] == []


def test_what_is_kept_as_metrics_is_told_as_well(desk: Desk) -> None:
    """Queue, leases and scratch come from the gauges that the actors set."""
    desk.metrics.todo_tasks.set(12)
    desk.metrics.failed_tasks.set(3)
    desk.metrics.leases_held.set(4)
    desk.metrics.lease_renewals.labels("renewed").inc(9)
    desk.metrics.lease_renewals.labels("lost").inc()
    desk.metrics.scratch_bytes.set(5e9)
    desk.metrics.scratch_free_bytes.set(6e12)
    desk.metrics.loop_stalls.inc()
    desk.board.moved("prefetched", 1)
    seen = desk.seen()
    assert seen["queue"] == {"todo": 12, "failed": 3}
    assert seen["leases"] == {"held": 4, "renewed": 9, "lost": 1}
    assert seen["scratch"] == {"bytes": 5_000_000_000, "free_bytes": 6_000_000_000_000}
    assert seen["loop_stalls"] == 1
    assert seen["flow"] == {"claimed": 0, "prefetched": 1, "upload": 0}
    assert desk.value("queue_depth", queue="prefetched") == 1


def test_facts_are_shown_and_hide_nothing(desk: Desk) -> None:
    """A fact may be called as it likes: it does not take the place of what the board knows."""
    desk.board.fact(version="1.2.3", state="a lie", executors="none")
    seen = desk.seen()
    assert (seen["version"], seen["state"], seen["executors"]) == ("1.2.3", "starting", [])


def test_restarts_and_their_reasons_are_told(desk: Desk) -> None:
    """An executor that loads again says why; the next task takes the reason away."""
    desk.board.show("gpu0", "idle", device="cuda:0", pid=7)
    desk.board.restarted("gpu0", "crash", "it died of SIGSEGV")
    desk.board.show("gpu0", "loading", pid=None)
    row = desk.executor()
    assert (row["restarts"], row["reason"], row["device"], row["pid"]) == (
        1,
        "it died of SIGSEGV",
        "cuda:0",
        None,
    )
    assert desk.value("executor_restarts_total", reason="crash") == 1
    desk.board.show("gpu0", "idle", pid=8)
    desk.board.begin("gpu0", claim())
    assert desk.executor()["reason"] is None


def test_a_snapshot_is_whole_while_the_actors_write() -> None:
    """Readers of other threads never see a board in between; every snapshot is JSON."""
    board, ended = scenes.busy(2).board, threading.Event()
    failures: list[Exception] = []

    def look() -> None:
        try:
            while not ended.is_set():
                seen = json.loads(json.dumps(board.snapshot()))
                states = [row["state"] for row in seen["executors"] if row["task"]]
                assert set(states) <= {"busy"}
        except Exception as error:  # noqa: BLE001 - told below, in the test's own thread
            failures.append(error)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(300):
        board.end("gpu0")
        board.show("gpu0", "idle")
        board.begin("gpu0", claim(f"e{number}"))
        board.stage("gpu0", "standardise", 1.0, 10.0)
        board.ended(claim(f"e{number}"), Outcome.COMPLETED, {"audio_seconds": 10.0})
    ended.set()
    for reader in readers:
        reader.join()
    assert failures == []
