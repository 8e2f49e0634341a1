"""From a commit to a finished task: the committed pack is published, verified, cleaned up after.

Anyone may do this, any number of times and at the same time as others: all of them write the same
bytes, for there is one commit record and it names one pack.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from emiliad import logs
from emiliad.errors import BadTask, InvalidKey, NotFound, PreconditionFailed
from emiliad.parallel import for_each
from emiliad.queue.pack import read_pack
from emiliad.queue.tasks import (
    Completed,
    Layout,
    Output,
    hashed_id,
    parse_completed,
    parse_task,
    todo_body,
)
from emiliad.store import ObjectInfo, Store
from emiliad.types import TaskRef

LAST = "all_segments.json"  # its presence means that all the outputs named in it are there
_log = logs.get("outputs")


@dataclass(frozen=True, slots=True)
class Published:
    """The proof that a commit's outputs are all there; `Outputs.verify` gives it."""

    record: Completed


@dataclass(frozen=True, slots=True)
class Outputs:
    """Publishes what was committed. `offload` runs blocking work in a thread, or in place."""

    store: Store
    layout: Layout
    concurrency: int = 8  # uploads at a time
    scratch: Path | None = None  # for others' packs; default: the system's temporary folder
    offload: Callable[[Callable[[], Any]], Any] = anyio.to_thread.run_sync

    async def finish(self, episode_id: str) -> Published | None:
        """Publishes a committed task if that is left to do, and cleans up after it (P, Z).

        None if it is not committed, or its outputs are neither published nor in its pack.
        """
        record = await self.committed(episode_id)
        if record is None:
            return None
        published = await self.verify(record) or await self.publish_from_pack(record)
        if published is not None:
            await self.clean_up(published)
        return published

    async def committed(self, episode_id: str) -> Completed | None:
        """The commit record, if there is one."""
        try:
            found = await self.store.get(self.layout.completed_key(episode_id))
        except NotFound:
            return None
        return parse_completed(episode_id, found.body)

    async def publish(self, record: Completed, folder: Path) -> Published | None:
        """P: uploads the outputs from `folder`, the index of the segments last, and verifies."""

        async def upload(name: str) -> None:
            await self.store.upload(self._prefix(record) + name, folder / name)

        names = list(record.outputs or {})
        first = [name for name in names if name != LAST]
        await for_each(first, upload, at_once=self.concurrency)
        if LAST in names:
            await upload(LAST)
        return await self.verify(record)

    async def publish_from_pack(self, record: Completed) -> Published | None:
        """P, by a node that has nothing but the record."""
        room = await self.offload(partial(tempfile.TemporaryDirectory, dir=self.scratch))
        try:
            pack, folder = Path(room.name) / "pack", Path(room.name) / "outputs"
            key = self.layout.pack_key(record.task.episode_id, record.pack)
            await self.store.download(key, pack)
            await self.offload(partial(read_pack, pack, record.outputs or {}, folder))
            return await self.publish(record, folder)
        except NotFound:
            return await self.verify(record)  # somebody else was faster
        except (tarfile.TarError, FileNotFoundError, InvalidKey) as error:
            _log.error(
                "outputs.unpublishable", episode_id=record.task.episode_id, reason=str(error)
            )
            return None
        finally:
            with anyio.CancelScope(shield=True):
                await self.offload(room.cleanup)

    async def verify(self, record: Completed) -> Published | None:
        """The proof that all outputs of a commit are published, if they are.

        The old scripts' records name no outputs: for them there is nothing to compare.
        """
        prefix = self._prefix(record)
        missing = dict(record.outputs or {})
        if missing:
            async with aclosing(self.store.list(prefix)) as pages:
                async for page in pages:
                    for info in page:
                        name = info.key.removeprefix(prefix)
                        if name in missing and await self._is(info, missing[name]):
                            del missing[name]
        return None if missing else Published(record)

    async def clean_up(self, published: Published) -> None:
        """Z: removes what a finished task needs no more; only its record and outputs stay."""
        record = published.record
        episode_id = record.task.episode_id
        await self.delete_todo(published)
        await self.store.delete(self.layout.claim_key(episode_id))
        await self.store.delete(self.layout.failed_key(episode_id))
        if record.pack:
            await self.store.delete(self.layout.pack_key(episode_id, record.pack))

    async def delete_todo(self, published: Published) -> None:
        """Removes the todo of a published task (T2).

        A todo of this id that is about another raw file is enqueued under its own hashed id first.
        """
        owned = published.record.task
        key = self.layout.todo_key(owned.episode_id)
        try:
            found = parse_task(key, (await self.store.get(key)).body)
        except NotFound:
            return
        except BadTask:  # nothing can be made of it, and its id is taken
            found = owned
        if owned.audio_key and found.audio_key != owned.audio_key:
            await self._enqueue_hashed(found)
        await self.store.delete(key)

    async def delete_packs(self, published: Published) -> int:
        """Removes every pack of a published task, lost attempts' too (T3), and says how many."""
        keys: list[str] = []
        prefix = self.layout.packs(published.record.task.episode_id)
        async with aclosing(self.store.list(prefix)) as pages:
            async for page in pages:
                keys += [info.key for info in page]
        await for_each(keys, self.store.delete)
        return len(keys)

    async def _enqueue_hashed(self, task: TaskRef) -> None:
        other = TaskRef(hashed_id(task.audio_key), task.language, task.audio_key, task.extra)
        key = self.layout.todo_key(other.episode_id)
        with suppress(PreconditionFailed):  # enqueued already
            await self.store.put(key, todo_body(other), if_absent=True)

    async def _is(self, info: ObjectInfo, output: Output) -> bool:
        """Whether an object is that output, as far as its etag can tell (see ObjectInfo)."""
        if info.size != output.size:
            return False
        if "-" in info.etag:
            info = await self.store.head(info.key)
        return info.etag == output.md5 or "-" in info.etag

    def _prefix(self, record: Completed) -> str:
        return record.published or self.layout.published(record.task)
