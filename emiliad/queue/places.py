"""Where in a long listing to begin: nodes that begin apart do not race for the same tasks.

A store lists from any key on, but does not say which keys there are. So a node remembers the ends
of the pages it has seen, and before it has seen any it guesses: a page of a thousand keys shows
what they begin with and which characters they are made of.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from emiliad.queue.tasks import SUFFIX
from emiliad.store import PAGE, Page

_REMEMBERED = 1000  # places; the oldest but one goes, at random
_DEPTHS = 3  # guesses, each nearer: one digit in front of what differs is ten pages or more away
_TAIL = 2  # characters that are made up behind the first: a hundred places at least for each


class Places:
    """The places of one listing that a node knows; the beginning is one of them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known = [""]

    @property
    def strange(self) -> bool:
        """Whether nothing is known yet but the beginning."""
        return len(self._known) == 1

    def choose(self) -> str:
        """A key to list from."""
        return self._rng.choice(self._known)

    def learn(self, page: Page) -> None:
        """A full page's end is a place to begin another time."""
        if len(page) < PAGE or page[-1].key in self._known:
            return
        if len(self._known) == _REMEMBERED:
            self._known.pop(self._rng.randrange(1, _REMEMBERED))
        self._known.append(page[-1].key)

    def guesses(self, prefix: str, page: Page) -> Iterator[str]:
        """Places under `prefix` behind a page that there may be, the farthest first."""
        first, last = page[0].key, page[-1].key
        fixed = len(prefix)
        common = next(
            (at for at in range(fixed, len(first)) if first[at] != last[at : at + 1]), len(first)
        )
        names = [info.key.removesuffix(SUFFIX) for info in page]
        letters = sorted({letter for name in names for letter in name[common:]} - {"/"})
        for depth in range(max(fixed, common - _DEPTHS), min(common + 1, len(last))):
            higher = [letter for letter in letters if letter > last[depth]]
            if higher:
                tail = "".join(self._rng.choices(letters, k=_TAIL))
                yield last[:depth] + self._rng.choice(higher) + tail
