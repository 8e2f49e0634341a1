"""Proves on a live store that it obeys conditions: without them, nothing here is exactly-once.

There are S3 servers that accept `If-None-Match` and `If-Match`, ignore them, and answer 200.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from emiliad.errors import NotFound, StoreError, StoreUnusable
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Absent, Verdict, cas, etag_of
from emiliad.store import Store

RACERS = 50  # creators of one key in the long probe
_CLEAN_UP_S = 3.0  # a daemon that is told to stop while its store is silent must not be kept
_ABANDONED_S = 3600.0  # age from which a probe's object belongs to nobody, whatever clocks say


async def honours_conditions(
    store: Store,
    prefix: str,
    *,
    racers: int = 0,
    patience: Patience | None = None,
    wall: Callable[[], float] = time.time,
) -> None:
    """Raises StoreUnusable, with a sentence, unless the store obeys conditional writes.

    Three writes and a delete of one key under `prefix`. With `racers`, the long probe: right and
    stale swaps as well, the etag in a list, and so many creators and swappers of one key at once;
    it also removes what earlier probes left. Nothing of it stays behind.
    """
    probe = _Probe(store, prefix, patience or Patience(), wall)
    async with probe.key() as key:
        await probe.short(key)
        if racers:
            await probe.swaps(key)
    if racers:
        async with probe.key() as key:
            await probe.race(key, racers)
        await probe.remove_abandoned()


@dataclass(frozen=True, slots=True)
class _Probe:
    store: Store
    prefix: str
    patience: Patience
    wall: Callable[[], float]
    rng: random.Random = field(default_factory=random.SystemRandom)

    @asynccontextmanager
    async def key(self) -> AsyncIterator[str]:
        """A name that nobody has; its object is removed at the end."""
        key = f"{self.prefix}{int(self.wall())}-{self.rng.getrandbits(64):016x}"
        try:
            yield key
        finally:
            with anyio.move_on_after(_CLEAN_UP_S, shield=True):
                await self._remove(key)

    async def short(self, key: str) -> None:
        """Creates the object, and must not be able to create or swap it again."""
        if not await self._write(key, self._body(), ABSENT):
            raise StoreUnusable(f"the store says that {key!r} exists, which nobody has written")
        if await self._write(key, self._body(), ABSENT):
            raise _ignored("it created an object that exists", "If-None-Match: *")
        if await self._write(key, self._body(), etag_of(b"never written")):
            raise _ignored("it replaced an object that is not the one asked for", "If-Match")

    async def swaps(self, key: str) -> None:
        """Replaces the object by its etag, which must be its MD5, and not twice by the same."""
        before = (await self.store.get(key)).body
        after = self._body()
        if not await self._write(key, after, etag_of(before)):
            raise StoreUnusable(
                "the store's etags are not the MD5 of what was written, on which emiliad relies: "
                "switch its encryption of objects off, or use another bucket"
            )
        if await self._write(key, self._body(), etag_of(before)):
            raise _ignored("it replaced an object by the etag of an earlier one", "If-Match")
        async with aclosing(self.store.list(key)) as pages:
            listed = [info.etag async for page in pages for info in page]
        if listed != [etag_of(after)]:
            raise StoreUnusable("the store's lists do not show what was just written")

    async def race(self, key: str, racers: int) -> None:
        """Of many creators one wins, and of many who then replace the object one does."""
        expected: str | Absent = ABSENT
        for condition in ("If-None-Match: *", "If-Match"):
            winners: list[bytes] = []

            async def compete(
                body: bytes,
                expected: str | Absent = expected,
                winners: list[bytes] = winners,
            ) -> None:
                if await self._write(key, body, expected):
                    winners.append(body)

            bodies = [self._body() for _ in range(racers)]
            await for_each(bodies, compete, at_once=racers)
            if len(winners) != 1:
                raise _ignored(f"of {racers} writers at once {len(winners)} won", condition)
            if (await self.store.get(key)).body != winners[0]:
                raise _ignored("it holds what a loser wrote", condition)
            expected = etag_of(winners[0])

    async def remove_abandoned(self) -> None:
        """Removes the objects of probes that were killed."""
        async with aclosing(self.store.list(self.prefix)) as pages:
            async for page in pages:
                for info in page:
                    made = info.key.removeprefix(self.prefix).partition("-")[0]
                    if made.isdecimal() and self.wall() - int(made) > _ABANDONED_S:
                        await self.store.delete(info.key)

    async def _write(self, key: str, body: bytes, expected: str | Absent) -> bool:
        """Whether the write won. Raises StoreUnusable if that cannot be found out."""
        verdict = await cas(self.store, key, body, expected, patience=self.patience)
        if verdict is not Verdict.UNKNOWN:
            return verdict is Verdict.WON
        try:
            await self.store.get(key)
        except NotFound:
            pass
        except StoreError as error:  # which says more than we could
            raise StoreUnusable(str(error)) from error
        raise StoreUnusable("the store does not answer when it is written to")

    async def _remove(self, key: str) -> None:
        try:
            await self.store.delete(key)
        except StoreError:  # a later probe removes it
            return

    def _body(self) -> bytes:
        """Each write is unlike all others, as `cas` wants it."""
        return b"emiliad tries whether conditions are obeyed: %016x\n" % self.rng.getrandbits(64)


def _ignored(what: str, condition: str) -> StoreUnusable:
    return StoreUnusable(
        f"the store ignores {condition}: {what}. Tasks would be done twice and outputs mixed; "
        "use R2, or a server that obeys conditional writes"
    )
