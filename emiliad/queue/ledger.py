"""What one scan has seen, on disk: every task there is, every raw file, and who owns which id.

Raw files and tasks are listed in different orders, and there are millions of them. Both go into an
SQLite file that is joined by id. The file has no name from the start, so nothing is left of it
however the process ends. A thousand rows take it a few milliseconds: no thread is worth the while.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

_CACHE_KIB = 64 * 1024  # of the file, in memory
_ROWS = 1000  # read at a time

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -{_CACHE_KIB};
CREATE TABLE tasks (
    id TEXT PRIMARY KEY, places INTEGER NOT NULL, todo BLOB, owner TEXT, read INTEGER, noted TEXT
) WITHOUT ROWID;
CREATE TABLE files (id TEXT, key TEXT, PRIMARY KEY (id, key)) WITHOUT ROWID;
"""


class Place(IntFlag):
    """Where a task has an object."""

    TODO = 1
    CLAIM = 2
    FAILED = 4
    COMPLETED = 8
    NEW = 16  # nowhere yet: it was given out by this scan


@dataclass(frozen=True, slots=True)
class Entry:
    """A task; `todo` is its todo's MD5 in hex, if it has one and that is known."""

    places: Place
    todo: str | None = None
    owner: str | None = None  # the audio key; "": its records name none


@dataclass(frozen=True, slots=True)
class Row:
    """A raw file, the id that it would have if it were alone, and the task of that id."""

    id: str
    key: str
    task: Entry | None


@dataclass(frozen=True, slots=True)
class Fact:
    """Whose an id is, as one scan tells the next.

    `todo` is as in Entry, where it is not the todo that we would write, which tells by itself.
    """

    owner: str
    todo: str | None


class Ledger:
    """Belongs to one scan and is closed with it. `folder`: where there is room on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as room:
            self._db = sqlite3.connect(Path(room) / "ledger", isolation_level=None)
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def add_tasks(self, place: Place, rows: Iterable[tuple[str, str]]) -> None:
        """Notes that these ids have an object in `place`, with its etag; again is no matter."""
        if place is Place.TODO:
            values = [(id_, place.value, _digest(etag)) for id_, etag in rows]
        else:
            values = [(id_, place.value, None) for id_, _ in rows]
        self._write(
            "INSERT INTO tasks (id, places, todo) VALUES (?, ?, ?) ON CONFLICT (id) "
            "DO UPDATE SET places = places | excluded.places",
            values,
        )

    def add_files(self, rows: Iterable[tuple[str, str]]) -> None:
        """Notes raw files: the id that each would have if it were alone, and its key."""
        self._write("INSERT OR IGNORE INTO files VALUES (?, ?)", rows)

    def add_facts(self, rows: Sequence[tuple[str, Fact]]) -> int:
        """Takes over what earlier scans noted, and returns how many of those ids are gone.

        While a todo stands, only a fact about that very todo counts.
        """
        values = [(f.owner, _digest(f.todo or ""), f.owner, id_) for id_, f in rows]
        return len(values) - self._write(
            "UPDATE tasks SET noted = ?1, read = 1, "
            "owner = CASE WHEN places & 1 = 0 OR todo = ?2 THEN ?3 END WHERE id = ?4",
            values,
        )

    def set_owner(self, episode_id: str, owner: str, *, read: bool) -> None:
        """Notes whose an id is; `read`: by a record, not by the todo's etag alone."""
        self._db.execute(
            "UPDATE tasks SET owner = ?, read = ? WHERE id = ?", (owner, read, episode_id)
        )

    def give(self, episode_id: str, owner: str) -> None:
        """Notes that this scan gives an id to a file."""
        self._db.execute(
            "INSERT OR IGNORE INTO tasks VALUES (?, ?, NULL, ?, 0, NULL)",
            (episode_id, Place.NEW.value, owner),
        )

    def find(self, episode_id: str) -> Entry | None:
        """The task of this id, if there is one."""
        row = self._db.execute(
            "SELECT places, todo, owner FROM tasks WHERE id = ?", (episode_id,)
        ).fetchone()
        return _entry(*row) if row else None

    def is_plain(self, episode_id: str) -> bool:
        """Whether some raw file would have this id if it were alone."""
        found = self._db.execute("SELECT 1 FROM files WHERE id = ? LIMIT 1", (episode_id,))
        return found.fetchone() is not None

    def count_files(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM files").fetchone()[0])

    def count_facts(self) -> tuple[int, int]:
        """How many facts are known that are not noted yet, and how many are noted wrongly."""
        query = "SELECT count(*), count(noted) FROM tasks WHERE owner > '' AND owner IS NOT noted"
        new, wrong = self._db.execute(query).fetchone()
        return int(new), int(wrong)

    def files(self) -> Iterator[list[Row]]:
        """All raw files by id and key, a part at a time.

        What is noted meanwhile shows in later parts.
        """
        last = ("", "")
        while rows := self._db.execute(
            "SELECT f.id, f.key, t.places, t.todo, t.owner FROM files f LEFT JOIN tasks t "
            "ON t.id = f.id WHERE (f.id, f.key) > (?, ?) ORDER BY f.id, f.key LIMIT ?",
            (*last, _ROWS),
        ).fetchall():
            last = rows[-1][:2]
            yield [Row(id_, key, _entry(*rest) if rest[0] else None) for id_, key, *rest in rows]

    def facts(self) -> Iterator[tuple[str, Fact]]:
        """What is known of whose the ids are, for scans to come."""
        last = ""
        while rows := self._db.execute(
            "SELECT id, owner, CASE WHEN read THEN todo END FROM tasks "
            "WHERE id > ? AND owner > '' ORDER BY id LIMIT ?",
            (last, _ROWS),
        ).fetchall():
            last = rows[-1][0]
            for id_, owner, todo in rows:
                yield id_, Fact(owner, todo.hex() if todo else None)

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> int:
        self._db.execute("BEGIN")
        changed = self._db.executemany(statement, rows).rowcount
        self._db.execute("COMMIT")
        return changed


def _digest(etag: str) -> bytes | None:
    """An MD5 in sixteen bytes; None for etags that are none."""
    try:
        return bytes.fromhex(etag) if len(etag) == 32 else None
    except ValueError:
        return None


def _entry(places: int, todo: bytes | None, owner: str | None) -> Entry:
    return Entry(Place(places), todo.hex() if todo else None, owner)
