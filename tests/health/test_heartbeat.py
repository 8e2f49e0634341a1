"""The heartbeat of the event loop, and what is said when it stops."""

from __future__ import annotations

import threading
import time

import anyio
from structlog.testing import capture_logs

from emiliad.health.heartbeat import Heartbeat
from emiliad.metrics import Metrics
from tests.emiliad.rig import wait_until


async def test_a_loop_that_turns_is_alive() -> None:
    """Beats come several times a second, each with how late it was."""
    metrics = Metrics()
    heartbeat = Heartbeat(lag=metrics.loop_lag_seconds, dead_after_s=5.0)
    async with anyio.create_task_group() as group:
        group.start_soon(heartbeat.run)
        while _lags(metrics) < 5:
            await anyio.sleep(0.05)
        assert heartbeat.not_alive() is None
        group.cancel_scope.cancel()
    assert metrics.registry.get_sample_value("emiliad_loop_stalls_total") == 0


async def test_a_lag_is_measured_and_not_assumed() -> None:
    """A loop that is held for half a second is seen to be that late."""
    metrics = Metrics()
    heartbeat = Heartbeat(lag=metrics.loop_lag_seconds)
    async with anyio.create_task_group() as group:
        group.start_soon(heartbeat.run)
        await anyio.sleep(0.2)
        time.sleep(0.6)
        await anyio.sleep(0.2)
        group.cancel_scope.cancel()
    assert (metrics.registry.get_sample_value("emiliad_loop_lag_seconds_sum") or 0.0) >= 0.5


def test_a_stall_is_logged_once_with_the_place_where_the_loop_stands() -> None:
    """The log names the function that holds the loop; a counter says that it happened."""
    metrics = Metrics()
    heartbeat = Heartbeat(stalls=metrics.loop_stalls, stalled_after_s=0.3, dead_after_s=0.6)

    async def the_culprit() -> None:
        wait_until(lambda: heartbeat.not_alive() is not None)
        time.sleep(1.2)  # long enough for a second report, were there one

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(heartbeat.run)
            await anyio.sleep(0.2)
            await the_culprit()
            while not any(event["event"] == "loop.turns_again" for event in events):
                await anyio.sleep(0.05)
            group.cancel_scope.cancel()

    with capture_logs() as events:
        anyio.run(main)
    stalls = [event for event in events if event["event"] == "loop.stalled"]
    assert len(stalls) == 1
    assert "the_culprit" in stalls[0]["stack"]
    assert stalls[0]["seconds"] >= 0.3
    turns = next(event for event in events if event["event"] == "loop.turns_again")
    assert turns["seconds"] >= 1.2
    assert metrics.registry.get_sample_value("emiliad_loop_stalls_total") == 1


def test_a_loop_that_never_turned_is_not_alive_for_long() -> None:
    """A daemon that hangs before its first beat is found out, too."""
    heartbeat = Heartbeat(dead_after_s=0.2)
    assert heartbeat.not_alive() is None
    wait_until(lambda: heartbeat.not_alive() is not None)


async def test_the_watching_thread_ends_with_the_heartbeat() -> None:
    """A heartbeat that is cancelled leaves no thread behind."""
    async with anyio.create_task_group() as group:
        group.start_soon(Heartbeat().run)
        await anyio.sleep(0.1)
        assert _watchers() == 1
        group.cancel_scope.cancel()
    await anyio.to_thread.run_sync(lambda: wait_until(lambda: _watchers() == 0))


def _watchers() -> int:
    return sum(thread.name == "heartbeat" for thread in threading.enumerate())


def _lags(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("emiliad_loop_lag_seconds_count") or 0.0
