"""Stores for measurements: one that counts requests as R2 bills them, one with many keys and a
round trip."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio

from emiliad.errors import PreconditionFailed
from emiliad.store import PAGE, Object, ObjectInfo, Page, Store
from emiliad.stores.memory import MemoryStore


class CountingStore:
    """`store` with its requests counted by operation and folder: `counts["put processing_todo"]`.

    A listing is a request for each page. A conditional write that is refused counts as `lost` too.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()

    def total(self, *names: str) -> int:
        """Requests whose names begin with one of these."""
        return sum(count for name, count in self.counts.items() if name.startswith(names))

    @property
    def class_a(self) -> int:
        """What R2 calls class A; deletes are free."""
        return self.total("put ", "list ", "upload ")

    @property
    def class_b(self) -> int:
        """What R2 calls class B."""
        return self.total("get ", "head ", "download ")

    async def get(self, key: str) -> Object:
        self._count("get", key)
        return await self.store.get(key)

    async def head(self, key: str) -> ObjectInfo:
        self._count("head", key)
        return await self.store.head(key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        self._count("put", key)
        try:
            return await self.store.put(key, body, if_absent=if_absent, if_match=if_match)
        except PreconditionFailed:
            self._count("lost", key)
            raise

    async def delete(self, key: str) -> None:
        self._count("delete", key)
        await self.store.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        self._count("list", prefix)
        async for page in self.store.list(prefix, start_after=start_after):
            yield page
            if len(page) == PAGE:  # whoever asks on, asks the store
                self._count("list", prefix)

    async def upload(self, key: str, path: Path) -> str:
        self._count("upload", key)
        return await self.store.upload(key, path)

    async def download(self, key: str, path: Path) -> ObjectInfo:
        self._count("download", key)
        return await self.store.download(key, path)

    async def aclose(self) -> None:
        await self.store.aclose()

    def _count(self, operation: str, key: str) -> None:
        folders = key.split("/")
        self.counts[f"{operation} {folders[folders[0] == 'tasks']}"] += 1


class SortedStore(MemoryStore):
    """A store in memory that lists long prefixes as fast as short ones.

    Each request takes `round_trip_s`.
    """

    def __init__(self, round_trip_s: float = 0.0) -> None:
        super().__init__()
        self._round_trip_s = round_trip_s
        self._sorted: list[str] = []
        self._infos: dict[str, ObjectInfo] = {}

    def fill(self, keys: list[str], body: bytes) -> None:
        """Puts many objects of one content at once."""
        self.objects.update(dict.fromkeys(keys, body))
        self._sorted = sorted(self.objects)

    async def get(self, key: str) -> Object:
        await anyio.sleep(self._round_trip_s)
        return await super().get(key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        await anyio.sleep(self._round_trip_s)
        known = key in self.objects
        etag = await super().put(key, body, if_absent=if_absent, if_match=if_match)
        if not known:
            insort(self._sorted, key)
        self._infos.pop(key, None)
        return etag

    async def delete(self, key: str) -> None:
        await anyio.sleep(self._round_trip_s)
        if key in self.objects:
            self._sorted.pop(bisect_left(self._sorted, key))
            self._infos.pop(key, None)
        await super().delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        while True:
            await anyio.sleep(self._round_trip_s)
            begin = bisect_left(self._sorted, prefix)
            if start_after:
                begin = max(begin, bisect_right(self._sorted, start_after))
            keys = self._sorted[begin : begin + PAGE]
            page = [self._known(key) for key in keys if key.startswith(prefix)]
            if page:
                yield page
            if len(page) < PAGE:
                return
            start_after = page[-1].key

    def _known(self, key: str) -> ObjectInfo:
        if key not in self._infos:
            self._infos[key] = self._info(key)
        return self._infos[key]
