"""Listing from several places at once: everything, once, and soon."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emiliad.errors import Ambiguous
from emiliad.queue.ranges import walk
from emiliad.store import PAGE, ObjectInfo, Page
from emiliad.stores.memory import MemoryStore


class Shelf(MemoryStore):
    """Keys alone, in order; each page takes its lister one turn, and `turns` counts them."""

    def __init__(self, keys: list[str], *, page: int = PAGE) -> None:
        super().__init__()
        self.keys = sorted(keys)
        self.page = page
        self.requests = 0
        self.turns = 0
        self.at_work = 0
        self._turn: anyio.Event | None = None

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        self.at_work += 1
        try:
            while True:
                self.requests += 1
                await self._wait()
                start = bisect_right(self.keys, max(start_after, prefix))
                keys = self.keys[start : start + self.page]
                page = [ObjectInfo(key, 1, "") for key in keys if key.startswith(prefix)]
                if page:
                    yield page
                if len(page) < self.page:
                    return
                start_after = page[-1].key
        finally:
            self.at_work -= 1

    async def _wait(self) -> None:
        """Ends for all listers together, when each of them has asked for its page."""
        if self._turn is None:
            turn = self._turn = anyio.Event()
            for _ in range(10):  # others may be about to ask, or to be begun
                await anyio.lowlevel.checkpoint()
            self.turns, self._turn = self.turns + 1, None
            turn.set()
        else:
            await self._turn.wait()


async def listed(store: Shelf, prefix: str, listers: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    await walk(store, prefix, lambda page: seen.update(i.key for i in page), listers=listers)
    return seen


KEYS = {
    "numbers": [f"q/{number:09}.task" for number in range(60_000)],
    "hashes": [f"q/{random.Random(number).getrandbits(64):x}.task" for number in range(60_000)],
    "folders": [f"q/{'aaaaaaabcd'[n % 10]}/s{n % 97}/{n:07}.mp3" for n in range(60_000)],
    "titles": [
        f"q/Die Folge {n // 100} (Teil {n % 100}) \u00fcber \U0001f600" for n in range(60_000)
    ],
    "one folder of all": [f"q/{'long/' * 30}{number:07}" for number in range(60_000)],
}


@pytest.mark.parametrize("shape", KEYS)
async def test_every_key_is_listed_once(shape: str) -> None:
    """Whatever the keys look like, the listers share the work, and few requests find nothing."""
    shelf = Shelf(KEYS[shape])
    seen = await listed(shelf, "q/", 16)
    assert seen == dict.fromkeys(KEYS[shape], 1)
    assert shelf.at_work == 0
    assert shelf.turns < len(KEYS[shape]) / PAGE / 3
    assert shelf.requests < 2.5 * len(KEYS[shape]) / PAGE


async def test_one_lister_keeps_the_order() -> None:
    """And makes no request more than a plain listing."""
    shelf = Shelf(KEYS["folders"])
    seen = await listed(shelf, "q/", 1)
    assert list(seen) == shelf.keys
    assert shelf.requests == 61


async def test_a_short_listing_is_one_request() -> None:
    """Nothing is guessed where there is one page."""
    shelf = Shelf([f"q/{number}" for number in range(700)] + ["r/1", "p"])
    assert (await listed(shelf, "q/", 16)).total() == 700
    assert shelf.requests == 1


TEXT = st.text(st.sampled_from("a/!.z0\ud7ff\ue000\U0010ffff"), max_size=6)


@given(
    keys=st.sets(TEXT, max_size=80), prefix=st.sampled_from(["", "a", "a/"]), seed=st.integers(0, 3)
)
@settings(deadline=None, max_examples=300)
def test_any_keys_are_listed_once(keys: set[str], prefix: str, seed: int) -> None:
    """Also the last characters of Unicode, those around the surrogates, and keys within keys."""
    keys.discard("")
    shelf = Shelf(list(keys), page=PAGE)
    several = Shelf(list(keys), page=2)
    wanted = dict.fromkeys((key for key in keys if key.startswith(prefix) and key != prefix), 1)

    async def both() -> None:
        assert await listed(shelf, prefix, 16) == wanted
        assert await listed(several, prefix, 1 + seed) == wanted

    anyio.run(both)


async def test_the_first_error_ends_all_listings() -> None:
    """It is raised as it is."""
    shelf = Shelf(KEYS["hashes"])

    def visit(page: Page) -> None:
        if shelf.requests > 20:
            raise Ambiguous("no answer")

    with pytest.raises(Ambiguous):
        await walk(shelf, "q/", visit, listers=8)
    assert shelf.at_work == 0
