"""`verify`: completed tasks whose outputs are not there are named, the old scripts' mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from emiliad.errors import Ambiguous
from emiliad.patience import Patience
from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.redo import Redone
from emiliad.queue.verify import AT_ONCE, Broken, Progress, Report, verify
from emiliad.store import Object
from emiliad.stores.memory import MemoryStore
from tests.emiliad.queue_kit import (
    LAYOUT,
    Clock,
    Killed,
    Node,
    Wire,
    put_todo,
    task,
    verify_all_done,
)
from tests.emiliad.rig import Bucket
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server

AUDIO = "raw_audio/en/old.mp3"
OLD = {"episode_id": "old", "language": "en", "audio_key": AUDIO}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def complete(store: MemoryStore, scratch: Path, name: str = "one") -> None:
    """A task of ours, done."""
    put_todo(store, name)
    node = Node(store, scratch)
    claim = await node.take()
    await node.publisher.commit(node.process(claim, segments=2))


def put_old(store: MemoryStore, segments: int = 3, name: str = "old", **keys: str) -> str:
    """What the old scripts left of a task; returns where its outputs lie."""
    record = OLD | {"episode_id": name} | keys
    prefix = f"processed/{record['language'] or 'unknown'}/{name}/"
    store.objects[record["audio_key"]] = b"audio"
    store.objects[LAYOUT.completed_key(name)] = json.dumps(record).encode()
    rows = [{"text": "x", "start": i, "end": i + 1} for i in range(segments)]
    store.objects[f"{prefix}all_segments.json"] = json.dumps(rows).encode()
    for index in range(segments):
        store.objects[f"{prefix}{name}_{index:06d}.mp3"] = b"mp3"
    return prefix


def at(number: int, fate: str) -> Callable[[int, str], str | None]:
    return lambda current, _: fate if current == number else None


async def check(store: MemoryStore, *, requeue: bool = False) -> tuple[Report, list[Broken]]:
    found: list[Broken] = []
    report = await verify(store, LAYOUT, requeue=requeue, on_broken=found.append)
    return report, found


async def test_what_is_whole_is_counted(store: MemoryStore, tmp_path: Path) -> None:
    """Ours and the old scripts', with or without a language or a segment."""
    await complete(store, tmp_path)
    put_old(store)
    put_old(store, name="silent", segments=0)
    put_old(store, name="somewhere", language="")
    assert await check(store) == (Report(whole=4), [])


async def test_the_outputs_of_a_commit_are_compared(store: MemoryStore, tmp_path: Path) -> None:
    """A name that is missing, another size and another content are told, each by its name."""
    for name in ("gone", "short", "other", "whole"):
        await complete(store, tmp_path, name)
    del store.objects["processed/en/gone/gone_000001.mp3"]
    store.objects["processed/en/short/all_segments.json"] += b" "
    body = store.objects["processed/en/other/other_000000.mp3"]
    store.objects["processed/en/other/other_000000.mp3"] = bytes(len(body))
    report, found = await check(store)
    assert report == Report(whole=1, broken=3)
    assert not report.sound
    reasons = {broken.episode_id: broken.reason for broken in found}
    assert "1 of 4 outputs are missing" in reasons["gone"]
    assert "gone_000001.mp3" in reasons["gone"]
    assert "processed/en/short/all_segments.json has" in reasons["short"]
    assert "MD5" in reasons["other"]


async def test_what_is_being_published_is_not_broken(store: MemoryStore, tmp_path: Path) -> None:
    """A commit whose todo and pack stand will be published by whoever comes; without a pack
    nobody can."""
    put_todo(store, "one")

    def rule(_: int, name: str) -> str | None:
        return "after" if name.startswith("put tasks/processing_completed/") else None

    node = Node(Wire(store, rule), tmp_path)
    with suppress(Killed):
        await node.work(await node.take())
    assert await check(store) == (Report(publishing=1), [])
    (pack,) = [key for key in store.objects if key.startswith(LAYOUT.outputs)]
    del store.objects[pack]
    report, (broken,) = await check(store)
    assert report == Report(broken=1)
    assert "all_segments.json" in broken.reason


async def test_a_publication_that_ends_during_the_check_is_whole(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The outputs are missing at the first look, the todo is gone at the second."""
    await complete(store, tmp_path)
    body = store.objects.pop("processed/en/one/all_segments.json")

    def rule(_: int, name: str) -> None:
        if name.startswith("head tasks/processing_todo/"):
            store.objects["processed/en/one/all_segments.json"] = body

    assert await verify(Wire(store, rule), LAYOUT) == Report(whole=1)


BREAKAGES: dict[str, tuple[Callable[[MemoryStore], object], str]] = {
    "nothing was uploaded": (
        lambda store: [
            store.objects.pop(key) for key in list(store.objects) if "processed/" in key
        ],
        "all_segments.json is missing; nothing is there",
    ),
    "the index was not": (
        lambda store: store.objects.pop("processed/en/old/all_segments.json"),
        "all_segments.json is missing; 3 other files are there",
    ),
    "a segment was not": (
        lambda store: store.objects.pop("processed/en/old/old_000001.mp3"),
        "1 of 3 segments are missing under processed/en/old/: old_000001.mp3",
    ),
    "a segment is empty": (
        lambda store: store.objects.update({"processed/en/old/old_000002.mp3": b""}),
        "old_000002.mp3",
    ),
    "the index is cut off": (
        lambda store: store.objects.update({"processed/en/old/all_segments.json": b'[{"text'}),
        "is no list of segments",
    ),
    "the index is something else": (
        lambda store: store.objects.update({"processed/en/old/all_segments.json": b'["a"]'}),
        "is no list of segments",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
async def test_what_the_old_scripts_failed_to_upload_is_found_and_done_again(
    store: MemoryStore, tmp_path: Path, breakage: str
) -> None:
    """Their records prove nothing; `requeue` makes it a task, and then it is whole."""
    put_old(store)
    apply, said = BREAKAGES[breakage]
    apply(store)
    report, (broken,) = await check(store)
    assert (report, broken.redone) == (Report(broken=1), None)
    assert said in broken.reason

    report, (broken,) = await check(store, requeue=True)
    assert report == Report(broken=1, requeued=1)
    assert report.sound
    assert broken.requeued
    assert not any(key.startswith("processed/") for key in store.objects)
    node = Node(store, tmp_path)
    assert (await node.work(await node.take())).value == "completed"
    verify_all_done(store, {"old"})
    assert await check(store, requeue=True) == (Report(whole=1), [])


async def test_many_missing_names_are_shortened(store: MemoryStore) -> None:
    """A sentence is for people."""
    prefix = put_old(store, segments=1000)
    for index in range(500):
        del store.objects[f"{prefix}old_{index:06d}.mp3"]
    _, (broken,) = await check(store)
    assert "500 of 1000 segments are missing" in broken.reason
    assert broken.reason.endswith("and 497 more")


@pytest.mark.parametrize("fate", ["before", "after", "lost after"])
async def test_a_requeue_that_is_cut_off_loses_nothing(tmp_path: Path, fate: str) -> None:
    """Killed at any request, it can be run again, and a sweep alone does not lose the task."""
    points = 0
    survived = False
    while not survived:
        points += 1
        store = MemoryStore()
        put_old(store)
        del store.objects["processed/en/old/old_000001.mp3"]
        wire = Wire(store, at(points, fate))
        with suppress(Killed, Ambiguous):
            await verify(wire, LAYOUT, requeue=True, patience=Patience(sleep=Clock().sleep))
        survived = points > len(wire.requests)
        node = Node(store, tmp_path)
        await node.finish_all()
        await verify(store, LAYOUT, requeue=True)
        await node.finish_all()
        verify_all_done(store, {"old"})
    assert points > 12


async def test_an_old_claim_that_was_left_beside_the_record_is_freed(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The old scripts' workers did not always clean up."""
    prefix = put_old(store)
    del store.objects[f"{prefix}old_000000.mp3"]
    store.objects[LAYOUT.claim_key("old")] = json.dumps(OLD).encode()
    report, _ = await check(store, requeue=True)
    assert report == Report(broken=1, requeued=1)
    node = Node(store, tmp_path)
    assert (await node.take()).task.episode_id == "old"


async def test_a_commit_is_never_reopened(store: MemoryStore, tmp_path: Path) -> None:
    """Its record stays, however broken its outputs are, and that is said."""
    await complete(store, tmp_path)
    del store.objects["processed/en/one/one_000000.mp3"]
    before = dict(store.objects)
    report, (broken,) = await check(store, requeue=True)
    assert (report, report.sound) == (Report(broken=1), False)
    assert broken.redone is Redone.COMMITTED
    assert store.objects == before


async def test_what_cannot_be_done_again_is_left_as_it_is(store: MemoryStore) -> None:
    """Without raw audio, without its name, and while a node is at work on it."""
    for name in ("silent", "nameless", "busy", "waiting"):
        prefix = put_old(store, name=name, audio_key=f"raw_audio/{name}.mp3")
        del store.objects[f"{prefix}{name}_000000.mp3"]
    del store.objects["raw_audio/silent.mp3"]
    store.objects[LAYOUT.completed_key("nameless")] = b'{"language": "en"}'
    lease = ClaimRecord(task("busy")).lease_to(Stamp("node", "nonce", 0.0), task("busy"))
    store.objects[LAYOUT.claim_key("busy")] = lease.body()
    put_todo(store, "waiting")  # a node will find that it is completed, and delete the todo
    before = dict(store.objects)
    report, found = await check(store, requeue=True)
    assert report.requeued == 0
    assert {broken.episode_id: broken.redone for broken in found} == {
        "silent": Redone.SILENT,
        "nameless": Redone.NAMELESS,
        "busy": Redone.BUSY,
        "waiting": Redone.BUSY,
    }
    assert store.objects == before


async def test_many_records_are_checked_a_few_at_a_time(store: MemoryStore) -> None:
    """A page of records is done with before the next is listed, so memory stays bounded."""
    for number in range(1500):
        put_old(store, segments=1, name=f"{number:04}", audio_key=f"raw_audio/{number:04}.mp3")
    at_once = most = 0

    class Watched(MemoryStore):
        async def get(self, key: str) -> Object:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                return await super().get(key)
            finally:
                at_once -= 1

    watched = Watched()
    watched.objects = store.objects
    steps: list[Progress] = []
    report = await verify(watched, LAYOUT, on_progress=steps.append)
    assert report == Report(whole=1500)
    assert [step.done for step in steps] == [1000, 1500]
    assert 1 < most <= AT_ONCE


def test_the_command_names_what_is_broken_and_mends_it(tmp_path: Path) -> None:
    """For people on stderr, for machines one object on stdout; exit code 1 until it is mended."""
    bucket = Bucket(tmp_path)
    bucket.put_audio("one.mp3")
    bucket.put_audio("old.mp3")
    bucket.emiliad("enqueue")
    assert bucket.emiliad("run", "--exit-when-empty").returncode == 0
    whole = bucket.emiliad("verify")
    assert (whole.returncode, whole.stdout) == (0, "")
    assert "2 whole, 0 being published, 0 broken" in whole.stderr

    record = tmp_path / "bucket/tasks/processing_completed/old.task"
    record.write_text(json.dumps(OLD))
    (bucket.outputs("old") / "old_000000.mp3").unlink()
    (bucket.outputs("one") / "one_000000.mp3").unlink()
    broken = bucket.emiliad("verify")
    assert broken.returncode == 1
    assert "old: 1 of " in broken.stderr
    assert "one: 1 of " in broken.stderr
    machine = bucket.emiliad("verify", "--json")
    told = json.loads(machine.stdout)
    assert (machine.returncode, told["records"], told["whole"]) == (1, 2, 0)
    assert {row["episode_id"] for row in told["broken"]} == {"old", "one"}

    mended = bucket.emiliad("verify", "--requeue")
    assert mended.returncode == 1  # ours stays broken
    assert "one: 1 of " in mended.stderr
    assert "never reopened" in mended.stderr
    assert bucket.tasks("todo").keys() == {"old"}
    assert bucket.emiliad("run", "--exit-when-empty").returncode == 0
    bucket.verify_outputs("old", bucket.tasks("completed")["old"])
    told = json.loads(bucket.emiliad("verify", "--json").stdout)
    assert [row["episode_id"] for row in told["broken"]] == ["one"]


def test_an_old_bucket_on_s3_is_verified_and_mended(weed_bucket: Server, tmp_path: Path) -> None:
    """The same commands on R2's protocol."""
    bucket = S3Bucket(tmp_path, weed_bucket)
    made = MemoryStore()
    put_old(made, name="good", audio_key="raw_audio/en/good.mp3")
    del made.objects[f"{put_old(made)}old_000001.mp3"]
    for key, body in made.objects.items():
        bucket.client.put_object(Bucket=weed_bucket.bucket, Key=key, Body=body)
    done = bucket.emiliad("verify", "--requeue", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["whole"], told["requeued"]) == (1, 1)
    assert bucket.emiliad("run", "--exit-when-empty").returncode == 0
    assert bucket.emiliad("verify").returncode == 0
    bucket.verify_outputs("old", bucket.tasks("completed")["old"])
    assert bucket.tasks("todo") == {}
