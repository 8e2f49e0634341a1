"""The sweep: mends what others left, old buckets' remains too, and touches nothing that lives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from emiliad.queue.claims import ClaimRecord, Stamp, State, parse_claim
from emiliad.queue.retry import Retried, retry
from emiliad.queue.tasks import task_keys, to_json
from emiliad.stores.memory import MemoryStore
from emiliad.types import Failure, Outcome
from tests.emiliad.queue_kit import (
    LAYOUT,
    TTL_S,
    Killed,
    Node,
    Wire,
    content,
    ids,
    put_todo,
    task,
    verify_all_done,
)

BAD = Failure("bad_audio", "no sound in it", retriable=False)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def old_json(name: str) -> bytes:
    """What the old scripts wrote, into whichever folder a task was in."""
    return to_json({**task_keys(task(name)), "added_by": "scanner"})


async def sweep_late(node: Node) -> dict[str, int]:
    """Sweeps when all that is there has stood still for long."""
    await node.sweeper.sweep_once()
    node.clock.now += 1.2 * TTL_S
    return await node.sweeper.sweep_once()


async def test_an_old_claim_is_the_only_trace_of_its_task(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Old scripts claimed by deleting the todo: it is put again, and the claim freed."""
    store.objects[LAYOUT.claim_key("one")] = old_json("one")
    node = Node(store, tmp_path)
    assert await node.sweeper.sweep_once() == {}
    assert await sweep_late(node) == {"todos_restored": 1}
    assert json.loads(store.objects[LAYOUT.todo_key("one")]) == json.loads(old_json("one"))
    assert parse_claim("one", store.objects[LAYOUT.claim_key("one")]).state is State.FREE
    claim = await node.take()
    assert (claim.attempt, claim.lost) == (1, 0)
    assert claim.task.extra == {"added_by": "scanner"}
    await node.work(claim)
    verify_all_done(store, {"one"})


async def test_an_old_claim_that_moves_is_left_alone(store: MemoryStore, tmp_path: Path) -> None:
    """Whoever still writes it still works on it."""
    node = Node(store, tmp_path)
    for beat in range(5):
        store.objects[LAYOUT.claim_key("one")] = old_json("one") + b" " * beat
        assert await node.sweeper.sweep_once() == {}
        node.clock.now += TTL_S


async def test_an_old_claim_that_moves_at_the_last_moment_is_left_alone(
    store: MemoryStore, tmp_path: Path
) -> None:
    """It stood still when it was listed, but not when it was read."""
    store.objects[LAYOUT.claim_key("one")] = old_json("one")

    def move(_number: int, name: str) -> None:
        if name == f"get {LAYOUT.claim_key('one')}":
            store.objects[LAYOUT.claim_key("one")] += b" "

    node = Node(Wire(store, move), tmp_path)
    assert await sweep_late(node) == {}
    assert ids(store, LAYOUT.todo) == set()


async def test_an_old_claim_of_a_completed_task_is_litter(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The old scripts copied to completed before they deleted the claim."""
    store.objects[LAYOUT.claim_key("one")] = old_json("one")
    store.objects[LAYOUT.completed_key("one")] = old_json("one")
    assert await sweep_late(Node(store, tmp_path)) == {"claims_deleted": 1}
    assert list(store.objects) == [LAYOUT.completed_key("one")]


async def test_a_claim_without_todo_and_record_is_never_deleted(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Also when nothing can be read in it: somebody may."""
    store.objects[LAYOUT.claim_key("one")] = b"torn"
    node = Node(store, tmp_path)
    for _ in range(4):
        await sweep_late(node)
    assert store.objects == {LAYOUT.claim_key("one"): b"torn"}


async def test_our_claim_whose_todo_was_lost_restores_it(
    store: MemoryStore, tmp_path: Path
) -> None:
    """A claim of ours holds the task's keys for the same reason."""
    put_todo(store, "one")
    await Node(store, tmp_path, "dead").take()
    todo = store.objects.pop(LAYOUT.todo_key("one"))
    node = Node(store, tmp_path)
    assert await sweep_late(node) == {"todos_restored": 1}
    assert store.objects[LAYOUT.todo_key("one")] == todo
    await node.finish_all()
    verify_all_done(store, {"one"})


async def test_what_lives_is_not_swept(store: MemoryStore, tmp_path: Path) -> None:
    """Leases in use, back-offs, dead letters and packs of running attempts stay as they are."""
    for name in ("works", "failed", "waits"):
        put_todo(store, name)
    node = Node(store, tmp_path, backoff_s=10_000.0)
    claims = {}
    for _ in range(3):
        claim = await node.take()
        claims[claim.task.episode_id] = claim
    await node.leases.fail(claims["failed"], BAD)
    await node.leases.fail(claims["waits"], Failure("crash", "it crashed"))
    store.objects[LAYOUT.pack_key("works", "nonce")] = b"tar"
    for _ in range(6):
        await node.leases.renew(claims["works"])
        before = dict(store.objects)
        assert await node.sweeper.sweep_once() == {}
        assert store.objects == before
        node.clock.now += TTL_S / 2


async def test_a_running_publication_is_not_disturbed(store: MemoryStore, tmp_path: Path) -> None:
    """A fresh claim beside a commit: its owner is publishing."""
    put_todo(store, "one")
    node, other = Node(store, tmp_path), Node(store, tmp_path, "b")
    processed = node.process(await node.take())
    swept: list[dict[str, int]] = []
    upload = store.upload

    async def slow_upload(key: str, path: Path) -> str:
        swept.append(await other.sweeper.sweep_once())
        return await upload(key, path)

    store.upload = slow_upload  # type: ignore[method-assign]
    assert await node.publisher.commit(processed) is Outcome.COMPLETED
    assert len(swept) > 2
    assert not any(swept)


async def test_a_dead_nodes_commit_is_published(store: MemoryStore, tmp_path: Path) -> None:
    """Without anyone claiming: from the pack, and all packs go."""
    put_todo(store, "one")
    wire = Wire(
        store, lambda _, name: "after" if name.startswith("put tasks/processing_comp") else None
    )
    dying = Node(wire, tmp_path)
    with pytest.raises(Killed):
        await dying.work(await dying.take())
    store.objects[LAYOUT.pack_key("one", "of-a-lost-attempt")] = b"tar"
    assert await sweep_late(Node(store, tmp_path, "b")) == {"finished": 1}
    verify_all_done(store, {"one"})


async def test_packs_stay_until_their_task_is_completed(store: MemoryStore, tmp_path: Path) -> None:
    """A pack may be what a commit that is under way will name."""
    put_todo(store, "one")
    store.objects[LAYOUT.pack_key("one", "nonce")] = b"tar"
    node = Node(store, tmp_path)
    assert await sweep_late(node) == {}
    await node.finish_all()
    verify_all_done(store, {"one"})


async def test_dead_letters_follow_their_claims(store: MemoryStore, tmp_path: Path) -> None:
    """Written when missing, deleted when the claim is not failed, kept when there is no claim."""
    for name in ("missing", "stale"):
        put_todo(store, name)
    node = Node(store, tmp_path)
    failed = ClaimRecord(task("missing"), State.LEASED, attempt=3)
    failed = failed.give_up(Stamp("a", "n", 0.0), BAD)
    store.objects[LAYOUT.claim_key("missing")] = failed.body()
    free = dataclasses.replace(failed, task=task("stale"), state=State.FREE)
    store.objects[LAYOUT.claim_key("stale")] = free.body()
    store.objects[LAYOUT.failed_key("stale")] = failed.dead_letter()
    store.objects[LAYOUT.failed_key("old")] = old_json("old")
    await sweep_late(node)
    assert ids(store, LAYOUT.failed) == {"missing", "old"}
    assert content(store, LAYOUT.failed_key("missing"))["attempts"][0]["kind"] == "bad_audio"


async def test_a_dead_letter_of_a_completed_task_goes(store: MemoryStore, tmp_path: Path) -> None:
    """With its claim and its todo, once the outputs are verified."""
    put_todo(store, "one")
    node = Node(store, tmp_path)
    await node.leases.fail(await node.take(), BAD)
    store.objects[LAYOUT.completed_key("one")] = old_json("one")
    assert await sweep_late(node) == {"finished": 1}
    assert list(store.objects) == [LAYOUT.completed_key("one")]


async def test_a_lost_store_ends_a_sweep_not_the_sweeper(
    store: MemoryStore, tmp_path: Path
) -> None:
    """It is tried again another time."""
    store.objects[LAYOUT.claim_key("one")] = old_json("one")
    down = [True]
    node = Node(Wire(store, lambda *_: "lost before" if down[0] else None), tmp_path)
    assert await node.sweeper.sweep_once() == {}
    down[0] = False
    assert await sweep_late(node) == {"todos_restored": 1}


async def test_retry_frees_a_dead_letter(store: MemoryStore, tmp_path: Path) -> None:
    """Attempts begin at one again, the history stays, and the index goes."""
    put_todo(store, "one")
    node = Node(store, tmp_path)
    await node.leases.fail(await node.take(), BAD)
    assert await retry(store, LAYOUT) == [("one", Retried.REQUEUED)]
    assert ids(store, LAYOUT.failed) == set()
    claim = await node.take()
    assert (claim.attempt, claim.lost) == (1, 0)
    assert len(parse_claim("one", store.objects[LAYOUT.claim_key("one")]).history) == 1
    await node.work(claim)
    verify_all_done(store, {"one"})


async def test_retry_of_an_old_buckets_failure_puts_the_todo(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The old scripts left nothing but the dead letter."""
    store.objects[LAYOUT.failed_key("one")] = old_json("one")
    assert await retry(store, LAYOUT, ["one"]) == [("one", Retried.REQUEUED)]
    assert ids(store, LAYOUT.failed) == set()
    await Node(store, tmp_path).finish_all()
    verify_all_done(store, {"one"})


async def test_retry_says_why_not(store: MemoryStore, tmp_path: Path) -> None:
    """Waiting, running, completed, unknown and unreadable tasks are left as they are."""
    node = Node(store, tmp_path)
    put_todo(store, "runs")
    await node.take()
    put_todo(store, "waits")
    store.objects[LAYOUT.completed_key("done")] = old_json("done")
    store.objects[LAYOUT.failed_key("done")] = old_json("done")
    store.objects[LAYOUT.failed_key("torn")] = b"{"
    asked = ["runs", "waits", "done", "nobody", "torn"]
    before = dict(store.objects)
    assert await retry(store, LAYOUT, asked) == [
        ("runs", Retried.NOT_FAILED),
        ("waits", Retried.NOT_FAILED),
        ("done", Retried.COMPLETED),
        ("nobody", Retried.UNKNOWN),
        ("torn", Retried.UNREADABLE),
    ]
    del before[LAYOUT.failed_key("done")]
    assert store.objects == before


async def test_retry_restores_a_todo_that_was_lost(store: MemoryStore, tmp_path: Path) -> None:
    """The claim in state failed holds the task's keys."""
    put_todo(store, "one")
    node = Node(store, tmp_path)
    await node.leases.fail(await node.take(), BAD)
    del store.objects[LAYOUT.todo_key("one")]
    assert await retry(store, LAYOUT, ["one"]) == [("one", Retried.REQUEUED)]
    await node.finish_all()
    verify_all_done(store, {"one"})


async def test_dead_letters_are_looked_at_once(store: MemoryStore, tmp_path: Path) -> None:
    """Ours and old ones cost no reads at each sweep, until something about them changes."""
    put_todo(store, "one")
    wire = Wire(store, lambda *_: None)
    node = Node(wire, tmp_path)
    await node.leases.fail(await node.take(), BAD)
    store.objects[LAYOUT.failed_key("old")] = old_json("old")
    await sweep_late(node)
    wire.requests.clear()
    assert await sweep_late(node) == {}
    assert {name.split()[0] for name in wire.requests} == {"list"}
    del store.objects[LAYOUT.failed_key("one")]
    assert await node.sweeper.sweep_once() == {"dead_letters_written": 1}
    claim = ClaimRecord(task("one"), State.FREE, nonce="another")
    store.objects[LAYOUT.claim_key("one")] = claim.body()
    assert await node.sweeper.sweep_once() == {"dead_letters_deleted": 1}
