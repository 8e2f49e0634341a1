"""Events on the target: named, few, and in nobody's way."""

from __future__ import annotations

import anyio

from emiliad.autokick.model import Target
from emiliad.kube.events import Events
from emiliad.kube.feud import Feud
from ops.rig.apiserver import ApiServer
from ops.rig.objects import Objects
from tests.kube.rig import NAMESPACE, TARGET, Wire, background
from tests.sim.loop import run

OBJECT = Target(name=TARGET, namespace=NAMESPACE, uid="u-1")


def events_on(server: ApiServer) -> Events:
    return Events(Wire(server), namespace=NAMESPACE, kind="Deployment", name=TARGET)


def test_an_event_says_on_what_and_why() -> None:
    """`kubectl describe` finds it by the target's name and uid."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        events = events_on(server)
        async with background(events.run):
            events.say("Yielded", "team/a waits", warning=False, target=OBJECT)
            await anyio.sleep(1)
        (event,) = server.objects.all("events")
        about = event["involvedObject"]
        assert (about["kind"], about["name"], about["uid"]) == ("Deployment", TARGET, "u-1")
        assert (event["reason"], event["message"]) == ("Yielded", "team/a waits")
        assert event["type"] == "Normal"

    run(story())


def test_events_are_few() -> None:
    """The same words once in ten minutes, numbers aside; of other words ten, then one in 30 s."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        events = events_on(server)
        async with background(events.run):
            for second in range(60):
                events.say("Frozen", f"last heard of {second} s ago", warning=True, target=None)
                await anyio.sleep(1)
            assert len(server.objects.all("events")) == 1
            for letter in "abcdefghijklmnopqrstuvwxyz":
                events.say("Yielded", f"team/{letter} waits", warning=False, target=None)
                await anyio.sleep(1)
            assert len(server.objects.all("events")) <= 1 + 10 + 1
            await anyio.sleep(600)
            events.say("Frozen", "last heard of 9 s ago", warning=True, target=None)
            await anyio.sleep(1)
            assert server.objects.all("events")[-1]["reason"] == "Frozen"

    run(story())


def test_a_slow_server_delays_nobody() -> None:
    """Saying returns at once; what nobody could be told in time is dropped, oldest first."""

    async def story() -> None:
        server = ApiServer(Objects(), clock=anyio.current_time)
        wire = Wire(server, parted=True)
        events = Events(wire, namespace=NAMESPACE, kind="Deployment", name=TARGET)
        async with background(events.run):
            began = anyio.current_time()
            for letter in "abc":
                events.say("Yielded", letter, warning=False, target=None)
            assert anyio.current_time() == began
            await anyio.sleep(30)
            wire.parted = False
            events.say("Yielded", "d", warning=False, target=None)
            await anyio.sleep(30)
        assert "d" in [event["message"] for event in server.objects.all("events")]

    run(story())


def test_a_feud_is_many_foreign_changes_in_a_minute() -> None:
    """Our own writes, a person's few, and changes far apart are none."""
    feud = Feud()
    for now in range(100):
        feud.wished(now)
        assert feud.opponent(now, float(now)) is None
    for now in range(100, 1000, 20):
        assert feud.opponent(-now, float(now)) is None
    told = [feud.opponent(-1000 - now, 1000.0 + now) for now in range(10)]
    assert told[-1] is not None
    assert feud.opponent(-1009, 1009 + 119) is not None
    assert feud.opponent(-1009, 1009 + 121) is None
