"""One node that makes several claims at a time: fast, each task once, and the lonely ones alone."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel

from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.holdings import ALONE_FROM
from emiliad.store import Object
from emiliad.stores.memory import MemoryStore
from emiliad.types import Claim
from tests.emiliad.queue_kit import LAYOUT, Clock, Node, put_todo, task


class Distant(MemoryStore):
    """A store a round trip away; knows how many reads of todos are under way at most."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = 0
        self.most = 0

    async def get(self, key: str) -> Object:
        if not key.startswith(LAYOUT.todo):
            return await super().get(key)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self._travel()
        self.at_once -= 1
        return await super().get(key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        await self._travel()
        etag = await super().put(key, body, if_absent=if_absent, if_match=if_match)
        await self._travel()
        return etag

    async def _travel(self) -> None:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()


async def claim_together(node: Node, askers: int, each: int) -> list[Claim]:
    """What several callers of one node get."""
    claims: list[Claim] = []

    async def ask() -> None:
        for _ in range(each):
            claim = await node.leases.next()
            if claim is not None:
                claims.append(claim)

    async with anyio.create_task_group() as group:
        for _ in range(askers):
            group.start_soon(ask)
    return claims


async def test_claims_are_made_side_by_side(tmp_path: Path) -> None:
    """Four callers wait for the store at the same time, and no task is given out twice."""
    store = Distant()
    for number in range(40):
        put_todo(store, f"{number:02}")
    node = Node(store, tmp_path)
    claims = await claim_together(node, askers=4, each=10)
    assert sorted(claim.task.episode_id for claim in claims) == [f"{n:02}" for n in range(40)]
    assert node.leases.held.keys() == {claim.task.episode_id for claim in claims}
    assert store.most == 4


async def test_more_callers_than_tasks_share_what_there_is(tmp_path: Path) -> None:
    """Who gets none is told so; nobody takes what another call is taking."""
    store = Distant()
    for number in range(3):
        put_todo(store, f"{number}")
    node = Node(store, tmp_path)
    claims = await claim_together(node, askers=8, each=3)
    assert sorted(claim.task.episode_id for claim in claims) == ["0", "1", "2"]
    await node.leases.release_all()
    assert node.leases.held == {}


async def test_a_task_that_runs_alone_is_alone_among_many_callers(tmp_path: Path) -> None:
    """Neither is it taken beside others that are being claimed, nor they beside it."""
    met = 0
    for seed in range(40):
        store = Distant()
        clock = Clock()
        stamp = Stamp("victim", "nonce", 0.0)
        lonely = ClaimRecord(task("lonely"), lost=ALONE_FROM).lease_to(stamp, task("lonely"))
        for number in range(6):
            put_todo(store, f"{number}")
        put_todo(store, "lonely")
        store.objects[LAYOUT.claim_key("lonely")] = lonely.hand_back(stamp).body()
        node = Node(store, tmp_path, f"node-{seed}", clock=clock, seed=seed)
        await node.leases.release(await node.take())  # the page's other candidates are known now
        claims = await claim_together(node, askers=2, each=1)
        names = {claim.task.episode_id for claim in claims}
        assert claims
        assert "lonely" not in names or names == {"lonely"}, names
        met += "lonely" in names
    assert met
