"""How attempts end: settles the lease, frees the scratch space, counts, and writes the log line."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emiliad import logs
from emiliad.metrics import Metrics
from emiliad.queue.leases import Leases
from emiliad.scratch import Scratch
from emiliad.types import Claim, Failure, Outcome, Processed

_log = logs.get("task")


@dataclass(slots=True)
class Outcomes:
    """The one place where an attempt ends; `totals` says how many ended which way."""

    leases: Leases
    scratch: Scratch
    metrics: Metrics
    totals: Counter[Outcome] = field(default_factory=Counter)
    _began: dict[str, float] = field(default_factory=dict)

    def began(self, claim: Claim) -> None:
        """Notes when work on a claim began, for the log line that ends it."""
        self._began[claim.task.episode_id] = time.monotonic()

    async def failed(self, claim: Claim, failure: Failure, workdir: Path | None = None) -> Outcome:
        """Ends an attempt that failed: another one follows, or the dead letter."""
        outcome = await self.leases.fail(claim, failure)
        self._ended(claim, outcome, workdir, kind=failure.kind, reason=failure.reason)
        return outcome

    async def released(self, claim: Claim, workdir: Path | None = None, *, why: str) -> None:
        """Hands a task back; it counts for nothing."""
        await self.leases.release(claim)
        self._ended(claim, Outcome.RELEASED, workdir, reason=why)

    def lost(self, claim: Claim, workdir: Path | None = None) -> None:
        """Lets go of a task that another owner has taken."""
        self._ended(claim, Outcome.LOST, workdir, reason="another owner has the lease")

    def committed(self, processed: Processed, outcome: Outcome) -> None:
        """Ends an attempt whose outputs were offered for commit: completed, or lost the race."""
        facts: dict[str, Any] = {}
        if outcome is Outcome.COMPLETED:
            facts = {key: processed.manifest[key] for key in ("segments", "audio_seconds")}
            self.metrics.segments.inc(facts["segments"])
            self.metrics.audio_seconds.inc(facts["audio_seconds"])
            facts["stages"] = {name: round(s, 3) for name, s in processed.stage_seconds.items()}
        self._ended(processed.claim, outcome, processed.workdir, **facts)

    def _ended(self, claim: Claim, outcome: Outcome, workdir: Path | None, **facts: Any) -> None:
        if workdir is not None:
            self.scratch.remove(workdir)
        self.totals[outcome] += 1
        self.metrics.tasks.labels(outcome.value).inc()
        began = self._began.pop(claim.task.episode_id, None)
        if began is not None:
            facts["seconds"] = round(time.monotonic() - began, 3)
        report = _log.warning if outcome in (Outcome.FAILED, Outcome.LOST) else _log.info
        report(
            f"task.{outcome.value}",
            episode_id=claim.task.episode_id,
            attempt=claim.attempt,
            **facts,
        )
