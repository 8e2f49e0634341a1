"""A store that counts requests as R2 bills them: class A, class B and free."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

from emiliad.errors import PreconditionFailed
from emiliad.store import PAGE, Object, ObjectInfo, Page, Store


class CountingStore:
    """`store` with its requests counted: `counts["put tasks/processing_completed"]` and so on.

    A listing is a request for each page; a refused conditional write counts as `lost` as well.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()

    def _count(self, operation: str, key: str) -> None:
        parts = key.split("/")
        self.counts[f"{operation} {'/'.join(parts[:2] if parts[0] == 'tasks' else parts[:1])}"] += 1

    def total(self, *operations: str) -> int:
        """Requests whose names begin with one of these."""
        return sum(n for name, n in self.counts.items() if name.startswith(operations))

    @property
    def class_a(self) -> int:
        return self.total("put", "list", "upload")

    @property
    def class_b(self) -> int:
        return self.total("get", "head", "download")

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
