"""The queue at a glance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.overview import Reader
from emiliad.queue.tasks import todo_body
from emiliad.stores.memory import MemoryStore
from emiliad.types import Failure
from tests.emiliad.queue_kit import (
    LAYOUT,
    TTL_S,
    WALL_S,
    Clock,
    Node,
    Wire,
    content,
    put_todo,
    task,
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


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
    """Audio hours of very many tasks are extrapolated, and say so; few more are read when more
    are completed."""
    for number in range(6000):
        body = {"episode_id": f"{number}", "audio_seconds": 1800, "outputs": {}}
        store.objects[LAYOUT.completed_key(f"{number}")] = json.dumps(body).encode()
    wire = Wire(store, lambda *_: None)
    now = [WALL_S]
    reader = Reader(wire, LAYOUT, wall=lambda: now[0])
    found = await reader.overview()
    assert found.estimated
    assert found.audio_hours == pytest.approx(3000.0)
    assert found.eta_s is None
    assert 1000 <= sum(name.startswith("get") for name in wire.requests) <= 2500
    wire.requests.clear()
    for number in range(6000, 6100):
        store.objects[LAYOUT.completed_key(f"{number}")] = b"{}"
    now[0] += 600
    assert (await reader.overview()).completed == 6100
    assert sum(name.startswith("get") for name in wire.requests) <= 100


async def test_many_claims_are_estimated(store: MemoryStore) -> None:
    """A look reads some thousand claims at most; the next ones read the others."""
    stamp = Stamp("node", "n", WALL_S)
    for number in range(6000):
        name = f"{number:04}"
        record = ClaimRecord(task(name)).lease_to(stamp, task(name))
        free = record.hand_back(stamp)
        store.objects[LAYOUT.claim_key(name)] = (free if number % 2 else record).body()
        store.objects[LAYOUT.todo_key(name)] = todo_body(task(name))
    wire = Wire(store, lambda *_: None)
    reader = Reader(wire, LAYOUT, wall=lambda: WALL_S)
    first = await reader.overview()
    assert first.estimated
    assert sum(name.startswith("get") for name in wire.requests) == 2500
    for _ in range(2):
        last = await reader.overview()
    assert (last.todo, last.fresh, last.estimated) == (3000, 3000, False)


async def test_dead_letters_need_no_reading(store: MemoryStore) -> None:
    """Their name says it all."""
    for number in range(100):
        for key in (LAYOUT.todo_key, LAYOUT.claim_key, LAYOUT.failed_key):
            store.objects[key(f"{number}")] = b"{}"
    wire = Wire(store, lambda *_: None)
    assert (await Reader(wire, LAYOUT).overview()).failed == 100
    assert {name.split()[0] for name in wire.requests} == {"list"}


async def test_watching_does_not_list_what_is_completed_again_and_again(
    store: MemoryStore, tmp_path: Path
) -> None:
    """A task that left the queue is completed; after some minutes all are listed."""
    clock = Clock()
    for number in range(5):
        put_todo(store, f"{number}")
    node = Node(store, tmp_path, clock=clock)
    wire = Wire(store, lambda *_: None)
    reader = Reader(wire, LAYOUT, wall=lambda: WALL_S + clock.now)
    assert (await reader.overview()).todo == 5
    wire.requests.clear()
    await node.work(await node.take())
    found = await reader.overview()
    assert (found.todo, found.completed, found.tasks_per_hour > 0) == (4, 1, True)
    assert f"list {LAYOUT.completed}" not in wire.requests
    put_todo(store, "between two looks")
    for _ in range(2):
        await node.work(await node.take())
    clock.now += 301
    found = await reader.overview()
    assert (found.todo, found.completed) == (3, 3)
    assert f"list {LAYOUT.completed}" in wire.requests
