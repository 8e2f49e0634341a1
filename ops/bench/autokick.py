"""The original autokicker's algorithm against ours, in the same toy cluster: prints a table.

`python -m ops.bench.autokick`. One of our pods takes a node of 8 GPUs, loads its models for 60 s
and drains for 10 s; the team's pod asks for one GPU and pulls its image for 5 min. Time is
simulated, so the figures are exact and the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

from emiliad.autokick.model import Owner, Policy, Requests
from ops.cluster.clock import Clock
from ops.cluster.cluster import Cluster
from ops.cluster.controllers import Gang, OurController
from ops.cluster.keeper import Keeper
from ops.cluster.objects import GPU, HOSTDEV, Life, Machine, a_pod
from ops.cluster.original import Original
from ops.cluster.scheduler import Scheduler

NODE: Requests = {GPU: 8, HOSTDEV: 8, "cpu": 96, "memory": 1000 * 2.0**30}
OURS: Requests = {GPU: 8, HOSTDEV: 8, "cpu": 32, "memory": 512 * 2.0**30}
PULL_S = 300.0  # of the team's image
_MOMENTS_S = (0.0, 3.0, 6.0, 9.0, 12.0)  # the pod comes at another moment between two polls
_HALF_HOUR_S, _TWO_HOURS_S = 1800.0, 7200.0


@dataclass(slots=True)
class Rig:
    """A cluster with an autokicker in it."""

    clock: Clock
    cluster: Cluster

    def idle_seconds(self, duration_s: float, step_s: float = 0.5) -> float:
        """Lets time pass; the sum over nodes of the time in which nobody holds a GPU there."""
        idle = 0.0
        for _ in range(int(duration_s / step_s)):
            self.clock.run(self.clock.now + step_s)
            free = sum(m.used.get(GPU, 0.0) == 0.0 for m in self.cluster.machines.values())
            idle += free * step_s
        return idle

    def run_until(self, done: Callable[[], bool]) -> float:
        """Seconds until it is so."""
        began = self.clock.now
        while not done():
            self.clock.run(self.clock.now + 0.1)
        return self.clock.now - began

    def bound(self) -> int:
        """Our pods that have a node."""
        return sum(life.pod.node is not None for life in self.cluster.ours())


def rig(kicker: str, nodes: int) -> Rig:
    """`kicker`: original, or one of our modes."""
    clock = Clock()
    cluster = Cluster(clock, random.Random(0))
    for number in range(nodes):
        cluster.add(Machine(f"node-{number}", NODE))
    Scheduler(cluster)
    ours = OurController(cluster, OURS)
    if kicker == "original":
        Original(cluster, ours)
    else:
        Keeper(cluster, ours, Policy(mode=kicker))
    return Rig(clock, cluster)


def a_team_pod(gpus: float) -> Callable[[str], Life]:
    """A pod of somebody else."""

    def make(serial: str) -> Life:
        requests = {GPU: gpus, "cpu": 4.0, "memory": 16 * 2.0**30}
        pod = a_pod(f"job-{serial}", requests, owner=Owner("Job", "train"))
        return Life(pod, pull_s=PULL_S)

    return make


@dataclass(frozen=True, slots=True)
class Row:
    """What an autokicker achieved."""

    fill_s: float
    waits_s: float
    idle_node_min: float
    killed: int
    hopeless_node_h: float
    hopeless_again_node_h: float


def measure(kicker: str) -> Row:
    """All columns of one line."""
    visits = [visit(kicker, late_s) for late_s in _MOMENTS_S]
    return Row(
        fill_s=visits[0][0],
        waits_s=mean(visit[1] for visit in visits),
        idle_node_min=mean(visit[2] for visit in visits) / 60,
        killed=visits[0][3],
        hopeless_node_h=hopeless(kicker, None),
        hopeless_again_node_h=hopeless(kicker, 400.0),
    )


def visit(kicker: str, late_s: float) -> tuple[float, float, float, int]:
    """20 nodes are filled; then a team pod comes: fill, wait and idle seconds, pods killed."""
    a = rig(kicker, 20)
    fill_s = a.run_until(lambda: a.bound() == 20)
    a.clock.run(a.clock.now + 120 + late_s)
    killed = a.cluster.killed
    Gang(a.cluster, a_team_pod(1))
    a.clock.run(a.clock.now)
    team = next(life for life in a.cluster.pods.values() if not life.ours)
    began, idle_s = a.clock.now, 0.0
    while team.pod.node is None:
        idle_s += a.idle_seconds(0.1, 0.1)
    waits_s = a.clock.now - began
    idle_s += a.idle_seconds(_HALF_HOUR_S - waits_s)
    return fill_s, waits_s, idle_s, a.cluster.killed - killed


def hopeless(kicker: str, again_s: float | None) -> float:
    """Idle node-hours on 8 nodes in 2 h with one pod that asks for more GPUs than a node has."""
    a = rig(kicker, 8)
    a.run_until(lambda: a.bound() == 8)
    a.clock.run(a.clock.now + 120)
    Gang(a.cluster, a_team_pod(16), again_s=again_s)
    return a.idle_seconds(_TWO_HOURS_S) / 3600


def main() -> None:
    print(
        "| | fill 20 nodes | team pod waits | idle node-min in next 30 min | running pods killed "
        "| 2 h with one impossible pod on 8 nodes: idle node-h | the same, re-created every 400 s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, kicker in (
        ("original", "original"),
        ("ours, `AUTOKICK_MODE=all`", "all"),
        ("ours, `AUTOKICK_MODE=needed`", "needed"),
    ):
        row = measure(kicker)
        print(
            f"| {name} | {row.fill_s:.1f} s | {row.waits_s:.1f} s | {row.idle_node_min:.1f} "
            f"| {row.killed} | {row.hopeless_node_h:.1f} of 16 "
            f"| {row.hopeless_again_node_h:.1f} of 16 |"
        )


if __name__ == "__main__":
    main()
