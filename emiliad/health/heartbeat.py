"""Shows whether the event loop turns: beats from it, and watches the beats from a thread."""

from __future__ import annotations

import sys
import threading
import time
import traceback

import anyio
from prometheus_client import Counter, Histogram

from emiliad import logs

_BEAT_S = 0.1  # between two beats: fine enough to see a lag of milliseconds, and costs nothing
_STALL_S = 5.0  # without a beat, after which the loop's stack is logged: nothing may take so long
_DEAD_S = 15.0  # without a beat, after which the daemon is reported as not alive
_WATCH_S = 0.5  # between two looks of the watching thread
_log = logs.get("heartbeat")


class Heartbeat:
    """One event loop's heartbeat; `run` beats, any thread may ask `not_alive`.

    `lag` takes how late each beat came, `stalls` counts the stalls.
    """

    def __init__(
        self,
        *,
        lag: Histogram | None = None,
        stalls: Counter | None = None,
        stalled_after_s: float = _STALL_S,
        dead_after_s: float = _DEAD_S,
    ) -> None:
        self._lag = lag
        self._stalls = stalls
        self._stalled_after_s = stalled_after_s
        self._dead_after_s = dead_after_s
        self._last = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the loop last beat."""
        return time.monotonic() - self._last

    def not_alive(self) -> str | None:
        """Why the daemon is not alive; None if it is."""
        age = self.age_s
        return (
            None if age < self._dead_after_s else f"the event loop has stood still for {age:.0f} s"
        )

    async def run(self) -> None:
        """Beats until it is cancelled."""
        ended = threading.Event()
        watcher = threading.Thread(
            target=self._watch, args=(threading.get_ident(), ended), name="heartbeat", daemon=True
        )
        watcher.start()
        try:
            while True:
                self._beat()
                due = time.monotonic() + _BEAT_S
                await anyio.sleep(_BEAT_S)
                if self._lag is not None:
                    self._lag.observe(max(0.0, time.monotonic() - due))
        finally:
            ended.set()

    def _beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self, loop_thread: int, ended: threading.Event) -> None:
        """Reports each stall once, with what the loop is busy with, and then its end."""
        while not ended.wait(_WATCH_S):
            last = self._last
            if time.monotonic() - last < self._stalled_after_s:
                continue
            self._report(loop_thread, time.monotonic() - last)
            while self._last == last and not ended.wait(_WATCH_S):
                pass
            if self._last != last:
                _log.warning("loop.turns_again", seconds=round(self._last - last, 1))

    def _report(self, thread: int, seconds: float) -> None:
        if self._stalls is not None:
            self._stalls.inc()
        frame = sys._current_frames().get(thread)
        stack = [] if frame is None else traceback.format_stack(frame)
        _log.error("loop.stalled", seconds=round(seconds, 1), stack="".join(stack))
