"""When an executor is due for a fresh child: after so many tasks, or when its memory has grown."""

from __future__ import annotations

_GB = 10**9


class Wear:
    """Of one executor; limits of 0 are none.

    Growth counts from the first finished task, which loads what is loaded late and fills caches.
    """

    def __init__(self, tasks: int, growth_gb: float, memory_gb: float) -> None:
        self._most_tasks = tasks
        self._most_growth = growth_gb * _GB
        self._most_memory = memory_gb * _GB
        self.begin()

    def begin(self) -> None:
        """Notes that a fresh child begins."""
        self._tasks = 0
        self._first = 0  # bytes

    def after_task(self, memory: int) -> str | None:
        """Notes that a task ended with so many bytes resident; why a fresh child is due, or None.

        0 bytes: nobody knows.
        """
        self._tasks += 1
        self._first = self._first or memory
        if self._tasks == self._most_tasks:
            return f"it has done {self._tasks} tasks"
        if 0 < self._most_memory < memory:
            return f"it takes {memory / _GB:.2f} GB of memory"
        growth = memory - self._first
        if 0 < self._most_growth < growth:
            return f"its memory has grown by {growth / _GB:.2f} GB in {self._tasks} tasks"
        return None
