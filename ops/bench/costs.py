"""What the queue costs in requests, counted over real runs of its own code on a store in memory."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel

from emiliad.actors.sweep import RARELY, SOON
from emiliad.patience import Patience
from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.enqueue import enqueue
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.queue.tasks import Layout, todo_body
from emiliad.types import Claim, Failure, Outcome, Processed, TaskRef
from ops.bench.stores import CountingStore, SortedStore

T = TypeVar("T")

LAYOUT = Layout.under()
TTL_S = 300.0
RENEWAL_S = TTL_S / 3
AHEAD = 3  # tasks that a node holds: one runs, others are being fetched
CLASS_A = 4.50e-6  # dollars a request
CLASS_B = 0.36e-6
MONTH_S = 30 * 86_400.0
_WARM = 10  # times after which a node knows what does not change


class Clock:
    """Seconds that pass when a waiting node, or the run, says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


@dataclass
class Node:
    """The queue's side of one daemon."""

    store: CountingStore
    clock: Clock
    name: str
    claims: list[Claim] = field(default_factory=list)

    def __post_init__(self) -> None:
        patience = Patience(sleep=self.clock.sleep, rng=random.Random(self.name))
        outputs = Outputs(self.store, LAYOUT, offload=_in_place)
        self.leases = Leases(
            self.store,
            LAYOUT,
            owner=self.name,
            ttl_s=TTL_S,
            clock=self.clock,
            sleep=self.clock.sleep,
            patience=patience,
            outputs=outputs,
        )
        self.publisher = Publisher(self.store, LAYOUT, self.leases, outputs=outputs)
        self.sweeper = Sweeper(
            self.store, LAYOUT, ttl_s=TTL_S, clock=self.clock, patience=patience, outputs=outputs
        )

    async def fill_up(self) -> None:
        """Claims as far ahead as a daemon does."""
        while len(self.claims) < AHEAD and (claim := await self.leases.next()) is not None:
            self.claims.append(claim)

    async def finish_one(self, segments: int) -> bool:
        """Commits the outputs of the task that was claimed first."""
        if not self.claims:
            return False
        claim = self.claims.pop(0)
        with tempfile.TemporaryDirectory() as room:
            out = Path(room) / "out"
            out.mkdir()
            names = [f"{claim.task.episode_id}_{i:06}.mp3" for i in range(segments)]
            for name in (*names, "filtered_segments.json", "episode.json"):
                (out / name).write_text(f"{claim.task.episode_id} {name}")
            (out / "all_segments.json").write_text(json.dumps(names))
            manifest = {"segments": segments, "audio_seconds": 600.0}
            outcome = await self.publisher.commit(
                Processed(claim, Path(room), out, manifest, {"transcribe": 1.0})
            )
        assert outcome is Outcome.COMPLETED
        return True


async def _in_place(work: Callable[[], T]) -> T:
    return work()


@dataclass(frozen=True, slots=True)
class Bill:
    """What a run took, by operation and folder; of it, the renewals, which are writes of claims."""

    tasks: int
    counts: Counter[str]
    class_a: int
    class_b: int
    published: int
    renewals: int
    todo_a: float  # of a scan that creates tasks, for each of them
    todo_b: float

    @property
    def own_class_a(self) -> float:
        """Class A requests for a task, besides its published objects and its renewals."""
        return (self.class_a - self.published - self.renewals) / self.tasks


async def whole_run(
    *, tasks: int, nodes: int, task_s: float = 60.0, segments: int = 4, waiting: int = 0
) -> Bill:
    """Claims, renews, commits, publishes and sweeps, until `waiting` tasks are left."""
    plain = SortedStore()
    names = [f"{LAYOUT.raw}en/ep_{number:07}.mp3" for number in range(tasks + waiting)]
    plain.fill(names, b"audio")
    store, clock = CountingStore(plain), Clock()
    await enqueue(store, LAYOUT)
    todo_a, todo_b = store.class_a / len(names), store.class_b / len(names)
    store.counts.clear()  # the producer's requests are its own
    fleet = [Node(store, clock, f"node {number}") for number in range(nodes)]
    done = renewals = 0
    renewed, swept, sweeps = clock.now, -math.inf, 0
    while done < tasks:
        async with anyio.create_task_group() as group:
            for node in fleet:
                group.start_soon(node.fill_up)
        clock.now += task_s
        if clock.now - renewed >= RENEWAL_S:
            renewed = clock.now
            renewals += sum(len(node.claims) for node in fleet)
            for node in fleet:
                await node.leases.renew_all()
        done += sum([await node.finish_one(segments) for node in fleet])
        if clock.now - swept >= TTL_S * (SOON if sweeps < 2 else RARELY):
            swept, sweeps = clock.now, sweeps + 1
            for node in fleet:
                await node.sweeper.sweep_once()
    published = store.total("upload processed")
    counts = Counter(store.counts)
    return Bill(done, counts, store.class_a, store.class_b, published, renewals, todo_a, todo_b)


@dataclass(frozen=True, slots=True)
class Idle:
    """Requests of a node that finds no work: of each look, and of each sweep."""

    look_a: float
    look_b: float
    sweep_a: float
    sweep_b: float


async def idle(*, failed: int, times: int = 20) -> Idle:
    """An empty queue but for dead letters, watched by a node that knows it already."""
    store, clock = CountingStore(SortedStore()), Clock()
    node = Node(store, clock, "node")
    for number in range(failed):
        name = f"ep_{number:07}"
        task = TaskRef(name, "en", f"{LAYOUT.raw}en/{name}.mp3")
        stamp = Stamp("node", name, 0.0)
        record = ClaimRecord(task).lease_to(stamp, task)
        record = record.give_up(stamp, Failure("bad_audio", "there is no sound in it"))
        await store.put(LAYOUT.todo_key(name), todo_body(task))
        await store.put(LAYOUT.claim_key(name), record.body())
        await store.put(LAYOUT.failed_key(name), record.dead_letter())
    look = await _mean(store, clock, node.leases.next, 60.0, times)
    sweep = await _mean(store, clock, node.sweeper.sweep_once, 1.2 * TTL_S, times)
    return Idle(*look, *sweep)


async def _mean(
    store: CountingStore,
    clock: Clock,
    work: Callable[[], Awaitable[object]],
    every_s: float,
    times: int,
) -> tuple[float, float]:
    """Class A and B requests of a piece of work, once it was done a few times."""
    for number in range(times + _WARM):
        if number == _WARM:
            store.counts.clear()
        await work()
        clock.now += every_s
    return store.class_a / times, store.class_b / times


def dollars(class_a: float, class_b: float) -> float:
    """What requests cost, without the free ones of each month."""
    return class_a * CLASS_A + class_b * CLASS_B
