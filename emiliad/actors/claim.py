"""Claims tasks one by one, as fast as the next actor takes them."""

from __future__ import annotations

import random

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from emiliad import logs
from emiliad.crew import Crew
from emiliad.metrics import Metrics
from emiliad.outcomes import Outcomes
from emiliad.queue.leases import Leases
from emiliad.types import Claim

_FIRST_WAIT_S = 0.25  # between two looks at an empty queue; doubles up to the poll interval
_JITTER = (0.5, 1.0)  # nodes that found nothing at the same time do not look again together
_log = logs.get("claim")


async def run(
    outbox: MemoryObjectSendStream[Claim],
    *,
    leases: Leases,
    outcomes: Outcomes,
    metrics: Metrics,
    crew: Crew,
    poll_s: float,
    exit_when_empty: bool,
) -> None:
    """Ends when it is cancelled, or with `exit_when_empty` when every task is settled."""
    wait = _FIRST_WAIT_S
    async with outbox:
        while True:
            await crew.some()
            claim = await leases.next()
            outlook = leases.outlook
            metrics.todo_tasks.set(outlook.todo - outlook.failed)
            if claim is not None:
                wait = _FIRST_WAIT_S
                await _hand_on(claim, outbox, outcomes)
                continue
            if exit_when_empty and outlook.settled:
                _log.info("queue.empty")
                return
            # A back-off or a lease that ends sooner than the next look is worth an earlier one.
            soon = min(wait, max(outlook.wait_s or wait, _FIRST_WAIT_S))
            await anyio.sleep(soon * random.uniform(*_JITTER))
            wait = min(wait * 2, poll_s)


async def _hand_on(claim: Claim, outbox: MemoryObjectSendStream[Claim], outcomes: Outcomes) -> None:
    outcomes.began(claim)
    try:
        await outbox.send(claim)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await outcomes.released(claim, why="the daemon stops")
        raise
