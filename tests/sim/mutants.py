"""The protocol with one mistake each: what the simulation must find to be worth anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

import pytest

from emiliad.errors import Ambiguous, Throttled
from emiliad.queue import cas as conditional
from emiliad.queue import holdings, publish
from emiliad.queue.cas import Absent, Verdict, cas
from emiliad.queue.claims import ClaimRecord, State
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs, Published
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.queue.tasks import Completed, id_of
from emiliad.queue.watch import EXPIRY, Standing, Watch
from emiliad.store import Store
from emiliad.types import Claim, Outcome, Processed
from tests.emiliad.queue_kit import LAYOUT
from tests.sim.plan import Plan, mild

Patch: TypeAlias = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake, and worlds in which it shows soon."""

    name: str
    apply: Callable[[Patch], None]
    worlds: Callable[[Plan], Plan]


def rough(plan: Plan) -> Plan:
    """Leases that exclude nobody, and a poor network."""
    return dataclasses.replace(plan, ttl_s=0.0, wire=0.15, deadly=0.005, exclusive=False)


def old(plan: Plan) -> Plan:
    """A bucket of the old scripts, whose claims have no todo."""
    return dataclasses.replace(plan, old_scripts=True)


def crowded(plan: Plan) -> Plan:
    """Many nodes wait for few tasks, whose owners die; no request is lost."""
    return mild(dataclasses.replace(plan, nodes=6, files=3, doom_s=20.0, deadly=0.03, tries=4))


async def _put(store: Store, key: str, body: bytes) -> Verdict:
    """Writes, whatever is there."""
    try:
        await store.put(key, body)
    except (Ambiguous, Throttled):
        return Verdict.UNKNOWN
    return Verdict.WON


def commit_by_plain_put(patch: Patch) -> None:
    """The commit record overwrites the one that is there."""

    async def mistaken(
        store: Store, key: str, body: bytes, expected: str | Absent, **_: Any
    ) -> Verdict:
        return await _put(store, key, body)

    patch.setattr(publish, "cas", mistaken)


def todo_deleted_before_commit(patch: Patch) -> None:
    """The work is done, so what should the todo be good for?"""
    pack = Publisher._pack

    async def mistaken(self: Publisher, processed: Processed) -> Completed:
        record = await pack(self, processed)
        await self._store.delete(LAYOUT.todo_key(record.task.episode_id))
        return record

    patch.setattr(Publisher, "_pack", mistaken)


def todo_deleted_before_publication(patch: Patch) -> None:
    """The task is committed, so what should the todo be good for?"""
    finish = Publisher._finish

    async def mistaken(self: Publisher, processed: Processed, record: Completed) -> None:
        await self._outputs.delete_todo(Published(record))
        await finish(self, processed, record)

    patch.setattr(Publisher, "_finish", mistaken)


def publication_before_commit(patch: Patch) -> None:
    """The outputs go to their places first, and the commit says that they are there."""
    pack = Publisher._pack

    async def mistaken(self: Publisher, processed: Processed) -> Completed:
        record = await pack(self, processed)
        await self._outputs.publish(record, processed.out_dir)
        return record

    patch.setattr(Publisher, "_pack", mistaken)


def publication_believed(patch: Patch) -> None:
    """What is committed is taken for published, without a look."""

    async def mistaken(self: Outputs, record: Completed) -> Published:
        return Published(record)

    patch.setattr(Outputs, "verify", mistaken)


def refusal_believed(patch: Patch) -> None:
    """A 412 means that another's commit stands, even after a try without an answer."""
    look = conditional._look

    async def mistaken_look(store: Store, key: str, body: bytes, *rest: Any) -> Verdict:
        return await look(store, key, b"another's", *rest)

    async def mistaken_yield(self: Publisher, claim: Claim) -> Outcome:
        await self._leases.forget(claim)
        await self._store.delete(LAYOUT.pack_key(claim.task.episode_id, claim.nonce))
        return Outcome.LOST

    patch.setattr(conditional, "_look", mistaken_look)
    patch.setattr(Publisher, "_yield", mistaken_yield)


def pack_deleted_after_unknown_commit(patch: Patch) -> None:
    """A commit that nobody confirms is taken for none."""

    async def mistaken(
        store: Store, key: str, body: bytes, expected: str | Absent, **rest: Any
    ) -> Verdict:
        verdict = await cas(store, key, body, expected, **rest)
        if verdict is Verdict.UNKNOWN:
            name, nonce = id_of(key, LAYOUT.completed), json.loads(body)["pack"]
            await store.delete(LAYOUT.pack_key(str(name), nonce))
        return verdict

    patch.setattr(publish, "cas", mistaken)


def takeover_without_cas(patch: Patch) -> None:
    """A claim that is free or expired is simply overwritten."""

    async def mistaken(
        store: Store,
        key: str,
        body: bytes,
        expected: str | Absent,
        *,
        contended: bool = False,
        **rest: Any,
    ) -> Verdict:
        if contended and isinstance(expected, str):
            return await _put(store, key, body)
        return await cas(store, key, body, expected, contended=contended, **rest)

    patch.setattr(holdings, "cas", mistaken)


def orphaned_claim_deleted(patch: Patch) -> None:
    """A claim without todo and without commit is taken for litter."""

    async def mistaken(self: Sweeper, record: ClaimRecord) -> None:
        await self._store.delete(LAYOUT.claim_key(record.task.episode_id))

    patch.setattr(Sweeper, "_put_todo_again", mistaken)


def expiry_by_wall_clock(patch: Patch) -> None:
    """A lease is as old as the time written in it, by the reader's own clock."""
    begin, standing = Leases.__init__, Watch.standing

    def mistaken_begin(self: Leases, *args: Any, wall: Callable[[], float], **rest: Any) -> None:
        begin(self, *args, wall=wall, **rest)
        patch.setattr(self._watch, "standing", partial(mistaken, self._watch, wall))

    def mistaken(
        self: Watch, wall: Callable[[], float], episode_id: str, held: Container[str]
    ) -> tuple[Standing, float]:
        seen = self.get(episode_id)
        record = seen.record if seen is not None else None
        ours = episode_id in held or record is None or record.owner == self._owner
        if ours or record is None or record.state is not State.LEASED or not record.written:
            return standing(self, episode_id, held)
        wait_s = EXPIRY * self._ttl_s - (
            wall() - datetime.fromisoformat(record.written).timestamp()
        )
        return (Standing.LEASED, wait_s) if wait_s > 0 else (Standing.RIPE, 0.0)

    patch.setattr(Leases, "__init__", mistaken_begin)


MUTANTS = (
    Mutant("commit by plain PUT", commit_by_plain_put, rough),
    Mutant("todo deleted before the commit", todo_deleted_before_commit, rough),
    Mutant("todo deleted before publication", todo_deleted_before_publication, rough),
    Mutant("publication before the commit", publication_before_commit, rough),
    Mutant("publication believed without a look", publication_believed, rough),
    Mutant("412 believed without reading back", refusal_believed, rough),
    Mutant("pack deleted after an unknown commit", pack_deleted_after_unknown_commit, rough),
    Mutant("takeover without compare-and-swap", takeover_without_cas, crowded),
    Mutant("orphaned claim deleted by the sweep", orphaned_claim_deleted, old),
    Mutant("expiry by wall clock", expiry_by_wall_clock, crowded),
)
