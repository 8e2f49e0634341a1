"""What the simulation has found, in as few steps as it takes."""

from __future__ import annotations

import pytest

from emiliad.errors import Ambiguous
from emiliad.patience import Patience
from emiliad.queue.enqueue import enqueue
from emiliad.queue.retry import Retried, retry
from emiliad.stores.memory import MemoryStore
from tests.emiliad.queue_kit import LAYOUT, Clock, Wire


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
