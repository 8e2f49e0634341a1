"""One process of a node: the project's queue code, around an execution that only pretends."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Protocol

from emiliad.patience import Patience
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.stores.patient import PatientStore
from emiliad.types import Claim, Failure, Outcome, Processed
from tests.emiliad.queue_kit import LAYOUT, WALL_S, in_place
from tests.sim.faults import Process, Wire
from tests.sim.plan import Plan

WORKERS = 2
_POLL_S = (4.0, 30.0)
_STOP_S = 5.0  # that handing back the leases may take at the end
_HEEDING = (
    0.5  # share of executions that end when their lease is lost; the others commit all the same
)
_CRASH = Failure("crash", "the executor died")
_BAD = Failure("bad_audio", "no sound in it", retriable=False)


class Observer(Protocol):
    """Who hears of the work that is done."""

    @property
    def failing(self) -> float: ...  # share of executions that fail
    def begins(self, process: Process, claim: Claim) -> int: ...  # the number of the attempt
    def ends(self, process: Process, claim: Claim, outcome: str) -> None: ...


class Daemon:
    """The parts of a process, put together as `emiliad.daemon` does."""

    def __init__(
        self,
        process: Process,
        wire: Wire,
        *,
        owner: str,
        plan: Plan,
        rng: random.Random,
        scratch: Path,
        observer: Observer,
        wall_error_s: float,
    ) -> None:
        self.process = process
        self._plan = plan
        self._rng = rng
        self._scratch = scratch
        self._observer = observer
        patience = Patience(tries=plan.tries, sleep=process.sleep, rng=rng)
        store = PatientStore(wire, patience)
        outputs = Outputs(store, LAYOUT, concurrency=2, scratch=scratch, offload=in_place)

        def wall() -> float:
            return WALL_S + process.clock() + wall_error_s

        self.leases = Leases(
            store,
            LAYOUT,
            owner=owner,
            ttl_s=plan.ttl_s,
            max_attempts=plan.max_attempts,
            retry_backoff_s=plan.backoff_s,
            write_spacing_s=plan.write_spacing_s,
            clock=process.clock,
            sleep=process.sleep,
            wall=wall,
            patience=patience,
            outputs=outputs,
        )
        self.publisher = Publisher(store, LAYOUT, self.leases, outputs=outputs)
        self.sweeper = Sweeper(
            store,
            LAYOUT,
            ttl_s=plan.ttl_s,
            clock=process.clock,
            wall=wall,
            patience=patience,
            outputs=outputs,
        )

    def start(self) -> None:
        """Runs all actors."""
        for actor in (self._renew, self._sweep, *[self._work] * WORKERS):
            self.process.start(actor())

    async def stop(self) -> None:
        """SIGTERM: all work is cancelled, and the leases are handed back."""
        self.process.history.note(self.process.name, "is told to stop")
        self.process.cancel()
        await self.process.gone()
        last_words = self.process.start(self.leases.release_all())
        await asyncio.wait([last_words], timeout=_STOP_S)
        self.process.kill("ends")

    async def _renew(self) -> None:
        while True:
            await self.process.sleep(max(10.0, self._plan.ttl_s / 3 * self._rng.uniform(0.9, 1.0)))
            for claim in list(self.leases.held.values()):
                await self.leases.renew(claim)

    async def _sweep(self) -> None:
        while True:
            await self.process.sleep(max(20.0, self._plan.ttl_s) * self._rng.uniform(0.8, 1.0))
            await self.sweeper.sweep_once()

    async def _work(self) -> None:
        while True:
            claim = await self.leases.next()
            if claim is None:
                await self.process.sleep(self._rng.uniform(*_POLL_S))
                continue
            await self.attempt(claim)

    async def attempt(self, claim: Claim) -> None:
        """Executes a task and ends its lease, one way or the other."""
        number = self._observer.begins(self.process, claim)
        outcome = "cut off"
        try:
            outcome = await self._try(claim, number)
        finally:
            self._observer.ends(self.process, claim, outcome)

    async def _try(self, claim: Claim, number: int) -> Outcome:
        lost = self.leases.lost(claim)
        await self.process.rest(self._rng.uniform(*self._plan.work_s))
        if lost.is_set() and self._rng.random() < _HEEDING:
            return Outcome.LOST
        if self._rng.random() < self._observer.failing:
            return await self.leases.fail(claim, self._rng.choice((_CRASH, _CRASH, _BAD)))
        processed = self._execute(claim, number)
        try:
            return await self.publisher.commit(processed)
        finally:
            shutil.rmtree(processed.workdir)

    def _execute(self, claim: Claim, attempt: int) -> Processed:
        """Outputs that no other attempt makes: other bytes, and another number of segments."""
        count = self._rng.randrange(4)
        workdir = self._scratch / f"{attempt}"
        out = workdir / "out"
        out.mkdir(parents=True)
        name = claim.task.episode_id
        rows = [{"audio": f"{name}_{i:06d}.mp3", "attempt": attempt} for i in range(count)]
        for row in rows:
            (out / str(row["audio"])).write_bytes(b"mp3 of attempt %d" % attempt)
        (out / "all_segments.json").write_text(json.dumps(rows))
        (out / "episode.json").write_text(json.dumps({"attempt": attempt}))
        manifest = {"segments": count, "audio_seconds": 60.0 * attempt}
        return Processed(claim, workdir, out, manifest, {})
