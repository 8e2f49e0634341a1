"""Simulated time: what is to happen, in order; hours pass in milliseconds."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Clock:
    """Runs callbacks at their times; equal times in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Calls `action` once, `delay_s` from now."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._number), action))

    def every(self, period_s: float, action: Callable[[], None]) -> None:
        """Calls `action` again and again."""

        def again() -> None:
            action()
            self.after(period_s, again)

        self.after(period_s, again)

    def run(self, until: float) -> None:
        """Lets time pass."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until
