"""Which executors can work: no task is claimed while none can, and all leave when dismissed."""

from __future__ import annotations

from collections.abc import Iterable

import anyio


class Crew:
    """The executors of one daemon, by name.

    A member that loads for the first time cannot work yet; one that is replaced after a crash
    still can, for it will be back; one that was given up cannot, until it is up again.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.ready = anyio.Event()  # some member has had its models loaded
        self.dismissed = anyio.Event()  # there will be no more tasks
        self._members = frozenset(names)
        self._able: set[str] = set()
        self._down: set[str] = set()
        self._change = anyio.Event()

    def up(self, name: str) -> None:
        """Notes that a member has its models loaded."""
        self._able.add(name)
        self._down.discard(name)
        self.ready.set()
        self._changed()

    def down(self, name: str) -> None:
        """Notes that a member is given up."""
        self._able.discard(name)
        self._down.add(name)
        self._changed()

    @property
    def hopeless(self) -> bool:
        """Whether every member was given up and none ever worked."""
        return not self.ready.is_set() and self._down == self._members

    async def some(self) -> None:
        """Waits until a member can work."""
        while not self._able:
            await self._change.wait()

    async def none(self) -> None:
        """Waits until no member can work."""
        while self._able:
            await self._change.wait()

    def dismiss(self) -> None:
        """Lets everyone leave who has no task in hand."""
        self.dismissed.set()

    def _changed(self) -> None:
        self._change.set()
        self._change = anyio.Event()
