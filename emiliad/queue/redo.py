"""Makes a task again of an old script's record: the only way in which a record is ever removed.

At each step something names the task: first the record, then a claim, at last the todo.

    step                                   if the process ends behind it
    the claim is free, with the task's keys   the sweep deletes it, for the record stands
    the outputs are deleted, the index first  the record is found broken again
    the record is deleted                     the sweep puts the todo, from the claim's keys
    the todo is put                           -

A commit of ours is never removed: other nodes rely on it (`emiliad.queue.publish`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from enum import StrEnum

from emiliad.errors import NotFound
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Absent, Verdict, cas
from emiliad.queue.claims import ClaimRecord, State, parse_claim
from emiliad.queue.holdings import Stamper
from emiliad.queue.outputs import LAST
from emiliad.queue.tasks import Completed, Layout, todo_body
from emiliad.store import Store
from emiliad.types import TaskRef


class Redone(StrEnum):
    """What became of a completed task that was to be done again."""

    REQUEUED = "requeued"
    COMMITTED = "not requeued: a commit of emiliad's is never reopened, see docs/queue.md"
    NAMELESS = "not requeued: its record names no audio"
    SILENT = "not requeued: its raw audio is gone"
    BUSY = "not requeued: its todo stands or a node is at work on it, verify again later"
    CONTENDED = "not requeued: it changed meanwhile"
    UNSURE = "perhaps requeued: the store did not answer, verify again"


class Redo:
    """Requeues what old scripts completed badly."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        patience: Patience | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._layout = layout
        self._patience = patience or Patience()
        self._stamp = Stamper("verify", self._patience.rng, wall)

    async def one(self, record: Completed, etag: str) -> Redone:
        """Requeues the task of the record that has this etag. Its outputs are deleted.

        They would stay among those of the next attempt, which may have fewer segments. Raises
        StoreError.
        """
        task = record.task
        if record.outputs is not None:
            return Redone.COMMITTED
        if not task.audio_key:
            return Redone.NAMELESS
        if not await self._exists(task.audio_key):
            return Redone.SILENT
        if await self._exists(self._layout.todo_key(task.episode_id)):
            return Redone.BUSY  # whoever takes that sees the record, and deletes the todo
        freed = await self._free(task)
        if freed is not Redone.REQUEUED:
            return freed
        for step in (self._delete_outputs, self._delete_record):
            if not await self._stands(task, etag):
                return Redone.CONTENDED
            await step(task)
        todo = self._layout.todo_key(task.episode_id)
        verdict = await cas(self._store, todo, todo_body(task), ABSENT, patience=self._patience)
        return Redone.UNSURE if verdict is Verdict.UNKNOWN else Redone.REQUEUED

    async def _free(self, task: TaskRef) -> Redone:
        """Makes the claim a free one; the old scripts may have left theirs."""
        key = self._layout.claim_key(task.episode_id)
        record = ClaimRecord(task)
        expected: str | Absent = ABSENT
        try:
            found = await self._store.get(key)
        except NotFound:
            pass
        else:
            record, expected = parse_claim(task.episode_id, found.body), found.etag
            if record.nonce and record.state is State.LEASED:
                return Redone.BUSY
        body = ClaimRecord(task, history=record.history).reopen(self._stamp()).body()
        verdict = await cas(self._store, key, body, expected, patience=self._patience)
        match verdict:
            case Verdict.WON:
                return Redone.REQUEUED
            case Verdict.LOST:
                return Redone.CONTENDED
            case Verdict.UNKNOWN:
                return Redone.UNSURE

    async def _stands(self, task: TaskRef, etag: str) -> bool:
        """Whether the record is still the old one: no store deletes on a condition."""
        try:
            info = await self._store.head(self._layout.completed_key(task.episode_id))
        except NotFound:
            return False
        return info.etag == etag

    async def _delete_outputs(self, task: TaskRef) -> None:
        """Without its index an episode counts as absent, so that goes first."""
        prefix = self._layout.published(task)
        await self._store.delete(prefix + LAST)
        async with aclosing(self._store.list(prefix)) as pages:
            async for page in pages:
                await for_each([info.key for info in page], self._store.delete)

    async def _delete_record(self, task: TaskRef) -> None:
        await self._store.delete(self._layout.completed_key(task.episode_id))

    async def _exists(self, key: str) -> bool:
        try:
            await self._store.head(key)
        except NotFound:
            return False
        return True
