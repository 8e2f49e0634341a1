"""Lists a long prefix from several places at once: pages come sooner, though in no order.

A listing goes page by page, and each request waits for the one before. So whoever got a full page
while listers are idle gives them the far parts of its range. Where those begin is guessed from what
the page's keys have in common: that beginning less a character or a few, and then the next
character. So a page of the keys 0012000 to 0012999 says to look at 002, 0013 as well. Such a part
is some pages long, whether ids are numbered or random; behind the last guess there may be nothing,
which costs a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from emiliad.store import PAGE, Page, Store

LISTERS = 16  # listings at a time; a page takes a store about as long as sixteen small reads
_STEPS = 3  # characters less; parts of many pages are split on in their turn
_SURROGATES = (0xD800, 0xDFFF)  # no text holds them


@dataclass(slots=True)
class _Range:
    """The keys behind `start` up to `end`; None: to the end of the prefix."""

    start: str
    end: str | None


async def walk(
    store: Store, prefix: str, visit: Callable[[Page], None], *, listers: int = LISTERS
) -> None:
    """Calls `visit` with all objects under `prefix`, page by page, each object once.

    With one lister the pages come in the order of their keys. A store that sorts `a/b` before
    `a!`, as some servers do, may show objects twice.
    """
    ranges = _Walk(store, prefix, visit, listers)
    try:
        async with anyio.create_task_group() as group:
            ranges.begin(group)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors


class _Walk:
    def __init__(
        self, store: Store, prefix: str, visit: Callable[[Page], None], listers: int
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._visit = visit
        self._idle = listers

    def begin(self, group: TaskGroup) -> None:
        """Lists all keys; other listers join the first in `group`."""
        self._start(group, _Range("", None))

    def _start(self, group: TaskGroup, part: _Range) -> None:
        self._idle -= 1
        group.start_soon(self._list, group, part)

    async def _list(self, group: TaskGroup, part: _Range) -> None:
        pages = self._store.list(self._prefix, start_after=part.start)
        async with aclosing(pages):
            async for page in pages:
                mine = [info for info in page if part.end is None or info.key <= part.end]
                if mine:
                    self._visit(mine)
                if len(mine) < len(page):
                    break
                if len(page) == PAGE:
                    self._share(group, part, page)
        self._idle += 1

    def _share(self, group: TaskGroup, part: _Range, page: Page) -> None:
        """Gives the far parts of a range to idle listers."""
        for border in _borders(page[0].key, page[-1].key, len(self._prefix)):
            if self._idle and (part.end is None or border < part.end):
                self._start(group, _Range(border, part.end))
                part.end = border


def _borders(first: str, last: str, fixed: int) -> Iterator[str]:
    """Places behind a page from `first` to `last`, the farthest first; all begin alike up to
    `fixed`."""
    common = next(
        (at for at in range(fixed, len(first)) if first[at] != last[at : at + 1]), len(first)
    )
    for depth in range(max(fixed, common - _STEPS), max(fixed + 1, common)):
        following = ord(last[depth]) + 1
        if _SURROGATES[0] <= following <= _SURROGATES[1]:
            following = _SURROGATES[1] + 1
        # A place that ends in a slash lies before names like `a.b` for some servers, behind for us.
        if following <= 0x10FFFF and following != ord("/"):
            yield last[:depth] + chr(following)
