"""How attempts end: settles the lease, frees the scratch space, counts, and writes the log line."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import anyio

from emiliad import logs
from emiliad.board import Board
from emiliad.metrics import Metrics
from emiliad.queue.leases import Leases
from emiliad.room import Room
from emiliad.types import Claim, Failure, Outcome, Processed

# Seconds that a daemon which stops waits for the store to take a task back. A healthy store needs
# at most two (its writes to one key are a second apart); what is left over is tried once more at
# the very end, and then left to the lease's TTL.
_HAND_BACK_S = 3.0
_log = logs.get("task")

_Key: TypeAlias = tuple[str, str]  # an attempt: an episode may be claimed again before one ended


@dataclass(slots=True)
class Outcomes:
    """Knows where every attempt stands and is the one place where it ends.

    `totals` says how many ended which way.
    """

    leases: Leases
    room: Room
    metrics: Metrics
    board: Board
    totals: Counter[Outcome] = field(default_factory=Counter)
    _claimed: dict[_Key, float] = field(default_factory=dict)  # when
    _queues: dict[_Key, str] = field(default_factory=dict)  # where it waits
    _begun: set[_Key] = field(default_factory=set)  # its processing began

    def claimed(self, claim: Claim) -> None:
        """Notes that a task was claimed; it waits for its audio."""
        self._claimed[_key(claim)] = time.monotonic()
        self._wait(claim, "claimed")

    def prefetched(self, claim: Claim) -> None:
        """Notes that its audio is there; it waits for an executor."""
        self._wait(claim, "prefetched")

    def begun(self, claim: Claim) -> None:
        """Notes that an executor has it."""
        self._wait(claim, None)
        self._begun.add(_key(claim))

    def uploading(self, claim: Claim) -> None:
        """Notes that it was processed, and its outputs are on their way."""
        self._wait(claim, "upload")

    def _wait(self, claim: Claim, queue: str | None) -> None:
        before = self._queues.pop(_key(claim), None)
        if before is not None:
            self.board.moved(before, -1)
        if queue is not None:
            self._queues[_key(claim)] = queue
            self.board.moved(queue, 1)

    async def failed(self, claim: Claim, failure: Failure, workdir: Path | None = None) -> Outcome:
        """Ends an attempt that failed: another one follows, or the dead letter."""
        outcome = await self.leases.fail(claim, failure)
        if outcome is Outcome.FAILED:
            self.metrics.failed_tasks.inc()  # until the next sweep has counted them all
        await self._ended(claim, outcome, workdir, kind=failure.kind, reason=failure.reason)
        return outcome

    async def released(self, claim: Claim, workdir: Path | None = None, *, why: str) -> None:
        """Hands a task back that was not begun; it counts for nothing."""
        try:
            await self.leases.release(claim)
        except anyio.get_cancelled_exc_class():
            await self.stopped(claim, workdir)
            raise
        await self._ended(claim, Outcome.RELEASED, workdir, reason=why)

    async def stopped(self, claim: Claim, workdir: Path | None = None) -> None:
        """Hands a task back because the daemon stops, begun or not; cannot be cancelled.

        Gives the store a few seconds; what it does not take by then stays held.
        """
        begun = _key(claim) in self._begun
        with anyio.move_on_after(_HAND_BACK_S, shield=True):
            await self.leases.release(claim, interrupted=begun)
        if begun:
            self.metrics.interrupted_tasks.inc()
        facts = {"interrupted": claim.interrupted + 1} if begun else {}
        await self._ended(claim, Outcome.RELEASED, workdir, reason="the daemon stops", **facts)

    async def lost(self, claim: Claim, workdir: Path | None = None) -> None:
        """Lets go of a task that another owner has taken."""
        await self._ended(claim, Outcome.LOST, workdir, reason="another owner has the lease")

    async def committed(self, processed: Processed, outcome: Outcome) -> None:
        """Ends an attempt whose outputs were offered for commit: completed, or lost the race."""
        facts: dict[str, Any] = {}
        if outcome is Outcome.COMPLETED:
            facts = {key: processed.manifest[key] for key in ("segments", "audio_seconds")}
            self.metrics.segments.inc(facts["segments"])
            self.metrics.audio_seconds.inc(facts["audio_seconds"])
            facts["stages"] = {name: round(s, 3) for name, s in processed.stage_seconds.items()}
        await self._ended(processed.claim, outcome, processed.workdir, **facts)

    async def unpublished(self, processed: Processed) -> None:
        """Ends an attempt that was committed when the daemon stopped: others will publish it."""
        with anyio.move_on_after(_HAND_BACK_S, shield=True):
            await self.leases.release(processed.claim)
        await self.committed(processed, Outcome.COMPLETED)

    async def _ended(
        self, claim: Claim, outcome: Outcome, workdir: Path | None, **facts: Any
    ) -> None:
        if workdir is not None:
            await self.room.leave(workdir)
        self._wait(claim, None)
        self._begun.discard(_key(claim))
        self.totals[outcome] += 1
        self.metrics.tasks.labels(outcome.value).inc()
        claimed = self._claimed.pop(_key(claim), None)
        if claimed is not None:
            facts["seconds"] = round(time.monotonic() - claimed, 3)
        self.board.ended(claim, outcome, facts)
        report = _log.warning if outcome in (Outcome.FAILED, Outcome.LOST) else _log.info
        report(
            f"task.{outcome.value}",
            episode_id=claim.task.episode_id,
            attempt=claim.attempt,
            **facts,
        )


def _key(claim: Claim) -> _Key:
    return claim.task.episode_id, claim.nonce
