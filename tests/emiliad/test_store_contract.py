"""The store's contract: every store does as a plain dictionary would, with conditions obeyed."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from emiliad.errors import Ambiguous, NotFound, PreconditionFailed, StoreError, Throttled
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Absent
from emiliad.store import PAGE, Object, ObjectInfo, Page, Store
from emiliad.stores.local import LocalStore
from emiliad.stores.memory import MemoryStore
from emiliad.stores.patient import PatientStore
from emiliad.stores.s3 import S3Store
from tests.emiliad.weed import Server

T = TypeVar("T")

# Directories, names around `/` in code point order, odd characters; no key is another's folder.
KEYS = [
    "a/b",
    "a-b",
    "a.b",
    "a0",
    "a/b.task",
    "a/c/d",
    "a/c/e e",
    "a/c-d",
    "a/c.d",
    "a/c0",
    "b/é",
    "b/e\u0301",
    "b/日本 🎙",
    "b/'quoted' \"twice\" \\ back",
    "b/new\nline",
    "b/.hidden",
    "c/" + "x" * 255,
]
PREFIXES = ["", "a", "a/", "a/c", "a/c/", "b/", "nothing/", "a/c/d", "a/b.task/"]
BODIES = [b"x", b"y", b"z" * 1000, b"large" * 20_000]

keys = st.sampled_from(KEYS)
bodies = st.sampled_from(BODIES)


def etag(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()


class Contract(RuleBasedStateMachine):
    """Does the same to a store and to a dictionary."""

    make: Callable[[Path], Store]

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.store = type(self).make(self.folder / "root")
        self.model: dict[str, bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.do(self.store.aclose())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder)

    def do(self, request: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(request)

    @rule(key=keys, body=bodies)
    def put(self, key: str, body: bytes) -> None:
        assert self.do(self.store.put(key, body)) == etag(body)
        self.model[key] = body

    @rule(key=keys, body=bodies)
    def put_if_absent(self, key: str, body: bytes) -> None:
        try:
            assert self.do(self.store.put(key, body, if_absent=True)) == etag(body)
            assert key not in self.model
            self.model[key] = body
        except PreconditionFailed:
            assert key in self.model

    @rule(key=keys, body=bodies, expected=bodies)
    def put_if_match(self, key: str, body: bytes, expected: bytes) -> None:
        try:
            self.do(self.store.put(key, body, if_match=etag(expected)))
            assert self.model.get(key) == expected
            self.model[key] = body
        except PreconditionFailed:
            assert self.model.get(key) != expected

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.do(self.store.delete(key))
        self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key: str) -> None:
        try:
            found = self.do(self.store.get(key))
            assert (found.body, found.etag) == (self.model[key], etag(self.model[key]))
        except NotFound:
            assert key not in self.model

    @rule(key=keys)
    def head(self, key: str) -> None:
        try:
            found = self.do(self.store.head(key))
            body = self.model[key]
            assert (found.key, found.size, found.etag) == (key, len(body), etag(body))
        except NotFound:
            assert key not in self.model

    @rule(prefix=st.sampled_from(PREFIXES), after=st.sampled_from(["", *KEYS, "a/c/", "b"]))
    def list(self, prefix: str, after: str) -> None:
        async def listed() -> list[tuple[str, int, str]]:
            pages = self.store.list(prefix, start_after=after)
            return [(i.key, i.size, i.etag) async for page in pages for i in page]

        found = self.do(listed())
        expected = sorted(k for k in self.model if k.startswith(prefix) and k > after)
        assert [key for key, _, _ in found] == expected
        for key, size, tag in found:
            assert size == len(self.model[key])
            assert tag == etag(self.model[key]) or ("-" in tag and size > 64 * 1024)

    @rule(key=keys, body=bodies)
    def upload(self, key: str, body: bytes) -> None:
        path = self.folder / "source"
        path.write_bytes(body)
        assert self.do(self.store.upload(key, path)) == etag(body)
        self.model[key] = body

    @rule(key=keys)
    def download(self, key: str) -> None:
        path = self.folder / "target"
        path.unlink(missing_ok=True)
        try:
            info = self.do(self.store.download(key, path))
            body = self.model[key]
            assert (info.key, info.size, info.etag) == (key, len(body), etag(body))
            assert path.read_bytes() == body
        except NotFound:
            assert key not in self.model
            assert not path.exists()


class Under:
    """A store of which only the keys under a prefix are seen.

    `spared` is a character that the store cannot have in keys; another is written for it.
    """

    def __init__(self, store: Store, prefix: str, spared: str) -> None:
        self._store = store
        self._prefix = prefix
        self._spared = spared

    async def get(self, key: str) -> Object:
        return await self._store.get(self._inner(key))

    async def head(self, key: str) -> ObjectInfo:
        return self._shown(await self._store.head(self._inner(key)))

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        key = self._inner(key)
        return await self._store.put(key, body, if_absent=if_absent, if_match=if_match)

    async def delete(self, key: str) -> None:
        await self._store.delete(self._inner(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        after = self._inner(start_after) if start_after else ""
        async for page in self._store.list(self._inner(prefix), start_after=after):
            yield [self._shown(info) for info in page]

    async def upload(self, key: str, path: Path) -> str:
        return await self._store.upload(self._inner(key), path)

    async def download(self, key: str, path: Path) -> ObjectInfo:
        return self._shown(await self._store.download(self._inner(key), path))

    async def aclose(self) -> None:
        await self._store.aclose()

    def _inner(self, key: str) -> str:
        return self._prefix + key.replace(self._spared, "|")

    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        key = info.key.removeprefix(self._prefix).replace("|", self._spared)
        return replace(info, key=key)


class AnyOrderContract(Contract):
    """The contract of a list as the port states it: keys below folders come in any order."""

    @rule(prefix=st.sampled_from(PREFIXES), data=st.data())
    def list(self, prefix: str, data: st.DataObject) -> None:
        def listed(after: str = "") -> list[ObjectInfo]:
            async def read() -> list[ObjectInfo]:
                pages = self.store.list(prefix, start_after=after)
                return [info async for page in pages for info in page]

            return self.do(read())

        found = listed()
        names = [info.key for info in found]
        assert sorted(names) == sorted(k for k in self.model if k.startswith(prefix))
        if not any("/" in name.removeprefix(prefix) for name in names):
            assert names == sorted(names)
            after = prefix + data.draw(st.text("-.0abcé日", max_size=3))
            assert [i.key for i in listed(after)] == [name for name in names if name > after]
        if names:
            at = data.draw(st.integers(0, len(names) - 1))
            assert [info.key for info in listed(names[at])] == names[at + 1 :]
        for info in found:
            body = self.model[info.key]
            assert (info.size, info.etag) == (len(body), etag(body))


class MemoryContract(Contract):
    make = staticmethod(lambda _: MemoryStore())


class LocalContract(Contract):
    make = staticmethod(lambda root: LocalStore(root, durable=False))


_few = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMemoryStore = MemoryContract.TestCase
TestMemoryStore.settings = _few
TestLocalStore = LocalContract.TestCase
TestLocalStore.settings = _few


# Each takes a second; to shrink one would take minutes.
_fewer = settings(_few, max_examples=8, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def test_seaweedfs_keeps_the_contract(weed_server: Server) -> None:
    """But for the order of lists, and backslashes in keys, which it takes for slashes."""
    hold_to_contract(AnyOrderContract, weed_server.with_bucket(), spared="\\")


def test_moto_keeps_the_contract(moto_server: Server) -> None:
    """But for line ends in keys."""
    hold_to_contract(Contract, moto_server.with_bucket(), spared="\n")


def hold_to_contract(contract: type[Contract], server: Server, *, spared: str) -> None:
    """Runs the state machine; each history has a place of its own in one bucket."""
    places = itertools.count()

    def make(_: Path) -> Store:
        return Under(server.store(), f"history-{next(places)}/", spared)

    held = type("Held", (contract,), {"make": staticmethod(make)})
    run_state_machine_as_test(held, settings=_fewer)


@pytest.fixture(params=["memory", "local", "weed", "moto"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = _made(request, tmp_path)
    yield made
    await made.aclose()


def _made(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "local":
        return LocalStore(tmp_path / "root", durable=False)
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server.with_bucket().store()


# Writers of one key wait a second for each other on SeaweedFS; moto has no lock at all.
racing = pytest.mark.parametrize(
    ("store", "racers"), [("memory", 50), ("local", 50), ("weed", 8)], indirect=["store"]
)


async def test_a_list_comes_in_pages_of_a_thousand(store: Store) -> None:
    """In key order, without an empty page at the end, and may begin anywhere."""
    last = 1 if isinstance(store, S3Store) else PAGE  # a thousand objects take servers seconds
    names = [f"p/{number:04}" for number in range(PAGE + last)]
    await for_each(names, lambda name: store.put(name, b"x"))
    pages = [[info.key for info in page] async for page in store.list("p/")]
    assert [len(page) for page in pages] == [PAGE, last]
    assert [key for page in pages for key in page] == names
    rest = [info.key async for page in store.list("p/", start_after=names[-2]) for info in page]
    assert rest == names[-1:]


@racing
async def test_of_many_creators_one_wins(store: Store, racers: int) -> None:
    """Twenty rounds; in each, all create the same key at once."""
    for number in range(20):
        key = f"race/{number}"
        winner = await the_winner(store, key, racers, ABSENT)
        assert (await store.get(key)).body == winner


@racing
async def test_of_many_swappers_one_wins(store: Store, racers: int) -> None:
    """Twenty rounds; in each, all replace what the winner of the last one wrote."""
    state = b"first"
    await store.put("race", state)
    for _ in range(20):
        state = await the_winner(store, "race", racers, etag(state))
        assert (await store.get("race")).body == state


async def the_winner(store: Store, key: str, racers: int, expected: str | Absent) -> bytes:
    """Lets all write at once, each another body, and returns the only one that was taken."""
    wins: list[bytes] = []

    async def write(who: int) -> None:
        body = f"{who} after {expected}".encode()
        if_match = expected if isinstance(expected, str) else None
        with suppress(PreconditionFailed):
            await store.put(key, body, if_absent=expected is ABSENT, if_match=if_match)
            wins.append(body)

    await for_each(range(racers), write, at_once=racers)
    (winner,) = wins
    return winner


@racing
async def test_no_swap_is_lost(store: Store, racers: int) -> None:
    """All increment one counter by compare-and-swap."""
    await store.put("counter", b"0")
    each = 80 // racers

    async def increment(_: int) -> None:
        for _ in range(each):
            while True:
                found = await store.get("counter")
                with suppress(PreconditionFailed):
                    body = b"%d" % (int(found.body) + 1)
                    await store.put("counter", body, if_match=found.etag)
                    break

    await for_each(range(racers), increment, at_once=racers)
    assert (await store.get("counter")).body == b"%d" % (racers * each)


class Moody(MemoryStore):
    """Fails in the given ways, one request after the other, and then works."""

    def __init__(self, *moods: StoreError) -> None:
        super().__init__()
        self.moods = [*moods]
        self.asked = 0

    async def get(self, key: str) -> Object:
        self._answer()
        return await super().get(key)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        self._answer()
        return await super().put(key, body, if_absent=if_absent, if_match=if_match)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        self._answer()
        async for page in super().list(prefix, start_after=start_after):
            yield page
            self._answer()

    def _answer(self) -> None:
        self.asked += 1
        if self.moods and not isinstance(mood := self.moods.pop(0), NotFound):
            raise mood


WORKS = NotFound("never raised: this request works")


def patient(store: Store, waits: list[float], tries: int = 3) -> PatientStore:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return PatientStore(store, Patience(tries=tries, sleep=sleep))


async def test_what_may_be_repeated_is_repeated() -> None:
    """Lost answers and refusals are waited out, longer each time, and never for ever."""
    waits: list[float] = []
    moody = Moody(Ambiguous("timeout"), Throttled("429"))
    store = patient(moody, waits)
    await store.put("a", b"x")
    assert moody.asked == 3
    assert 0.25 <= waits[0] <= 0.5
    assert waits[1] >= 1.1  # a key takes one write a second
    moody.moods = [Ambiguous("timeout")] * 3
    with pytest.raises(Ambiguous):
        await store.get("a")
    assert (await store.get("a")).body == b"x"


async def test_a_conditional_write_is_tried_once() -> None:
    """Its repetition would meet its own success; only who reads back may repeat it."""
    for conditions in (("absent", None), ("", "etag")):
        moody = Moody(Ambiguous("timeout"))
        with pytest.raises(Ambiguous):
            await patient(moody, []).put(
                "a", b"x", if_absent=bool(conditions[0]), if_match=conditions[1]
            )
        assert moody.asked == 1


async def test_a_listing_that_breaks_off_goes_on_where_it_was() -> None:
    """No key is shown twice, none is left out."""
    moody = Moody(Ambiguous("a"), WORKS, Ambiguous("b"), Throttled("c"), WORKS, WORKS, WORKS)
    names = [f"p/{number:04}" for number in range(2 * PAGE + 1)]
    moody.objects = dict.fromkeys(names, b"x")
    waits: list[float] = []
    found = [info.key async for page in patient(moody, waits).list("p/") for info in page]
    assert found == names
    assert len(waits) == 3
    moody.moods = [Ambiguous("down")] * 3
    with pytest.raises(Ambiguous):
        [page async for page in patient(moody, waits).list("p/")]
