"""The mirror of a collection: it tells the truth, says how old it is, and never gives up."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from emiliad.kube import reflector as module
from emiliad.kube.api import PODS, Json
from emiliad.kube.client import connected
from emiliad.kube.errors import Gone
from emiliad.kube.reflector import RESTARTS, Reflector, Source
from emiliad.metrics import AUTOKICK_RESTARTS
from ops.rig.apiserver import ApiServer
from ops.rig.http import Fault, Front
from ops.rig.objects import Objects
from ops.rig.rbac import Request
from tests.kube.rig import NAMESPACE, Wire, access_to, background, until
from tests.sim.loop import run

SOURCE = Source("pods", PODS.path(NAMESPACE))


def name_of(item: Json) -> str:
    return str(item["metadata"]["name"])


@dataclass(slots=True)
class Mirrored:
    """A mirror of some pods' names, and what it counted."""

    server: ApiServer
    reflector: Reflector[str]
    front: Front | None = None
    restarts: list[str] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)

    def add(self, *names: str) -> None:
        for name in names:
            self.server.objects.create("pods", NAMESPACE, {"metadata": {"name": name}, "spec": {}})

    def shows(self, *names: str) -> bool:
        return sorted(self.reflector.values()) == sorted(names)


def mirrored(api: object, server: ApiServer, **options: object) -> Mirrored:
    restarts: list[str] = []
    changes: list[int] = []
    reflector = Reflector(
        api,  # type: ignore[arg-type]
        SOURCE,
        name_of,
        changed=lambda: changes.append(1),
        restarted=restarts.append,
        rng=random.Random(1),
        **options,  # type: ignore[arg-type]
    )
    return Mirrored(server, reflector, None, restarts, changes)


@asynccontextmanager
async def over_http(choose: Callable[[Request], Fault]) -> AsyncIterator[Mirrored]:
    """A running mirror over HTTP; `choose` picks each request's fault."""
    server = ApiServer(bookmark_s=0.1)
    front = Front(server, choose)
    async with front.serving(), connected(access_to(front.url)) as api:
        made = mirrored(api, server)
        made.front = front
        async with background(made.reflector.run):
            yield made


TROUBLE = {
    "cut": Fault(cut_after=1),
    "ended in a line": Fault(end_after=1),
    "half-open": Fault(silent_after=1),
    "aborted": Fault(abort=True),
    "bad gateway": Fault(status=502, text="<html>"),
    "not JSON": Fault(status=200, text="no JSON\n"),
    "too many requests": Fault(status=429),
    "expired": Fault(status=410),
    "unauthorised": Fault(status=401),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_the_mirror_outlives_every_trouble(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests in a row go wrong in the same way; then it shows the truth again."""
    monkeypatch.setattr(module, "SILENCE_S", 0.4)
    faults: list[Fault] = []
    async with over_http(lambda _: faults.pop() if faults else Fault()) as made:
        made.add("a")
        await until(lambda: made.shows("a"))
        faults += [TROUBLE[trouble]] * 3
        assert made.front is not None
        made.add("b", "c")
        made.server.objects.compact()  # ends every watch with a 410
        made.add("d", "e")
        await until(lambda: made.shows("a", "b", "c", "d", "e"))
        await until(lambda: not faults)
        made.server.objects.delete("pods", NAMESPACE, "b")
        await until(lambda: made.shows("a", "c", "d", "e"))
        await until(lambda: made.reflector.problem is None)


async def test_selectors_hide_what_stops_matching() -> None:
    """The server sends an object that leaves the selection as DELETED; it disappears."""
    server = ApiServer()
    front = Front(server)
    async with front.serving(), connected(access_to(front.url)) as api:
        source = Source("pods", PODS.path(None), {"fieldSelector": "spec.nodeName="})
        reflector = Reflector(api, source, name_of, changed=lambda: None)
        async with background(reflector.run):
            server.objects.create("pods", "x", {"metadata": {"name": "a"}, "spec": {}})
            await until(lambda: reflector.values() == ["a"])
            server.objects.update("pods", "x", "a", lambda p: p["spec"].update(nodeName="n"))
            await until(lambda: reflector.values() == [])


# -- in virtual time


def test_a_quiet_collection_costs_one_watch_in_five_minutes() -> None:
    """No list is repeated while the server speaks up now and then."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        made = mirrored(Wire(server), server)
        async with background(made.reflector.run):
            await until(lambda: made.reflector.synced)
            begin, oldest = len(server.audit), 0.0
            for _ in range(3600):
                await anyio.sleep(1)
                oldest = max(oldest, made.reflector.age_s())
        assert server.count("list", since=begin) == 0
        assert 3600 / 300 <= server.count("watch", since=begin) <= 3600 / 240 + 1
        assert oldest < 90
        assert set(made.restarts) == {"ended"}

    run(story())


def test_a_server_without_bookmarks_is_listed_before_the_mirror_counts_as_stale() -> None:
    """Silence may be peace or a dead connection; only a list tells."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time, bookmark_s=float("inf"))
        made = mirrored(Wire(server), server)
        async with background(made.reflector.run):
            await until(lambda: made.reflector.synced)
            for _ in range(600):
                await anyio.sleep(1)
                assert made.reflector.age_s() < 90
        assert 5 <= server.count("list") <= 9

    run(story())


def test_a_half_open_connection_is_found_out() -> None:
    """Nothing comes, nothing breaks: after 80 s of silence it is replaced."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        wire = Wire(server)
        made = mirrored(wire, server)
        async with background(made.reflector.run):
            await until(lambda: made.reflector.synced)
            wire.parted = True
            made.add("a")
            await until(lambda: "silent" in made.restarts, limit_s=90)
            wire.parted = False
            await until(lambda: made.shows("a"), limit_s=60)

    run(story())


@pytest.mark.parametrize("trouble", ["refused", "gone", "ended"])
def test_a_server_that_keeps_failing_is_not_hammered(trouble: str) -> None:
    """Ten minutes of refusals, expired versions or streams that end at once: pauses grow."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        wire = Wire(server)
        made = mirrored(wire, server)

        async def watch(*_: object, opened: Callable[[], None], **__: object) -> None:
            server.note(server.asked("GET", SOURCE.path, {"watch": "true"}), 200)
            opened()
            if trouble == "gone":
                raise Gone("410")

        if trouble == "refused":
            server.rights = []
        else:
            object.__setattr__(made.reflector, "_api", _Half(wire, watch))
        async with background(made.reflector.run):
            await anyio.sleep(600)
        assert len(server.audit) < 120
        assert trouble in made.restarts

    run(story())


@dataclass(slots=True)
class _Half:
    """An API whose watches are replaced."""

    wire: Wire
    watch: object

    async def call(self, *args: object, **options: object) -> Json:
        return await self.wire.call(*args, **options)  # type: ignore[arg-type]


def test_our_own_write_is_shown_at_once_and_not_undone_by_older_news() -> None:
    """Status changes from before the write are still on their way; the write stands."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        reflector = Reflector(
            Wire(server, latency_s=(0.5, 0.5)),
            SOURCE,
            lambda item: int(item["spec"].get("n", 0)),
            changed=lambda: None,
        )
        server.objects.create("pods", NAMESPACE, {"metadata": {"name": "a"}, "spec": {"n": 0}})
        async with background(reflector.run):
            await until(lambda: reflector.synced)
            server.objects.update("pods", NAMESPACE, "a", lambda p: p["spec"].update(x=1))
            written = server.objects.update("pods", NAMESPACE, "a", lambda p: p["spec"].update(n=7))
            reflector.apply(NAMESPACE, "a", written["metadata"]["resourceVersion"], 7)
            seen = []
            for _ in range(300):
                seen.append(reflector.get(NAMESPACE, "a"))
                await anyio.sleep(0.01)
            assert set(seen) == {7}

    run(story())


def test_news_that_make_no_sense_lead_to_a_list() -> None:
    """An object that cannot be read leaves a doubt; the mirror says so and starts over."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        made = mirrored(Wire(server), server)
        broken = [True]

        def convert(item: Json) -> str:
            if broken[0]:
                raise KeyError("labels")
            return name_of(item)

        object.__setattr__(made.reflector, "_convert", convert)
        async with background(made.reflector.run):
            await until(lambda: made.reflector.synced)
            made.add("a")
            await until(lambda: "makes no sense" in (made.reflector.problem or ""))
            broken[0] = False
            await until(lambda: made.shows("a"))
            assert made.reflector.problem is None

    run(story())


def test_the_reasons_are_those_that_the_metric_knows() -> None:
    """Every label value is there from the start, at 0."""
    assert RESTARTS == AUTOKICK_RESTARTS
