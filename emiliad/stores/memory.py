"""An object store in memory, with the semantics of R2: for tests and simulations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from hashlib import md5
from pathlib import Path

import anyio.lowlevel

from emiliad.errors import NotFound, PreconditionFailed
from emiliad.store import PAGE, Object, ObjectInfo, Page


class MemoryStore:
    """Each request is atomic; other tasks run before it. `objects` may be looked at and changed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def get(self, key: str) -> Object:
        await anyio.lowlevel.checkpoint()
        body = self._body(key)
        return Object(body, _etag(body))

    async def head(self, key: str) -> ObjectInfo:
        await anyio.lowlevel.checkpoint()
        return self._info(key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        await anyio.lowlevel.checkpoint()
        if if_absent and key in self.objects:
            raise PreconditionFailed(f"{key} exists")
        if if_match is not None and (key not in self.objects or self._info(key).etag != if_match):
            raise PreconditionFailed(f"{key} is not in state {if_match}")
        self.objects[key] = body
        return _etag(body)

    async def delete(self, key: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.objects.pop(key, None)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        while True:
            await anyio.lowlevel.checkpoint()
            keys = (key for key in self.objects if key.startswith(prefix) and key > start_after)
            page = [self._info(key) for key in sorted(keys)[:PAGE]]
            if page:
                yield page
            if len(page) < PAGE:
                return
            start_after = page[-1].key

    async def upload(self, key: str, path: Path) -> str:
        return await self.put(key, path.read_bytes())  # noqa: ASYNC240 - tests' small files

    async def download(self, key: str, path: Path) -> ObjectInfo:
        found = await self.get(key)
        path.write_bytes(found.body)  # noqa: ASYNC240 - tests' small files
        return ObjectInfo(key, len(found.body), found.etag)

    async def aclose(self) -> None:
        """Forgets nothing: another client may come."""

    def _body(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"there is no object {key}") from None

    def _info(self, key: str) -> ObjectInfo:
        body = self._body(key)
        return ObjectInfo(key, len(body), _etag(body))


def _etag(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()
