"""The queue at a glance: how many tasks stand where, how much audio is done, how fast it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from emiliad.errors import NotFound
from emiliad.parallel import for_each
from emiliad.queue.claims import ClaimRecord, State, parse_claim
from emiliad.queue.tasks import Layout, id_of, parse_completed
from emiliad.queue.watch import EXPIRY
from emiliad.store import Store

_RECENT_S = 600.0  # over which the rate is measured
_READ = 5000  # records that are read; where there are more, hours are extrapolated


@dataclass(frozen=True, slots=True)
class Overview:
    """Counts of tasks; each is in one place."""

    todo: int  # waiting, or between two attempts
    fresh: int  # leased by a node that lives
    stale: int  # leased by a node that has not renewed in time, or by an old script
    completed: int
    publishing: int  # of these: committed, but not cleaned up yet
    failed: int
    audio_hours: float  # of completed tasks
    estimated: bool  # whether those hours are extrapolated from a part of the records
    tasks_per_hour: float  # over the last ten minutes
    audio_hours_per_hour: float  # over the last ten minutes: how many times real time
    eta_s: float | None  # seconds until nothing is left, at that rate
    nodes: tuple[str, ...]  # owners of fresh leases

    @property
    def in_progress(self) -> int:
        """Leased, whether the owner lives or not."""
        return self.fresh + self.stale


async def overview(store: Store, layout: Layout, *, ttl_s: float = 300.0) -> Overview:
    """One look; who looks again and again keeps a `Reader`."""
    return await Reader(store, layout, ttl_s=ttl_s).overview()


@dataclass(frozen=True, slots=True)
class _Done:
    finished_s: float  # since 1970
    audio_s: float


@dataclass(slots=True)
class Reader:
    """Reads the queue; what was read before and has not changed is not read again."""

    store: Store
    layout: Layout
    ttl_s: float = 300.0
    wall: Callable[[], float] = time.time
    _claims: dict[str, tuple[str, ClaimRecord]] = field(default_factory=dict)
    _done: dict[str, _Done] = field(default_factory=dict)

    async def overview(self) -> Overview:
        """Lists everything; in this order, a task that moves on is counted at least once."""
        todo = await self._ids(self.layout.todo)
        claims = await self._ids(self.layout.claims)
        failed = await self._ids(self.layout.failed)
        completed = await self._ids(self.layout.completed)
        await for_each(claims.items(), self._read_claim)
        counts: Counter[str] = Counter()
        nodes: set[str] = set()
        for episode_id in {**todo, **claims, **failed}.keys() - completed.keys():
            place = self._place(episode_id, claims, failed)
            counts[place] += 1
            if place == "fresh":
                nodes.add(self._claims[episode_id][1].owner)
        left = counts["todo"] + counts["fresh"] + counts["stale"]
        return Overview(
            todo=counts["todo"],
            fresh=counts["fresh"],
            stale=counts["stale"],
            completed=len(completed),
            publishing=len(completed.keys() & todo.keys()),
            failed=counts["failed"],
            nodes=tuple(sorted(nodes)),
            **await self._speed(list(completed), left),
        )

    async def _ids(self, prefix: str) -> dict[str, str]:
        """The tasks that have an object under a prefix, with its etag."""
        found: dict[str, str] = {}
        async with aclosing(self.store.list(prefix)) as pages:
            async for page in pages:
                for info in page:
                    if (episode_id := id_of(info.key, prefix)) is not None:
                        found[episode_id] = info.etag
        return found

    async def _read_claim(self, claim: tuple[str, str]) -> None:
        episode_id, etag = claim
        if self._claims.get(episode_id, ("", None))[0] == etag:
            return
        try:
            found = await self.store.get(self.layout.claim_key(episode_id))
        except NotFound:
            self._claims.pop(episode_id, None)
        else:
            self._claims[episode_id] = (found.etag, parse_claim(episode_id, found.body))

    def _place(self, episode_id: str, claims: Container[str], failed: Container[str]) -> str:
        known = self._claims.get(episode_id) if episode_id in claims else None
        if known is None:  # the old scripts' dead letters have no claim
            return "failed" if episode_id in failed else "todo"
        match known[1].state:
            case State.FAILED:
                return "failed"
            case State.FREE:
                return "todo"
            case State.LEASED:
                return "fresh" if self._is_fresh(known[1]) else "stale"

    def _is_fresh(self, record: ClaimRecord) -> bool:
        return self.wall() - _seconds(record.written) <= EXPIRY * self.ttl_s

    async def _speed(self, completed: list[str], left: int) -> dict[str, Any]:
        """The part of the overview that is about audio and time."""
        step = max(1, -(-len(completed) // _READ))
        read = completed[::step]
        await for_each([id_ for id_ in read if id_ not in self._done], self._read_completed)
        done = [self._done[id_] for id_ in read if id_ in self._done]
        scale = len(completed) / len(done) if done else 0.0
        recent = [one for one in done if self.wall() - one.finished_s <= _RECENT_S]
        per_hour = scale * 3600 / _RECENT_S
        rate = len(recent) * per_hour
        return {
            "audio_hours": scale * sum(one.audio_s for one in done) / 3600,
            "estimated": step > 1,
            "tasks_per_hour": rate,
            "audio_hours_per_hour": sum(one.audio_s for one in recent) / 3600 * per_hour,
            "eta_s": left / rate * 3600 if rate else None,
        }

    async def _read_completed(self, episode_id: str) -> None:
        try:
            found = await self.store.get(self.layout.completed_key(episode_id))
        except NotFound:  # deleted by hand
            return
        record = parse_completed(episode_id, found.body)
        seconds = record.facts.get("audio_seconds", 0.0)
        audio_s = float(seconds) if isinstance(seconds, int | float) else 0.0
        self._done[episode_id] = _Done(_seconds(record.finished), audio_s)


def _seconds(when: str) -> float:
    """An ISO 8601 time as seconds since 1970; 0 if it is none."""
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        return 0.0
