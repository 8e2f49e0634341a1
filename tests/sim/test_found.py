"""What the simulation has found, in as few steps as it takes."""

from __future__ import annotations

import pytest

from emiliad.errors import Ambiguous
from emiliad.patience import Patience
from emiliad.queue.enqueue import enqueue
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
