"""Room on the disk for models, and what to say when there is none. Standard library only."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.types import ModelError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskFull(ModelError):
    """There is no room for the file; what has come of it is kept for the next time."""


def ensure_room(target: Path, needed: int) -> None:
    """Raises DiskFull when there are not `needed` more bytes for the file `target`."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskFull(
            f"{target.name} needs {needed} more bytes in {target.parent}, where {free} are free"
        )


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Makes a ModelError of an OSError while `target` is written: DiskFull or another."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"{target.parent} has no room for {target.name}") from error
        raise ModelError(
            f"{error.filename or target} cannot be written: {error.strerror}"
        ) from error
