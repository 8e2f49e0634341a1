"""Files to and from an S3 server in parts: bounded memory, and nothing that arrived is sent twice.

Each part is a request of its own and is repeated by itself; one that breaks off half-way goes on
at the byte that it had reached. The parts of a download ask for the version that the first one saw.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import BinaryIO, Protocol

import anyio
import anyio.from_thread
import anyio.to_thread

from emiliad.errors import Ambiguous, NotFound, PreconditionFailed, StoreError
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.store import ObjectInfo
from emiliad.stores.files import CHUNK

MIB = 1 << 20
# A part costs a request, so parts are large; a cut costs no more than what was on its way.
PART_BYTES = 16 * MIB
# Up to here a file is one request, written whole. A pack of an hour's segments is about 30 MiB.
SINGLE_BYTES = 64 * MIB
_MOST_PARTS = 10_000  # that the protocol allows
_AT_ONCE = 4  # parts of one transfer; a single connection to R2 does not fill a fast line
_PROGRESS = 64 * 1024  # bytes that make a try no failure, even if it broke off
_REPLACED = 3  # times that a download begins again because the object was replaced meanwhile
_ABORT_S = 10.0  # for which a failed upload tries to leave no parts behind

Receive = Callable[[ObjectInfo, bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `stop` of a file, and their MD5."""

    path: Path
    start: int
    stop: int
    md5: bytes = b""

    @property
    def size(self) -> int:
        return self.stop - self.start

    def open(self) -> Section:
        """The bytes as a file."""
        return Section(self.path.open("rb", buffering=0), self.start, self.stop)


class Client(Protocol):
    """The single requests that transfers are made of; none of them is repeated below this."""

    async def read_range(
        self, key: str, start: int, stop: int, etag: str | None, receive: Receive
    ) -> ObjectInfo:
        """Hands the bytes on as they come. `etag`: only of this version, else PreconditionFailed.

        An empty object has no range: it is looked up instead. Raises NotFound.
        """

    async def put_file(self, key: str, whole: Part) -> str:
        """Writes a whole file."""

    async def begin_upload(self, key: str) -> str:
        """Begins an upload in parts and names it."""

    async def put_part(self, key: str, upload: str, number: int, part: Part) -> str:
        """Writes a part and returns its etag."""

    async def complete_upload(self, key: str, upload: str, etags: Sequence[str]) -> str:
        """Makes the object of its parts. Raises NotFound if there is no such upload any more."""

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drops an upload's parts."""

    async def head(self, key: str) -> ObjectInfo:
        """As in `Store`."""


async def download(
    client: Client, key: str, path: Path, patience: Patience, *, part_bytes: int = PART_BYTES
) -> ObjectInfo:
    """Writes an object's bytes to `path`, which is removed again if that fails."""
    try:
        for _ in range(_REPLACED):
            file = await anyio.to_thread.run_sync(_open_empty, path)
            try:
                return await _Download(client, key, file, patience, part_bytes).run()
            except PreconditionFailed:
                continue
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(file.close)
        raise Ambiguous(f"{key!r} was replaced {_REPLACED} times while it was read")
    except BaseException:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call, and it must not be cancelled
        raise


def _open_empty(path: Path) -> BinaryIO:
    return path.open("wb", buffering=0)


class _Download:
    def __init__(
        self, client: Client, key: str, file: BinaryIO, patience: Patience, part_bytes: int
    ) -> None:
        self._client = client
        self._key = key
        self._file = file
        self._patience = patience
        self._part_bytes = part_bytes
        self._seen: ObjectInfo | None = None

    async def run(self) -> ObjectInfo:
        await self._fetch(0)
        assert self._seen is not None
        rest = range(self._part_bytes, self._seen.size, self._part_bytes)
        await for_each(rest, self._fetch, at_once=_AT_ONCE)
        return self._seen

    async def _fetch(self, start: int) -> None:
        """The part that begins at `start`. A try that brought something is followed by another at
        once; one that brought nothing is what patience is for."""
        reached = start

        async def receive(info: ObjectInfo, chunk: bytes) -> None:
            nonlocal reached
            self._seen = info
            await anyio.to_thread.run_sync(_write_at, self._file, chunk, reached)
            reached += len(chunk)

        async def go_on() -> None:
            while reached < self._stop(start):
                before = reached
                etag = self._seen.etag if self._seen else None
                stop = self._stop(start)
                try:
                    self._seen = await self._client.read_range(
                        self._key, reached, stop, etag, receive
                    )
                    if reached == before < self._stop(start):
                        raise Ambiguous(f"{self._key!r}: an answer without a body")
                except Ambiguous:
                    if reached - before < _PROGRESS:
                        raise

        await self._patience.repeat(go_on)

    def _stop(self, start: int) -> int:
        """Where the part that begins at `start` ends, as far as the object's size is known."""
        stop = start + self._part_bytes
        return min(stop, self._seen.size) if self._seen else stop


def _write_at(file: BinaryIO, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


async def upload(
    client: Client,
    key: str,
    path: Path,
    patience: Patience,
    *,
    part_bytes: int = PART_BYTES,
    single_bytes: int = SINGLE_BYTES,
) -> str:
    """Writes a file's bytes, whole or not at all, and returns the etag."""
    size = (await anyio.Path(path).stat()).st_size
    if size <= single_bytes:
        whole = await _part(path, 0, size)
        return await patience.repeat(lambda: client.put_file(key, whole))
    part_bytes = max(part_bytes, -(-size // _MOST_PARTS))
    name = await patience.repeat(lambda: client.begin_upload(key))
    try:
        return await _Upload(client, key, path, size, name, patience, part_bytes).run()
    except BaseException:
        with anyio.move_on_after(_ABORT_S, shield=True):
            await _abort(client, key, name)
        raise


async def _abort(client: Client, key: str, upload: str) -> None:
    try:
        await client.abort_upload(key, upload)
    except StoreError:  # what is left expires by itself, in a week on R2
        return


@dataclass(frozen=True, slots=True)
class _Upload:
    client: Client
    key: str
    path: Path
    size: int
    name: str
    patience: Patience
    part_bytes: int

    async def run(self) -> str:
        count = math.ceil(self.size / self.part_bytes)
        digests = [b""] * count
        etags = [""] * count

        async def put(index: int) -> None:
            start = index * self.part_bytes
            part = await _part(self.path, start, min(start + self.part_bytes, self.size))
            digests[index] = part.md5
            etags[index] = await self.patience.repeat(
                lambda: self.client.put_part(self.key, self.name, index + 1, part)
            )

        await for_each(range(count), put, at_once=_AT_ONCE)
        whole = f"{md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{count}"
        return await self.patience.repeat(lambda: self._complete(etags, whole))

    async def _complete(self, etags: list[str], whole: str) -> str:
        """An upload that is gone was completed by a try whose answer was lost, or it is lost."""
        try:
            return await self.client.complete_upload(self.key, self.name, etags)
        except NotFound:
            found = await self._found()
            if found is None or (found.size, found.etag) != (self.size, whole):
                raise Ambiguous(f"the upload of {self.key!r} is gone") from None
            return found.etag

    async def _found(self) -> ObjectInfo | None:
        try:
            return await self.client.head(self.key)
        except NotFound:
            return None


async def _part(path: Path, start: int, stop: int) -> Part:
    return await anyio.to_thread.run_sync(_hashed, Part(path, start, stop))


def _hashed(part: Part) -> Part:
    state = md5(usedforsecurity=False)
    with part.open() as section:
        while chunk := section.read(CHUNK):
            anyio.from_thread.check_cancelled()
            state.update(chunk)
    return Part(part.path, part.start, part.stop, state.digest())


class Section(io.RawIOBase):
    """A part of a file as a file of its own, which is read as it is sent."""

    def __init__(self, file: io.RawIOBase | BinaryIO, start: int, stop: int) -> None:
        self._file = file
        self._start = start
        self._size = stop - start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        chunk = os.pread(self._file.fileno(), wanted, self._start + self._at)
        self._at += len(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()
        super().close()
