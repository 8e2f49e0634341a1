"""Decides which raw file has which task, and which gets a new one.

An id belongs to the raw file that its record names, for as long as there is a record. So the rules
are, for the files of one name in the order of their keys:

    no task has the plain id            the first file gets it
    a task has it                       the file that the task is about has its task
    every other file                    has the task of its hashed id, or gets it

A file that was moved is another file. Whom a task is about is known without reading it if the etag
of its todo is that of the todo that we would write for that file, or if an earlier scan has noted
it; else one record is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from emiliad.errors import BadTask, NotFound
from emiliad.parallel import for_each
from emiliad.queue.cas import etag_of
from emiliad.queue.ledger import Entry, Ledger, Place, Row
from emiliad.queue.tasks import Layout, hashed_id, lenient_task, parse_object, todo_body
from emiliad.store import Store
from emiliad.types import TaskRef

AT_ONCE = 64  # small reads and writes; as many as the store's client has connections


class Standing(Enum):
    """Where a raw file's task stands, if it is not to be created."""

    WAITING = "waiting"
    CLAIMED = "claimed"  # leased, or waiting for another attempt
    FAILED = "failed"
    DONE = "done"
    NAMELESS = "both its ids are taken"


@dataclass(slots=True)
class Ids:
    """The ids of one queue, as a scan's ledger shows them."""

    store: Store
    layout: Layout
    ledger: Ledger
    read: int = 0  # records that had to be read

    async def owners(self, rows: Sequence[Row]) -> dict[str, str]:
        """Whose the ids of these files are that tasks have already, by audio key."""
        owners: dict[str, str] = {}
        unknown: dict[str, Row] = {}
        for row in rows:
            if row.task is None or row.id in owners:
                continue
            if row.task.owner is not None:
                owners[row.id] = row.task.owner
            elif row.task.todo == etag_of(todo_body(self._task(row.id, row.key))):
                owners[row.id] = row.key
                self.ledger.set_owner(row.id, row.key, read=False)
            else:
                unknown.setdefault(row.id, row)

        async def read(row: Row) -> None:
            assert row.task is not None
            # A task that names no file is whose it may be.
            owners[row.id] = await self._read_owner(row.id, row.task) or row.key
            self.ledger.set_owner(row.id, owners[row.id], read=True)

        unread = [row for id_, row in unknown.items() if id_ not in owners]
        await for_each(unread, read, at_once=AT_ONCE)
        return owners

    async def settle(self, row: Row, owners: dict[str, str]) -> TaskRef | Standing:
        """The task to create for a file, or where the one stands that it has.

        `owners` are those of the files' ids; what is given out now is added.
        """
        hashed = hashed_id(row.key)
        owner = owners.get(row.id)
        if owner == row.key:
            return _standing(row.task)
        if owner is None and (hashed == row.id or not await self._is_about(hashed, row.key)):
            owners[row.id] = row.key
            return self._give(row.id, row.key)
        task = self.ledger.find(hashed)
        if task is None and not self.ledger.is_plain(hashed):
            return self._give(hashed, row.key)
        if await self._is_about(hashed, row.key):
            return _standing(task)
        return Standing.NAMELESS

    async def _is_about(self, hashed: str, key: str) -> bool:
        """Whether there is a task of a file's hashed id, and it is the file's."""
        task = self.ledger.find(hashed)
        if task is None or not self.ledger.is_plain(hashed):
            return task is not None
        if task.owner is not None:  # some file is called as if it had been given a hashed id
            return task.owner == key
        return await self._read_owner(hashed, task) == key

    async def _read_owner(self, taken: str, task: Entry) -> str | None:
        """The audio key that an id's records name, if they name one."""
        self.read += 1
        keys = {
            Place.TODO: self.layout.todo_key(taken),
            Place.CLAIM: self.layout.claim_key(taken),
            Place.FAILED: self.layout.failed_key(taken),
            Place.COMPLETED: self.layout.completed_key(taken),
        }
        for place, key in keys.items():
            if place not in task.places | Place.COMPLETED:  # it may have been completed meanwhile
                continue
            try:
                content = parse_object(key, (await self.store.get(key)).body)
            except (NotFound, BadTask):
                continue
            if audio_key := lenient_task(taken, content).audio_key:
                return audio_key
        return None

    def _give(self, id_: str, key: str) -> TaskRef:
        self.ledger.give(id_, key)
        return self._task(id_, key)

    def _task(self, id_: str, key: str) -> TaskRef:
        """The folder right under the prefix, if the file lies in one, is its language."""
        folder, slash, _ = key.removeprefix(self.layout.raw).partition("/")
        return TaskRef(id_, folder if slash else "", key)


def _standing(task: Entry | None) -> Standing:
    places = task.places if task else Place.NEW
    if Place.COMPLETED in places:
        return Standing.DONE
    if Place.FAILED in places:
        return Standing.FAILED
    return Standing.CLAIMED if Place.CLAIM in places else Standing.WAITING
