"""Keeps systemd informed: alive, and doing what; from the event loop that does it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio

from emiliad.board import Board
from emiliad.notify import Notifier

_EVERY_S = 5.0  # between two looks, unless the watchdog wants more
_WATCHDOG_SHARE = 1 / 3  # of its time between two signs of life: two may be late
_LOADING_S = 60.0  # that a start may take from each look on; LOAD_TIMEOUT_S ends one that hangs


async def run(*, notifier: Notifier, board: Board) -> None:
    """Runs until it is cancelled; ends at once if nobody listens."""
    if notifier.address is None:
        return
    every_s = min(_EVERY_S, (notifier.watchdog_s or _EVERY_S) * _WATCHDOG_SHARE)
    shown = ""
    while True:
        notifier.alive()
        if board.state == "starting":
            notifier.extend(_LOADING_S)
        if (sentence := _summary(board.snapshot())) != shown:
            notifier.status(sentence)
            shown = sentence
        await anyio.sleep(every_s)


def _summary(status: dict[str, Any]) -> str:
    states = Counter(row["state"] for row in status["executors"])
    busy, all_of_them = states["busy"], states.total()
    done, failed = status["totals"]["completed"], status["totals"]["failed"]
    what = f"{status['state']}: {busy} of {all_of_them} executors busy"
    return f"{what}, {done} completed, {failed} failed" + (
        f"; {status['not_ready']}" if status["not_ready"] else ""
    )
