"""Makes a task of each raw file that has none: idempotent, and stable in the ids it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from emiliad.errors import Ambiguous, BadTask, InvalidKey, NotFound
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Verdict, cas
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

# What ffmpeg can open and people call audio, or video with sound; lower case.
_EXTENSIONS = """
3gp aac ac3 aif aifc aiff alac amr ape au avi caf dts flac flv m4a m4b m4v mka mkv mov mp2 mp3 mp4
mpeg mpg mpga oga ogg ogv opus ra rm snd ts wav webm wma wmv wv
"""
AUDIO_EXTENSIONS = frozenset(_EXTENSIONS.split())


@dataclass(frozen=True, slots=True)
class EnqueueReport:
    """What a scan found; `skipped` counts by reason."""

    created: int = 0
    existing: int = 0  # waiting, in progress or failed
    done: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    limited: bool = False  # the scan ended at its limit


async def enqueue(
    store: Store,
    layout: Layout,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    on_progress: Callable[[EnqueueReport], None] | None = None,
    patience: Patience | None = None,
) -> EnqueueReport:
    """Scans the raw prefix and puts the missing todos, `limit` of them at most.

    `dry_run` counts what would be created. `on_progress` hears of each page of the listing.
    Raises Ambiguous if the store does not answer: nothing is lost by doing it all again.
    """
    scan = _Scan(store, layout, dry_run, limit, patience or Patience())
    await scan.learn()
    async with aclosing(store.list(layout.raw)) as pages:
        async for page in pages:
            await scan.enqueue(page)
            if on_progress is not None:
                on_progress(scan.report())
            if scan.full:
                break
    return scan.report()


class _Scan:
    def __init__(
        self,
        store: Store,
        layout: Layout,
        dry_run: bool,
        limit: int | None,
        patience: Patience,
    ) -> None:
        self._store = store
        self._patience = patience
        self._layout = layout
        self._dry_run = dry_run
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._records: dict[str, list[str]] = {}  # of each id that is taken, the keys
        self._completed: set[str] = set()
        self._owners: dict[str, str] = {}  # audio key of each id, as far as it was needed

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and self._counts["created"] >= self._limit

    def report(self) -> EnqueueReport:
        """The counts so far."""
        counts = self._counts
        return EnqueueReport(
            counts["created"], counts["existing"], counts["done"], dict(self._skipped), self.full
        )

    async def learn(self) -> None:
        """Lists all tasks; in this order, one that moves on meanwhile is seen at least once."""
        layout = self._layout
        for prefix in (layout.todo, layout.claims, layout.failed, layout.completed):
            async with aclosing(self._store.list(prefix)) as pages:
                async for page in pages:
                    for info in page:
                        if (taken := id_of(info.key, prefix)) is not None:
                            self._records.setdefault(taken, []).append(info.key)
                            if prefix == layout.completed:
                                self._completed.add(taken)

    async def enqueue(self, page: Page) -> None:
        """Gives each file of a page its task; the files are in key order, so ids are stable."""
        keys = [info.key for info in page if self._is_audio(info.key)]
        await for_each([episode_id(key) for key in keys], self._learn_owner)
        missing: list[TaskRef] = []
        for key in keys:
            if self.full:
                break
            task = await self._assign(key)
            if task is not None:
                self._counts["created"] += 1
                missing.append(task)
        if not self._dry_run:
            await for_each(missing, self._put)

    def _is_audio(self, key: str) -> bool:
        name = key.rpartition("/")[2]
        extension = PurePosixPath(name).suffix.lower()
        reason = None
        if not name:
            reason = "folder"
        elif name.startswith("."):
            reason = "hidden file"
        elif extension.removeprefix(".") not in AUDIO_EXTENSIONS:
            reason = f"not audio ({extension or 'no extension'})"
        elif any("\ud800" <= character <= "\udfff" for character in key):
            reason = "name is not UTF-8"
        if reason:
            self._skipped[reason] += 1
        return reason is None

    async def _assign(self, key: str) -> TaskRef | None:
        """The task to create for a file, or None if it has one."""
        for candidate in (episode_id(key), hashed_id(key)):
            await self._learn_owner(candidate)
            owner = self._owners.setdefault(candidate, key)
            if candidate not in self._records:
                self._records[candidate] = []
                return TaskRef(candidate, self._language(key), key)
            if owner == key:
                self._counts["done" if candidate in self._completed else "existing"] += 1
                return None
        self._skipped["both its ids are taken"] += 1
        return None

    async def _learn_owner(self, taken: str) -> None:
        """Finds out whose id this is. What says of no file that it is its own is anybody's."""
        if taken in self._owners or taken not in self._records:
            return
        completed = self._layout.completed_key(taken)  # where a task may have gone meanwhile
        owner = await self._owner_in(taken, (*self._records[taken], completed))
        if owner is not None:
            self._owners[taken] = owner

    async def _owner_in(self, taken: str, keys: Sequence[str]) -> str | None:
        """The audio key that the first of these records to name one names."""
        for key in keys:
            with suppress(NotFound, BadTask):
                content = parse_object(key, (await self._store.get(key)).body)
                audio_key = lenient_task(taken, content).audio_key
                if audio_key:
                    return audio_key
        return None

    async def _put(self, task: TaskRef) -> None:
        key, body = self._layout.todo_key(task.episode_id), todo_body(task)
        try:
            verdict = await cas(self._store, key, body, ABSENT, patience=self._patience)
        except InvalidKey:
            self._counts["created"] -= 1
            self._skipped["no possible name"] += 1
            return
        if verdict is Verdict.UNKNOWN:
            raise Ambiguous(f"nobody can say whether {key} was written: enqueue again")
        if await self._is_of_another_file(task, verdict):
            await self._put_hashed(task)
        elif verdict is Verdict.LOST:  # another enqueue is at work
            self._counts["created"] -= 1
            self._counts["existing"] += 1

    async def _is_of_another_file(self, task: TaskRef, verdict: Verdict) -> bool:
        """Whether another file has got this id since the tasks were listed.

        If it is finished already, whoever publishes it may still delete its todo, and that is ours
        now. No look before the todo is written could tell, so it is asked for afterwards.
        """
        completed = self._layout.completed_key(task.episode_id)
        todo = self._layout.todo_key(task.episode_id)
        keys = (completed,) if verdict is Verdict.WON else (todo, completed)
        owner = await self._owner_in(task.episode_id, keys)
        return owner is not None and owner != task.audio_key

    async def _put_hashed(self, task: TaskRef) -> None:
        other = replace(task, episode_id=hashed_id(task.audio_key))
        if other.episode_id != task.episode_id:
            await self._put(other)
            return
        self._counts["created"] -= 1
        self._skipped["both its ids are taken"] += 1

    def _language(self, key: str) -> str:
        """The folder right under the prefix, if the file lies in one."""
        folder, slash, _ = key.removeprefix(self._layout.raw).partition("/")
        return folder if slash else ""
