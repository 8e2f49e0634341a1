"""Files as objects: walking a tree in key order, hashing and copying. Everything here blocks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import BinaryIO

import anyio.from_thread

from emiliad.store import ObjectInfo

CHUNK = 1 << 20  # bytes read at a time
# Up to this size a list hashes the content. The queue's objects (claims, todos) are well below it
# and need their true etags; recordings are above it, and a scan of them must not read them.
HASHED_BYTES = 64 * 1024


def walk(root: Path, prefix: str, start_after: str, *, hidden: str) -> Iterator[ObjectInfo]:
    """The files under `root` whose key begins with `prefix` and follows `start_after`, in order.

    Holds one directory's names at a time and enters only those that can hold such a key. Symbolic
    links are followed. `hidden` is an entry of `root` that is left out. What vanishes meanwhile is
    left out too.
    """
    folder = prefix.rpartition("/")[0]
    if any(part in ("", ".", "..") for part in folder.split("/")) and folder:
        return
    if folder.split("/")[0] == hidden:
        return
    base = f"{folder}/" if folder else ""
    for info in _walk(root / folder, base, prefix, start_after, ancestors=()):
        if not info.key.startswith(f"{hidden}/"):
            yield info


def _walk(
    folder: Path, base: str, prefix: str, after: str, *, ancestors: tuple[tuple[int, int], ...]
) -> Iterator[ObjectInfo]:
    identity = _identity(folder)
    if identity is None or identity in ancestors:  # vanished, or a link back up
        return
    for name in _names(folder):
        key = base + name
        if name.endswith("/"):
            if _may_hold(key, prefix, after):
                here = (*ancestors, identity)
                yield from _walk(folder / name, key, prefix, after, ancestors=here)
        elif key.startswith(prefix) and key > after:
            info = _info(folder / name, key)
            if info is not None:
                yield info


def _may_hold(base: str, prefix: str, after: str) -> bool:
    """Whether a key below `base` can begin with `prefix` and follow `after`."""
    wanted = base.startswith(prefix) or prefix.startswith(base)
    return wanted and (base > after or after.startswith(base))


def _names(folder: Path) -> list[str]:
    """The entries in the order of the keys below them: a directory sorts as `name/`."""
    try:
        with os.scandir(folder) as entries:
            return sorted(f"{e.name}/" if e.is_dir() else e.name for e in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _info(path: Path, key: str) -> ObjectInfo | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        version = f"{status.st_size:x}-{status.st_mtime_ns:x}"
        if status.st_size > HASHED_BYTES:
            return ObjectInfo(key, status.st_size, version)
        body = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:  # there is an object; who asks for it will hear why he cannot have it
        return ObjectInfo(key, status.st_size, version)
    return ObjectInfo(key, len(body), md5(body, usedforsecurity=False).hexdigest())


def digest(file: BinaryIO) -> str:
    """The hex MD5 of what is left to read."""
    state = md5(usedforsecurity=False)
    while chunk := file.read(CHUNK):
        anyio.from_thread.check_cancelled()
        state.update(chunk)
    return state.hexdigest()


def copy(source: BinaryIO, target: BinaryIO) -> str:
    """Copies what is left to read and returns its hex MD5."""
    state = md5(usedforsecurity=False)
    while chunk := source.read(CHUNK):
        anyio.from_thread.check_cancelled()
        state.update(chunk)
        target.write(chunk)
    return state.hexdigest()
