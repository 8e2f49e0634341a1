"""The probe: a store that does not obey conditions is found out, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emiliad.errors import Ambiguous, StoreUnusable
from emiliad.patience import Patience
from emiliad.probe import RACERS, honours_conditions
from emiliad.store import Store
from emiliad.stores.local import LocalStore
from emiliad.stores.memory import MemoryStore
from emiliad.stores.patient import PatientStore
from tests.emiliad.careless_server import CarelessServer
from tests.emiliad.fault_proxy import Fault, FaultProxy
from tests.emiliad.queue_kit import Wire
from tests.emiliad.rig import Bucket
from tests.emiliad.weed import Server

PREFIX = "tasks/probes/"
QUICK = Patience(first_s=0.01)


async def keys(store: Store) -> list[str]:
    return [info.key async for page in store.list("") for info in page]


@pytest.mark.parametrize("kind", ["memory", "local", "weed", "moto"])
async def test_good_stores_pass_and_stay_clean(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The short probe and the long one; moto is spared the race, which it may lose."""
    store: Store
    match kind:
        case "memory":
            store = MemoryStore()
        case "local":
            store = LocalStore(tmp_path / "bucket", durable=False)
        case _:
            store = request.getfixturevalue(f"{kind}_server").with_bucket().store()
    racers = {"memory": RACERS, "local": RACERS, "weed": 8, "moto": 1}[kind]
    await honours_conditions(store, PREFIX)
    await honours_conditions(store, PREFIX, racers=racers)
    assert await keys(store) == []
    await store.aclose()


async def test_the_short_probe_is_cheap() -> None:
    """Three writes and a delete: a daemon does it at each start."""
    wire = Wire(MemoryStore(), lambda number, name: None)
    await honours_conditions(wire, PREFIX)
    assert [request.split()[0] for request in wire.requests] == ["put", "put", "put", "delete"]


@pytest.mark.parametrize(
    ("faults", "racers", "said"),
    [
        ({"ignores": ("If-None-Match",)}, 0, "If-None-Match"),
        ({"ignores": ("If-Match",)}, 0, "If-Match"),
        ({"ignores": ("If-None-Match", "If-Match")}, 0, "If-None-Match"),
        ({"salt": b"salt"}, 2, "MD5"),
        ({"racy": True}, 8, "writers at once"),
    ],
    ids=["ignores If-None-Match", "ignores If-Match", "ignores both", "no MD5", "racy"],
)
async def test_careless_stores_are_refused(faults: dict[str, Any], racers: int, said: str) -> None:
    """With a sentence that says which condition does not hold, and a clean store."""
    with CarelessServer(**faults).running() as server:
        store = Server(server.endpoint, "bucket").store()
        with pytest.raises(StoreUnusable, match=said):
            await honours_conditions(store, PREFIX, racers=racers)
        assert server.objects == {}
        await store.aclose()


def test_the_daemon_does_not_run_on_a_careless_store(tmp_path: Path) -> None:
    """It says so in one sentence and touches no task; exit code 1."""
    with CarelessServer(ignores=("If-None-Match",)).running() as server:
        settings = Server(server.endpoint, "bucket").environment()
        done = Bucket(tmp_path, settings).emiliad("run", "--exit-when-empty")
        assert done.returncode == 1
        assert "ignores If-None-Match" in done.stderr
        assert "Traceback" not in done.stderr
        assert server.objects == {}


async def test_lost_answers_do_not_slander_a_store(weed_bucket: Server) -> None:
    """A probe goes through resets and errors: only what is certain counts."""
    faults = [Fault("reset"), Fault(503), Fault("reset", applied=False), Fault(429, applied=False)]

    with FaultProxy(weed_bucket.endpoint, lambda e: None).running() as proxy:
        store = PatientStore(weed_bucket.store(proxy.endpoint), QUICK)
        proxy.rule = lambda e: faults[e.number // 2 % 4] if e.number % 2 else None
        await honours_conditions(store, PREFIX, racers=2, patience=QUICK)
        assert await keys(store) == []
        await store.aclose()


async def test_a_store_that_does_not_answer_writes_is_unusable() -> None:
    """Rather than taken for one that obeys."""

    def lose(number: int, name: str) -> str | None:
        return "lost before" if name.startswith("put") else None

    with pytest.raises(StoreUnusable, match="does not answer"):
        await honours_conditions(Wire(MemoryStore(), lose), PREFIX, patience=QUICK)


async def test_leftovers_of_killed_probes_are_removed() -> None:
    """By a long probe, once they are an hour old; others' probes under way are left alone."""
    store = MemoryStore()
    wall = 1_800_000_000.0
    for age in (10, 4000):
        await store.put(f"{PREFIX}{int(wall) - age}-0123456789abcdef", b"x")
    await store.put(f"{PREFIX}a note", b"x")
    await honours_conditions(store, PREFIX, racers=2, wall=lambda: wall)
    assert await keys(store) == [f"{PREFIX}{int(wall) - 10}-0123456789abcdef", f"{PREFIX}a note"]


async def test_cleaning_up_is_no_reason_to_fail() -> None:
    """A delete that gets no answer leaves a few bytes, and the verdict stands."""

    def lose(number: int, name: str) -> str | None:
        return "lost before" if name.startswith("delete") else None

    wire = Wire(MemoryStore(), lose)
    await honours_conditions(wire, PREFIX, patience=QUICK)
    with pytest.raises(Ambiguous):
        await wire.delete("x")
