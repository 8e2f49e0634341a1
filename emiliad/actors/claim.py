"""Claims tasks, as fast as the next actor takes them and no faster."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from emiliad import logs
from emiliad.crew import Crew
from emiliad.metrics import Metrics
from emiliad.outcomes import Outcomes
from emiliad.queue.leases import Leases
from emiliad.room import Room
from emiliad.types import Claim

STARVING = 3  # times that a stop cut a task off, from which it is counted as one that never fits
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
    room: Room,
    at_once: int,
    poll_s: float,
    exit_when_empty: bool,
) -> None:
    """Claims `at_once` tasks at a time, while an executor can work and the disk has room.

    Ends when it is cancelled, or with `exit_when_empty` when every task is settled.
    """
    claimer = _Claimer(outbox, leases, outcomes, metrics, crew, room, poll_s, exit_when_empty)
    async with outbox, anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(claimer.run)


@dataclass(slots=True)
class _Claimer:
    outbox: MemoryObjectSendStream[Claim]
    leases: Leases
    outcomes: Outcomes
    metrics: Metrics
    crew: Crew
    room: Room
    poll_s: float
    exit_when_empty: bool
    waiting: anyio.Lock = field(default_factory=anyio.Lock)  # one of them watches an empty queue

    async def run(self) -> None:
        while True:
            claim = await self._look()
            if claim is None:
                async with self.waiting:
                    claim = await self._await_work()
            if claim is None:
                return
            await self._hand_on(claim)

    async def _await_work(self) -> Claim | None:
        """The next task to be had; None if every task is settled and that is the end."""
        wait = _FIRST_WAIT_S
        while True:
            claim = await self._look()
            if claim is not None:
                return claim
            outlook = self.leases.outlook
            if self.exit_when_empty and outlook.settled:
                _log.info("queue.empty")
                return None
            # A back-off or a lease that ends sooner than the next look is worth an earlier one.
            soon = min(wait, max(outlook.wait_s or wait, _FIRST_WAIT_S))
            await anyio.sleep(soon * random.uniform(*_JITTER))
            wait = min(wait * 2, self.poll_s)

    async def _look(self) -> Claim | None:
        await self.crew.some()
        await self.room.opened()
        claim = await self.leases.next()
        outlook = self.leases.outlook
        self.metrics.todo_tasks.set(outlook.todo - outlook.failed)
        return claim

    async def _hand_on(self, claim: Claim) -> None:
        self.outcomes.claimed(claim)
        if claim.interrupted >= STARVING:
            self.metrics.starving_tasks.inc()
            _log.warning(
                "task.starving",
                episode_id=claim.task.episode_id,
                interrupted=claim.interrupted,
                reason="it was never done between two stops of its nodes",
            )
        try:
            await self.outbox.send(claim)
        except anyio.get_cancelled_exc_class():
            await self.outcomes.stopped(claim)
            raise
