"""Brings claimed tasks' audio into scratch space ahead of the executors."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from emiliad.errors import (
    Ambiguous,
    NotFound,
    ScratchUnusable,
    StoreError,
    StoreUnusable,
    Throttled,
)
from emiliad.outcomes import Outcomes
from emiliad.room import NoRoom, Room
from emiliad.store import Store
from emiliad.types import Claim, Failure, Prefetched

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


async def run(
    inbox: MemoryObjectReceiveStream[Claim],
    outbox: MemoryObjectSendStream[Prefetched],
    *,
    store: Store,
    room: Room,
    outcomes: Outcomes,
    full_disk_wait_s: float,
) -> None:
    """Downloads one at a time; several run beside each other.

    Ends when `inbox` does. Work in hand when it is cancelled is released.
    """
    fetcher = _Fetcher(store, room, outcomes)
    async with inbox, outbox:
        async for claim in inbox:
            try:
                ready = await fetcher.fetch(claim)
            except anyio.get_cancelled_exc_class():
                await outcomes.stopped(claim)
                raise
            except NoRoom as error:
                await outcomes.released(claim, why=str(error))
                await room.shut(str(error), full_disk_wait_s)
            else:
                await _hand_on(ready, outbox, outcomes)


async def _hand_on(
    ready: Prefetched | None, outbox: MemoryObjectSendStream[Prefetched], outcomes: Outcomes
) -> None:
    if ready is None:
        return
    outcomes.prefetched(ready.claim)
    try:
        await outbox.send(ready)
    except anyio.get_cancelled_exc_class():
        await outcomes.stopped(ready.claim, ready.workdir)
        raise


@dataclass(frozen=True, slots=True)
class _Fetcher:
    store: Store
    room: Room
    outcomes: Outcomes

    async def fetch(self, claim: Claim) -> Prefetched | None:
        """The task with its audio, or None when it failed. Raises NoRoom."""
        key = claim.task.audio_key
        try:
            size = (await self.store.head(key)).size
            workdir = await self.room.enter(claim.task.episode_id, size)
            return await self._download(claim, workdir)
        except NotFound:
            failure = Failure("missing_audio", f"there is no object {key}", retriable=False)
        except StoreUnusable:
            raise
        except (Throttled, Ambiguous, StoreError) as error:
            failure = Failure("download", f"{key} could not be read: {error}")
        except OSError as error:
            if error.errno not in _FULL:
                raise ScratchUnusable(f"scratch space is of no use: {error}") from error
            raise NoRoom(f"{key} could not be written: {error.strerror}") from error
        await self.outcomes.failed(claim, failure)
        return None

    async def _download(self, claim: Claim, workdir: Path) -> Prefetched:
        audio = workdir / f"audio{PurePosixPath(claim.task.audio_key).suffix[:16]}"
        arrived = False
        try:
            await self.store.download(claim.task.audio_key, audio)
            arrived = True
        finally:
            if not arrived:
                await self.room.leave(workdir)
        self.room.arrived(workdir)
        return Prefetched(claim, workdir, audio)
