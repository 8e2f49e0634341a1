"""Commits finished tasks and publishes their outputs."""

from __future__ import annotations

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from emiliad.outcomes import Outcomes
from emiliad.queue.publish import Publisher
from emiliad.types import Processed


async def run(
    inbox: MemoryObjectReceiveStream[Processed], *, publisher: Publisher, outcomes: Outcomes
) -> None:
    """Uploads one episode at a time; several run beside each other.

    Ends when `inbox` does, with everything that came through it committed. When it is cancelled,
    what is not committed is handed back, and what is committed is left to others to publish.
    """
    async with inbox:
        async for processed in inbox:
            outcomes.uploading(processed.claim)
            committed = anyio.Event()
            try:
                outcome = await publisher.commit(processed, committed.set)
            except anyio.get_cancelled_exc_class():
                if committed.is_set():
                    await outcomes.unpublished(processed)
                else:
                    await outcomes.stopped(processed.claim, processed.workdir)
                raise
            await outcomes.committed(processed, outcome)
