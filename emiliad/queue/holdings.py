"""The leases that this node holds, and the one way in which their claim objects are written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from emiliad.errors import Ambiguous, NotFound, Throttled
from emiliad.patience import Patience
from emiliad.queue.cas import Absent, Verdict, cas, etag_of
from emiliad.queue.claims import ClaimRecord, Stamp, State, parse_claim
from emiliad.queue.tasks import Layout
from emiliad.store import Store
from emiliad.types import Claim

ALONE_FROM = 3  # vanished owners from which a task runs alone: it may be what kills nodes
_CATCH_UPS = 3  # writes of ours that may turn out to have landed late, one after the other

Change: TypeAlias = Callable[[ClaimRecord, Stamp], ClaimRecord]


@dataclass(slots=True)
class Lease:
    """A claim object of ours: what it says and its etag, as far as we know."""

    claim: Claim
    record: ClaimRecord
    etag: str | Absent  # before it is acquired: what it is expected to be
    written_s: float = 0.0  # when we last wrote it, on our clock
    interrupted: bool = False  # its processing had begun when it was to be handed back
    lost: anyio.Event = field(default_factory=anyio.Event)
    writing: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def episode_id(self) -> str:
        return self.claim.task.episode_id


class Stamper:
    """Marks each write with its owner and a nonce that no other write has."""

    def __init__(self, owner: str, rng: random.Random, wall: Callable[[], float]) -> None:
        self._owner = owner
        self._rng = rng
        self._wall = wall

    def __call__(self) -> Stamp:
        return Stamp(self._owner, f"{self._rng.getrandbits(128):032x}", self._wall())


class Holdings:
    """Leases by episode id, to be looked into like a set of ids."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        stamp: Callable[[], Stamp],
        patience: Patience,
        clock: Callable[[], float],
        write_spacing_s: float,
    ) -> None:
        self._store = store
        self._layout = layout
        self._stamp = stamp
        self._patience = patience
        self._clock = clock
        self._write_spacing_s = write_spacing_s
        self._leases: dict[str, Lease] = {}
        self._acquiring: list[Lease] = []  # whose first write is under way
        self._doubtful: dict[str, Lease] = {}  # may be ours: the answer is missing

    def __contains__(self, episode_id: object) -> bool:
        return episode_id in self._leases

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def of(self, claim: Claim) -> Lease | None:
        """The lease that `claim` was handed out for, while it is held."""
        lease = self._leases.get(claim.task.episode_id)
        return lease if lease is not None and lease.claim.nonce == claim.nonce else None

    @property
    def alone(self) -> bool:
        """Whether a task is held, or about to be, that runs alone."""
        claims = [lease.claim for lease in (*self, *self._acquiring)]
        return any(claim.lost >= ALONE_FROM for claim in claims)

    def tolerates(self, lease: Lease) -> bool:
        """Whether a task may run beside what is held, or about to be."""
        others = len(self) + len(self._acquiring)
        return not self.alone and not (lease.claim.lost >= ALONE_FROM and others)

    async def acquire(self, lease: Lease) -> bool:
        """Writes a claim for the first time; others may be doing the same."""
        body = lease.record.body()
        key = self._layout.claim_key(lease.episode_id)
        self._doubtful[lease.episode_id] = lease  # where it stays if we are cancelled
        self._acquiring.append(lease)
        try:
            verdict = await cas(
                self._store, key, body, lease.etag, patience=self._patience, contended=True
            )
        finally:
            self._acquiring.remove(lease)
        if verdict is not Verdict.UNKNOWN:
            del self._doubtful[lease.episode_id]
        if verdict is Verdict.WON:
            lease.etag, lease.written_s = etag_of(body), self._clock()
            self._leases[lease.episode_id] = lease
        return verdict is Verdict.WON

    async def adopt_doubtful(self) -> None:
        """Finds out which leases of unknown fate are ours, and holds them."""
        while self._doubtful:
            episode_id, lease = self._doubtful.popitem()
            if episode_id not in self._leases and await self._catch_up(lease):
                self._leases[episode_id] = lease

    async def forget(self, lease: Lease) -> None:
        """Lets go of a lease without a word, once no write to it is under way."""
        async with lease.writing:
            self._drop(lease)

    async def end(self, lease: Lease, change: Change) -> Verdict:
        """Writes for the last time; if that does not arrive, the TTL ends the lease."""
        verdict = await self.write(lease, change)
        self._drop(lease)
        return verdict

    async def write(self, lease: Lease, change: Change) -> Verdict:
        """Replaces the claim by `change` of it, if the lease still stands. One write at a time."""
        key = self._layout.claim_key(lease.episode_id)
        async with lease.writing:
            for _ in range(_CATCH_UPS):
                if self._leases.get(lease.episode_id) is not lease:
                    return Verdict.LOST
                await self._space_out(lease)
                record = change(lease.record, self._stamp())
                body = record.body()
                verdict = await cas(self._store, key, body, lease.etag, patience=self._patience)
                lease.written_s = self._clock()
                if verdict is Verdict.WON:
                    lease.record, lease.etag = record, etag_of(body)
                if verdict is not Verdict.LOST or not await self._catch_up(lease):
                    return verdict
            return Verdict.LOST

    def lose(self, lease: Lease) -> None:
        """Tells whoever works on it that the lease is another's."""
        if self._drop(lease):
            lease.lost.set()

    def _drop(self, lease: Lease) -> bool:
        mine = self._leases.get(lease.episode_id) is lease
        if mine:
            del self._leases[lease.episode_id]
        return mine

    async def _catch_up(self, lease: Lease) -> bool:
        """Adopts the claim's state if the lease in it is ours: an earlier write came late."""
        try:
            found = await self._store.get(self._layout.claim_key(lease.episode_id))
        except (NotFound, Ambiguous, Throttled):
            return False
        record = parse_claim(lease.episode_id, found.body)
        if record.state is not State.LEASED or record.lease != lease.record.lease:
            return False
        lease.record, lease.etag = record, found.etag
        return True

    async def _space_out(self, lease: Lease) -> None:
        wait_s = lease.written_s + self._write_spacing_s - self._clock()
        if self._write_spacing_s and wait_s > 0:
            await self._patience.sleep(wait_s)
