"""Gives failed tasks another chance: their claims are freed, attempts begin at one again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from enum import StrEnum

from emiliad.errors import BadTask, NotFound
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Verdict, cas
from emiliad.queue.claims import State, parse_claim
from emiliad.queue.holdings import Stamper
from emiliad.queue.tasks import Layout, id_of, lenient_task, parse_object, todo_body
from emiliad.store import Store


class Retried(StrEnum):
    """What became of a task that was to be retried."""

    REQUEUED = "requeued"
    COMPLETED = "completed already"
    NOT_FAILED = "not failed"
    UNKNOWN = "no such task"
    UNREADABLE = "its dead letter names no audio"
    CONTENDED = "changed meanwhile"
    UNSURE = "the store did not answer: retry again"


async def retry(
    store: Store,
    layout: Layout,
    ids: Sequence[str] | None = None,
    *,
    wall: Callable[[], float] = time.time,
    patience: Patience | None = None,
) -> list[tuple[str, Retried]]:
    """Requeues these failed tasks, or all that have a dead letter, and says what became of each."""
    again = _Retry(store, layout, patience or Patience(), wall)
    if ids is None:
        ids = await again.all_failed()
    return [(episode_id, await again.one(episode_id)) for episode_id in ids]


class _Retry:
    def __init__(
        self, store: Store, layout: Layout, patience: Patience, wall: Callable[[], float]
    ) -> None:
        self._store = store
        self._layout = layout
        self._patience = patience
        self._stamp = Stamper("retry", patience.rng, wall)

    async def all_failed(self) -> list[str]:
        found: list[str] = []
        async with aclosing(self._store.list(self._layout.failed)) as pages:
            async for page in pages:
                found += [id_ for info in page if (id_ := id_of(info.key, self._layout.failed))]
        return found

    async def one(self, episode_id: str) -> Retried:
        letter = self._layout.failed_key(episode_id)
        if await self._body(self._layout.completed_key(episode_id)) is not None:
            await self._store.delete(letter)
            return Retried.COMPLETED
        claim = await self._body(self._layout.claim_key(episode_id))
        result = await (
            self._reopen(episode_id) if claim is not None else self._requeue(episode_id)
        )
        if result is Retried.REQUEUED:
            await self._store.delete(letter)
        return result

    async def _reopen(self, episode_id: str) -> Retried:
        """The claim says that the task has failed; its todo stands, or is put again."""
        key = self._layout.claim_key(episode_id)
        try:
            found = await self._store.get(key)
        except NotFound:
            return Retried.CONTENDED
        record = parse_claim(episode_id, found.body)
        if record.state is not State.FAILED:
            return Retried.NOT_FAILED
        todo, task = self._layout.todo_key(episode_id), record.task
        if task.audio_key and await self._body(todo) is None:
            await cas(self._store, todo, todo_body(task), ABSENT, patience=self._patience)
        free = record.reopen(self._stamp()).body()
        verdict = await cas(self._store, key, free, found.etag, patience=self._patience)
        match verdict:
            case Verdict.WON:
                return Retried.REQUEUED
            case Verdict.LOST:
                return Retried.CONTENDED
            case Verdict.UNKNOWN:
                return Retried.UNSURE

    async def _requeue(self, episode_id: str) -> Retried:
        """The old scripts left a dead letter and nothing else."""
        letter = await self._body(self._layout.failed_key(episode_id))
        todo = self._layout.todo_key(episode_id)
        if letter is None:
            waiting = await self._body(todo) is not None
            return Retried.NOT_FAILED if waiting else Retried.UNKNOWN
        try:
            task = lenient_task(episode_id, parse_object(episode_id, letter))
        except BadTask:
            return Retried.UNREADABLE
        if not task.audio_key:
            return Retried.UNREADABLE
        verdict = await cas(self._store, todo, todo_body(task), ABSENT, patience=self._patience)
        # Only with a todo that is certain may the dead letter go: it is the task's only trace.
        return Retried.UNSURE if verdict is Verdict.UNKNOWN else Retried.REQUEUED

    async def _body(self, key: str) -> bytes | None:
        try:
            return (await self._store.get(key)).body
        except NotFound:
            return None
