"""The queue at a glance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emiliad.queue.overview import Reader, overview
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
    """Audio hours of more than five thousand tasks are extrapolated, and say so."""
    for number in range(6000):
        body = {"episode_id": f"{number}", "audio_seconds": 1800, "outputs": {}}
        store.objects[LAYOUT.completed_key(f"{number}")] = json.dumps(body).encode()
    found = await overview(store, LAYOUT)
    assert found.estimated
    assert found.audio_hours == pytest.approx(3000.0)
    assert found.eta_s is None
