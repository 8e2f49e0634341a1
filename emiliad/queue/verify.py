"""Checks that the outputs of completed tasks are really there, and names those that are not.

    record                     whole if
    ours                       every output that it lists is there, with its size and hash
    an old script's            `all_segments.json` is there and can be read, and every audio file
                               that it implies is there and not empty

The old scripts logged upload errors and went on, so their records prove nothing. A record of ours
whose todo still stands is being published, and not broken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from emiliad.errors import NotFound
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.outputs import LAST
from emiliad.queue.redo import Redo, Redone
from emiliad.queue.tasks import Completed, Layout, Output, id_of, parse_completed
from emiliad.store import ObjectInfo, Store

AT_ONCE = 64  # records; each takes a read, a listing and, if it is an old one, another read
_SHOWN = 3  # names in a reason; an episode may have a thousand


@dataclass(frozen=True, slots=True)
class Broken:
    """A completed task whose outputs are not whole; `redone` says whether it is a task again."""

    episode_id: str
    reason: str
    redone: Redone | None = None  # None: nobody asked for it

    @property
    def requeued(self) -> bool:
        return self.redone is Redone.REQUEUED


@dataclass(frozen=True, slots=True)
class Report:
    """How many records are in which state; each is in one, and `requeued` counts broken ones."""

    whole: int = 0
    publishing: int = 0
    broken: int = 0
    requeued: int = 0

    @property
    def records(self) -> int:
        return self.whole + self.publishing + self.broken

    @property
    def sound(self) -> bool:
        """Whether nothing is broken, or everything that was is a task again."""
        return self.broken == self.requeued


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the check is; how many records there are is not known before its end."""

    done: int
    broken: int
    phase: str = "checks completed tasks"
    total: int | None = None

    @property
    def note(self) -> str:
        return f"{self.broken:,} broken" if self.broken else ""


async def verify(
    store: Store,
    layout: Layout,
    *,
    requeue: bool = False,
    on_broken: Callable[[Broken], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    patience: Patience | None = None,
) -> Report:
    """Checks every completed task, a thousand after the other, in bounded memory.

    `requeue` makes broken tasks of the old scripts tasks again (`emiliad.queue.redo`). `on_broken`
    hears of each broken task as it is found. Raises StoreError.
    """
    check = _Check(store, layout, on_broken, Redo(store, layout, patience) if requeue else None)
    async with aclosing(store.list(layout.completed)) as pages:
        async for page in pages:
            named = (id_of(info.key, layout.completed) for info in page)
            await for_each([id_ for id_ in named if id_], check.one, at_once=AT_ONCE)
            report = check.report()
            on_progress(Progress(report.records, report.broken))
    return check.report()


class _Check:
    def __init__(
        self,
        store: Store,
        layout: Layout,
        on_broken: Callable[[Broken], None],
        redo: Redo | None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._on_broken = on_broken
        self._redo = redo
        self._counts: Counter[str] = Counter()

    def report(self) -> Report:
        return Report(**self._counts)

    async def one(self, episode_id: str) -> None:
        """Looks at one record and counts it."""
        try:
            found = await self._store.get(self._layout.completed_key(episode_id))
        except NotFound:  # it was deleted since it was listed
            return
        record = parse_completed(episode_id, found.body)
        reason = await self._flaw(record)
        if reason is not None and record.outputs is not None:
            if await self._will_be_published(record):
                self._counts["publishing"] += 1
                return
            reason = await self._flaw(record)  # it may have been published since the first look
        if reason is None:
            self._counts["whole"] += 1
            return
        redone = await self._redo.one(record, found.etag) if self._redo else None
        broken = Broken(episode_id, reason, redone)
        self._counts["broken"] += 1
        self._counts["requeued"] += broken.requeued
        self._on_broken(broken)

    async def _flaw(self, record: Completed) -> str | None:
        """What is wrong with a task's outputs, in words."""
        if record.outputs is None:
            return await self._flaw_of_old(record)
        if not record.outputs:
            return None
        prefix = record.published or self._layout.published(record.task)
        found = await self._listed(prefix)
        if missing := [name for name in record.outputs if name not in found]:
            return _too_few(missing, len(record.outputs), "outputs", prefix)
        for name, output in record.outputs.items():
            if (flaw := await self._difference(found[name], output)) is not None:
                return f"{prefix}{name} {flaw}"
        return None

    async def _difference(self, info: ObjectInfo, output: Output) -> str | None:
        """As far as an etag can tell (see ObjectInfo)."""
        if info.size != output.size:
            return f"has {info.size} bytes, and was committed with {output.size}"
        if "-" in info.etag:
            try:
                info = await self._store.head(info.key)
            except NotFound:
                return "is missing"
        same = info.etag == output.md5 or "-" in info.etag
        return None if same else "does not hold what was committed: its MD5 is another"

    async def _flaw_of_old(self, record: Completed) -> str | None:
        prefix = self._layout.published(record.task)
        found = await self._listed(prefix)
        if LAST not in found:
            there = f"{len(found)} other files are there" if found else "nothing is there"
            return f"{prefix}{LAST} is missing; {there}"
        try:
            body = (await self._store.get(prefix + LAST)).body
        except NotFound:
            return f"{prefix}{LAST} is missing"
        names = _implied(record.task.episode_id, body)
        if names is None:
            return f"{prefix}{LAST} is no list of segments"
        missing = [name for name in names if name not in found or not found[name].size]
        return _too_few(missing, len(names), "segments", prefix) if missing else None

    async def _will_be_published(self, record: Completed) -> bool:
        """Whether the task's todo stands, and the pack from which anyone can publish it."""
        episode_id = record.task.episode_id
        try:
            await self._store.head(self._layout.todo_key(episode_id))
            await self._store.head(self._layout.pack_key(episode_id, record.pack))
        except NotFound:
            return False
        return True

    async def _listed(self, prefix: str) -> Mapping[str, ObjectInfo]:
        found: dict[str, ObjectInfo] = {}
        async with aclosing(self._store.list(prefix)) as pages:
            async for page in pages:
                found.update((info.key.removeprefix(prefix), info) for info in page)
        return found


def _implied(episode_id: str, body: bytes) -> list[str] | None:
    """The audio files of an index of segments; None if it is none."""
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    return [str(row.get("audio") or f"{episode_id}_{i:06d}.mp3") for i, row in enumerate(rows)]


def _too_few(missing: list[str], total: int, what: str, prefix: str) -> str:
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    shown = ", ".join(missing[:_SHOWN])
    return f"{len(missing)} of {total} {what} are missing under {prefix}: {shown}{more}"
