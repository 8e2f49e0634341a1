"""Nodes on a store in memory, with a clock that the test moves: for tests of the queue."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any, TypeVar

import anyio.lowlevel

from emiliad.errors import Ambiguous
from emiliad.patience import Patience
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.queue.tasks import Layout, todo_body
from emiliad.store import Object, ObjectInfo, Page, Store
from emiliad.stores.memory import MemoryStore
from emiliad.types import Claim, Outcome, Processed, TaskRef

T = TypeVar("T")

LAYOUT = Layout.under()
TTL_S = 300.0
WALL_S = 1_800_000_000.0  # when the tests take place, in seconds since 1970


class Clock:
    """Seconds that pass only when a test, or a waiting node, says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


class Killed(BaseException):
    """The process is no more; no code of its own can catch that."""


class Wire:
    """A store as one process reaches it; `rule` decides the fate of each request.

    The rule is called with the request's number and its name, and returns when the process dies
    or the answer is lost: "before" or "after" the request, "lost before", "lost after", or None.
    """

    def __init__(self, store: Store, rule: Callable[[int, str], str | None]) -> None:
        self._store = store
        self._rule = rule
        self.requests: list[str] = []
        self.dead = False

    async def _send(self, name: str, request: Callable[[], Awaitable[T]]) -> T:
        if self.dead:
            raise Killed
        self.requests.append(name)
        fate = self._rule(len(self.requests), name)
        if fate == "before":
            self._die()
        if fate == "lost before":
            raise Ambiguous(name)
        try:
            return await request()
        finally:  # instead of an answer, be it an error
            if fate == "after":
                self._die()
            if fate == "lost after":
                raise Ambiguous(name)

    def _die(self) -> None:
        self.dead = True
        raise Killed

    async def get(self, key: str) -> Object:
        return await self._send(f"get {key}", lambda: self._store.get(key))

    async def head(self, key: str) -> ObjectInfo:
        return await self._send(f"head {key}", lambda: self._store.head(key))

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        return await self._send(
            f"put {key}",
            lambda: self._store.put(key, body, if_absent=if_absent, if_match=if_match),
        )

    async def delete(self, key: str) -> None:
        await self._send(f"delete {key}", lambda: self._store.delete(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        async def nothing() -> None:
            return None

        await self._send(f"list {prefix}", nothing)
        async for page in self._store.list(prefix, start_after=start_after):
            yield page

    async def upload(self, key: str, path: Path) -> str:
        return await self._send(f"upload {key}", lambda: self._store.upload(key, path))

    async def download(self, key: str, path: Path) -> ObjectInfo:
        return await self._send(f"download {key}", lambda: self._store.download(key, path))

    async def aclose(self) -> None:
        await self._store.aclose()


async def in_place(work: Callable[[], T]) -> T:
    """Blocking work without a thread, so that runs repeat exactly."""
    return work()


_attempts = itertools.count(1)


@dataclass
class Node:
    """One daemon's queue side: leases, publisher and sweeper over one store."""

    store: Store
    scratch: Path
    owner: str = "node-a"
    clock: Clock = field(default_factory=Clock)
    seed: int = 0
    ttl_s: float = TTL_S
    max_attempts: int = 3
    backoff_s: float = 30.0
    tries: int = 3
    write_spacing_s: float = 0.0

    def __post_init__(self) -> None:
        rng = random.Random(f"{self.owner} {self.seed}")
        patience = Patience(tries=self.tries, sleep=self.clock.sleep, rng=rng)
        outputs = Outputs(self.store, LAYOUT, concurrency=1, scratch=self.scratch, offload=in_place)
        self.leases = Leases(
            self.store,
            LAYOUT,
            owner=self.owner,
            ttl_s=self.ttl_s,
            max_attempts=self.max_attempts,
            retry_backoff_s=self.backoff_s,
            write_spacing_s=self.write_spacing_s,
            clock=self.clock,
            sleep=self.clock.sleep,
            wall=lambda: WALL_S + self.clock.now,
            patience=patience,
            outputs=outputs,
        )
        self.publisher = Publisher(self.store, LAYOUT, self.leases, outputs=outputs)
        self.sweeper = Sweeper(
            self.store,
            LAYOUT,
            ttl_s=self.ttl_s,
            clock=self.clock,
            wall=lambda: WALL_S + self.clock.now,
            patience=patience,
            outputs=outputs,
        )

    async def take(self) -> Claim:
        """Leases a task that must be there."""
        claim = await self.leases.next()
        assert claim is not None
        return claim

    def process(self, claim: Claim, segments: int | None = None) -> Processed:
        """Outputs that no other attempt makes: other bytes, and another number of segments."""
        attempt = next(_attempts)
        count = attempt % 3 if segments is None else segments
        workdir = self.scratch / f"{self.owner}-{attempt}"
        out = workdir / "out"
        out.mkdir(parents=True)
        name = claim.task.episode_id
        rows = [{"audio": f"{name}_{i:06d}.mp3", "attempt": attempt} for i in range(count)]
        for row in rows:
            (out / str(row["audio"])).write_bytes(b"mp3 of attempt %d" % attempt)
        (out / "all_segments.json").write_text(json.dumps(rows))
        (out / "episode.json").write_text(json.dumps({"attempt": attempt}))
        manifest = {"segments": count, "audio_seconds": 60.0 * attempt, "config_hash": "c0ffee"}
        return Processed(claim, workdir, out, manifest, {"transcribe": 1.5})

    async def work(self, claim: Claim) -> Outcome:
        """Processes and commits."""
        return await self.publisher.commit(self.process(claim))

    async def finish_all(self, *, patience_s: float = 10_000.0) -> None:
        """Works until every task is settled and twice the sweep had nothing to do."""
        deadline = self.clock.now + patience_s
        while True:
            assert self.clock.now < deadline, "the queue is never empty"
            claim = await self.leases.next()
            if claim is not None:
                await self.work(claim)
                continue
            mended = await self.sweeper.sweep_once()
            await self.clock.sleep(1.2 * self.ttl_s)
            mended = mended or await self.sweeper.sweep_once()
            if self.leases.outlook.settled and not mended:
                return


def task(name: str, audio_key: str | None = None) -> TaskRef:
    """A task as `enqueue` would make it."""
    return TaskRef(name, "en", audio_key or f"raw_audio/en/{name}.mp3")


def put_todo(store: MemoryStore, name: str, audio_key: str | None = None) -> None:
    store.objects[LAYOUT.todo_key(name)] = todo_body(task(name, audio_key))


def content(store: MemoryStore, key: str) -> dict[str, Any]:
    """A JSON object of the store."""
    return dict(json.loads(store.objects[key]))


def ids(store: MemoryStore, prefix: str) -> set[str]:
    """The tasks that have an object under a prefix."""
    return {
        key.removeprefix(prefix).removesuffix(".task")
        for key in store.objects
        if key.startswith(prefix)
    }


def verify_outputs(store: MemoryStore, name: str) -> None:
    """The outputs are those of the committed attempt, byte for byte, and no others."""
    record = content(store, LAYOUT.completed_key(name))
    prefix = record["published"]
    found = {
        key.removeprefix(prefix): {"size": len(body), "md5": md5(body).hexdigest()}
        for key, body in store.objects.items()
        if key.startswith(prefix)
    }
    assert found == record["outputs"]
    rows = json.loads(store.objects[f"{prefix}all_segments.json"])
    assert len(rows) == record["segments"]


def verify_all_done(store: MemoryStore, names: set[str]) -> None:
    """All tasks are committed, their outputs whole, and nothing else is left of them."""
    assert ids(store, LAYOUT.completed) == names
    for name in names:
        verify_outputs(store, name)
    left = (LAYOUT.todo, LAYOUT.claims, LAYOUT.failed, LAYOUT.outputs)
    assert [key for key in store.objects if key.startswith(left)] == []
