"""Finds tasks to take: todo and claims are listed from a random place and joined.

One listing shows the etags of a thousand claims for the price of one request, so leases are watched
by listing, and only claims that changed are read, once. While there is work, a look is one page of
todos and the claims beside it; the queue is walked around only to find that there is none, and an
idle node goes on around it a few pages at a look.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from emiliad import logs
from emiliad.errors import NotFound
from emiliad.parallel import for_each
from emiliad.queue.claims import parse_claim
from emiliad.queue.places import Places
from emiliad.queue.tasks import SUFFIX, Layout, id_of, is_name
from emiliad.queue.watch import Standing, Watch
from emiliad.store import PAGE, Page, Store

_CLAIM_PAGES = 10  # if all claims fit these, they are listed whole, else beside the todo page
# Most claims that changed were renewed, a few are free again: each node reads some, the fleet all.
_READ_BUSY = 4  # in a look that found work, of the claims beside it
_READ_IDLE = 100  # of a page without work
_BATCH_CLAIMS = 50  # taken from one page of candidates before a new place is looked for
_BATCH_S = 300.0  # for which a page of candidates is worth trying; races that are lost end it too
_BATCH_FRESH_S = 2.0  # for which claims are as they were listed, more or less
_BATCH_LOSSES = 3  # in a row: others are at the same page, and new listings cost less than races
_WARNINGS = 100  # of things that are no todos, in a node's life
_IDLE_PAGES = 5  # of todos in one look of a node that found nothing all around
_log = logs.get("scan")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the last look at the queue showed; the counts are whole if `complete`."""

    complete: bool = False
    todo: int = 0  # todo objects seen
    held: int = 0  # of them, leased by this node
    leased: int = 0  # by others
    backing_off: int = 0
    failed: int = 0
    publishing: int = 0  # committed, and not to be published yet by what this node could do
    wait_s: float | None = None  # until a lease or a back-off may end

    @property
    def settled(self) -> bool:
        """Whether every task has failed or is published."""
        return self.complete and self.todo == self.failed


class Batch:
    """The candidates of one page, for as long and as far as they are worth trying."""

    def __init__(self, ids: list[str], clock: Callable[[], float]) -> None:
        self._ids = ids
        self._clock = clock
        self._began = clock()
        self._left = _BATCH_CLAIMS
        self._losses = 0

    def pop(self) -> str | None:
        """The next id to try."""
        worn_out = self._left <= 0 or self._losses >= _BATCH_LOSSES
        if not self._ids or worn_out or self._age_s > _BATCH_S:
            return None
        return self._ids.pop()

    @property
    def fresh(self) -> bool:
        """Whether its candidates were listed just now."""
        return self._age_s < _BATCH_FRESH_S

    @property
    def _age_s(self) -> float:
        return self._clock() - self._began

    def won(self) -> None:
        """Notes that a candidate was leased."""
        self._left -= 1
        self._losses = 0

    def lost(self) -> None:
        """Notes that another node was faster."""
        self._losses += 1


@dataclass(frozen=True, slots=True)
class _TodoPage:
    ids: list[str]
    after: str  # the key behind which the page was listed
    last: str  # its last key


@dataclass(slots=True)
class _Round:
    """A walk once around the queue, and what it saw so far."""

    start: str
    after: str
    wrapped: bool = False  # it began again at the beginning
    counts: Counter[Standing] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    def outlook(self) -> Outlook:
        counts = self.counts
        return Outlook(
            todo=counts.total(),
            held=counts[Standing.HELD],
            leased=counts[Standing.LEASED],
            backing_off=counts[Standing.BACKING_OFF],
            failed=counts[Standing.FAILED],
            wait_s=min(self.waits, default=None),
        )


class Scan:
    """Walks the queue around, page by page, and counts what it sees."""

    def __init__(self, store: Store, layout: Layout, watch: Watch, rng: random.Random) -> None:
        self._store = store
        self._layout = layout
        self._watch = watch
        self._rng = rng
        self._places = Places(rng)
        self.outlook = Outlook()
        self.unusable: list[str] = []  # todos seen whose ids cannot be used; to be taken away
        self._strange: set[str] = set()  # keys among the todos that were warned of
        self._first = (
            True  # until work was found: a restarted node looks for its own leases at once
        )
        self._idle: _Round | None = None  # where an idle node goes on
        self._claims_are_many = False  # too many to list them whole, while there is no work

    async def around(self, held: Container[str]) -> AsyncGenerator[list[str], None]:
        """Yields the ids to try of one page after the other, shuffled; `outlook` keeps count.

        After a whole round without any, each call goes on a few pages only.
        """
        idle, self._idle = self._idle, None
        round_ = idle or self._begin()
        looked, whole = 0, False
        async with aclosing(self._todo_pages(round_)) as pages:
            async for page in pages:
                # All claims at once are dearer than those beside one page, cheaper than many such.
                if looked == (0 if idle else 1) and not self._claims_are_many:
                    whole = await self._see_claims("", None)
                    self._claims_are_many = not whole
                if not whole:
                    await self._see_claims(page.after, page.last)
                looked += 1
                ripe = await self._look(page, round_, held)
                seen = round_.outlook()
                self.outlook = replace(self.outlook, wait_s=seen.wait_s) if idle else seen
                if ripe:
                    idle, self._first, self._claims_are_many = None, False, False
                    yield ripe
                if idle and looked == _IDLE_PAGES:
                    self._idle = round_
                    return
        self._watch.forget_old()
        self._first = False
        self.outlook = replace(round_.outlook(), complete=True)
        if not round_.counts[Standing.RIPE]:
            self._idle = self._begin()

    def _begin(self) -> _Round:
        place = self._places.choose()
        return _Round(place, place)

    async def _look(self, page: _TodoPage, round_: _Round, held: Container[str]) -> list[str]:
        """What is to be taken of a page, in random order."""
        await self._read_changed(page.ids, held)
        ripe = []
        for episode_id in page.ids:
            standing, wait_s = self._watch.standing(episode_id, held)
            round_.counts[standing] += 1
            if standing is Standing.RIPE:
                ripe.append(episode_id)
            elif wait_s > 0:
                round_.waits.append(wait_s)
        self._rng.shuffle(ripe)
        return ripe

    async def _todo_pages(self, round_: _Round) -> AsyncGenerator[_TodoPage, None]:
        """The pages of todos that are left of a round: to the end, and from the beginning on."""
        prefix = self._layout.todo
        while True:
            moved = False
            end = round_.start if round_.wrapped else None
            async with aclosing(self._store.list(prefix, start_after=round_.after)) as pages:
                async for page in pages:
                    if not round_.after and await self._move(page, round_):
                        moved = True
                        break
                    self._places.learn(page)
                    keys = [info.key for info in page if end is None or info.key <= end]
                    ids = [id_ for key in keys if (id_ := self._id_of(key))]
                    after, round_.after = round_.after, keys[-1] if keys else page[-1].key
                    if ids:
                        yield _TodoPage(ids, after, round_.after)
                    if len(keys) < len(page):
                        break
            if not moved:
                if round_.wrapped or not round_.start:
                    return
                round_.wrapped, round_.after = True, ""

    def _id_of(self, key: str) -> str | None:
        """The id of a todo, if it has one that can be used."""
        episode_id = id_of(key, self._layout.todo)
        if episode_id is None:
            self._warn_of(key)
        elif not is_name(episode_id):
            self.unusable.append(key)
            return None
        return episode_id

    def _warn_of(self, key: str) -> None:
        """What lies deeper is no task, though somebody may have meant it to be one."""
        ours = (self._layout.claims, self._layout.completed, self._layout.failed)
        known = not key.endswith(SUFFIX) or key.startswith(ours) or key in self._strange
        if not known and len(self._strange) < _WARNINGS:
            self._strange.add(key)
            _log.warning(
                "todo.ignored", key=key, reason="a task's id has no slash and is not empty"
            )

    async def _move(self, page: Page, round_: _Round) -> bool:
        """Begins a round elsewhere if its first page is the first that this node sees at all:
        all nodes that started begin there."""
        if len(page) < PAGE or not self._places.strange:
            return False
        self._places.learn(page)
        for place in self._places.guesses(self._layout.todo, page):
            async with aclosing(self._store.list(self._layout.todo, start_after=place)) as pages:
                async for found in pages:
                    self._places.learn(found)
                    round_.start = round_.after = place
                    return True
        return False

    async def _see_claims(self, after: str, last: str | None) -> bool:
        """Lists the claims of the todos behind `after` up to `last`; without `last`, all claims,
        unless they are too many: then the answer is False."""
        start = self._layout.claims + after.removeprefix(self._layout.todo) if after else ""
        end = self._layout.claims + last.removeprefix(self._layout.todo) if last else None
        etags: dict[str, str] = {}
        pages_seen = 0
        async with aclosing(self._store.list(self._layout.claims, start_after=start)) as pages:
            async for page in pages:
                if end is None and pages_seen == _CLAIM_PAGES:
                    return False
                pages_seen += 1
                for info in page:
                    episode_id = id_of(info.key, self._layout.claims)
                    if episode_id and (end is None or info.key <= end):
                        etags[episode_id] = info.etag
                if end is not None and page[-1].key > end:
                    break

        def covered(episode_id: str) -> bool:
            key = self._layout.claim_key(episode_id)
            return key > start and (end is None or key <= end)

        self._watch.see_range(etags, covered)
        return True

    async def _read_changed(self, ids: Sequence[str], held: Container[str]) -> None:
        """Reads claims of which only the etag is known, as far as that may be of use."""
        standings = {id_: self._watch.standing(id_, held)[0] for id_ in ids}
        unread = [id_ for id_, standing in standings.items() if standing is Standing.UNREAD]
        if Standing.RIPE in standings.values() and not self._first:
            wanted = self._sample(unread, _READ_BUSY)
        else:
            renewed = [id_ for id_ in unread if self._watch.is_likely_renewed(id_)]
            wanted = [*set(unread).difference(renewed), *self._sample(renewed, _READ_IDLE)]
        await for_each(sorted(wanted), self.read)

    def _sample(self, ids: list[str], most: int) -> list[str]:
        return self._rng.sample(ids, min(len(ids), most))

    async def read(self, episode_id: str) -> None:
        """Looks at one claim."""
        try:
            found = await self._store.get(self._layout.claim_key(episode_id))
        except NotFound:
            self._watch.forget(episode_id)
        else:
            self._watch.see(episode_id, found.etag, parse_claim(episode_id, found.body))
