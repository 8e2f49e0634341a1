"""A world: nodes and operators at work on one bucket, a storm of faults, the calm after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog.testing

from emiliad.queue.enqueue import enqueue
from emiliad.types import Claim
from tests.emiliad.queue_kit import LAYOUT
from tests.sim import loop
from tests.sim.bucket import Bucket, Violation
from tests.sim.daemon import Daemon
from tests.sim.faults import History, Network, Process, Wire, storm
from tests.sim.judge import judge_end, judge_promises, unrest
from tests.sim.operators import Operators, furnish
from tests.sim.plan import Plan

_LOOK_S = 5.0  # between two looks at whether all has ended
_ROUNDS = 8  # of the caretaker, at most
_UPTIME_S = 1e6  # of machines, at most: monotonic clocks begin anywhere


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to."""

    plan: Plan
    history: History
    violation: str | None
    outcomes: Counter[str] = field(default_factory=Counter)
    calm_s: float = 0.0  # from the last fault until everything had come to an end

    def __str__(self) -> str:
        return (
            f"seed {self.plan.seed}: {self.violation or 'all is well'}\n{self.plan}\n"
            f"attempts: {dict(self.outcomes)}; at rest after {self.calm_s:.0f} s of at most "
            f"{self.plan.bound_s:.0f} s; history {self.history.digest()}\n"
            f"again, with all that happened: python -m tests.sim {self.plan.seed} --trace"
        )


def run(plan: Plan) -> Report:
    """Runs a world to its end, or to the first violation of an invariant."""
    with tempfile.TemporaryDirectory() as scratch, structlog.testing.capture_logs():
        return loop.run(_run(plan, Path(scratch)))


async def _run(plan: Plan, scratch: Path) -> Report:
    world = World(plan, scratch)
    violation = None
    try:
        await world.live()
    except Violation as error:
        violation = str(error)
    return Report(plan, world.history, violation, world.outcomes, world.calm_s)


class World:
    """The nodes' daemons, the operators' commands, and the one bucket that they share."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self.plan = plan
        self.history = History()
        self.outcomes: Counter[str] = Counter()
        self.calm_s = 0.0
        self.failing = plan.failing
        self._scratch = scratch
        self._rng = random.Random(f"world {plan.seed}")
        self._bucket = Bucket()
        self._network = Network(self._bucket, self._rng, self.history)
        self._storming = True
        self._processes: list[Process] = []
        self._numbers = itertools.count(1)
        self._working: dict[str, Process] = {}
        self._lives: list[asyncio.Task[None]] = []
        self._operators = Operators(
            self._network, self._bucket, plan, lambda: not self._storming, self._process
        )

    # what daemons tell

    def begins(self, process: Process, claim: Claim) -> int:
        name = claim.task.episode_id
        other = self._working.get(name)
        if self.plan.exclusive and other is not None and not other.dead.is_set():
            self._blame(f"{process.name} works on {name} while {other.name} does")
        self._working[name] = process
        attempt = next(self._numbers)
        self.history.note(process.name, f"begins attempt {attempt} of {name}", claim.nonce[:6])
        return attempt

    def ends(self, process: Process, claim: Claim, outcome: str) -> None:
        name = claim.task.episode_id
        if self._working.get(name) is process:
            del self._working[name]
        self.outcomes[outcome] += 1
        self.history.note(process.name, f"ends its attempt of {name}", outcome)

    # the course of things

    async def live(self) -> None:
        """Storm, calm, and a look at what is left. Raises Violation."""
        furnish(self._bucket, self.plan, self._rng)
        self._network.weather = storm(self.plan.wire, self.plan.deadly)
        people = self._operators
        lives = [self._life(number) for number in range(self.plan.nodes)]
        lives += [people.upload(), people.enqueue("ann"), people.enqueue("bob"), people.retry()]
        self._lives = [asyncio.get_running_loop().create_task(life) for life in lives]
        try:
            await self._watch(lambda: self._now() >= self.plan.storm_s)
            self._abate()
            await self._watch(self._at_rest, self.plan.bound_s)
        finally:
            await self._end()
        judge_promises(self._bucket, self._operators.promised)
        await self._tidy()
        judge_end(self._bucket, {"failed"} if self.plan.old_scripts else set())

    async def _end(self) -> None:
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        for process in self._processes:
            process.kill("ends with the world")
            await process.gone()

    def _abate(self) -> None:
        """From here on requests fail no more, nor do nodes or executions."""
        self.history.note("world", "the storm is over")
        self._storming = False
        self.failing = 0.0
        self._network.weather = storm(0.0, 0.0)

    async def _watch(self, reached: Callable[[], bool], bound_s: float = math.inf) -> None:
        began = self._now()
        while not reached():
            await asyncio.sleep(_LOOK_S)
            self.calm_s = self._now() - began
            self._judge()
            if self.calm_s > bound_s:
                raise Violation(
                    f"no rest {bound_s:.0f} s after the last fault: {unrest(self._bucket)}"
                )

    def _at_rest(self) -> bool:
        stray = self._network.under_way or any(process.frozen for process in self._processes)
        return not stray and not unrest(self._bucket)

    async def _tidy(self) -> None:
        """Another enqueue, and one node that outlives its TTL: nothing may be left after it."""
        process = self._process("caretaker")
        await enqueue(Wire(self._network, process), LAYOUT)
        daemon = self._daemon(process, "caretaker")
        for _ in range(_ROUNDS):
            while (claim := await daemon.leases.next()) is not None:
                await daemon.attempt(claim)
            mended = await daemon.sweeper.sweep_once()
            await process.rest(1.2 * self.plan.ttl_s + self.plan.backoff_s)
            if daemon.leases.outlook.settled and not (await daemon.sweeper.sweep_once() or mended):
                return
        raise Violation("the last sweep never ends")

    # nodes

    async def _life(self, number: int) -> None:
        """A node: one process after the other, under the same owner's name or a new one."""
        owner = f"node-{number}"
        for generation in itertools.count():
            process = self._process(f"{owner}.{generation}", self._rng.uniform(*self.plan.rates))
            daemon = self._daemon(process, owner)
            daemon.start()
            await self._doom(daemon)
            await process.gone()
            if self._rng.random() < 0.5:
                owner = f"node-{number}-{generation}"
            await asyncio.sleep(self._rng.uniform(0.0, 20.0))

    def _process(self, name: str, rate: float = 1.0) -> Process:
        process = Process(name, self.history, rate=rate, offset_s=self._rng.uniform(0.0, _UPTIME_S))
        self._processes.append(process)
        return process

    def _daemon(self, process: Process, owner: str) -> Daemon:
        error_s = self._rng.uniform(-1.0, 1.0) * self.plan.wall_error_s
        return Daemon(
            process,
            Wire(self._network, process),
            owner=owner,
            plan=self.plan,
            rng=self._rng,
            scratch=self._scratch,
            observer=self,
            wall_error_s=error_s,
        )

    async def _doom(self, daemon: Daemon) -> None:
        """Lets a process run until it is dead; the storm strikes it again and again."""
        process = daemon.process
        while not process.dead.is_set():
            with contextlib.suppress(TimeoutError):
                wait_s = self._rng.expovariate(1 / self.plan.doom_s)
                await asyncio.wait_for(process.dead.wait(), wait_s)
            if self._storming and not process.frozen and not process.dead.is_set():
                await self._strike(daemon)

    async def _strike(self, daemon: Daemon) -> None:
        match self._rng.choice(("freeze", "freeze", "stop", "kill")):
            case "stop":
                await daemon.stop()
            case "kill":
                daemon.process.kill()
            case _ if self.plan.freezes:
                longest_s = 2.5 * max(self.plan.ttl_s, 20.0)
                daemon.process.freeze(self._rng.uniform(1.0, longest_s))

    def _judge(self) -> None:
        for life in self._lives:
            if life.done():
                life.result()
        for process in self._processes:
            if process.crash is not None:
                raise Violation(f"{process.name} crashed: {process.crash!r}") from process.crash
        if self._bucket.violation is not None:
            raise Violation(self._bucket.violation)

    def _blame(self, violation: str) -> None:
        self._bucket.violation = self._bucket.violation or violation

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
