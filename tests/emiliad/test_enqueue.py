"""Enqueueing: what gets a task, whose an id is, and what a scan costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emiliad.errors import EmiliadError
from emiliad.patience import Patience
from emiliad.queue import ledger
from emiliad.queue.enqueue import EnqueueReport, Progress, enqueue
from emiliad.queue.owners import memo_key
from emiliad.queue.tasks import episode_id, hashed_id, todo_body
from emiliad.stores.memory import MemoryStore
from emiliad.types import Failure, TaskRef
from tests.emiliad.queue_kit import (
    LAYOUT,
    Clock,
    Killed,
    Node,
    Wire,
    content,
    ids,
    put_todo,
    task,
    verify_all_done,
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def put_raw(store: MemoryStore, *names: str) -> None:
    for name in names:
        store.objects[f"raw_audio/{name}"] = b"audio"


async def test_each_raw_file_gets_a_task(store: MemoryStore) -> None:
    """Named after the file, with the folder after the prefix as its language."""
    put_raw(store, "en/one.mp3", "fr/show/season 1/deux.WAV", "three.opus")
    assert await enqueue(store, LAYOUT) == EnqueueReport(created=3)
    assert content(store, LAYOUT.todo_key("one")) == {
        "episode_id": "one",
        "language": "en",
        "audio_key": "raw_audio/en/one.mp3",
    }
    assert content(store, LAYOUT.todo_key("deux"))["language"] == "fr"
    assert content(store, LAYOUT.todo_key("three"))["language"] == ""


async def test_scanning_again_changes_nothing(store: MemoryStore, tmp_path: Path) -> None:
    """Waiting, running, failed and completed tasks are recognised."""
    put_raw(store, "en/waits.mp3", "en/runs.mp3", "en/fails.mp3", "en/done.mp3")
    await enqueue(store, LAYOUT)
    node = Node(store, tmp_path)
    claim = {name: await node.leases.claim(name) for name in ("runs", "fails", "done")}
    assert claim["fails"] is not None
    assert claim["done"] is not None
    await node.leases.fail(claim["fails"], Failure("bad_audio", "silent", retriable=False))
    await node.work(claim["done"])
    before = dict(store.objects)
    assert await enqueue(store, LAYOUT) == EnqueueReport(waiting=1, claimed=1, failed=1, done=1)
    assert store.objects == before


async def test_what_is_no_audio_is_skipped_and_counted(store: MemoryStore) -> None:
    """By reason; a folder's marker, a hidden file and a text are no recordings."""
    put_raw(store, "", "en/", "en/.DS_Store", "en/._one.mp3", "en/notes.txt", "en/README", "x.mp3")
    put_raw(store, "en/\udcff.mp3")
    report = await enqueue(store, LAYOUT)
    assert report.created == 1
    assert report.skipped == {
        "folder": 2,
        "hidden file": 2,
        "not audio (.txt)": 1,
        "not audio (no extension)": 1,
        "name is not UTF-8": 1,
    }


async def test_all_that_people_call_audio_is_taken(store: MemoryStore) -> None:
    """In any case of letters."""
    extensions = "mp3 wav flac m4a aac ogg opus wma webm mp4 MP3"
    put_raw(store, *(f"en/one.{extension}" for extension in extensions.split()))
    assert await enqueue(store, LAYOUT) == EnqueueReport(created=11)


async def test_a_dry_run_only_counts(store: MemoryStore) -> None:
    """It says what would be created, also of two files of one name."""
    put_raw(store, "en/one.mp3", "fr/one.mp3", "fr/two.mp3")
    before = dict(store.objects)
    assert await enqueue(store, LAYOUT, dry_run=True) == EnqueueReport(created=3)
    assert store.objects == before


async def test_a_limit_stops_the_scan(store: MemoryStore) -> None:
    """The next scan goes on from there."""
    put_raw(store, *(f"en/{number}.mp3" for number in range(5)))
    first = await enqueue(store, LAYOUT, limit=2)
    assert (first.created, first.limited) == (2, True)
    assert ids(store, LAYOUT.todo) == {"0", "1"}
    assert (await enqueue(store, LAYOUT, limit=0)).created == 0
    assert (await enqueue(store, LAYOUT, limit=10)).created == 3


async def test_a_limit_stops_the_listing_early(store: MemoryStore) -> None:
    """A few tasks of a large bucket do not take a listing of all of it."""
    put_raw(store, *(f"en/{number:05}.mp3" for number in range(9000)))
    wire = Wire(store, lambda *_: None)
    seen: list[int] = []
    report = await enqueue(
        wire, LAYOUT, limit=10, listers=1, on_progress=lambda step: seen.append(step.done)
    )
    assert (report.created, report.limited) == (10, True)
    assert max(seen) == 1000
    assert (await enqueue(store, LAYOUT, limit=1500)).created == 1500
    report = await enqueue(store, LAYOUT, limit=9000)
    assert (report.created, report.existing, report.limited) == (7490, 1510, False)


async def test_a_limit_is_reached_even_if_others_are_faster(store: MemoryStore) -> None:
    """What was counted on and is another's by now is made good by what was not yet listed."""
    put_raw(store, *(f"en/{number:05}.mp3" for number in range(2500)))

    def meddle(_: int, request: str) -> None:
        name = request.rpartition("/")[2].removesuffix(".task")
        if request.startswith("put tasks/processing_todo/") and name < "01000":
            put_todo(store, name, f"raw_audio/en/{name}.mp3")

    report = await enqueue(Wire(store, meddle), LAYOUT, limit=900, listers=1)
    assert (report.created, report.limited) == (900, True)
    assert len(ids(store, LAYOUT.todo)) == 900 + 1000


async def test_two_files_of_one_name_get_two_tasks(store: MemoryStore, tmp_path: Path) -> None:
    """The first in key order has the plain id, the other its hashed one, now and later."""
    put_raw(store, "de/one.mp3", "en/one.mp3", "en/one.wav")
    hashed = {hashed_id("raw_audio/en/one.mp3"), hashed_id("raw_audio/en/one.wav")}
    assert (await enqueue(store, LAYOUT)).created == 3
    assert ids(store, LAYOUT.todo) == {"one", *hashed}
    assert content(store, LAYOUT.todo_key("one"))["audio_key"] == "raw_audio/de/one.mp3"
    assert await enqueue(store, LAYOUT) == EnqueueReport(waiting=3)
    await Node(store, tmp_path).finish_all()
    verify_all_done(store, {"one", *hashed})
    assert await enqueue(store, LAYOUT) == EnqueueReport(done=3)


@pytest.mark.parametrize("done", [False, True])
async def test_an_id_belongs_to_whom_its_record_names(
    store: MemoryStore, tmp_path: Path, done: bool
) -> None:
    """A file that comes later gets the hashed id, even if it is first in key order."""
    put_raw(store, "en/one.mp3")
    await enqueue(store, LAYOUT)
    if done:
        await Node(store, tmp_path).finish_all()
    put_raw(store, "de/one.mp3")
    assert (await enqueue(store, LAYOUT)).created == 1
    assert ids(store, LAYOUT.todo) - {"one"} == {hashed_id("raw_audio/de/one.mp3")}
    assert (await enqueue(store, LAYOUT)).created == 0


async def test_a_new_file_under_a_processed_name_is_not_overlooked(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The first file may be deleted by now; its id is its own all the same."""
    put_raw(store, "en/one.mp3")
    await enqueue(store, LAYOUT)
    await Node(store, tmp_path).finish_all()
    del store.objects["raw_audio/en/one.mp3"]
    put_raw(store, "fr/one.mp3")
    assert (await enqueue(store, LAYOUT)).created == 1


async def test_names_that_differ_in_unicode_form_alone_are_two_files(store: MemoryStore) -> None:
    """Their ids would be one in NFC."""
    put_raw(store, "fr/cafe\u0301.mp3", "fr/caf\u00e9.mp3")
    assert (await enqueue(store, LAYOUT)).created == 2
    assert await enqueue(store, LAYOUT) == EnqueueReport(waiting=2)


async def test_old_buckets_tasks_are_known(store: MemoryStore) -> None:
    """Claimed by an old script (its todo is deleted) or failed there: no second task."""
    put_raw(store, "en/claimed.mp3", "en/failed.mp3", "en/done.mp3")
    store.objects[LAYOUT.claim_key("claimed")] = todo_body(task("claimed"))
    store.objects[LAYOUT.failed_key("failed")] = todo_body(task("failed"))
    store.objects[LAYOUT.completed_key("done")] = todo_body(task("done"))
    assert await enqueue(store, LAYOUT) == EnqueueReport(claimed=1, failed=1, done=1)


async def test_a_record_that_names_no_audio_keeps_its_id(store: MemoryStore) -> None:
    """A damaged todo is dead-lettered by whoever claims it; it gets no twin."""
    put_raw(store, "en/one.mp3")
    store.objects[LAYOUT.todo_key("one")] = b"{"
    assert await enqueue(store, LAYOUT) == EnqueueReport(waiting=1)


async def test_lost_answers_do_not_confuse_the_counts(store: MemoryStore) -> None:
    """A todo that was created by a request whose answer was lost is created."""
    put_raw(store, "en/one.mp3")
    lost = [True]
    wire = Wire(
        store,
        lambda _, name: "lost after" if name.startswith("put") and lost and lost.pop() else None,
    )
    patience = Patience(sleep=Clock().sleep)
    assert (await enqueue(wire, LAYOUT, patience=patience)).created == 1


async def test_two_scans_at_once_create_each_task_once(store: MemoryStore) -> None:
    """Who comes second counts it as existing."""
    put_raw(store, "en/one.mp3", "en/two.mp3")

    def interfere(_number: int, name: str) -> None:
        if name == f"put {LAYOUT.todo_key('one')}":
            put_todo(store, "one")
            store.objects[LAYOUT.todo_key("one")] += b"\n"  # as another program would write it

    report = await enqueue(Wire(store, interfere), LAYOUT)
    assert report == EnqueueReport(created=1, waiting=1)


async def test_progress_is_told(store: MemoryStore) -> None:
    """Of each page of a listing, and of each thousand files; how many there are, once known."""
    put_raw(store, *(f"en/{number:04}.mp3" for number in range(1500)))
    store.objects["raw_audio/en/notes.txt"] = b""
    told: list[Progress] = []
    await enqueue(store, LAYOUT, on_progress=told.append, listers=1)
    assert [(step.phase, step.done, step.total, step.report.created) for step in told] == [
        ("lists the raw files", 1000, None, 0),
        ("lists the raw files", 1501, None, 0),
        ("makes tasks", 1000, 1500, 1000),
        ("makes tasks", 1500, 1500, 1500),
    ]


async def test_a_task_keeps_its_extra_keys(store: MemoryStore, tmp_path: Path) -> None:
    """What a producer adds to a todo reaches whoever works on it."""
    todo = TaskRef("one", "en", "raw_audio/en/one.mp3", {"priority": 1})
    store.objects[LAYOUT.todo_key("one")] = todo_body(todo)
    assert (await Node(store, tmp_path).take()).task == todo


def reads(wire: Wire) -> list[str]:
    """The records that were read to learn whose ids are; not those asked for behind a write."""
    written = {name.removeprefix("put ") for name in wire.requests if name.startswith("put ")}
    behind = {f"get {key.replace(LAYOUT.todo, LAYOUT.completed)}" for key in written}
    return [name for name in wire.requests if name.startswith("get ") and name not in behind]


def watched(store: MemoryStore) -> Wire:
    return Wire(store, lambda *_: None)


def put_completed(store: MemoryStore, audio_key: str) -> None:
    """A completed task of that file, whose todo is gone."""
    name = episode_id(audio_key)
    store.objects[LAYOUT.completed_key(name)] = todo_body(task(name, audio_key))


async def test_a_todo_of_ours_is_known_by_its_etag(store: MemoryStore) -> None:
    """A repeated scan of waiting tasks reads none of them, also where two files have one name."""
    put_raw(store, "de/one.mp3", "en/one.mp3", "en/two.mp3")
    await enqueue(store, LAYOUT)
    wire = watched(store)
    assert await enqueue(wire, LAYOUT) == EnqueueReport(waiting=3)
    assert reads(wire) == []


async def test_one_record_tells_whose_an_id_is(store: MemoryStore) -> None:
    """However many files share the name; a todo of another producer has another etag."""
    put_raw(store, *(f"en/{number:04}/audio.mp3" for number in range(2500)))
    other = TaskRef("audio", "en", "raw_audio/en/1234/audio.mp3", {"priority": 1})
    store.objects[LAYOUT.todo_key("audio")] = todo_body(other)
    wire = watched(store)
    assert await enqueue(wire, LAYOUT) == EnqueueReport(created=2499, waiting=1)
    assert reads(wire) == [f"get {LAYOUT.todo_key('audio')}"]
    assert not store.objects.keys() & {LAYOUT.todo_key(hashed_id(other.audio_key))}
    assert await enqueue(store, LAYOUT) == EnqueueReport(waiting=2500)


async def test_what_a_scan_learned_spares_the_next_its_reads(store: MemoryStore) -> None:
    """Completed records are read once, not at every scan; moved files are noticed still."""
    for number in range(1200):
        put_completed(store, f"raw_audio/en/{number:04}.mp3")
        put_raw(store, f"en/{number:04}.mp3")
    first, second = watched(store), watched(store)
    assert await enqueue(first, LAYOUT) == EnqueueReport(done=1200)
    assert len(reads(first)) == 1200
    store.objects["raw_audio/fr/0007.mp3"] = store.objects.pop("raw_audio/en/0007.mp3")
    assert await enqueue(second, LAYOUT) == EnqueueReport(created=1, done=1199)
    assert reads(second) == []
    assert ids(store, LAYOUT.todo) == {hashed_id("raw_audio/fr/0007.mp3")}


async def test_what_this_scan_created_the_next_need_not_read(store: MemoryStore) -> None:
    """Their todos are gone by then, and only the completed records are left."""
    names = [f"{number:04}" for number in range(1100)]
    put_raw(store, *(f"en/{name}.mp3" for name in names))
    await enqueue(store, LAYOUT)
    for name in names:
        del store.objects[LAYOUT.todo_key(name)]
        put_completed(store, f"raw_audio/en/{name}.mp3")
    wire = watched(store)
    assert await enqueue(wire, LAYOUT) == EnqueueReport(done=1100)
    assert reads(wire) == []


async def test_few_facts_are_not_written_down(store: MemoryStore) -> None:
    """A small bucket holds the queue's objects and no others; unchanged, a memo stays."""
    put_raw(store, "en/one.mp3")
    await enqueue(store, LAYOUT)
    assert memo_key(LAYOUT) not in store.objects
    put_raw(store, *(f"en/{number:04}.mp3" for number in range(1000)))
    await enqueue(store, LAYOUT)
    before = store.objects[memo_key(LAYOUT)]
    wire = watched(store)
    await enqueue(wire, LAYOUT)
    assert store.objects[memo_key(LAYOUT)] == before
    assert not any(name.startswith("upload") for name in wire.requests)


@pytest.mark.parametrize("damage", [b"", b"no gzip", None])
async def test_a_damaged_memo_is_no_memo(store: MemoryStore, damage: bytes | None) -> None:
    """Cut off, emptied, overwritten: records are read instead."""
    for number in range(1000):
        put_completed(store, f"raw_audio/en/{number:04}.mp3")
        put_raw(store, f"en/{number:04}.mp3")
    await enqueue(store, LAYOUT)
    memo = store.objects[memo_key(LAYOUT)]
    store.objects[memo_key(LAYOUT)] = memo[: len(memo) // 2] if damage is None else damage
    wire = watched(store)
    assert await enqueue(wire, LAYOUT) == EnqueueReport(done=1000)
    assert reads(wire)


async def test_a_memo_of_tasks_that_are_gone_is_forgotten(store: MemoryStore) -> None:
    """Records deleted by hand: the ids are free, and what was noted of them is no more."""
    names = [f"{number:04}" for number in range(1000)]
    put_raw(store, *(f"en/{name}.mp3" for name in names))
    await enqueue(store, LAYOUT)
    for name in names:
        del store.objects[LAYOUT.todo_key(name)]
    put_raw(store, "de/0007.mp3")
    assert (await enqueue(store, LAYOUT, limit=20)).created == 20
    assert content(store, LAYOUT.todo_key("0007"))["audio_key"] == "raw_audio/de/0007.mp3"
    assert memo_key(LAYOUT) not in store.objects
    del store.objects[LAYOUT.todo_key("0007")]
    put_completed(store, "raw_audio/de/0007.mp3")
    report = await enqueue(store, LAYOUT)
    assert (report.done, report.waiting) == (1, 19)
    assert LAYOUT.todo_key(hashed_id("raw_audio/en/0007.mp3")) in store.objects


async def test_a_hashed_id_stays_when_its_first_file_is_gone(store: MemoryStore) -> None:
    """A file keeps the task that it has, even if the plain id is free by now."""
    put_raw(store, "de/one.mp3", "en/one.mp3")
    await enqueue(store, LAYOUT)
    del store.objects["raw_audio/de/one.mp3"], store.objects[LAYOUT.todo_key("one")]
    assert await enqueue(store, LAYOUT) == EnqueueReport(waiting=1)


async def test_a_file_named_like_a_hashed_id_is_not_confused(store: MemoryStore) -> None:
    """Its id is its own; the file whose hashed id it is has none left, and that is said."""
    hashed = hashed_id("raw_audio/en/one.mp3")
    put_raw(store, "de/one.mp3", "en/one.mp3", f"fr/{hashed}.mp3")
    report = await enqueue(store, LAYOUT)
    assert (report.created, report.skipped) == (2, {"both its ids are taken": 1})
    assert content(store, LAYOUT.todo_key(hashed))["audio_key"] == f"raw_audio/fr/{hashed}.mp3"
    assert (await enqueue(store, LAYOUT)).waiting == 2
    store.objects[LAYOUT.todo_key(hashed)] = todo_body(task(hashed, "raw_audio/en/one.mp3"))
    assert (await enqueue(store, LAYOUT)).created == 1


@given(
    folders=st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=4),
    listers=st.sampled_from([1, 3, 16]),
)
@settings(deadline=None, max_examples=60)
def test_ids_do_not_depend_on_when_files_came(folders: list[set[str]], listers: int) -> None:
    """Whatever came first: each file has one task, for ever, and no two share one."""

    async def scans() -> None:
        store = MemoryStore()
        known: dict[str, str] = {}
        for number, names in enumerate(folders):
            put_raw(store, *(f"{9 - number}/{name}.mp3" for name in names))
            await enqueue(store, LAYOUT, listers=listers)
            tasks = {
                content(store, LAYOUT.todo_key(id_))["audio_key"]: id_
                for id_ in ids(store, LAYOUT.todo)
            }
            raw = {key for key in store.objects if key.startswith(LAYOUT.raw)}
            assert tasks.keys() == raw
            assert len(tasks) == len(ids(store, LAYOUT.todo))
            assert known.items() <= tasks.items()
            known = tasks

    anyio.run(scans)


async def test_a_scan_that_is_cut_off_is_gone_on_with(store: MemoryStore) -> None:
    """What was created stays, nothing is created twice, and the ids are the same."""
    put_raw(store, *(f"{folder}/{number:03}.mp3" for folder in ("a", "b") for number in range(300)))
    whole = MemoryStore()
    whole.objects = dict(store.objects)
    await enqueue(whole, LAYOUT)
    for limit in (40, 200, 240):
        puts = iter(range(limit))

        def die(_: int, name: str, puts: Iterator[int] = puts) -> str | None:
            return "before" if name.startswith("put") and next(puts, None) is None else None

        with pytest.raises(Killed):
            await enqueue(Wire(store, die), LAYOUT)
    await enqueue(store, LAYOUT)
    assert store.objects == whole.objects


async def test_a_full_disk_is_told(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working file's trouble is one sentence, with its place."""
    put_raw(store, *(f"en/{number:04}.mp3" for number in range(3000)))
    monkeypatch.setattr(ledger, "_SCHEMA", "PRAGMA max_page_count = 20;" + ledger._SCHEMA)
    with pytest.raises(EmiliadError, match="temporary folder: database or disk is full"):
        await enqueue(store, LAYOUT)


async def test_a_folder_that_cannot_be_used_is_told(store: MemoryStore, tmp_path: Path) -> None:
    """A file where SCRATCH_DIR should be."""
    (tmp_path / "scratch").write_text("")
    with pytest.raises(EmiliadError, match=r"working file in .*scratch"):
        await enqueue(store, LAYOUT, scratch=tmp_path / "scratch")


async def test_the_working_file_leaves_nothing_behind(store: MemoryStore, tmp_path: Path) -> None:
    """Not even while it is in use: a killed scan needs no clearing up."""
    put_raw(store, *(f"en/{number:04}.mp3" for number in range(1500)))
    seen: list[list[Path]] = []
    room = tmp_path / "scratch"
    await enqueue(
        store, LAYOUT, scratch=room, on_progress=lambda _: seen.append(list(room.iterdir()))
    )
    assert seen
    assert not any(seen)
    assert list(room.iterdir()) == []
