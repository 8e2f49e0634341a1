"""The queue at a glance: how many tasks stand where, how much audio is done, how fast it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zlib import crc32

from emiliad.errors import NotFound
from emiliad.parallel import for_each
from emiliad.queue.claims import ClaimRecord, State, parse_claim
from emiliad.queue.ranges import LISTERS, walk
from emiliad.queue.tasks import Layout, id_of, parse_completed
from emiliad.queue.watch import EXPIRY
from emiliad.store import Page, Store

_RECENT_S = 600.0  # over which the rate is measured
_READ = 2500  # claims, and commit records, that are read in one look; the others are estimated
_RELIST_S = 300.0  # between two listings of all completed tasks, of which there are ever more


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
    estimated: bool  # whether some of this is extrapolated from a part of the records
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
    """Reads the queue; what was read before and has not changed is not read again.

    `listers` listings run at a time. Of a million tasks it holds the names, some 170 MB.
    """

    store: Store
    layout: Layout
    ttl_s: float = 300.0
    wall: Callable[[], float] = time.time
    listers: int = LISTERS
    _claims: dict[str, tuple[str, ClaimRecord]] = field(default_factory=dict)
    _done: dict[str, _Done] = field(default_factory=dict)
    _completed: set[str] = field(default_factory=set)
    _unfinished: set[str] = field(default_factory=set)  # at the last look
    _relist_s: float = 0.0  # when all completed tasks are to be listed again

    async def overview(self) -> Overview:
        """Lists everything; in this order, a task that moves on is counted at least once.

        From look to look, what left the other places is taken for completed; now and then those are
        listed as well.
        """
        todo = (await self._ids(self.layout.todo)).keys()
        claims = await self._ids(self.layout.claims)
        failed = (await self._ids(self.layout.failed)).keys()
        unfinished = todo | claims.keys() | failed
        if self.wall() >= self._relist_s:
            self._completed = set(await self._ids(self.layout.completed))
            self._relist_s = self.wall() + _RELIST_S
        self._completed |= self._unfinished - unfinished
        self._unfinished = unfinished - self._completed
        unread = await self._read_claims(claims, failed)
        counts: Counter[str] = Counter()
        nodes: set[str] = set()
        for episode_id in self._unfinished:
            place = self._place(episode_id, claims, failed)
            counts[place] += 1
            if place == "fresh" and episode_id in self._claims:
                nodes.add(self._claims[episode_id][1].owner)
        left = counts["todo"] + counts["fresh"] + counts["stale"]
        speed = await self._speed(left)
        return Overview(
            todo=counts["todo"],
            fresh=counts["fresh"],
            stale=counts["stale"],
            completed=len(self._completed),
            publishing=len(self._completed & todo),
            failed=counts["failed"],
            nodes=tuple(sorted(nodes)),
            **speed | {"estimated": speed["estimated"] or unread > 0},
        )

    async def _ids(self, prefix: str) -> dict[str, str]:
        """The tasks that have an object under a prefix, with its etag."""
        found: dict[str, str] = {}

        def see(page: Page) -> None:
            named = ((id_of(info.key, prefix), info.etag) for info in page)
            found.update((id_, etag) for id_, etag in named if id_)

        await walk(self.store, prefix, see, listers=self.listers)
        return found

    async def _read_claims(self, claims: Mapping[str, str], failed: Container[str]) -> int:
        """Reads claims that changed, and returns how many it did not come to.

        Those of tasks that have a dead letter need no reading.
        """
        self._claims = {id_: known for id_, known in self._claims.items() if id_ in claims}
        changed = [
            (id_, etag)
            for id_, etag in claims.items()
            if id_ not in failed and self._claims.get(id_, ("", None))[0] != etag
        ]
        changed.sort(key=lambda claim: claim[0] in self._claims)  # those never read come first
        await for_each(changed[:_READ], self._read_claim)
        return len(changed[_READ:])

    async def _read_claim(self, claim: tuple[str, str]) -> None:
        episode_id, _ = claim
        try:
            found = await self.store.get(self.layout.claim_key(episode_id))
        except NotFound:
            self._claims.pop(episode_id, None)
        else:
            self._claims[episode_id] = (found.etag, parse_claim(episode_id, found.body))

    def _place(self, episode_id: str, claims: Mapping[str, str], failed: Container[str]) -> str:
        if episode_id in failed:
            return "failed"
        if episode_id not in claims:
            return "todo"
        known = self._claims.get(episode_id)
        if known is None:  # not read: most claims are leases that are renewed
            return "fresh"
        etag, record = known
        match record.state:
            case State.FAILED:
                return "failed"
            case State.FREE:
                return "todo"
            case State.LEASED:
                renewed = etag != claims[episode_id]
                return "fresh" if renewed or self._is_fresh(record) else "stale"

    def _is_fresh(self, record: ClaimRecord) -> bool:
        return self.wall() - _seconds(record.written) <= EXPIRY * self.ttl_s

    async def _speed(self, left: int) -> dict[str, Any]:
        """The part of the overview that is about audio and time."""
        completed = self._completed
        read = _sample(completed)
        await for_each([id_ for id_ in read if id_ not in self._done], self._read_completed)
        done = [self._done[id_] for id_ in read if id_ in self._done]
        scale = len(completed) / len(done) if done else 0.0
        recent = [one for one in done if self.wall() - one.finished_s <= _RECENT_S]
        per_hour = scale * 3600 / _RECENT_S
        rate = len(recent) * per_hour
        return {
            "audio_hours": scale * sum(one.audio_s for one in done) / 3600,
            "estimated": len(read) < len(completed),
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


def _sample(ids: Collection[str]) -> list[str]:
    """All of them, or a part, which changes little when more come."""
    found = sorted(ids)
    bits = 0
    while len(found) > _READ:
        bits += 1
        found = [id_ for id_ in found if crc32(id_.encode()) & ((1 << bits) - 1) == 0]
    return found


def _seconds(when: str) -> float:
    """An ISO 8601 time as seconds since 1970; 0 if it is none."""
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        return 0.0
