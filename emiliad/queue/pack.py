"""A pack: all files of one attempt's outputs in one tar, made and opened in scratch. Blocks."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from emiliad.queue.tasks import Output


def write_pack(folder: Path, pack: Path) -> dict[str, Output]:
    """Packs the regular files under `folder`, and says what they are, by their path in it.

    Sizes and hashes are those of the bytes that went into the pack. Raises OSError.
    """
    if not folder.is_dir():  # a walk through nothing would find nothing, and commit that
        raise FileNotFoundError(errno.ENOENT, "the folder of outputs is gone", str(folder))
    with tarfile.open(pack, "w", format=tarfile.PAX_FORMAT) as tar:
        return {name: _add(tar, name, folder / name) for name in _names(folder)}


def read_pack(pack: Path, outputs: Mapping[str, Output], folder: Path) -> None:
    """Unpacks `outputs` into `folder`. Raises OSError or tarfile.TarError if that cannot be."""
    with tarfile.open(pack) as tar:
        for member in tar:
            if member.isfile() and member.name in outputs and _stays_inside(member.name):
                source = tar.extractfile(member)
                assert source is not None  # a regular file
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)


def _names(folder: Path) -> Iterable[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


def _add(tar: tarfile.TarFile, name: str, path: Path) -> Output:
    """Time and owner are left out: equal outputs make equal packs."""
    with path.open("rb") as file:
        member = tarfile.TarInfo(name)
        member.size = path.stat().st_size
        reader = _Hashing(file)
        tar.addfile(member, reader)
    return Output(member.size, reader.md5.hexdigest())


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


class _Hashing(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.md5 = hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._file.read(size)
        self.md5.update(chunk)
        return chunk
