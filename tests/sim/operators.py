"""People at work on the bucket: they add raw files, enqueue them, and retry what has failed."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from emiliad.errors import Ambiguous, Throttled
from emiliad.patience import Patience
from emiliad.queue.enqueue import enqueue
from emiliad.queue.retry import retry
from emiliad.store import Store
from emiliad.stores.patient import PatientStore
from tests.emiliad.queue_kit import LAYOUT, WALL_S
from tests.sim.bucket import Bucket
from tests.sim.faults import Network, Process, Wire
from tests.sim.plan import Plan

SOUND = b"sound"
_OLD = {"language": "en", "added_by": "scanner"}
_SLEEPY = 0.3  # share of commands whose machine sleeps in the middle of them
_AWAKE_S = 3.0
_ASLEEP_S = 300.0

Command: TypeAlias = Callable[[Store, Patience], Awaitable[None]]


def furnish(bucket: Bucket, plan: Plan, rng: random.Random) -> None:
    """What the bucket holds at the beginning."""
    for key in _raw_files(plan)[:2]:
        bucket.objects[key] = SOUND
    if plan.old_scripts:
        bucket.objects[LAYOUT.todo_key("bad")] = rng.choice((b"no JSON", b"{}"))
        for name, key in (
            ("leased", LAYOUT.claim_key("leased")),
            ("done", LAYOUT.completed_key("done")),
            ("failed", LAYOUT.failed_key("failed")),
        ):
            audio = f"{LAYOUT.raw}en/{name}.mp3"
            record = {"episode_id": name, "audio_key": audio, **_OLD}
            bucket.objects[audio] = SOUND
            bucket.objects[key] = json.dumps(record).encode()


def _raw_files(plan: Plan) -> list[str]:
    """The first and the last have the same name, so one of them gets an id with a hash."""
    names = [f"en/t{number}" for number in range(plan.files - 1)] + ["de/t0"]
    return [f"{LAYOUT.raw}{name}.mp3" for name in names]


class Operators:
    """They go on until `resting` says that the storm is over.

    `promised`: the raw files that were there when an `enqueue` began that later ended well.
    """

    def __init__(
        self,
        network: Network,
        bucket: Bucket,
        plan: Plan,
        resting: Callable[[], bool],
        new_process: Callable[[str], Process],
    ) -> None:
        self.promised: set[str] = set()
        self._network = network
        self._bucket = bucket
        self._plan = plan
        self._rng = network.rng
        self._resting = resting
        self._new_process = new_process

    async def upload(self) -> None:
        """Raw files come one by one."""
        for key in _raw_files(self._plan)[2:]:
            often = self._plan.files / self._plan.storm_s * 2
            await asyncio.sleep(self._rng.expovariate(often))
            self._bucket.objects[key] = SOUND

    async def enqueue(self, name: str) -> None:
        """Now and then, and somebody else may be doing the same."""

        async def command(store: Store, patience: Patience) -> None:
            files = {key for key in self._bucket.objects if key.startswith(LAYOUT.raw)}
            await enqueue(store, LAYOUT, patience=patience)
            self.promised |= files

        for number in itertools.count():
            await self._run(f"{name}.{number}", command)
            await self._pause(20.0, 150.0)

    async def retry(self) -> None:
        """What has failed gets another chance."""

        async def command(store: Store, patience: Patience) -> None:
            await retry(store, LAYOUT, patience=patience, wall=lambda: WALL_S)

        for number in itertools.count():
            await self._pause(40.0, 200.0)
            await self._run(f"retry.{number}", command)

    async def _pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(least_s, most_s))
        if self._resting():
            await asyncio.Event().wait()

    async def _run(self, name: str, command: Command) -> None:
        process = self._new_process(name)
        wire = Wire(self._network, process)
        patience = Patience(tries=self._plan.tries, sleep=process.sleep, rng=self._rng)

        async def work() -> None:
            try:
                await command(PatientStore(wire, patience), patience)
            except (Ambiguous, Throttled) as error:
                self._network.history.note(name, "gives up", str(error))

        running = process.start(work())
        if self._plan.freezes and self._rng.random() < _SLEEPY:
            await asyncio.wait([running], timeout=self._rng.uniform(0.0, _AWAKE_S))
            process.freeze(self._rng.uniform(0.0, _ASLEEP_S))
        await asyncio.wait([running])
        process.kill("ends")
