"""Commits finished tasks and publishes their outputs."""

from __future__ import annotations

from anyio.streams.memory import MemoryObjectReceiveStream

from emiliad.outcomes import Outcomes
from emiliad.queue.publish import Publisher
from emiliad.types import Processed


async def run(
    inbox: MemoryObjectReceiveStream[Processed], *, publisher: Publisher, outcomes: Outcomes
) -> None:
    """Ends when `inbox` does, with everything that came through it committed."""
    async with inbox:
        async for processed in inbox:
            outcome = await publisher.commit(processed)
            outcomes.committed(processed, outcome)
