"""The executors' time is counted while it passes."""

from __future__ import annotations

from emiliad.board import Board
from emiliad.metrics import Metrics


def test_an_executor_that_idles_for_an_hour_is_seen_idle_meanwhile() -> None:
    """Or the share of busy time would stay at 100 % until the idle hour ends."""
    metrics, now = Metrics(), [0.0]
    board = Board(metrics, clock=lambda: now[0])
    board.show("gpu0.0", "idle")
    idle = metrics.executor_idle_seconds.labels("gpu0.0")
    now[0] = 3600.0
    board.count_time()
    assert idle._value.get() == 3600.0
    now[0] = 3601.0
    board.count_time()
    assert idle._value.get() == 3601.0
    assert metrics.executor_busy_seconds.labels("gpu0.0")._value.get() == 0.0
