"""What the simulation has found, in as few steps as it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from emiliad.errors import Ambiguous
from emiliad.patience import Patience
from emiliad.queue.enqueue import enqueue
from emiliad.queue.retry import Retried, retry
from emiliad.queue.tasks import hashed_id
from emiliad.stores.memory import MemoryStore
from tests.emiliad.queue_kit import LAYOUT, Clock, Node, Wire, content, put_todo


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def patience() -> Patience:
    return Patience(tries=2, sleep=Clock().sleep)


async def test_a_todo_that_may_be_missing_is_not_called_existing(
    store: MemoryStore, patience: Patience
) -> None:
    """A write of unknown fate ends `enqueue` with an error: it is to be run again."""
    store.objects["raw_audio/en/one.mp3"] = b"sound"
    wire = Wire(store, lambda number, name: "lost before" if name.startswith("put ") else None)
    with pytest.raises(Ambiguous, match="enqueue again"):
        await enqueue(wire, LAYOUT, patience=patience)
    assert (await enqueue(store, LAYOUT)).created == 1


async def test_a_dead_letter_outlives_a_todo_that_may_be_missing(
    store: MemoryStore, patience: Patience
) -> None:
    """The old scripts' dead letter is the only trace of its task until the todo is there."""
    letter = LAYOUT.failed_key("one")
    store.objects[letter] = b'{"episode_id": "one", "audio_key": "raw_audio/en/one.mp3"}'
    wire = Wire(store, lambda number, name: "lost before" if name.startswith("put ") else None)
    result = await retry(wire, LAYOUT, ["one"], patience=patience)
    assert result == [("one", Retried.UNSURE)]
    assert letter in store.objects
    assert await retry(store, LAYOUT, ["one"]) == [("one", Retried.REQUEUED)]
    assert LAYOUT.todo_key("one") in store.objects


ONE, OTHER = "raw_audio/fr/one.mp3", "raw_audio/de/one.mp3"  # of one name, so of one id at first


class Meddled(MemoryStore):
    """A store in which something else happens right before the first PUT."""

    def __init__(self, meddle: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._meddle: Callable[[], Awaitable[None]] | None = meddle

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        meddle, self._meddle = self._meddle, None
        if meddle is not None:
            await meddle()
        return await super().put(key, body, if_absent=if_absent, if_match=if_match)


async def test_an_id_taken_at_the_last_moment_is_not_mistaken_for_ones_own() -> None:
    """Two scans at once give two files of one name the same id; the slower one takes another."""

    async def enqueue_one() -> None:
        put_todo(meddled, "one", ONE)

    meddled = Meddled(enqueue_one)
    meddled.objects[OTHER] = b"sound"
    report = await enqueue(meddled, LAYOUT)
    assert (report.created, report.existing) == (1, 0)
    assert content(meddled, LAYOUT.todo_key("one"))["audio_key"] == ONE
    assert content(meddled, LAYOUT.todo_key(hashed_id(OTHER)))["audio_key"] == OTHER


async def test_a_todo_under_a_finished_id_is_not_the_only_one(tmp_path: Path) -> None:
    """Whoever finished that id may delete its todo once more, whatever it is about by then."""

    async def finish_one() -> None:
        put_todo(meddled, "one", ONE)
        node = Node(meddled, tmp_path)
        await node.work(await node.take())

    meddled = Meddled(finish_one)
    meddled.objects[OTHER] = b"sound"
    report = await enqueue(meddled, LAYOUT)
    assert report.created == 1
    await meddled.delete(LAYOUT.todo_key("one"))  # of the publisher's: it was repeated, and late
    assert content(meddled, LAYOUT.todo_key(hashed_id(OTHER)))["audio_key"] == OTHER
