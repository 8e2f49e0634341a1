"""Todos with names that are of no use: moved, buried or warned of, and never in the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from emiliad.errors import Ambiguous
from emiliad.queue.tasks import hashed_id
from emiliad.stores.memory import MemoryStore
from tests.emiliad.queue_kit import (
    LAYOUT,
    TTL_S,
    Killed,
    Node,
    Wire,
    content,
    ids,
    put_todo,
    verify_all_done,
)

LONG = "x" * 997  # with prefix and suffix the 1,024 bytes that a key may have
AUDIO = f"raw_audio/en/{'x' * 900}.mp3"
HOME = hashed_id(AUDIO)


def at(number: int, fate: str) -> Callable[[int, str], str | None]:
    return lambda current, _: fate if current == number else None


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    put_todo(store, LONG, AUDIO)
    return store


@pytest.mark.parametrize("name", [LONG, "y" * 201, "é" * 101, "tab\there", "line\u2028end"])
async def test_a_task_with_an_unusable_id_is_done_under_another(tmp_path: Path, name: str) -> None:
    """The hashed id of its raw file, as `enqueue` would call it; nothing is left of the other."""
    store = MemoryStore()
    put_todo(store, name, AUDIO)
    put_todo(store, "two")
    await Node(store, tmp_path).finish_all()
    verify_all_done(store, {HOME, "two"})
    assert content(store, LAYOUT.completed_key(HOME))["audio_key"] == AUDIO


async def test_ids_of_two_hundred_bytes_stay(tmp_path: Path) -> None:
    """The limit is inclusive."""
    store = MemoryStore()
    put_todo(store, "é" * 100)
    await Node(store, tmp_path).finish_all()
    verify_all_done(store, {"é" * 100})


async def test_a_queue_of_nothing_else_is_not_empty(store: MemoryStore, tmp_path: Path) -> None:
    """A look that saw such a task does not say that everything is settled."""
    node = Node(store, tmp_path)
    assert await node.leases.next() is None
    assert not node.leases.outlook.settled
    assert (await node.take()).task.episode_id == HOME


@pytest.mark.parametrize("fate", ["before", "after", "lost before", "lost after"])
async def test_a_move_that_is_cut_off_loses_nothing(tmp_path: Path, fate: str) -> None:
    """At any request; the task is done once, by this node or another."""
    for point in range(1, 9):
        store = MemoryStore()
        put_todo(store, LONG, AUDIO)
        wire = Wire(store, at(point, fate))
        node = Node(wire, tmp_path)
        try:
            for _ in range(2):
                await node.leases.next()
        except Killed:
            pass
        assert ids(store, LAYOUT.todo) & {LONG, HOME}
        await Node(store, tmp_path, "node-b").finish_all()
        verify_all_done(store, {HOME})


async def test_an_old_claim_of_an_unusable_id_goes_with_its_todo(tmp_path: Path) -> None:
    """Else the sweep would put that todo again, for ever."""
    store = MemoryStore()
    old = {"episode_id": "y" * 201, "language": "en", "audio_key": AUDIO}
    store.objects[LAYOUT.claim_key("y" * 201)] = json.dumps(old).encode()
    node = Node(store, tmp_path)
    await node.sweeper.sweep_once()
    node.clock.now += 1.2 * TTL_S
    await node.sweeper.sweep_once()
    assert ids(store, LAYOUT.todo) == {"y" * 201}
    await node.finish_all()
    verify_all_done(store, {HOME})


@pytest.mark.parametrize(
    ("body", "reason"), [(b"", "not JSON"), (b'{"episode_id": "y"}', "names no audio")]
)
async def test_what_names_no_audio_is_a_dead_letter(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    """It says which todo it was and what is wrong with it."""
    store = MemoryStore()
    key = LAYOUT.todo_key("y" * 201)
    store.objects[key] = body
    node = Node(store, tmp_path)
    for _ in range(2):
        assert await node.leases.next() is None
    assert (node.leases.given_up, node.leases.outlook.settled) == (1, True)
    letter = content(store, LAYOUT.failed_key(hashed_id(key)))
    (incident,) = letter["attempts"]
    assert incident["kind"] == "bad_task"
    assert key in incident["reason"]
    assert reason in incident["reason"]
    assert ids(store, LAYOUT.todo) == set()


async def test_what_is_not_certain_is_not_removed(store: MemoryStore, tmp_path: Path) -> None:
    """A new todo of unknown fate leaves the old one in its place."""
    wire = Wire(store, lambda _, name: "lost before" if name.startswith("put ") else None)
    node = Node(wire, tmp_path)
    for _ in range(3):
        assert await node.leases.next() is None
        assert not node.leases.outlook.settled
    assert ids(store, LAYOUT.todo) == {LONG}
    with pytest.raises(Ambiguous):
        await node.leases._rehome()


async def test_an_id_with_a_slash_is_warned_of(tmp_path: Path) -> None:
    """It is no task, and nothing of it is touched; one sentence says so, once."""
    store = MemoryStore()
    put_todo(store, "one")
    put_todo(store, "a/b")
    before = store.objects[f"{LAYOUT.todo}a/b.task"]
    with capture_logs() as logs:
        await Node(store, tmp_path).finish_all()
    assert store.objects[f"{LAYOUT.todo}a/b.task"] == before
    (said,) = [line for line in logs if line["event"] == "todo.ignored"]
    assert said["key"].endswith("a/b.task")
    assert "slash" in said["reason"]
