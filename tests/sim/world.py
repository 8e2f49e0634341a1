"""A world: nodes and operators at work on one bucket, a storm of faults, the calm after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog.testing

from emiliad.errors import Ambiguous, Throttled
from emiliad.patience import Patience
from emiliad.queue.claims import State, parse_claim
from emiliad.queue.enqueue import enqueue
from emiliad.queue.retry import retry
from emiliad.queue.tasks import id_of
from emiliad.store import Store
from emiliad.stores.patient import PatientStore
from emiliad.types import Claim
from tests.emiliad.queue_kit import LAYOUT, WALL_S, ids
from tests.sim import loop
from tests.sim.bucket import Bucket, Violation
from tests.sim.daemon import Daemon
from tests.sim.faults import History, Network, Process, Wire, storm
from tests.sim.plan import Plan

_LOOK_S = 5.0  # between two looks at whether all has ended
_ROUNDS = 8  # of the caretaker, at most
_UPTIME_S = 1e6  # of machines, at most: monotonic clocks begin anywhere
_OLD = {"language": "en", "added_by": "scanner"}


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
        self._promised: set[str] = set()  # audio keys whose todo was acknowledged
        self._working: dict[str, Process] = {}

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
        self._furnish()
        self._network.weather = storm(self.plan.wire, self.plan.deadly)
        lives = [self._life(number) for number in range(self.plan.nodes)]
        lives += [self._upload(), self._enqueue("enqueue-a"), self._enqueue("enqueue-b")]
        tasks = [asyncio.get_running_loop().create_task(life) for life in (*lives, self._retry())]
        try:
            await self._watch(lambda: self._now() >= self.plan.storm_s)
            self._abate()
            await self._watch(self._at_rest, self.plan.bound_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for process in self._processes:
                process.kill("ends with the world")
                await process.gone()
        self._judge_promises()
        await self._tidy()
        self._judge_end()

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
            if self._bucket.violation is not None:
                raise Violation(self._bucket.violation)
            if self.calm_s > bound_s:
                raise Violation(f"no rest {bound_s:.0f} s after the last fault: {self._unrest()}")

    def _at_rest(self) -> bool:
        quiet = not self._network.under_way and not any(p.frozen for p in self._living())
        return quiet and not self._unrest()

    def _unrest(self) -> list[str]:
        """Tasks that are neither failed nor finished."""
        waiting = ids(self._bucket, LAYOUT.todo) - self._failed()
        orphans = ids(self._bucket, LAYOUT.claims) - ids(self._bucket, LAYOUT.todo)
        return sorted(waiting | (orphans - ids(self._bucket, LAYOUT.completed)))

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
            await self._bury(process)
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

    async def _bury(self, process: Process) -> None:
        await process.gone()
        self._processes.remove(process)
        if process.crash is not None:
            self._blame(f"{process.name} crashed: {process.crash!r}")

    # operators

    async def _upload(self) -> None:
        """Raw files that come one by one."""
        for key in self._raw_files()[2:]:
            await asyncio.sleep(self._rng.expovariate(self.plan.files / self.plan.storm_s * 2))
            self._bucket.objects[key] = b"sound"

    def _raw_files(self) -> list[str]:
        """The last two have the same name, so one of them gets an id with a hash."""
        names = [f"en/t{number}" for number in range(self.plan.files - 1)] + ["de/t0"]
        return [f"{LAYOUT.raw}{name}.mp3" for name in names]

    async def _enqueue(self, name: str) -> None:
        """Somebody runs `enqueue` now and then, and another does at the same time."""

        async def command(store: Store, patience: Patience) -> None:
            await enqueue(store, LAYOUT, patience=patience)

        for number in itertools.count():
            await self._command(f"{name}.{number}", command)
            await self._pause(10.0, 100.0)

    async def _retry(self) -> None:
        """Somebody gives what has failed another chance."""

        async def command(store: Store, patience: Patience) -> None:
            await retry(store, LAYOUT, patience=patience, wall=lambda: WALL_S)

        for number in itertools.count():
            await self._pause(50.0, 300.0)
            await self._command(f"retry.{number}", command)

    async def _pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(least_s, most_s))
        if not self._storming:
            await asyncio.Event().wait()

    async def _command(
        self, name: str, command: Callable[[Store, Patience], Awaitable[None]]
    ) -> None:
        process = self._process(name)
        wire = Wire(self._network, process)
        wire.answered = self._promise
        patience = Patience(tries=self.plan.tries, sleep=process.sleep, rng=self._rng)

        async def work() -> None:
            try:
                await command(PatientStore(wire, patience), patience)
            except (Ambiguous, Throttled) as error:
                self.history.note(name, "gives up", str(error))

        await asyncio.wait([process.start(work())])
        process.kill("ends")
        await self._bury(process)

    def _promise(self, key: str, body: bytes) -> None:
        if id_of(key, LAYOUT.todo) is not None:
            self._promised.add(str(json.loads(body)["audio_key"]))

    # what is there

    def _furnish(self) -> None:
        """What the bucket holds at the beginning."""
        objects = self._bucket.objects
        for key in self._raw_files()[:2]:
            objects[key] = b"sound"
        if self.plan.old_scripts:
            objects[LAYOUT.todo_key("bad")] = self._rng.choice((b"no JSON", b"{}"))
            for name, key in (
                ("leased", LAYOUT.claim_key("leased")),
                ("done", LAYOUT.completed_key("done")),
                ("failed", LAYOUT.failed_key("failed")),
            ):
                audio = f"{LAYOUT.raw}en/{name}.mp3"
                objects[audio] = b"sound"
                objects[key] = json.dumps({"episode_id": name, "audio_key": audio, **_OLD}).encode()

    def _failed(self) -> set[str]:
        claims = self._bucket.objects
        return {
            name
            for name in ids(self._bucket, LAYOUT.claims)
            if parse_claim(name, claims[LAYOUT.claim_key(name)]).state is State.FAILED
        }

    def _audio_of(self, prefix: str) -> set[str]:
        """The audio keys that the records under a prefix name."""
        bodies = [body for key, body in self._bucket.objects.items() if key.startswith(prefix)]
        return {str(json.loads(body).get("audio_key")) for body in bodies}

    # judgement

    def _judge_promises(self) -> None:
        """No task is lost: what an `enqueue` was told to be in the queue has come to an end."""
        lost = self._promised - self._audio_of(LAYOUT.completed) - self._audio_of(LAYOUT.claims)
        if lost:
            raise Violation(f"lost: {sorted(lost)}")

    def _judge_end(self) -> None:
        """All raw files have a result, all results are whole, and nothing else is left."""
        bucket, failed = self._bucket, self._failed()
        done = ids(bucket, LAYOUT.completed)
        ended = self._audio_of(LAYOUT.completed) | self._audio_of(LAYOUT.failed)
        raw = {key for key in bucket.objects if key.startswith(LAYOUT.raw)}
        packs = {key.split("/")[2] for key in bucket.objects if key.startswith(LAYOUT.outputs)}
        old = {"failed"} if self.plan.old_scripts else set()
        for wrong, what in (
            (raw - ended, "have no result"),
            ({name for name in done if bucket.flaw(name)}, "are not whole"),
            (done & failed, "are completed and failed"),
            (ids(bucket, LAYOUT.todo) ^ failed, "have a todo and not failed, or failed without"),
            (ids(bucket, LAYOUT.claims) - failed, "have a claim that is left over"),
            ((ids(bucket, LAYOUT.failed) ^ failed) - old, "have a wrong dead letter"),
            (packs - failed, "have a pack that is left over"),
        ):
            if wrong:
                raise Violation(f"at the end, {sorted(wrong)} {what}")
        if bucket.violation is not None:
            raise Violation(bucket.violation)

    def _blame(self, violation: str) -> None:
        self._bucket.violation = self._bucket.violation or violation

    def _living(self) -> list[Process]:
        return [process for process in self._processes if not process.dead.is_set()]

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
