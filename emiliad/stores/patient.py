"""A store that repeats what may be repeated; conditional writes are left to `emiliad.queue.cas`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol, runtime_checkable

from emiliad.errors import Ambiguous, Throttled
from emiliad.patience import Patience, least_wait
from emiliad.store import Object, ObjectInfo, Page, Store


@runtime_checkable
class Partwise(Protocol):
    """A store whose transfers are many requests, each of which is repeated by itself."""

    async def upload_parts(self, key: str, path: Path, patience: Patience) -> str:
        """`upload` with that patience."""

    async def download_parts(self, key: str, path: Path, patience: Patience) -> ObjectInfo:
        """`download` with that patience."""


class PatientStore:
    """`store`, asked again after lost answers and refusals for being too busy."""

    def __init__(self, store: Store, patience: Patience | None = None) -> None:
        self._store = store
        self._patience = patience or Patience()

    async def get(self, key: str) -> Object:
        return await self._patience.repeat(lambda: self._store.get(key))

    async def head(self, key: str) -> ObjectInfo:
        return await self._patience.repeat(lambda: self._store.head(key))

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """A conditional write is tried once: a repetition would meet its own success as a 412."""
        if if_absent or if_match is not None:
            return await self._store.put(key, body, if_absent=if_absent, if_match=if_match)
        return await self._patience.repeat(lambda: self._store.put(key, body))

    async def delete(self, key: str) -> None:
        await self._patience.repeat(lambda: self._store.delete(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        """A listing that breaks off goes on behind the last key seen."""
        failures = 0
        while True:
            try:
                async with aclosing(self._store.list(prefix, start_after=start_after)) as pages:
                    async for page in pages:
                        failures, start_after = 0, page[-1].key
                        yield page
                return
            except (Ambiguous, Throttled) as error:
                failures += 1
                if failures >= self._patience.tries:
                    raise
                await self._patience.pause(failures, least_s=least_wait(error))

    async def upload(self, key: str, path: Path) -> str:
        if isinstance(self._store, Partwise):
            return await self._store.upload_parts(key, path, self._patience)
        return await self._patience.repeat(lambda: self._store.upload(key, path))

    async def download(self, key: str, path: Path) -> ObjectInfo:
        if isinstance(self._store, Partwise):
            return await self._store.download_parts(key, path, self._patience)
        return await self._patience.repeat(lambda: self._store.download(key, path))

    async def aclose(self) -> None:
        await self._store.aclose()
