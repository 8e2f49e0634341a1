"""Mends what interrupted work left behind; every step looks again before it acts.

    found                                        done
    packs or a dead letter of a completed task   publish, clean up, delete all its packs
    a claim without todo, completed              delete the claim
    a claim without todo, not completed          put the todo again, from the claim's keys; one of
                                                 the old scripts is then made free
    a failed claim without a dead letter         write the dead letter
    a dead letter whose claim is not failed      delete the dead letter

Claims are touched only when they have stood unchanged for as long as an expired lease has: before
that, somebody is at work. A committed task that is not published yet always has its pack, and todos
that were committed long ago are found by whoever claims them, so todos need not be walked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import aclosing

import anyio

from emiliad import logs
from emiliad.errors import Ambiguous, InvalidKey, NotFound, PreconditionFailed, Throttled
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.cas import cas
from emiliad.queue.claims import ClaimRecord, State, parse_claim
from emiliad.queue.holdings import Stamper
from emiliad.queue.outputs import Outputs
from emiliad.queue.tasks import Layout, id_of, todo_body
from emiliad.queue.watch import EXPIRY, Watch
from emiliad.store import Store

OWNER = "sweep"
_LOOKS = 1000  # objects of a kind that are looked at in one sweep; where there are more, a sample
_log = logs.get("sweep")


class Sweeper:
    """Sweeps one queue; remembers from one sweep to the next which claims stood still."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        ttl_s: float = 300.0,
        clock: Callable[[], float] = anyio.current_time,
        wall: Callable[[], float] = time.time,
        patience: Patience | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._ttl_s = ttl_s
        self._patience = patience or Patience()
        self._outputs = outputs or Outputs(store, layout)
        self._watch = Watch(owner=OWNER, ttl_s=ttl_s, clock=clock)
        self._stamp = Stamper(OWNER, self._patience.rng, wall)
        self.dead_letters: int | None = None  # in the whole queue, as the last sweep found them
        self._done: Counter[str] = Counter()
        # Failed tasks that need no second look while neither claim nor dead letter changes:
        self._whole: set[str] = set()  # the todo and the letter are there
        self._open: set[str] = set()  # no commit is there

    async def sweep_once(self) -> dict[str, int]:
        """Mends what it finds and says how often it did what. A busy store ends it early."""
        self._done = Counter()
        try:
            claims = await self._see_claims()
            await for_each(self._sample(await self._ids_with_packs()), self._finish)
            letters = set(await self._dead_letters())
            self.dead_letters = len(letters)
            still = {id_ for id_, stands in claims.items() if stands}
            self._whole &= still & letters
            self._open &= letters - (claims.keys() - still)
            await for_each(self._sample(still - self._whole), self._mend_claim)
            await for_each(self._sample(letters - self._open), self._mend_dead_letter)
        except (Ambiguous, Throttled) as error:
            _log.warning("store.busy", reason=str(error))
        return dict(self._done)

    def _sample(self, ids: Collection[str]) -> list[str]:
        return self._patience.rng.sample(sorted(ids), min(len(ids), _LOOKS))

    async def _keys(self, prefix: str) -> list[tuple[str, str]]:
        """The keys under a prefix, with their etags."""
        found: list[tuple[str, str]] = []
        async with aclosing(self._store.list(prefix)) as pages:
            async for page in pages:
                found += [(info.key, info.etag) for info in page]
        return found

    async def _see_claims(self) -> dict[str, bool]:
        """The ids that are claimed, and whether their claims have stood still for long."""
        listed = await self._keys(self._layout.claims)
        etags = {id_: etag for key, etag in listed if (id_ := id_of(key, self._layout.claims))}
        self._watch.see_range(etags)
        return {episode_id: self._still(episode_id) for episode_id in etags}

    def _still(self, episode_id: str) -> bool:
        return self._watch.stands_for(episode_id) >= EXPIRY * self._ttl_s

    async def _ids_with_packs(self) -> list[str]:
        prefix = self._layout.outputs
        keys = [key.removeprefix(prefix) for key, _ in await self._keys(prefix)]
        return list(dict.fromkeys(key.partition("/")[0] for key in keys))

    async def _dead_letters(self) -> list[str]:
        prefix = self._layout.failed
        return [id_ for key, _ in await self._keys(prefix) if (id_ := id_of(key, prefix))]

    async def _finish(self, episode_id: str) -> None:
        """Brings a committed task to its end, unless somebody is at it."""
        if not self._still(episode_id) or not await self._is_completed(episode_id):
            return
        try:
            published = await self._outputs.finish(episode_id)
        except InvalidKey as error:
            _log.error("sweep.unpublishable", episode_id=episode_id, reason=str(error))
            return
        if published is not None:
            await self._outputs.delete_packs(published)
            self._done["finished"] += 1

    async def _mend_claim(self, episode_id: str) -> None:
        """Deals with a claim that has stood still: its todo is gone, or its dead letter is."""
        record = await self._claim(episode_id)
        if record is None or not self._still(episode_id):
            return
        if await self._exists(self._layout.todo_key(episode_id)):
            if record.state is State.FAILED:
                await self._write_dead_letter(record)
        elif await self._is_completed(episode_id):  # asked after the todo: it is there before
            await self._store.delete(self._layout.claim_key(episode_id))
            self._done["claims_deleted"] += 1
        else:
            await self._put_todo_again(record)

    async def _write_dead_letter(self, record: ClaimRecord) -> None:
        key = self._layout.failed_key(record.task.episode_id)
        if not await self._exists(key):
            await self._store.put(key, record.dead_letter())
            self._done["dead_letters_written"] += 1
        self._whole.add(record.task.episode_id)

    async def _put_todo_again(self, record: ClaimRecord) -> None:
        """The claim is the only trace of its task: old scripts claimed by deleting the todo."""
        task = record.task
        if not task.audio_key:
            _log.warning("sweep.unreadable_claim", episode_id=task.episode_id)
            return
        try:
            key = self._layout.todo_key(task.episode_id)
            await self._store.put(key, todo_body(task), if_absent=True)
        except PreconditionFailed:
            return
        self._done["todos_restored"] += 1
        seen = self._watch.get(task.episode_id)
        if not record.nonce and seen is not None:
            free = record.reopen(self._stamp())
            key = self._layout.claim_key(task.episode_id)
            await cas(self._store, key, free.body(), seen.etag, patience=self._patience)

    async def _mend_dead_letter(self, episode_id: str) -> None:
        if await self._is_completed(episode_id):
            await self._finish(episode_id)
            return
        record = await self._claim(episode_id)
        if record is None or record.state is State.FAILED:
            self._open.add(episode_id)
            return  # the old scripts' dead letters have no claim
        await self._store.delete(self._layout.failed_key(episode_id))
        self._done["dead_letters_deleted"] += 1

    async def _claim(self, episode_id: str) -> ClaimRecord | None:
        """What a claim says now."""
        try:
            found = await self._store.get(self._layout.claim_key(episode_id))
        except NotFound:
            self._watch.forget(episode_id)
            return None
        self._watch.see(episode_id, found.etag)
        return parse_claim(episode_id, found.body)

    async def _is_completed(self, episode_id: str) -> bool:
        return await self._exists(self._layout.completed_key(episode_id))

    async def _exists(self, key: str) -> bool:
        try:
            await self._store.head(key)
        except NotFound:
            return False
        return True
