"""Makes a task of each raw file that has none: idempotent, and stable in the ids it gives."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from emiliad.errors import Ambiguous, BadTask, EmiliadError, InvalidKey, NotFound
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.audio import objection
from emiliad.queue.cas import ABSENT, Verdict, cas
from emiliad.queue.ids import AT_ONCE, Ids, Standing
from emiliad.queue.ledger import Ledger, Place, Row
from emiliad.queue.owners import Memo
from emiliad.queue.ranges import LISTERS, walk
from emiliad.queue.tasks import (
    Layout,
    episode_id,
    hashed_id,
    id_of,
    lenient_task,
    parse_object,
    todo_body,
)
from emiliad.store import Page, Store
from emiliad.types import TaskRef

_WORTH_NOTING = 1000  # new facts for which the memo of owners is written anew
_WORTH_KEEPING = 100_000  # reads that should not have been in vain if the scan is interrupted


@dataclass(frozen=True, slots=True)
class EnqueueReport:
    """What a scan found; `skipped` counts by reason."""

    created: int = 0
    waiting: int = 0
    claimed: int = 0  # leased, or waiting for another attempt
    failed: int = 0
    done: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    limited: bool = False  # the scan ended at its limit

    @property
    def existing(self) -> int:
        """Files whose tasks are not completed yet."""
        return self.waiting + self.claimed + self.failed


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scan is: `done` of `total` objects, where that is known, and its counts so far."""

    phase: str
    done: int
    total: int | None
    report: EnqueueReport

    @property
    def note(self) -> str:
        return f"{self.report.created:,} new"


async def enqueue(
    store: Store,
    layout: Layout,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    patience: Patience | None = None,
    listers: int = LISTERS,
    scratch: Path | None = None,
) -> EnqueueReport:
    """Scans the raw prefix and puts the missing todos, `limit` of them at most.

    `dry_run` counts what would be created. `on_progress` hears of each thousand objects. `listers`
    listings run at a time. `scratch` takes the working file, some 200 bytes for each raw file and
    task; default: the system's temporary folder. An interrupted scan leaves nothing half-done: the
    next one goes on. Raises EmiliadError, also when there is no room for the working file, and
    Ambiguous if the store does not answer: nothing is lost by doing it all again.
    """
    try:
        with closing(Ledger(scratch)) as ledger:
            scan = _Scan(
                store,
                layout,
                ledger,
                Memo(store, layout, scratch),
                dry_run=dry_run,
                limit=limit,
                on_progress=on_progress,
                patience=patience or Patience(),
            )
            await scan.run(listers)
            return scan.report()
    except (sqlite3.Error, OSError) as error:
        where = scratch or "the system's temporary folder"
        raise EmiliadError(f"the scan's working file in {where}: {error}") from error


class _EnoughError(Exception):
    """So many raw files without a task were listed that the limit will be reached."""


class _Scan:
    def __init__(
        self,
        store: Store,
        layout: Layout,
        ledger: Ledger,
        memo: Memo,
        *,
        dry_run: bool,
        limit: int | None,
        on_progress: Callable[[Progress], None],
        patience: Patience,
    ) -> None:
        self._store = store
        self._layout = layout
        self._ledger = ledger
        self._memo = memo
        self._ids = Ids(store, layout, ledger)
        self._dry_run = dry_run
        self._limit = limit
        self._on_progress = on_progress
        self._patience = patience
        self._created = 0
        self._standings: Counter[Standing] = Counter()
        self._skipped: Counter[str] = Counter()
        self._listed = 0
        self._candidates = 0  # listed ids that no task has: each is one to create, but for races
        self._stop_early = limit is not None
        self._noted_at = 0  # records read before the memo was last written

    def report(self) -> EnqueueReport:
        """The counts so far."""
        skipped = Counter(self._skipped)
        if nameless := self._standings[Standing.NAMELESS]:
            skipped[Standing.NAMELESS.value] = nameless
        return EnqueueReport(
            created=self._created,
            waiting=self._standings[Standing.WAITING],
            claimed=self._standings[Standing.CLAIMED],
            failed=self._standings[Standing.FAILED],
            done=self._standings[Standing.DONE],
            skipped=dict(skipped),
            limited=self._full,
        )

    @property
    def _full(self) -> bool:
        return self._limit is not None and self._created >= self._limit

    def _tell(self, phase: str, done: int, total: int | None = None) -> None:
        self._on_progress(Progress(phase, done, total, self.report()))

    async def run(self, listers: int) -> None:
        """Learns what there is and gives each file its task, up to the limit."""
        await self._learn(listers)
        whole = await self._list_files(listers)
        await self._assign()
        if not whole and not self._full:  # others were faster: the rest is to be seen as well
            self._stop_early = False
            self._skipped.clear()
            self._standings.clear()
            self._standings[Standing.WAITING] = -self._created  # which are found again
            await self._list_files(listers)
            await self._assign()

    async def _learn(self, listers: int) -> None:
        """Lists all tasks; in this order, one that moves on meanwhile is seen at least once."""
        for prefix, place in (
            (self._layout.todo, Place.TODO),
            (self._layout.claims, Place.CLAIM),
            (self._layout.failed, Place.FAILED),
            (self._layout.completed, Place.COMPLETED),
        ):
            see = partial(self._see_tasks, prefix, place)
            await walk(self._store, prefix, see, listers=listers)
        gone = await self._memo.load(self._ledger.add_facts)
        if gone and not self._dry_run:  # those ids are free again, and may be another's soon
            await self._memo.forget()

    def _see_tasks(self, prefix: str, place: Place, page: Page) -> None:
        named = ((id_of(info.key, prefix), info.etag) for info in page)
        self._ledger.add_tasks(place, [(id_, etag) for id_, etag in named if id_])
        self._listed += len(page)
        self._tell("lists the queue", self._listed)

    async def _list_files(self, listers: int) -> bool:
        """Lists the raw files. False: enough of them for the limit, there may be more."""
        self._listed = 0
        try:
            await walk(self._store, self._layout.raw, self._see_files, listers=listers)
        except _EnoughError:
            return False
        return True

    def _see_files(self, page: Page) -> None:
        audio = []
        for info in page:
            if (reason := objection(info.key)) is None:
                audio.append((episode_id(info.key), info.key))
            else:
                self._skipped[reason] += 1
        if self._stop_early:
            self._candidates += len({id_ for id_, key in audio if self._is_new(id_, key)})
        self._ledger.add_files(audio)
        self._listed += len(page)
        self._tell("lists the raw files", self._listed)
        if self._stop_early and self._limit is not None and self._candidates >= self._limit:
            raise _EnoughError

    def _is_new(self, id_: str, key: str) -> bool:
        """Whether neither of a file's ids is a task's, and no file listed before has its id."""
        taken = self._ledger.find(id_) or self._ledger.find(hashed_id(key))
        return taken is None and not self._ledger.is_plain(id_)

    async def _assign(self) -> None:
        """Gives each file its task; the order of ids and keys makes this the same at each scan."""
        total, done = self._ledger.count_files(), 0
        for rows in self._ledger.files():
            await self._enqueue(rows)
            done += len(rows)
            self._tell("makes tasks", done, total)
            if self._full:
                break
            if self._ids.read - self._noted_at >= _WORTH_KEEPING:
                await self._note_owners()
        new, wrong = self._ledger.count_facts()
        if wrong or new >= _WORTH_NOTING:
            await self._note_owners()

    async def _enqueue(self, rows: Sequence[Row]) -> None:
        owners = await self._ids.owners(rows)
        missing: list[TaskRef] = []
        for row in rows:
            if self._full:
                break
            found = await self._ids.settle(row, owners)
            if isinstance(found, Standing):
                self._standings[found] += 1
            else:
                self._created += 1
                missing.append(found)
        if not self._dry_run:
            await for_each(missing, self._put, at_once=AT_ONCE)

    async def _put(self, task: TaskRef) -> None:
        key, body = self._layout.todo_key(task.episode_id), todo_body(task)
        try:
            verdict = await cas(self._store, key, body, ABSENT, patience=self._patience)
        except InvalidKey:
            self._created -= 1
            self._skipped["no possible name"] += 1
            return
        if verdict is Verdict.UNKNOWN:
            raise Ambiguous(f"nobody can say whether {key} was written: enqueue again")
        if await self._is_of_another_file(task, verdict):
            await self._put_hashed(task)
        elif verdict is Verdict.LOST:  # another enqueue is at work
            self._created -= 1
            self._standings[Standing.WAITING] += 1

    async def _is_of_another_file(self, task: TaskRef, verdict: Verdict) -> bool:
        """Whether another file has got this id since the tasks were listed.

        If it is finished already, whoever publishes it may still delete its todo, and that is ours
        now. No look before the todo is written could tell, so it is asked for afterwards.
        """
        completed = self._layout.completed_key(task.episode_id)
        todo = self._layout.todo_key(task.episode_id)
        for key in (completed,) if verdict is Verdict.WON else (todo, completed):
            with suppress(NotFound, BadTask):
                content = parse_object(key, (await self._store.get(key)).body)
                owner = lenient_task(task.episode_id, content).audio_key
                if owner:
                    return owner != task.audio_key
        return False

    async def _put_hashed(self, task: TaskRef) -> None:
        other = replace(task, episode_id=hashed_id(task.audio_key))
        if other.episode_id != task.episode_id:
            await self._put(other)
            return
        self._created -= 1
        self._skipped["both its ids are taken"] += 1

    async def _note_owners(self) -> None:
        self._noted_at = self._ids.read
        if not self._dry_run:
            await self._memo.save(self._ledger.facts())
