"""Stretches of time in order, found by bisection. Standard library only."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Stretch: TypeAlias = tuple[int, int]  # start and end in milliseconds, start < end


class Timeline:
    """Stretches that do not overlap; those given that do become one."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(stretches):
            if self._ends and start < self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __iter__(self) -> Iterator[Stretch]:
        return iter(zip(self._starts, self._ends, strict=True))

    def within(self, start: int, end: int) -> list[Stretch]:
        """The parts that lie between two times."""
        some = slice(bisect_right(self._ends, start), bisect_left(self._starts, end))
        inside = zip(self._starts[some], self._ends[some], strict=True)
        return [(max(start, a), min(end, b)) for a, b in inside]

    def covered(self, start: int, end: int) -> int:
        """How much of the time between two times is covered, in milliseconds."""
        return sum(b - a for a, b in self.within(start, end))

    def last_before(self, time: int) -> int:
        """Where the stretch that begins before `time` ends, but no later than `time`; or 0."""
        index = bisect_left(self._starts, time) - 1
        return min(time, self._ends[index]) if index >= 0 else 0

    def first_after(self, time: int, default: int) -> int:
        """Where the stretch that ends after `time` begins, but no sooner than `time`."""
        index = bisect_right(self._ends, time)
        return max(time, self._starts[index]) if index < len(self._starts) else default

    def around(self, start: int, end: int) -> Stretch:
        """The two times, moved out to the ends of the stretches that they cut through."""
        touched = slice(bisect_right(self._ends, start), bisect_left(self._starts, end))
        starts, ends = self._starts[touched], self._ends[touched]
        return min([start, *starts]), max([end, *ends])
