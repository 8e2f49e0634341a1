"""Tells of a store's requests as an S3 store tells of its own, for one that does not by itself."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from emiliad.errors import StoreError
from emiliad.store import Object, ObjectInfo, Observe, Page, Store, Transferred, result_of


def observed(store: Store, observe: Observe | None, transferred: Transferred | None) -> Store:
    """`store`, seen by these two; as it is when there is nobody to see it."""
    if observe is None and transferred is None:
        return store
    return _Observed(store, observe or (lambda *_: None), transferred or (lambda *_: None))


class _Observed:
    def __init__(self, store: Store, observe: Observe, transferred: Transferred) -> None:
        self._store = store
        self._observe = observe
        self._transferred = transferred

    async def get(self, key: str) -> Object:
        with self._request("get"):
            found = await self._store.get(key)
        self._transferred("in", len(found.body))
        return found

    async def head(self, key: str) -> ObjectInfo:
        with self._request("head"):
            return await self._store.head(key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        with self._request("put"):
            etag = await self._store.put(key, body, if_absent=if_absent, if_match=if_match)
        self._transferred("out", len(body))
        return etag

    async def delete(self, key: str) -> None:
        with self._request("delete"):
            await self._store.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        pages = self._store.list(prefix, start_after=start_after)
        try:
            while True:
                with self._request("list"):
                    page = await anext(pages, None)
                if page is None:
                    return
                yield page
        finally:
            await pages.aclose()

    async def upload(self, key: str, path: Path) -> str:
        with self._request("upload"):
            etag = await self._store.upload(key, path)
        self._transferred("out", (await anyio.Path(path).stat()).st_size)
        return etag

    async def download(self, key: str, path: Path) -> ObjectInfo:
        with self._request("download"):
            info = await self._store.download(key, path)
        self._transferred("in", info.size)
        return info

    async def aclose(self) -> None:
        await self._store.aclose()

    @contextmanager
    def _request(self, operation: str) -> Iterator[None]:
        began, result = time.perf_counter(), "cancelled"  # also by trouble with the caller's file
        try:
            yield
            result = "ok"
        except StoreError as error:
            result = result_of(error)
            raise
        finally:
            self._observe(operation, result, time.perf_counter() - began)
