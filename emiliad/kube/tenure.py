"""Who stands for election, and the right to write that the elected one has for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def uptime() -> float:
    """Seconds on a clock that nobody sets, and that runs on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class Terms:
    """Periods in seconds; all autokickers of a cluster should have the same."""

    lease_s: int = 15  # that a holder is believed in
    deadline_s: float = 10.0  # without renewal after which the holder stops by itself
    renew_s: float = 5.0  # between renewals
    retry_s: float = 2.0  # between attempts, at most


STANDARD = Terms()


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who stands for election, and for which lease."""

    namespace: str
    name: str  # of the lease
    identity: str  # unique among all processes that ever ran
    embedded: bool = False
    version: str = ""
    terms: Terms = STANDARD


class Tenure:
    """The right to write, while it lasts."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock
        self._ended = False
        self.unsettled = False  # a write's end is unknown: the lease must lapse, not be handed over

    def left_s(self) -> float:
        """Seconds that this tenure is certain to last, 0 if it has ended. Ask before each write."""
        return 0.0 if self._ended else max(0.0, self._deadline - self._clock())

    def extend(self, deadline: float) -> None:
        """The lease was renewed."""
        self._deadline = deadline

    def end(self) -> None:
        """Ends it at once."""
        self._ended = True
