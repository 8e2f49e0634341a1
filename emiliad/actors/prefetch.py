"""Brings claimed tasks' audio into scratch space ahead of the executors."""

from __future__ import annotations

import errno
from pathlib import PurePosixPath

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from emiliad import logs
from emiliad.errors import Ambiguous, NotFound, StoreError, StoreUnusable, Throttled
from emiliad.outcomes import Outcomes
from emiliad.scratch import Scratch
from emiliad.store import Store
from emiliad.types import Claim, Failure, Prefetched

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_log = logs.get("prefetch")


async def run(
    inbox: MemoryObjectReceiveStream[Claim],
    outbox: MemoryObjectSendStream[Prefetched],
    *,
    store: Store,
    scratch: Scratch,
    outcomes: Outcomes,
    full_disk_wait_s: float,
) -> None:
    """Ends when `inbox` does. Work in hand when it is cancelled is released."""
    async with inbox, outbox:
        async for claim in inbox:
            try:
                ready = await _fetch(claim, store, scratch, outcomes)
                if ready is not None:
                    await outbox.send(ready)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                _log.error("scratch.full", directory=str(scratch.root), reason=str(error))
                await outcomes.released(claim, why=f"{scratch.root} is full")
                await anyio.sleep(full_disk_wait_s)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await outcomes.released(claim, why="the daemon stops")
                raise


async def _fetch(
    claim: Claim, store: Store, scratch: Scratch, outcomes: Outcomes
) -> Prefetched | None:
    """The task with its audio, or None when it failed. Raises OSError when the disk is full."""
    key = claim.task.audio_key
    workdir = scratch.new(claim.task.episode_id)
    audio = workdir / f"audio{PurePosixPath(key).suffix[:16]}"
    done = False
    try:
        await store.download(key, audio)
        done = True
        return Prefetched(claim, workdir, audio)
    except NotFound:
        failure = Failure("missing_audio", f"there is no object {key}", retriable=False)
    except StoreUnusable:
        raise
    except (Throttled, Ambiguous, StoreError) as error:
        failure = Failure("download", f"{key} could not be read: {error}")
    finally:
        if not done:
            scratch.remove(workdir)
    await outcomes.failed(claim, failure)
    return None
