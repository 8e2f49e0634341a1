"""How fast and how cheap the autokicker is, against a toy API server over HTTP.

    python -m ops.bench.autokick_http [--kicks 200] [--quiet 60]

The latencies are those of the mirror, the core and the writer in this process, which also runs the
server, the scheduler and the kubelets, with the cool-down cut short so that kicks can follow one
another. Filling, memory and CPU time are those of a real `emiliad autokick` process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from prometheus_client import CollectorRegistry

from emiliad import logs
from emiliad.autokick.model import Policy
from emiliad.kube.access import Access
from emiliad.kube.client import connected
from emiliad.kube.display import Display
from emiliad.kube.governor import Governor, Plan
from emiliad.kube.mirror import Scope
from emiliad.kube.tenure import Tenure, uptime
from emiliad.metrics import AutokickMetrics
from ops.rig.apiserver import ApiServer
from ops.rig.controllers import Cluster, deployment, node, pod, remove
from ops.rig.http import GOOD, Fault, Front
from ops.rig.objects import Objects
from ops.rig.rbac import Request

SPACE, NAME = "emiliad", "emiliad"
_LOOK_S = 0.002  # between two looks at whether something has happened
_LIMIT_S = 120.0  # after which it is not going to happen


async def until(done: Callable[[], object]) -> None:
    """Waits for something to happen. Raises TimeoutError."""
    with anyio.fail_after(_LIMIT_S):
        while not done():  # noqa: ASYNC110 - what is waited for is another process's doing
            await anyio.sleep(_LOOK_S)


def furnished(nodes: int) -> Cluster:
    """A cluster with our Deployment, scaled to nothing."""
    cluster = Cluster(Objects(), drain_s=0.01)
    for number in range(nodes):
        cluster.objects.create("nodes", "", node(f"node-{number}"))
    cluster.objects.create("deployments", SPACE, deployment(NAME))
    return cluster


def full(objects: Objects) -> bool:
    """Whether every node has a pod of ours and one waits."""
    mine = [p for p in objects.all("pods") if p["metadata"].get("labels", {}).get("app") == NAME]
    homes = sum(bool(p["spec"].get("nodeName")) for p in mine)
    return homes == len(objects.all("nodes")) and len(mine) == homes + 1


# -- from unschedulable to room made


@dataclass(frozen=True, slots=True)
class Weather:
    """A share of all requests breaks off, before or after they took effect; watches are cut."""

    abort: float
    rng: random.Random

    def choose(self, request: Request) -> Fault:
        if self.rng.random() >= self.abort:
            return GOOD
        if request.verb == "watch":
            return self.rng.choice([Fault(abort=True), Fault(cut_after=self.rng.randint(0, 20))])
        return self.rng.choice([Fault(abort=True), Fault(lose_answer=True)])


async def latencies(kicks: int, abort: float) -> list[float]:
    """Seconds from the scheduler's verdict on a team's pod to our scale patch, once per kick."""
    cluster = furnished(1)
    server = ApiServer(cluster.objects)
    front = Front(server, Weather(abort, random.Random(1)).choose)
    policy = replace(Policy(namespace=SPACE), cooldown_s=0.05)
    display = Display(AutokickMetrics(CollectorRegistry()), lambda *_: None, facts={})
    plan = Plan(Scope(SPACE, "Deployment", NAME, (SPACE,)), policy)
    found = []
    async with (
        front.serving(),
        connected(Access(front.url, True, _nobody)) as api,
        anyio.create_task_group() as group,
    ):
        group.start_soon(cluster.run)
        group.start_soon(Governor(api, plan, display).run, Tenure(float("inf"), uptime))
        for number in range(kicks):
            await until(lambda: full(cluster.objects))
            found.append(await _kick(cluster.objects, server, f"team-{number}"))
        group.cancel_scope.cancel()
    return sorted(found)


async def _kick(objects: Objects, server: ApiServer, name: str) -> float:
    begin, version = len(server.audit), objects.version
    objects.create("pods", SPACE, pod(name))
    while not any(_verdict(change.new, name) for change in objects.since(version)):
        await objects.wait()
    told = time.monotonic()
    await until(lambda: _kicked(server, begin))
    await until(lambda: objects.get("pods", SPACE, name)["spec"].get("nodeName"))
    remove(objects, SPACE, name)
    return max(0.0, (_kicked(server, begin) or told) - told)


def _verdict(item: dict[str, object] | None, name: str) -> bool:
    return bool(item) and name in str(item) and "Unschedulable" in str(item)


def _kicked(server: ApiServer, begin: int) -> float | None:
    """When the first scale patch to 0 arrived and was carried out."""
    for seen in server.audit[begin:]:
        if seen.request.sub == "scale" and seen.code == 200 and seen.body["spec"]["replicas"] == 0:
            return seen.at
    return None


async def _nobody(refused: bool) -> str | None:
    return None


# -- the real process


@dataclass(frozen=True, slots=True)
class Cost:
    """What a real process took. `cpu` is the share of one core in a quiet time."""

    fill_s: float
    writes: int
    rss_mb: float
    cpu: float
    requests: int  # in the quiet time


async def process(quiet_s: float, nodes: int = 20) -> Cost:
    """Runs `emiliad autokick` until it has filled the nodes, and then for a quiet time."""
    cluster = furnished(nodes)
    server = ApiServer(cluster.objects)
    front = Front(server)
    async with front.serving(), anyio.create_task_group() as group:
        group.start_soon(cluster.run)
        with tempfile.TemporaryDirectory() as folder:
            config = _kubeconfig(Path(folder), front.url)
            env = {**os.environ, "KUBECONFIG": str(config), "HTTP_PORT": "0", "LOG_LEVEL": "error"}
            command = [sys.executable, "-m", "emiliad", "autokick"]
            async with await anyio.open_process(
                command, env=env, stdout=None, stderr=None
            ) as child:
                await until(lambda: server.count("list", "pods"))
                began = time.monotonic()
                await until(lambda: full(cluster.objects))
                filled = time.monotonic() - began
                writes = server.count("patch", "deployments/scale")
                await anyio.sleep(2)
                begin, before = len(server.audit), _cpu_s(child.pid)
                await anyio.sleep(quiet_s)
                used = _cpu_s(child.pid) - before
                cost = Cost(
                    filled, writes, _rss_mb(child.pid), used / quiet_s, len(server.audit) - begin
                )
                child.send_signal(signal.SIGTERM)
                await child.wait()
        group.cancel_scope.cancel()
    return cost


def _kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "config"
    context = {"cluster": "toy", "user": "me", "namespace": SPACE}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "toy",
        "contexts": [{"name": "toy", "context": context}],
        "clusters": [{"name": "toy", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
    }
    path.write_text(json.dumps(config))
    return path


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _told(name: str, found: list[float]) -> str:
    p50, p99 = found[len(found) // 2], found[min(len(found) - 1, int(len(found) * 0.99))]
    return (
        f"| {name} | {len(found)} | {p50 * 1000:.0f} | {p99 * 1000:.0f} | {found[-1] * 1000:.0f} |"
    )


async def _main(kicks: int, quiet_s: float) -> None:
    print("| kicks | number | p50, ms | p99, ms | worst, ms |\n|---|---:|---:|---:|---:|")
    print(_told("good network", await latencies(kicks, 0.0)))
    print(_told("25 % of requests and watches break off", await latencies(kicks, 0.25)))
    cost = await process(quiet_s)
    print(
        f"\n20 nodes filled in {cost.fill_s:.1f} s by {cost.writes} writes; then, in {quiet_s:g} s:"
        f" {cost.rss_mb:.0f} MB resident, {cost.cpu:.1%} of a core, {cost.requests} requests"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kicks", type=int, default=200)
    parser.add_argument("--quiet", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    logs.configure("error")
    anyio.run(_main, arguments.kicks, arguments.quiet)
