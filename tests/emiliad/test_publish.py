"""Committing and publishing: one commit, whole outputs, no litter, wherever one is killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from emiliad.errors import Throttled
from emiliad.stores.memory import MemoryStore
from emiliad.types import Failure, Outcome
from tests.emiliad.queue_kit import (
    LAYOUT,
    TTL_S,
    Clock,
    Killed,
    Node,
    Wire,
    content,
    ids,
    put_todo,
    verify_all_done,
    verify_outputs,
)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    put_todo(store, "one")
    return store


def never(_number: int, _name: str) -> str | None:
    return None


def at(number: int, fate: str) -> Callable[[int, str], str | None]:
    return lambda current, _: fate if current == number else None


def when(prefix: str, fate: str, times: int = 1) -> Callable[[int, str], str | None]:
    """Gives the first requests whose name begins so their fate."""
    left = [fate] * times
    return lambda _, name: left.pop() if left and name.startswith(prefix) else None


async def attempt(node: Node) -> Outcome:
    return await node.work(await node.take())


async def killed(node: Node) -> bool:
    """Runs one attempt and says whether the process died in it."""
    try:
        await attempt(node)
    except Killed:
        return True
    return False


async def test_an_attempt_is_committed_published_and_cleaned_up(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The record says who, when, what and which files; of the queue's objects it alone stays."""
    node = Node(store, tmp_path)
    assert await attempt(node) is Outcome.COMPLETED
    verify_all_done(store, {"one"})
    record = content(store, LAYOUT.completed_key("one"))
    assert record["episode_id"] == "one"
    assert (record["language"], record["audio_key"]) == ("en", "raw_audio/en/one.mp3")
    assert (record["owner"], record["attempt"]) == ("node-a", 1)
    assert record["finished"].endswith("+00:00")
    assert record["stage_seconds"] == {"transcribe": 1.5}
    assert record["config_hash"] == "c0ffee"
    assert record["audio_seconds"] > 0
    assert node.leases.held == {}


async def test_nothing_is_published_before_the_commit_and_the_index_comes_last(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The order of the writes is the safety of the protocol."""
    wire = Wire(store, never)
    node = Node(wire, tmp_path)
    claim = await node.take()
    await node.publisher.commit(node.process(claim, segments=2))
    writes = [name for name in wire.requests if not name.startswith(("get", "head", "list"))]
    assert writes == [
        "put tasks/processing_in_progress/one.task",
        f"upload tasks/processing_outputs/one/{claim.nonce}.tar",
        "put tasks/processing_completed/one.task",
        "upload processed/en/one/episode.json",
        "upload processed/en/one/one_000000.mp3",
        "upload processed/en/one/one_000001.mp3",
        "upload processed/en/one/all_segments.json",
        "delete tasks/processing_todo/one.task",
        "delete tasks/processing_in_progress/one.task",
        "delete tasks/processing_failed/one.task",
        f"delete tasks/processing_outputs/one/{claim.nonce}.tar",
    ]


@pytest.mark.parametrize("owner", ["node-b", "node-a"])
@pytest.mark.parametrize("fate", ["before", "after"])
async def test_a_kill_at_any_request_loses_nothing(tmp_path: Path, fate: str, owner: str) -> None:
    """Another owner, or the same one restarted, ends the task: one commit, no litter."""
    points = 0
    while True:
        points += 1
        store = MemoryStore()
        put_todo(store, "one")
        if not await killed(Node(Wire(store, at(points, fate)), tmp_path)):
            break
        commits = store.objects.get(LAYOUT.completed_key("one"))
        await Node(store, tmp_path, owner, seed=1).finish_all()
        verify_all_done(store, {"one"})
        if commits is not None:
            assert store.objects[LAYOUT.completed_key("one")] == commits
    assert points > 12


@pytest.mark.parametrize("fate", ["before", "after"])
async def test_a_kill_of_whoever_finishes_a_dead_nodes_commit_loses_nothing(
    tmp_path: Path, fate: str
) -> None:
    """The first dies right after its commit, the second anywhere; the third finds the rest."""
    points = 0
    finished = False
    while not finished:
        points += 1
        store = MemoryStore()
        put_todo(store, "one")
        first = when("put tasks/processing_completed/", "after")
        assert await killed(Node(Wire(store, first), tmp_path))
        second = Node(Wire(store, at(points, fate)), tmp_path, "node-b")
        try:
            await second.finish_all()
            finished = True
        except Killed:
            await Node(store, tmp_path, "node-c").finish_all()
        verify_all_done(store, {"one"})
    assert points > 15


@pytest.mark.parametrize("fate", ["lost before", "lost after"])
async def test_a_lost_answer_at_any_request_loses_nothing(tmp_path: Path, fate: str) -> None:
    """One answer is lost, whether the request was applied or not: the same node goes on."""
    for point in range(1, 30):
        store = MemoryStore()
        put_todo(store, "one")
        node = Node(Wire(store, at(point, fate)), tmp_path)
        await node.finish_all()
        verify_all_done(store, {"one"})


async def test_a_commit_whose_answer_was_lost_is_recognised(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The retry meets its own success as a 412; the read-back says that it is ours."""
    rule = when("put tasks/processing_completed/", "lost after")
    node = Node(Wire(store, rule), tmp_path)
    assert await attempt(node) is Outcome.COMPLETED
    verify_all_done(store, {"one"})


async def test_a_commit_of_unknown_fate_leaves_pack_and_claim(
    store: MemoryStore, tmp_path: Path
) -> None:
    """T4: the write may land later, and then its pack must be there."""
    rule = when("put tasks/processing_completed/", "lost before", times=3)
    node = Node(Wire(store, rule), tmp_path)
    claim = await node.take()
    assert await node.work(claim) is Outcome.LOST
    assert LAYOUT.pack_key("one", claim.nonce) in store.objects
    assert ids(store, LAYOUT.claims) == {"one"}
    assert ids(store, LAYOUT.todo) == {"one"}
    await node.finish_all()
    verify_all_done(store, {"one"})


async def test_of_two_attempts_the_first_commit_stands(store: MemoryStore, tmp_path: Path) -> None:
    """The slow node's commit is refused; its pack goes, the winner's outputs stay."""
    slow, fast = Node(store, tmp_path, "slow"), Node(store, tmp_path, "fast")
    slow_claim = await slow.take()
    assert await fast.leases.next() is None
    fast.clock.now += 2 * TTL_S
    fast_claim = await fast.take()
    assert fast_claim.lost == 1
    assert await fast.work(fast_claim) is Outcome.COMPLETED
    assert await slow.work(slow_claim) is Outcome.LOST
    verify_all_done(store, {"one"})
    assert content(store, LAYOUT.completed_key("one"))["owner"] == "fast"


async def test_a_slow_attempt_completes_even_a_dead_letter(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Completed wins: the dead letter goes."""
    slow, fast = Node(store, tmp_path, "slow"), Node(store, tmp_path, "fast")
    slow_claim = await slow.take()
    await fast.leases.next()
    fast.clock.now += 2 * TTL_S
    assert (
        await fast.leases.fail(await fast.take(), Failure("bad_audio", "no sound", retriable=False))
        is Outcome.FAILED
    )
    assert ids(store, LAYOUT.failed) == {"one"}
    assert await slow.work(slow_claim) is Outcome.COMPLETED
    verify_all_done(store, {"one"})


async def test_publishing_continues_from_the_pack(store: MemoryStore, tmp_path: Path) -> None:
    """A node that has nothing but the record publishes the committed bytes."""
    rule = when("put tasks/processing_completed/", "after")
    assert await killed(Node(Wire(store, rule), tmp_path))
    assert not any(key.startswith("processed/") for key in store.objects)
    record = store.objects[LAYOUT.completed_key("one")]
    restarted = Node(store, tmp_path)
    assert await restarted.leases.next() is None
    assert store.objects[LAYOUT.completed_key("one")] == record
    verify_all_done(store, {"one"})


async def test_a_wrong_output_is_repaired_before_the_todo_goes(
    store: MemoryStore, tmp_path: Path
) -> None:
    """T2: names, sizes and hashes are compared, not believed."""
    rule = when("delete tasks/processing_todo/", "before")
    assert await killed(Node(Wire(store, rule), tmp_path))
    store.objects["processed/en/one/episode.json"] = b"{}"
    await Node(store, tmp_path, "node-b").finish_all()
    verify_all_done(store, {"one"})


async def test_the_todo_stays_until_a_listing_shows_every_output(
    store: MemoryStore, tmp_path: Path
) -> None:
    """T2: an upload that was acknowledged and is not there keeps the task in the queue; the next
    who comes by publishes it from the pack."""
    upload = store.upload

    async def forgetful(key: str, path: Path) -> str:
        etag = await upload(key, path)
        if key.endswith("one_000001.mp3"):
            del store.objects[key]
        return etag

    store.upload = forgetful  # type: ignore[method-assign]
    node = Node(store, tmp_path)
    claim = await node.take()
    assert await node.publisher.commit(node.process(claim, segments=3)) is Outcome.COMPLETED
    assert ids(store, LAYOUT.todo) == {"one"}
    assert LAYOUT.pack_key("one", claim.nonce) in store.objects

    store.upload = upload  # type: ignore[method-assign]
    await Node(store, tmp_path, "node-b").finish_all()
    verify_all_done(store, {"one"})


async def test_a_commit_without_pack_and_outputs_is_left_alone(
    store: MemoryStore, tmp_path: Path
) -> None:
    """What somebody deleted by hand cannot be published; the todo stays and tells so."""
    rule = when("put tasks/processing_completed/", "after")
    assert await killed(Node(Wire(store, rule), tmp_path))
    (pack,) = [key for key in store.objects if key.startswith(LAYOUT.outputs)]
    del store.objects[pack]
    node = Node(store, tmp_path)
    assert await node.leases.next() is None
    assert node.leases.outlook.publishing == 1
    assert not node.leases.outlook.settled
    assert ids(store, LAYOUT.todo) == {"one"}


async def test_a_busy_store_hands_the_task_back(store: MemoryStore, tmp_path: Path) -> None:
    """When the pack cannot be uploaded nothing was committed, and nothing is counted."""

    class Busy(MemoryStore):
        async def upload(self, key: str, path: Path) -> str:
            raise Throttled(key)

    busy = Busy()
    busy.objects = store.objects
    node = Node(busy, tmp_path)
    assert await attempt(node) is Outcome.RELEASED
    claim = content(store, LAYOUT.claim_key("one"))
    assert (claim["state"], claim["attempt"]) == ("free", 0)
    assert node.leases.held == {}


async def test_outputs_that_cannot_be_packed_fail_the_attempt(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Trouble with the scratch disk fails that attempt alone; nothing empty is committed."""
    node = Node(store, tmp_path)
    processed = node.process(await node.take())
    shutil.rmtree(processed.out_dir)
    assert await node.publisher.commit(processed) is Outcome.RETRIED
    (incident,) = content(store, LAYOUT.claim_key("one"))["history"]
    assert incident["kind"] == "outputs"
    assert str(processed.out_dir) in incident["reason"]


async def test_renewals_go_on_while_an_attempt_is_published(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Nobody takes over a task whose owner is publishing; a finished one is not lost."""
    node = Node(store, tmp_path)
    renewed: list[bool] = []
    upload = store.upload

    async def slow_upload(key: str, path: Path) -> str:
        if key.startswith("processed/"):
            renewed.append(await node.leases.renew(claim))
        return await upload(key, path)

    store.upload = slow_upload  # type: ignore[method-assign]
    claim = await node.take()
    lost = node.leases.lost(claim)
    assert await node.work(claim) is Outcome.COMPLETED
    assert renewed
    assert all(renewed)
    assert not lost.is_set()
    verify_all_done(store, {"one"})


async def test_outputs_of_any_name_and_depth_are_published(
    store: MemoryStore, tmp_path: Path
) -> None:
    """A replacement pipeline may write what it likes, in folders too."""
    node = Node(store, tmp_path)
    processed = node.process(await node.take())
    (processed.out_dir / "deep" / "er").mkdir(parents=True)
    (processed.out_dir / "deep/er/naïve 'file' …").write_bytes(b"x" * 300_000)
    (processed.out_dir / "empty").write_bytes(b"")
    rule = when("put tasks/processing_completed/", "after")
    dying = Node(Wire(store, rule), tmp_path)
    dying.leases = node.leases
    with suppress(Killed):
        await dying.publisher.commit(processed)
    await Node(store, tmp_path, "node-b").finish_all()
    verify_outputs(store, "one")
    assert store.objects["processed/en/one/deep/er/naïve 'file' …"] == b"x" * 300_000


async def test_another_files_todo_of_the_same_name_is_kept(
    store: MemoryStore, tmp_path: Path
) -> None:
    """A todo is deleted only if its audio is the record's; else it moves to its hashed id."""
    node = Node(store, tmp_path)
    claim = await node.take()
    put_todo(store, "one", "raw_audio/fr/one.mp3")
    await node.work(claim)
    (other,) = ids(store, LAYOUT.todo)
    assert other.startswith("one-")
    assert content(store, LAYOUT.todo_key(other))["audio_key"] == "raw_audio/fr/one.mp3"
    assert content(store, LAYOUT.todo_key(other))["episode_id"] == other
    await Node(store, tmp_path, clock=Clock()).finish_all()
    verify_all_done(store, {"one", other})
