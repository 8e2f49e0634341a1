"""Bounds the audio in scratch by its bytes: an episode is let in before it is downloaded."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread

from emiliad import logs
from emiliad.board import Board
from emiliad.metrics import Metrics
from emiliad.scratch import Scratch

_RESERVE = 0.1  # of the disk: outputs and packs of what is being processed need space, too
_PROBLEM = "scratch"
_log = logs.get("scratch")


class NoRoom(Exception):
    """An episode does not fit the scratch disk now; the message says why, as one sentence."""


class Room:
    """Gives out the directories of `scratch`.

    The audio in them is `limit_bytes` at most, and a tenth of the disk stays free; an episode that
    comes alone is let in whatever its size. One that does not fit even so shuts the room for all
    (`shut`): to claim more would only keep it from nodes with space.
    """

    def __init__(
        self, scratch: Scratch, *, limit_bytes: int | None, board: Board, metrics: Metrics
    ) -> None:
        self._scratch = scratch
        self._limit_bytes = limit_bytes
        self._board = board
        self._metrics = metrics
        self._reserve = int(scratch.total_bytes() * _RESERVE)
        self._sizes: dict[Path, int] = {}  # of the audio, by directory
        self._coming: dict[Path, int] = {}  # of those, what is not written yet
        self._turn = anyio.Lock()  # who has waited longest comes first, however large
        self._changed = anyio.Event()
        self._why_shut: str | None = None

    @property
    def audio_bytes(self) -> int:
        """The audio that is let in."""
        return sum(self._sizes.values())

    async def enter(self, task_id: str, size: int) -> Path:
        """A directory for a task with `size` bytes of audio, as soon as there is room for it.

        Raises NoRoom, and OSError as `Scratch.new` does.
        """
        async with self._turn:
            while not self._fits(size):
                await self._changed.wait()
            workdir = self._scratch.new(task_id)
            self._sizes[workdir] = self._coming[workdir] = size
        return workdir

    def arrived(self, workdir: Path) -> None:
        """Notes that the audio is there whole; so the disk works."""
        self._coming.pop(workdir, None)
        self._board.problem(_PROBLEM, None)
        self._metrics.scratch_full.set(0)

    async def leave(self, workdir: Path) -> None:
        """Removes a task's directory with all that is in it; cannot be cancelled."""
        with anyio.CancelScope(shield=True):  # in a thread: a large file takes a tenth of a second
            await anyio.to_thread.run_sync(self._scratch.remove, workdir)
        self._sizes.pop(workdir, None)
        self._coming.pop(workdir, None)
        self._wake()

    async def shut(self, why: str, seconds: float) -> None:
        """Lets nobody in for some time: the disk is full. Returns when the room is open again."""
        if self._why_shut is not None:
            return await self.opened()
        sentence = f"the scratch disk is full: {why}"
        _log.error("scratch.full", directory=str(self._scratch.root), reason=why)
        self._board.problem(_PROBLEM, sentence)
        self._metrics.scratch_full.set(1)
        self._why_shut = sentence
        self._wake()
        try:
            await anyio.sleep(seconds)
        finally:
            self._why_shut = None
            self._wake()

    async def opened(self) -> None:
        """Waits while it is shut."""
        while self._why_shut is not None:
            await self._changed.wait()

    def _fits(self, size: int) -> bool:
        if self._why_shut is not None:
            raise NoRoom(self._why_shut)
        left = self._scratch.free_bytes() - sum(self._coming.values())
        if not self._sizes:
            if size > left:
                raise NoRoom(f"{size:,} bytes do not fit the {left:,} that are free")
            return True
        if self._limit_bytes is not None and self.audio_bytes + size > self._limit_bytes:
            return False
        return size <= left - self._reserve

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
