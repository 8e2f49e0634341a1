"""Whose id is whose, noted by one scan for the next: one object instead of a read for each record.

A listing shows that an id is taken, not by which raw file. For a todo its etag tells; of a
completed task only the record does, and to read a million of those at every scan takes long. So a
scan that learned much writes down what it knows. It is a memo and no truth: it may be missing,
outdated or damaged, then records are read. Whoever deletes records by hand deletes it too.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, Any

from emiliad.errors import NotFound
from emiliad.queue.ledger import Fact
from emiliad.queue.tasks import Layout, episode_id
from emiliad.store import Store

_ROWS = 1000  # handed over at a time
_LEVEL = 6  # of compression: keys shrink to a quarter


def memo_key(layout: Layout) -> str:
    """Where the memo lies: beside the folders of the queue."""
    return f"{layout.completed.removesuffix('processing_completed/')}enqueued.tsv.gz"


class Memo:
    """The memo of one queue. `folder`: where there is room on disk."""

    def __init__(self, store: Store, layout: Layout, folder: Path | None) -> None:
        self._store = store
        self._key = memo_key(layout)
        self._folder = folder

    async def load(self, take: Callable[[Sequence[tuple[str, Fact]]], int]) -> int:
        """Hands over what it says, a part at a time, and returns the sum of the answers."""
        answers = 0
        with tempfile.TemporaryDirectory(dir=self._folder) as room:
            path = Path(room) / "memo"
            try:
                await self._store.download(self._key, path)
            except NotFound:
                return 0
            with closing(_read(path)) as facts:
                while part := list(islice(facts, _ROWS)):
                    answers += take(part)
        return answers

    async def save(self, facts: Iterable[tuple[str, Fact]]) -> None:
        """Replaces it."""
        with tempfile.TemporaryDirectory(dir=self._folder) as room:
            path = Path(room) / "memo"
            with path.open("wb") as file, _gzip(file, "wb") as packed:
                for id_, fact in facts:
                    if episode_id(fact.owner) == id_ and fact.owner.isprintable():
                        packed.write(f"{fact.owner}\t{fact.todo or ''}\n".encode())
            await self._store.upload(self._key, path)

    async def forget(self) -> None:
        """Deletes it."""
        await self._store.delete(self._key)


def _read(path: Path) -> Generator[tuple[str, Fact], None, None]:
    """The facts, up to where the file is damaged."""
    try:
        with path.open("rb") as file, _gzip(file, "rb") as packed:
            for line in packed:
                owner, tab, todo = line.decode().rstrip("\n").partition("\t")
                if tab:
                    yield episode_id(owner), Fact(owner, todo or None)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError):
        return


def _gzip(file: IO[bytes], mode: str) -> gzip.GzipFile:
    """Without a time in it, so that equal content gives equal bytes."""
    options: dict[str, Any] = {"filename": "", "mtime": 0}
    return gzip.GzipFile(fileobj=file, mode=mode, compresslevel=_LEVEL, **options)
