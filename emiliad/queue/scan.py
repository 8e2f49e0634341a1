"""Finds tasks to take: todo and claims are listed from a random place and joined.

One listing shows the etags of a thousand claims for the price of one request, so leases are watched
by listing, and only claims that changed are read, once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from emiliad.errors import NotFound
from emiliad.parallel import for_each
from emiliad.queue.claims import parse_claim
from emiliad.queue.tasks import Layout, id_of
from emiliad.queue.watch import Standing, Watch
from emiliad.store import PAGE, Page, Store

_CLAIM_PAGES = 10  # if all claims fit these, they are listed whole, else beside the todo page
_CHANGED_READ = 32  # changed claims read where other work is at hand; the fleet reads them all
_BATCH_CLAIMS = 50  # taken from one page of candidates before a new place is looked for
_BATCH_S = 60.0  # for which a page of candidates is worth trying
_PLACES = 1000  # beginnings of pages that are remembered to start from


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
        self._ends = clock() + _BATCH_S if ids else 0.0
        self._left = _BATCH_CLAIMS

    def pop(self) -> str | None:
        """The next id to try."""
        if not self._ids or not self._left or self._clock() > self._ends:
            return None
        return self._ids.pop()

    def count(self) -> None:
        """Notes that a candidate was won."""
        self._left -= 1


@dataclass(frozen=True, slots=True)
class _TodoPage:
    ids: list[str]
    after: str  # the key behind which the page was listed
    last: str  # its last key


class Scan:
    """Walks the queue once around, page by page, and counts what it sees."""

    def __init__(self, store: Store, layout: Layout, watch: Watch, rng: random.Random) -> None:
        self._store = store
        self._layout = layout
        self._watch = watch
        self._rng = rng
        self._places = [""]
        self.outlook = Outlook()
        self._first = True  # a restarted node looks for its own leases at once

    def place(self) -> str:
        """A random key to list todos from: nodes that begin apart do not race."""
        return self._rng.choice(self._places)

    async def around(self, held: Container[str]) -> AsyncGenerator[list[str], None]:
        """Yields the ids to try of one page after the other, shuffled; `outlook` keeps count."""
        counts: Counter[Standing] = Counter()
        waits: list[float] = []
        whole = await self._see_claims("", None)
        async with aclosing(self._todo_pages()) as pages:
            async for page in pages:
                if not whole:
                    await self._see_claims(page.after, page.last)
                await self._read_changed(page.ids, held)
                ripe = []
                for episode_id in page.ids:
                    standing, wait_s = self._watch.standing(episode_id, held)
                    counts[standing] += 1
                    if standing is Standing.RIPE:
                        ripe.append(episode_id)
                    elif wait_s > 0:
                        waits.append(wait_s)
                self.outlook = _outlook(counts, waits)
                self._rng.shuffle(ripe)
                yield ripe
        self._watch.forget_old()
        self._first = False
        self.outlook = replace(_outlook(counts, waits), complete=True)

    async def _todo_pages(self) -> AsyncGenerator[_TodoPage, None]:
        """All pages of todos, from a random place to the end, and from the beginning to there."""
        start = self.place()
        for begin, end in ((start, None), ("", start)):
            if end == "":
                return
            after = begin
            async with aclosing(self._store.list(self._layout.todo, start_after=begin)) as pages:
                async for page in pages:
                    keys = [info.key for info in page if end is None or info.key <= end]
                    self._learn(page)
                    ids = [id_ for key in keys if (id_ := id_of(key, self._layout.todo))]
                    if ids:
                        yield _TodoPage(ids, after, keys[-1])
                    if len(keys) < len(page):
                        break
                    after = page[-1].key

    def _learn(self, page: Page) -> None:
        """A full page's end is a place to start from another time."""
        if len(page) == PAGE and page[-1].key not in self._places:
            if len(self._places) == _PLACES:
                self._places.pop(self._rng.randrange(1, _PLACES))
            self._places.append(page[-1].key)

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
        """Reads the claims of which only the etag is known; where other work is at hand, a few."""
        standings = {id_: self._watch.standing(id_, held)[0] for id_ in ids}
        unread = [id_ for id_, standing in standings.items() if standing is Standing.UNREAD]
        busy = Standing.RIPE in standings.values() and not self._first
        if busy and len(unread) > _CHANGED_READ:
            unread = self._rng.sample(unread, _CHANGED_READ)
        await for_each(unread, self.read)

    async def read(self, episode_id: str) -> None:
        """Looks at one claim."""
        try:
            found = await self._store.get(self._layout.claim_key(episode_id))
        except NotFound:
            self._watch.forget(episode_id)
        else:
            self._watch.see(episode_id, found.etag, parse_claim(episode_id, found.body))


def _outlook(counts: Counter[Standing], waits: list[float]) -> Outlook:
    return Outlook(
        todo=counts.total(),
        held=counts[Standing.HELD],
        leased=counts[Standing.LEASED],
        backing_off=counts[Standing.BACKING_OFF],
        failed=counts[Standing.FAILED],
        wait_s=min(waits, default=None),
    )
