"""Enqueueing, and the queue at a glance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emiliad.patience import Patience
from emiliad.queue.enqueue import EnqueueReport, enqueue
from emiliad.queue.overview import Reader, overview
from emiliad.queue.tasks import hashed_id, todo_body
from emiliad.stores.memory import MemoryStore
from emiliad.types import Failure, TaskRef
from tests.emiliad.queue_kit import (
    LAYOUT,
    TTL_S,
    WALL_S,
    Clock,
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
    assert await enqueue(store, LAYOUT) == EnqueueReport(existing=3, done=1)
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


async def test_two_files_of_one_name_get_two_tasks(store: MemoryStore, tmp_path: Path) -> None:
    """The first in key order has the plain id, the other its hashed one, now and later."""
    put_raw(store, "de/one.mp3", "en/one.mp3", "en/one.wav")
    hashed = {hashed_id("raw_audio/en/one.mp3"), hashed_id("raw_audio/en/one.wav")}
    assert (await enqueue(store, LAYOUT)).created == 3
    assert ids(store, LAYOUT.todo) == {"one", *hashed}
    assert content(store, LAYOUT.todo_key("one"))["audio_key"] == "raw_audio/de/one.mp3"
    assert await enqueue(store, LAYOUT) == EnqueueReport(existing=3)
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
    assert await enqueue(store, LAYOUT) == EnqueueReport(existing=2)


async def test_old_buckets_tasks_are_known(store: MemoryStore) -> None:
    """Claimed by an old script (its todo is deleted) or failed there: no second task."""
    put_raw(store, "en/claimed.mp3", "en/failed.mp3", "en/done.mp3")
    store.objects[LAYOUT.claim_key("claimed")] = todo_body(task("claimed"))
    store.objects[LAYOUT.failed_key("failed")] = todo_body(task("failed"))
    store.objects[LAYOUT.completed_key("done")] = todo_body(task("done"))
    assert await enqueue(store, LAYOUT) == EnqueueReport(existing=2, done=1)


async def test_a_record_that_names_no_audio_keeps_its_id(store: MemoryStore) -> None:
    """A damaged todo is dead-lettered by whoever claims it; it gets no twin."""
    put_raw(store, "en/one.mp3")
    store.objects[LAYOUT.todo_key("one")] = b"{"
    assert await enqueue(store, LAYOUT) == EnqueueReport(existing=1)


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
    assert report == EnqueueReport(created=1, existing=1)


async def test_progress_is_told(store: MemoryStore) -> None:
    """Once for each page of a thousand files."""
    put_raw(store, *(f"en/{number:04}.mp3" for number in range(1500)))
    told: list[int] = []
    await enqueue(store, LAYOUT, on_progress=lambda report: told.append(report.created))
    assert told == [1000, 1500]


async def test_the_overview_counts_each_task_once(store: MemoryStore, tmp_path: Path) -> None:
    """Waiting, fresh, stale, failed and completed; who works; how much audio is done."""
    clock = Clock()
    for name in ("waits", "runs", "stale", "fails", "retries", "done"):
        put_todo(store, name)
    store.objects[LAYOUT.claim_key("old")] = todo_body(task("old"))
    store.objects[LAYOUT.failed_key("old failure")] = todo_body(task("old failure"))
    dead, node = Node(store, tmp_path, "dead", clock), Node(store, tmp_path, "alive", clock)
    assert await dead.leases.claim("stale") is not None
    clock.now += 2 * TTL_S
    claims = {}
    for name in ("runs", "fails", "retries", "done"):
        claim = await node.leases.claim(name)
        assert claim is not None
        claims[name] = claim
    await node.leases.fail(claims["fails"], Failure("bad_audio", "silent", retriable=False))
    await node.leases.fail(claims["retries"], Failure("crash", "it crashed"))
    await node.work(claims["done"])
    reader = Reader(store, LAYOUT, ttl_s=TTL_S, wall=lambda: WALL_S + clock.now)
    found = await reader.overview()
    assert (found.todo, found.fresh, found.stale) == (2, 1, 2)
    assert (found.completed, found.failed, found.publishing) == (1, 2, 0)
    assert found.in_progress == 3
    assert found.nodes == ("alive",)
    seconds = content(store, LAYOUT.completed_key("done"))["audio_seconds"]
    assert found.audio_hours == pytest.approx(seconds / 3600)
    assert not found.estimated
    assert found.tasks_per_hour == pytest.approx(6.0)  # one in ten minutes
    assert found.eta_s == pytest.approx(5 * 600.0)


async def test_the_overview_reads_nothing_twice(store: MemoryStore, tmp_path: Path) -> None:
    """Unchanged claims and commit records are remembered from look to look."""
    put_todo(store, "runs")
    put_todo(store, "done")
    node = Node(store, tmp_path)
    claim = await node.leases.claim("done")
    assert claim is not None
    await node.work(claim)
    await node.take()
    wire = Wire(store, lambda *_: None)
    reader = Reader(wire, LAYOUT)
    first = await reader.overview()
    wire.requests.clear()
    assert (await reader.overview()).completed == first.completed == 1
    assert {name.split()[0] for name in wire.requests} == {"list"}


async def test_many_records_are_sampled(store: MemoryStore) -> None:
    """Audio hours of more than five thousand tasks are extrapolated, and say so."""
    for number in range(6000):
        body = {"episode_id": f"{number}", "audio_seconds": 1800, "outputs": {}}
        store.objects[LAYOUT.completed_key(f"{number}")] = json.dumps(body).encode()
    found = await overview(store, LAYOUT)
    assert found.estimated
    assert found.audio_hours == pytest.approx(3000.0)
    assert found.eta_s is None


async def test_a_task_keeps_its_extra_keys(store: MemoryStore, tmp_path: Path) -> None:
    """What a producer adds to a todo reaches whoever works on it."""
    todo = TaskRef("one", "en", "raw_audio/en/one.mp3", {"priority": 1})
    store.objects[LAYOUT.todo_key("one")] = todo_body(todo)
    assert (await Node(store, tmp_path).take()).task == todo
