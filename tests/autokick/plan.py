"""What happens in one history: drawn from a seed, and fixed before it begins."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from emiliad.autokick.model import Owner, Policy, Requests
from ops.cluster.keeper import Wire
from ops.cluster.objects import GPU, Life, a_pod
from ops.cluster.scheduler import Habits

GIB = 2.0**30
NODE: Requests = {GPU: 8, "cpu": 40, "memory": 600 * GIB}
WHOLE: Requests = {GPU: 8, "cpu": 32, "memory": 512 * GIB}  # one of our pods takes a node
PART: Requests = {GPU: 2, "cpu": 8, "memory": 128 * GIB}  # four of ours share one

# Who may come, besides ordinary work: in truth for nobody of these we are to make room.
UNCOUNTED = ("gated", "daemon", "mirror", "elsewhere", "excluded", "kicker")
HOPELESS = ("great", "volume", "selector", "exotic")


@dataclass(frozen=True, slots=True)
class Work:
    """A gang of someone else's pods."""

    at: float
    name: str
    kind: str  # work, an entry of UNCOUNTED, or one of HOPELESS
    requests: Requests
    size: int = 1
    apart_s: float = 0.0
    pull_s: float = 2.0
    run_s: float | None = None
    again_s: float | None = None  # replaced after waiting for so long
    gap_s: float = 0.0
    priority: int = 0
    serial_owner: bool = False  # each pod has an owner of its own, as a CronJob's have
    selector: str = ""  # the node that it must have


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to nodes, to our pods, to the target or to the autokicker."""

    at: float
    kind: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A history before it happens."""

    seed: int
    nodes: int
    ours: Requests
    kind: str
    policy: Policy
    wire: Wire
    habits: Habits
    priority: int  # of our pods
    drain_s: float
    load_s: float
    quota: int | None
    works: tuple[Work, ...]
    events: tuple[Event, ...]
    horizon_s: float
    hopeless_at: float | None = None  # from then on nobody waits but who cannot be helped

    def with_policy(self, **changes: object) -> Plan:
        return dataclasses.replace(
            self,
            policy=dataclasses.replace(self.policy, **changes),  # type: ignore[arg-type]
        )


EVENTS = (
    "node joins",
    "node dies",
    "node cordoned",
    "node back",
    "readiness flakes",
    "our pod crashes",
    "someone scales up",
    "someone scales down",
    "paused",
    "resumed",
    "silence",
    "heard again",
    "another leads",
    "we lead",
    "takes over",
)


def plan_of(seed: int) -> Plan:
    """A history of everything that may happen; equal for equal seeds."""
    rng = random.Random(f"autokick {seed}")
    horizon = rng.choice((900.0, 1800.0, 3600.0))
    kind = "DaemonSet" if rng.random() < 0.1 else "Deployment"
    ours = WHOLE if kind == "DaemonSet" or rng.random() < 0.7 else PART
    nodes = rng.randint(1, 5) if ours is WHOLE else rng.randint(1, 3)
    return Plan(
        seed=seed,
        nodes=nodes,
        ours=ours,
        kind=kind,
        policy=_policy(rng, kind),
        wire=_wire(rng),
        habits=Habits(rng.random() < 0.7, rng.random() < 0.3),
        priority=-1000 if rng.random() < 0.2 else 0,
        drain_s=rng.choice((1.0, 10.0, 25.0)),
        load_s=60.0,
        quota=rng.randint(1, nodes) if rng.random() < 0.05 else None,
        works=tuple(_work(rng, n, horizon, nodes) for n in range(rng.randint(0, 5))),
        events=_events(rng, horizon),
        horizon_s=horizon,
    )


def _policy(rng: random.Random, kind: str) -> Policy:
    return Policy(
        mode="needed" if rng.random() < 0.25 else "all",
        kind=kind,
        buffer=rng.choice((1, 1, 1, 1, 2, 0)),
        max_replicas=rng.randint(0, 4) if rng.random() < 0.1 else None,
    )


def _wire(rng: random.Random) -> Wire:
    sees_nodes = rng.random() < 0.3
    return Wire(
        sees_bound=rng.random() < 0.5,
        sees_nodes=sees_nodes,
        lag_s=rng.choice((0.02, 0.1, 0.2)),
        fails=rng.choice((0.0, 0.0, 0.25)),
    )


def _work(rng: random.Random, number: int, horizon: float, nodes: int) -> Work:
    kind = rng.choices(("work", *UNCOUNTED, *HOPELESS), (18, *[1] * 6, *[2] * 4))[0]
    gpus = rng.choice((1, 1, 2, 4, 8))
    again = rng.choice((None, None, 60.0, 200.0, 400.0)) if kind in HOPELESS else None
    return Work(
        at=rng.uniform(0, 0.7) * horizon,
        name=f"w{number}",
        kind=kind,
        requests=_requests(rng, kind, gpus),
        size=rng.choice((1, 1, 1, 2, nodes, 2 * nodes)),
        apart_s=rng.choice((0.0, 0.0, 5.0, 15.0)),
        pull_s=rng.choice((1.0, 20.0, 300.0)),
        run_s=rng.choice((None, 20.0, 200.0, 1000.0)),
        again_s=again,
        gap_s=rng.choice((0.0, 0.0, 45.0)) if again else 0.0,
        priority=rng.choice((0, 0, 100)),
        serial_owner=rng.random() < 0.3,
        selector=f"n{rng.randrange(nodes)}" if kind == "work" and rng.random() < 0.15 else "",
    )


def _requests(rng: random.Random, kind: str, gpus: float) -> Requests:
    if kind == "great":
        return {GPU: 16, "cpu": 4}
    if kind == "exotic":
        return {"example.com/fpga": 1, "cpu": 1}
    if kind == "work" and rng.random() < 0.2:
        return {"cpu": rng.choice((2.0, 12.0, 30.0)), "memory": 4 * GIB}  # no GPU at all
    return {GPU: gpus, "cpu": gpus, "memory": gpus * GIB}


def _events(rng: random.Random, horizon: float) -> tuple[Event, ...]:
    events = []
    undo = {
        "paused": "resumed",
        "silence": "heard again",
        "another leads": "we lead",
        "node cordoned": "node back",
    }
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        at, kind = rng.uniform(0, 0.8) * horizon, rng.choice([*EVENTS])
        number = rng.randrange(100)
        events.append(Event(at, kind, number))
        if kind in undo:
            events.append(Event(at + rng.choice((5.0, 60.0, 150.0)), undo[kind], number))
    return tuple(sorted(events, key=lambda event: event.at))


def quiet(seed: int) -> Plan:
    """Nobody else is there but who has a place and pulls an image; nodes join, readiness flakes."""
    rng = random.Random(f"quiet {seed}")
    plan = plan_of(seed)
    early = Work(0.0, "early", "work", {GPU: 1, "cpu": 1}, size=rng.randint(0, 2), pull_s=1e6)
    events = [
        Event(rng.uniform(150, 900), rng.choice(("node joins", "readiness flakes")), n)
        for n in range(rng.randint(1, 4))
    ]
    return dataclasses.replace(
        plan,
        policy=Policy(mode=plan.policy.mode, kind=plan.kind),
        quota=None,
        works=(early,),
        events=tuple(sorted(events, key=lambda event: event.at)),
        horizon_s=1100.0,
    )


def hopeless(seed: int) -> Plan:
    """Somebody waits whom nobody can help, for hours, perhaps created again and again."""
    rng = random.Random(f"hopeless {seed}")
    plan = plan_of(seed)
    again = rng.choice((None, 60.0, 100.0, 200.0, 400.0, 1000.0))
    kind = rng.choice(("great", "great", "volume"))
    return dataclasses.replace(
        plan,
        nodes=rng.randint(2, 5),
        ours=WHOLE,
        policy=Policy(mode=plan.policy.mode, kind=plan.kind),
        wire=dataclasses.replace(plan.wire, fails=0.0),
        quota=None,
        works=(
            Work(
                300.0,
                "w0",
                kind,
                _requests(rng, kind, rng.choice((1, 4, 8))),
                size=rng.choice((1, 1, 3)),
                again_s=again,
                gap_s=rng.choice((0.0, 0.0, 45.0)) if again else 0.0,
                serial_owner=rng.random() < 0.5,
            ),
        ),
        events=(),
        horizon_s=300.0 + 4 * 3600.0,
        hopeless_at=300.0,
    )


def maker(work: Work, tag: str = "") -> Callable[[str], Life]:
    """Creates the pods of a gang."""

    def make(serial: str) -> Life:
        owner = f"{work.name}-290123{serial:0>2}" if work.serial_owner else work.name
        pod = a_pod(
            f"{work.name}{tag}-{serial}",
            work.requests,
            owner=Owner("DaemonSet" if work.kind == "daemon" else "Job", owner),
            priority=work.priority,
            selector=_selector(work),
            volume="claim" if work.kind == "volume" else "",
        )
        life = Life(
            pod,
            counts=work.kind not in UNCOUNTED,
            zone="z" if work.kind == "volume" else None,
            pull_s=work.pull_s,
            run_s=work.run_s,
        )
        _disguise(life, work.kind)
        return life

    return make


def _selector(work: Work) -> dict[str, str]:
    if work.kind == "selector":
        return {"disk": "none-has-it"}
    return {"name": work.selector} if work.selector else {}


def _disguise(life: Life, kind: str) -> None:
    match kind:
        case "gated":
            life.show(gated=True)
        case "mirror":
            life.show(mirror=True)
        case "elsewhere":
            life.show(scheduler="volcano")
        case "excluded":
            life.show(labels={"lowprio": "true"})
        case "kicker":
            life.show(namespace="speech", labels={"app.kubernetes.io/component": "autokick"})
