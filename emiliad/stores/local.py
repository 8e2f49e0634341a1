"""The embedded object store: a directory, for any number of processes on one machine.

A key is a path under the root, so that people can put audio there and look at what came of it.
The store's own files lie in `.emiliad/`: temporary files and 64 lock files. Every write goes to a
temporary file first and becomes visible by one `link` (create if absent) or `rename`, under the
`flock` of the key's shard; reads take no lock. The kernel drops a lock when its process dies, so
nothing has to be mended after a kill, and a descriptor for each request makes the lock hold between
threads as well. One machine only: `flock` promises nothing on a network.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from hashlib import md5
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio
import anyio.to_thread

from emiliad.errors import (
    DiskFull,
    InvalidKey,
    NotFound,
    PreconditionFailed,
    StoreError,
    StoreUnusable,
)
from emiliad.store import PAGE, Object, ObjectInfo, Page
from emiliad.stores import files

T = TypeVar("T")
Write = Callable[[BinaryIO], str]  # writes a body and returns its MD5

_OWN = ".emiliad"  # the folder of the store's own files
_SHARDS = 64  # locks; all processes on a store must agree on the number
_THREADS = 16  # requests at a time; most of them wait for the disk
_ABANDONED_S = 3600.0  # age from which a temporary file belongs to nobody
_NAME_BYTES = 255  # of a path's component, on every common file system
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOWHERE = {
    errno.ENOTDIR: "a part of it is a file here",
    errno.EEXIST: "a part of it is a file here",
    errno.ENAMETOOLONG: "it is too long for this file system",
    errno.EILSEQ: "this file system has no such names",
}


class LocalStore:
    """Objects as files under `root`, which the first write creates.

    Etags are the MD5 of the content; only in lists, larger files have one made of size and time
    (`files.HASHED_BYTES`). `durable=False` spares the fsyncs, for tests.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self._root = root
        self._durable = durable
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._prepared = False

    async def get(self, key: str) -> Object:
        return await self._run(self._get, key)

    async def head(self, key: str) -> ObjectInfo:
        return await self._run(self._head, key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        def write(file: BinaryIO) -> str:
            file.write(body)
            return md5(body, usedforsecurity=False).hexdigest()

        return await self._run(self._put, key, write, if_absent=if_absent, if_match=if_match)

    async def delete(self, key: str) -> None:
        await self._run(self._delete, key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        found = files.walk(self._root, prefix, start_after, hidden=_OWN)
        while page := await self._run(_next_page, prefix, found):
            yield page

    async def upload(self, key: str, path: Path) -> str:
        return await self._run(self._upload, key, path)

    async def download(self, key: str, path: Path) -> ObjectInfo:
        return await self._run(self._download, key, path)

    async def aclose(self) -> None:
        """Nothing is held between requests."""

    async def _run(self, work: Callable[..., T], *args: object, **kwargs: object) -> T:
        return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._threads)

    def _get(self, key: str) -> Object:
        with self._open(key) as file, _explained(key, StoreError):
            body = file.read()
        return Object(body, md5(body, usedforsecurity=False).hexdigest())

    def _head(self, key: str) -> ObjectInfo:
        with self._open(key) as file, _explained(key, StoreError):
            return ObjectInfo(key, os.fstat(file.fileno()).st_size, files.digest(file))

    def _download(self, key: str, path: Path) -> ObjectInfo:
        with self._open(key) as source:
            try:
                with path.open("wb") as target:
                    etag = files.copy(source, target)
                    return ObjectInfo(key, target.tell(), etag)
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def _upload(self, key: str, path: Path) -> str:
        with path.open("rb") as source:
            return self._put(key, partial(files.copy, source))

    def _put(
        self, key: str, write: Write, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        place = self._place(key)
        check = partial(self._check, key, place, if_absent=if_absent, if_match=if_match)
        with _explained(key):
            self._prepare()
            check()  # a loser who is late anyway need not write first
            with self._temporary() as temporary:
                with temporary.open("xb") as file:
                    etag = write(file)
                    self._sync(file)
                with self._locked(key):
                    check()
                    self._make_folder(place.parent)
                    _appear(temporary, place, if_absent=if_absent)
                    self._sync_folder(place.parent)
            return etag

    def _delete(self, key: str) -> None:
        """Folders stay: a writer may be about to use them."""
        place = self._place(key)
        with _explained(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR(place.lstat().st_mode):
                self._prepare()
                with self._locked(key):
                    place.unlink()

    def _check(self, key: str, place: Path, *, if_absent: bool, if_match: str | None) -> None:
        """Raises PreconditionFailed unless the object is in the state that is asked for."""
        if place.is_dir():
            raise InvalidKey(f"{key!r} cannot be written: it is a folder here")
        if if_absent and os.path.lexists(place):
            raise PreconditionFailed(f"{key!r} exists")
        if if_match is not None and (found := self._etag(key)) != if_match:
            raise PreconditionFailed(f"{key!r} has the etag {found}, not {if_match}")

    def _etag(self, key: str) -> str | None:
        try:
            return self._head(key).etag
        except NotFound:
            return None

    def _open(self, key: str) -> BinaryIO:
        """Raises NotFound if there is no regular file; a pipe is none, and would block."""
        place = self._place(key)
        with _explained(key, StoreError):
            try:
                descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"there is no object {key!r}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotFound(f"there is no object {key!r}")
        return open(descriptor, "rb")  # noqa: PTH123 - of a descriptor; callers close it

    def _place(self, key: str) -> Path:
        """The path of an object. Raises InvalidKey if there can be none under the root."""
        reason = _objection(key)
        if reason:
            raise InvalidKey(f"{key!r} cannot be a path under {self._root}: {reason}")
        return self._root / key

    def _prepare(self) -> None:
        """Makes the store's own folders, and clears what killed processes left in them."""
        if self._prepared and (self._root / _OWN / "tmp").is_dir():
            return
        for folder in ("tmp", "locks"):
            (self._root / _OWN / folder).mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _ABANDONED_S
        for path in (self._root / _OWN / "tmp").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
        self._prepared = True

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        path = self._root / _OWN / "tmp" / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        shard = md5(key.encode(), usedforsecurity=False).digest()[0] % _SHARDS
        path = self._root / _OWN / "locks" / f"{shard:02x}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        self._sync_folder(folder.parent)

    def _sync(self, file: BinaryIO) -> None:
        file.flush()
        if self._durable:
            os.fsync(file.fileno())

    def _sync_folder(self, folder: Path) -> None:
        if not self._durable:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _next_page(prefix: str, found: Iterator[ObjectInfo]) -> Page:
    with _explained(prefix, StoreError):
        return list(islice(found, PAGE))


def _appear(temporary: Path, place: Path, *, if_absent: bool) -> None:
    if not if_absent:
        temporary.replace(place)
        return
    try:
        place.hardlink_to(temporary)
    except FileExistsError:
        raise PreconditionFailed(f"{place} exists") from None


def _objection(key: str) -> str | None:
    """Why a key cannot be a path, or None."""
    parts = key.split("/")
    if parts[0] == _OWN:
        return f"{_OWN} is the store's own folder"
    if "\0" in key:
        return "it holds a NUL character"
    if not all(parts) or not {".", ".."}.isdisjoint(parts):
        return "it has an empty, `.` or `..` part"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    return f"a part of it is longer than {_NAME_BYTES} bytes" if longest > _NAME_BYTES else None


@contextlib.contextmanager
def _explained(key: str, otherwise: type[StoreError] = StoreUnusable) -> Iterator[None]:
    """Says in emiliad's errors what the system complains of.

    A file that cannot be read is that one object's trouble; a write that fails is everyone's.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"{key!r} was not written: {error.strerror}") from error
        if error.errno in _NOWHERE:
            raise InvalidKey(f"{key!r}: {_NOWHERE[error.errno]}") from error
        raise otherwise(f"{key!r}: {error.strerror} ({error.filename})") from error
