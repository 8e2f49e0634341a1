"""The lease protocol: takes tasks, keeps them, gives them back. It saves work; safety is elsewhere.

Exactly-once rests on the commit record alone (`emiliad.queue.publish`). A lease that is lost,
doubled or late costs computing time and nothing else, so every doubt here is answered by letting
go. The transitions and their names are those of the table in `emiliad.queue.claims`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial

import anyio

from emiliad import logs
from emiliad.errors import Ambiguous, BadTask, NotFound, StoreError, Throttled
from emiliad.parallel import for_each
from emiliad.patience import Patience, Sleep
from emiliad.queue.cas import ABSENT, Verdict
from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.holdings import Change, Holdings, Lease, Stamper
from emiliad.queue.outputs import Outputs
from emiliad.queue.rehome import rehome
from emiliad.queue.scan import Batch, Outlook, Scan
from emiliad.queue.tasks import Layout, parse_task
from emiliad.queue.watch import Standing, Watch
from emiliad.store import Store
from emiliad.types import Claim, Failure, Outcome, TaskRef

LOST_LIMIT = 10  # vanished owners from which a task is given up
_log = logs.get("leases")


class Leases:
    """The leases of one node.

    `owner` names the node and stays the same when it is restarted. `clock` gives monotonic seconds,
    `wall` seconds since 1970 for people who read the records. `write_spacing_s` keeps writes to one
    claim apart where the store asks for it (R2: 1.1).
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        owner: str,
        ttl_s: float = 300.0,
        max_attempts: int = 3,
        retry_backoff_s: float = 30.0,
        write_spacing_s: float = 0.0,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Sleep = anyio.sleep,
        rng: random.Random | None = None,
        wall: Callable[[], float] = time.time,
        patience: Patience | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self.store = store
        self.layout = layout
        self.patience = patience or Patience(sleep=sleep, rng=rng or random.Random())
        self.outputs = outputs or Outputs(store, layout)
        self.stamp = Stamper(owner, self.patience.rng, wall)
        self.given_up = 0  # tasks that were dead-lettered without being handed out
        self._max_attempts = max_attempts
        self._retry_backoff_s = retry_backoff_s
        self._clock = clock
        self._watch = Watch(owner=owner, ttl_s=ttl_s, clock=clock)
        self._scan = Scan(store, layout, self._watch, self.patience.rng)
        self._batch = Batch([], clock)
        self._taking: set[str] = set()  # tasks that are being leased
        self._publishing = 0
        self._looking = anyio.Lock()
        self._holdings = Holdings(
            store,
            layout,
            stamp=self.stamp,
            patience=self.patience,
            clock=clock,
            write_spacing_s=write_spacing_s,
        )

    @property
    def held(self) -> Mapping[str, Claim]:
        """The claims that this node holds, by episode id."""
        return {lease.episode_id: lease.claim for lease in self._holdings}

    @property
    def oldest_write_s(self) -> float | None:
        """Seconds since the lease that was renewed longest ago was; None without leases."""
        return max((self._clock() - lease.written_s for lease in self._holdings), default=None)

    @property
    def outlook(self) -> Outlook:
        """What the last `next` saw."""
        seen = self._scan.outlook
        complete = seen.complete and not self._scan.unusable  # those will be tasks
        return replace(seen, complete=complete, publishing=self._publishing)

    async def next(self) -> Claim | None:
        """Leases some task; None if there is none to be taken now, which `outlook` explains.

        Several may ask at a time: they take from one page of candidates side by side, and when that
        is used up one of them looks for another.
        """
        try:
            claim = await self._try_batch()
            if claim is not None:
                return claim
            async with self._looking:
                self._publishing = 0
                self._scan.outlook = replace(self._scan.outlook, complete=False)
                if self._holdings.alone:
                    return None
                await self._rehome()
                return await self._search()
        except (Ambiguous, Throttled) as error:
            _log.warning("store.busy", reason=str(error))
            return None

    async def claim(self, episode_id: str) -> Claim | None:
        """Leases this task, if it is to be taken now."""
        async with self._looking:
            await self._scan.read(episode_id)
            return await self._take(episode_id)

    async def _search(self) -> Claim | None:
        claim = await self._try_batch()
        if claim is not None:
            return claim
        async with aclosing(self._scan.around(self._holdings)) as pages:
            async for ids in pages:
                self._batch = Batch(ids, self._clock)
                claim = await self._try_batch()
                if claim is not None:
                    return claim
        return None

    async def _rehome(self) -> None:
        """Gives tasks that the last look saw under unusable ids others."""
        while self._scan.unusable:
            key = self._scan.unusable.pop()
            moved = await rehome(
                self.store, self.layout, key, stamp=self.stamp, patience=self.patience
            )
            self.given_up += not moved

    async def _try_batch(self) -> Claim | None:
        while not self._holdings.alone and (episode_id := self._batch.pop()) is not None:
            claim = await self._take(episode_id)
            if claim is not None:
                self._batch.won()
                return claim
        return None

    async def _take(self, episode_id: str) -> Claim | None:
        """C1, C2, C3, unless another call is at it."""
        if episode_id in self._taking:
            return None
        self._taking.add(episode_id)
        try:
            return await self._lease(episode_id)
        finally:
            self._taking.remove(episode_id)

    async def _lease(self, episode_id: str) -> Claim | None:
        """The todo is read first, so that the claim can hold its keys."""
        if self._watch.standing(episode_id, self._holdings)[0] is not Standing.RIPE:
            return None
        if not self._batch.fresh and await self._is_taken(episode_id):
            self._batch.lost()
            return None
        key = self.layout.todo_key(episode_id)
        flaw = None
        try:
            task = parse_task(key, (await self.store.get(key)).body)
        except NotFound:  # finished meanwhile; or an orphaned claim, which the sweep mends
            return None
        except BadTask as error:
            task, flaw = TaskRef(episode_id, "", ""), str(error)
        lease = self._proposed(task)
        if not self._holdings.tolerates(lease):
            return None
        if not await self._holdings.acquire(lease):
            self._watch.forget(episode_id)
            self._batch.lost()
            return None
        try:
            return lease.claim if await self._is_good(lease, flaw) else None
        except StoreError:
            await self.release(lease.claim)
            raise

    async def _is_taken(self, episode_id: str) -> bool:
        """Whether somebody claimed a task since it was listed: to ask costs less than to race."""
        if self._watch.get(episode_id) is not None:
            return False
        try:
            found = await self.store.head(self.layout.claim_key(episode_id))
        except NotFound:
            return False
        self._watch.see(episode_id, found.etag)
        return True

    def _proposed(self, task: TaskRef) -> Lease:
        seen = self._watch.get(task.episode_id)
        before = seen.record if seen is not None and seen.record else ClaimRecord(task)
        record = before.lease_to(self.stamp(), task)
        claim = Claim(task, record.attempt, record.lost, record.lease, record.interrupted)
        return Lease(claim, record, seen.etag if seen else ABSENT)

    async def _is_good(self, lease: Lease, flaw: str | None) -> bool:
        """Whether a task that was just leased is one to work on; if not, it is dealt with."""
        claim = lease.claim
        if await self._finish_if_committed(claim):
            return False
        failure = None
        if flaw is not None:
            failure = Failure("bad_task", flaw, retriable=False)
        elif claim.lost >= LOST_LIMIT:
            reason = f"{claim.lost} nodes vanished while they worked on it"
            failure = Failure("lost", reason, retriable=False)
        if failure is None:
            return True
        if await self.fail(claim, failure) is Outcome.FAILED:
            self.given_up += 1
            _log.warning("task.given_up", episode_id=claim.task.episode_id, reason=failure.reason)
        return False

    async def _finish_if_committed(self, claim: Claim) -> bool:
        episode_id = claim.task.episode_id
        try:
            await self.store.head(self.layout.completed_key(episode_id))
        except NotFound:
            return False
        if await self.outputs.finish(episode_id):
            await self.forget(claim)
        else:
            self._publishing += 1
            await self.release(claim, retry_after_s=self._retry_backoff_s)
        return True

    def lost(self, claim: Claim) -> anyio.Event:
        """Is set when the lease turns out to be another's."""
        lease = self._holdings.of(claim)
        if lease is not None:
            return lease.lost
        gone = anyio.Event()
        gone.set()
        return gone

    async def renew(self, claim: Claim) -> bool:
        """R. False: the lease is lost, and work on it is in vain. True also if nobody can tell."""
        lease = self._holdings.of(claim)
        if lease is None:
            return False
        if await self._holdings.write(lease, ClaimRecord.renew) is Verdict.LOST:
            self._holdings.lose(lease)
        return not lease.lost.is_set()

    async def renew_all(self) -> None:
        """R, of every lease."""
        await for_each(list(self.held.values()), self.renew)

    async def release(
        self, claim: Claim, *, retry_after_s: float = 0.0, interrupted: bool = False
    ) -> None:
        """G: hands a task back; no attempt counts. `interrupted`: its processing had begun."""
        lease = self._holdings.of(claim)
        if lease is None:
            return
        lease.interrupted |= interrupted  # also if this call is cut off, and `release_all` ends it
        again = partial(ClaimRecord.hand_back, interrupted=lease.interrupted)
        await self._end(lease, lambda record, stamp: again(record, stamp, retry_after_s))

    async def release_all(self) -> None:
        """G, of every lease, and of those of which it is not known whether they are ours."""
        await self._holdings.adopt_doubtful()
        await for_each(list(self.held.values()), self.release)

    async def fail(self, claim: Claim, failure: Failure) -> Outcome:
        """X: another attempt follows. F: none is left, or none would help; the dead letter.

        LOST if the lease was another's by now, or the store did not say.
        """
        lease = self._holdings.of(claim)
        if lease is None:
            return Outcome.LOST
        final = not failure.retriable or claim.attempt >= self._max_attempts

        def change(record: ClaimRecord, stamp: Stamp) -> ClaimRecord:
            if final:
                return record.give_up(stamp, failure)
            return record.retry_later(stamp, failure, self._retry_backoff_s)

        if await self._end(lease, change) is not Verdict.WON:
            return Outcome.LOST
        if not final:
            return Outcome.RETRIED
        with suppress(Ambiguous, Throttled):  # the sweep writes it
            key = self.layout.failed_key(claim.task.episode_id)
            await self.store.put(key, lease.record.dead_letter())
        return Outcome.FAILED

    async def forget(self, claim: Claim) -> None:
        """Lets go of a lease without a word, once no renewal of it is under way."""
        lease = self._holdings.of(claim)
        if lease is not None:
            await self._holdings.forget(lease)

    async def _end(self, lease: Lease, change: Change) -> Verdict:
        """X, F, G; what was written is seen at once, so that a back-off counts from now."""
        verdict = await self._holdings.end(lease, change)
        if verdict is Verdict.WON and isinstance(lease.etag, str):
            self._watch.see(lease.episode_id, lease.etag, lease.record)
        return verdict
