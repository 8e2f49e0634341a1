"""Many nodes and many tasks: what looking, claiming and working cost in requests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.tasks import todo_body
from emiliad.types import Failure
from ops.bench.costs import idle, whole_run
from ops.bench.stores import CountingStore, SortedStore
from tests.emiliad.queue_kit import LAYOUT, TTL_S, Clock, Node, task

MANY = 10_000


def queue(count: int) -> SortedStore:
    store = SortedStore()
    store.fill([LAYOUT.todo_key(f"ep_{number:07}") for number in range(count)], b"")
    for number in range(count):
        name = f"ep_{number:07}"
        store.objects[LAYOUT.todo_key(name)] = todo_body(task(name))
    return store


def dead_letter(name: str) -> bytes:
    """A claim that says that the task has failed."""
    record = ClaimRecord(task(name)).lease_to(Stamp("a", name, 0.0), task(name))
    return record.give_up(Stamp("a", f"{name}!", 0.0), Failure("bad_audio", "silent")).body()


async def test_twenty_nodes_start_at_once(tmp_path: Path) -> None:
    """No herd: hardly a race is lost, each task is leased once, and none lists the whole queue."""
    store = CountingStore(queue(MANY))
    nodes = [Node(store, tmp_path, f"node-{number}") for number in range(20)]
    taken: Counter[str] = Counter()

    async def take(node: Node) -> None:
        for _ in range(50):
            taken[(await node.take()).task.episode_id] += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for node in nodes:
            group.start_soon(take, node)
    claims = taken.total()
    assert claims == len(taken) == 1000
    assert store.counts["lost processing_in_progress"] < 0.1 * claims
    assert store.counts["list processing_todo"] <= 8 * len(nodes)  # of 11 pages each
    assert store.class_a < 1.5 * claims


async def test_nodes_that_work_on_look_at_two_pages(tmp_path: Path) -> None:
    """In the steady state a look is a page of todos and one of claims, whatever else there is."""
    store = CountingStore(queue(MANY))
    clock = Clock()
    nodes = [Node(store, tmp_path, f"node-{number}", clock) for number in range(20)]
    for node in nodes:
        await node.take()
    store.counts.clear()
    for _ in range(5):
        clock.now += 400.0  # by then what was listed is old
        for node in nodes:
            await node.take()
    for folder in ("processing_todo", "processing_in_progress"):
        assert 100 <= store.counts[f"list {folder}"] <= 105  # a look at the very end takes two
    assert store.counts["lost processing_in_progress"] == 0
    assert store.counts["get processing_in_progress"] <= 4 * 100


async def test_a_page_that_others_work_on_is_left(tmp_path: Path) -> None:
    """A lease that was taken since the listing is found by a look, which costs less than a race;
    after three of them in a row the node lists anew."""
    store = CountingStore(queue(12))
    clock = Clock()
    slow, fast = (Node(store, tmp_path, name, clock) for name in ("slow", "fast"))
    await slow.take()
    for _ in range(10):
        await fast.take()
    clock.now += 10.0
    store.counts.clear()
    await slow.take()
    assert store.counts["lost processing_in_progress"] == 0
    assert store.counts["head processing_in_progress"] <= 3 + 1
    assert store.counts["list processing_todo"] <= 1


async def test_an_idle_node_goes_around_in_parts(tmp_path: Path) -> None:
    """After one whole round without work, a look is a few pages; new work is found all the same."""
    store = CountingStore(queue(12_000))
    for number in range(12_000):
        name = f"ep_{number:07}"
        await store.put(LAYOUT.claim_key(name), dead_letter(name))
    node = Node(store, tmp_path)
    assert await node.leases.next() is None
    assert node.leases.outlook.settled
    complete = 0
    for _ in range(12):
        store.counts.clear()
        assert await node.leases.next() is None
        complete += node.leases.outlook.complete
        assert store.counts["list processing_todo"] <= 6
        assert store.counts["get processing_in_progress"] == 0
        assert node.leases.outlook.todo == 12_000
    assert complete >= 3
    await store.put(LAYOUT.todo_key("ep_0006000a"), todo_body(task("ep_0006000a")))
    looks = 0
    while (claim := await node.leases.next()) is None:
        looks += 1
        assert looks <= 4
    assert claim.task.episode_id == "ep_0006000a"


async def test_an_idle_node_reads_few_renewed_claims(tmp_path: Path) -> None:
    """Others' renewals change their claims again and again; a free one is found in time."""
    store = CountingStore(queue(600))
    clock = Clock()
    busy, waits = (Node(store, tmp_path, name, clock) for name in ("busy", "waits"))
    claims = [await busy.take() for _ in range(600)]
    assert await waits.leases.next() is None
    store.counts.clear()
    for _ in range(3):
        clock.now += 90.0
        await busy.leases.renew_all()
        assert await waits.leases.next() is None
    assert store.counts["get processing_in_progress"] == 3 * 100
    await busy.leases.release(claims[0])
    looks = 0
    while await waits.leases.next() is None:
        looks += 1
        assert looks <= 7
    assert waits.leases.held.keys() == {claims[0].task.episode_id}


async def test_a_lease_that_expires_unread_is_taken_over(tmp_path: Path) -> None:
    """Few claims that change are read, but none that stands still for long is overlooked."""
    store = CountingStore(queue(600))
    clock = Clock()
    dies, waits = (Node(store, tmp_path, name, clock) for name in ("dies", "waits"))
    for _ in range(600):
        await dies.take()
    assert await waits.leases.next() is None
    await dies.leases.renew_all()
    assert await waits.leases.next() is None
    clock.now += 1.2 * TTL_S
    for _ in range(600):
        assert (await waits.take()).lost == 1


@pytest.mark.parametrize(("tasks", "nodes", "waiting"), [(100, 1, 0), (100, 4, 0), (400, 20, 3000)])
async def test_a_task_takes_five_class_a_requests(tasks: int, nodes: int, waiting: int) -> None:
    """At most, besides its published objects and renewals; sweeps and looking for it included."""
    bill = await whole_run(tasks=tasks, nodes=nodes, waiting=waiting)
    assert bill.published == bill.tasks * (4 + 3)
    assert bill.counts["put processing_completed"] == bill.tasks
    assert bill.counts["list processed"] == bill.tasks  # the proof that its outputs are there
    assert bill.own_class_a <= 5.0
    assert bill.class_b <= 8.0 * bill.tasks
    assert bill.todo_a <= 1.3  # by the producer, before: its todo, and the share of a scan
    assert bill.todo_b <= 1.1


async def test_idle_nodes_cost_little() -> None:
    """An empty queue takes one listing a look; dead letters are read once and for all."""
    empty, letters = await idle(failed=0), await idle(failed=100)
    assert (empty.look_a, empty.look_b, empty.sweep_a, empty.sweep_b) == (1, 0, 3, 0)
    assert (letters.look_a, letters.look_b, letters.sweep_a, letters.sweep_b) == (2, 0, 3, 0)
