"""Stops that cut a task off are counted in its claim, so that one which never fits is seen."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from emiliad.queue.claims import ClaimRecord, Stamp, State, parse_claim
from emiliad.queue.retry import retry
from emiliad.stores.memory import MemoryStore
from emiliad.types import Failure
from tests.emiliad.queue_kit import LAYOUT, Node, content, put_todo, task

STAMP = Stamp("node", "nonce", 0.0)


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    put_todo(made, "one")
    return made


def said(store: MemoryStore) -> int:
    return int(content(store, LAYOUT.claim_key("one"))["interrupted"])


async def test_a_begun_task_that_is_handed_back_counts(store: MemoryStore, tmp_path: Path) -> None:
    """Not as an attempt; the next owner is told how often it happened."""
    node = Node(store, tmp_path)
    for times in (1, 2, 3):
        claim = await node.take()
        assert (claim.interrupted, claim.attempt) == (times - 1, 1)
        await node.leases.release(claim, interrupted=True)
        assert said(store) == times
    claim = await node.take()
    await node.leases.release(claim)
    assert said(store) == 3  # it only waited


async def test_failures_and_losses_leave_the_count(store: MemoryStore, tmp_path: Path) -> None:
    """Only success and `retry` end it."""
    node = Node(store, tmp_path, max_attempts=1)
    await node.leases.release(await node.take(), interrupted=True)
    await node.leases.fail(await node.take(), Failure("error", "x"))
    assert said(store) == 1
    await retry(store, LAYOUT, ["one"])
    assert said(store) == 0
    claim = await node.take()
    await node.leases.release(claim, interrupted=True)
    await node.work(await node.take())
    assert LAYOUT.claim_key("one") not in store.objects


async def test_a_release_that_was_cut_short_still_counts(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The store is too slow for the first try; the daemon's last words say it as well."""

    class Slow(MemoryStore):
        slow = False

        async def put(
            self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
        ) -> str:
            if self.slow:
                await anyio.sleep_forever()
            return await super().put(key, body, if_absent=if_absent, if_match=if_match)

    slow = Slow()
    slow.objects = store.objects
    node = Node(slow, tmp_path)
    claim = await node.take()
    slow.slow = True
    with anyio.move_on_after(0.01):
        await node.leases.release(claim, interrupted=True)
    assert node.leases.held
    slow.slow = False
    await node.leases.release_all()
    assert said(slow) == 1
    assert parse_claim("one", store.objects[LAYOUT.claim_key("one")]).state is State.FREE


def test_claims_of_older_versions_were_never_interrupted() -> None:
    """A record without the field reads as before; one with it is unharmed by older readers."""
    record = ClaimRecord(task("one")).lease_to(STAMP, task("one"))
    body = json.loads(record.hand_back(STAMP, interrupted=True).body())
    assert body.pop("interrupted") == 1
    old = parse_claim("one", json.dumps(body).encode())
    assert (old.state, old.interrupted, old.owner) == (State.FREE, 0, "node")
    assert parse_claim("one", old.body()) == old
