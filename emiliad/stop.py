"""How the daemon ends, and how long each part of that may take."""

from __future__ import annotations

from collections.abc import Callable

import anyio

# Before the drain's deadline, running work is cut off so long that it is released by then: on R2
# the writes to one claim are a second apart, and a process must be killed.
_CUT_EARLIER_S = 2.0
_CUT_EARLIER_SHARE = 0.2  # of the drain's time, if that is shorter
_LAST_WORDS_S = 4.0  # after the deadline, for what the store has not taken until then
_LAST_WORDS_AT_LEAST_S = 1.0
FORCED_S = 4.8  # after the deadline, from which the process ends whatever still hangs


class Stop:
    """Four scopes: `assembly`, `intake` and `aside` are cancelled to drain, `work` to stop now.

    `told` hears of the two steps, draining and stopping, and within how many seconds all must be
    over.
    """

    def __init__(self, drain_timeout_s: float, *, told: Callable[[str, float], None]) -> None:
        self.drain_timeout_s = drain_timeout_s
        self.assembly = anyio.CancelScope()  # of the daemon: it holds nothing yet
        self.intake = anyio.CancelScope()  # of tasks
        self.aside = anyio.CancelScope()  # what others can go on with: the watch over the cluster
        self.work = anyio.CancelScope()  # on what was taken in
        self.draining = False
        self._told = told
        self._end_by: float | None = None

    def drain(self) -> None:
        """Takes no more work; running work has until shortly before the deadline."""
        self.draining = True
        self._told("draining", self.drain_timeout_s + FORCED_S)
        now = anyio.current_time()
        earlier = min(_CUT_EARLIER_S, self.drain_timeout_s * _CUT_EARLIER_SHARE)
        self._end_by = now + self.drain_timeout_s + _LAST_WORDS_S
        self.work.deadline = now + self.drain_timeout_s - earlier
        self.assembly.cancel()
        self.intake.cancel()
        self.aside.cancel()

    def now(self) -> None:
        """Cuts running work off, too."""
        self._told("stopping", FORCED_S)
        self._end_by = anyio.current_time() + _LAST_WORDS_S
        self.work.cancel()

    @property
    def last_words_s(self) -> float:
        """Seconds that handing back what is still held may take now, at the very end."""
        if self._end_by is None:
            return _LAST_WORDS_S
        return max(_LAST_WORDS_AT_LEAST_S, self._end_by - anyio.current_time())
