"""What the tests of the Kubernetes side share: wires to the toy API server, waiting."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry

from emiliad.autokick.model import Policy
from emiliad.kube import errors
from emiliad.kube.access import Access
from emiliad.kube.api import REQUEST_S, Json
from emiliad.kube.display import Display
from emiliad.kube.governor import Governor, Plan
from emiliad.kube.mirror import Scope
from emiliad.metrics import AutokickMetrics
from ops.rig.apiserver import ApiServer
from ops.rig.controllers import Cluster, deployment, node
from ops.rig.objects import ApiError, Objects

NAMESPACE, TARGET = "emiliad", "emiliad"
SCOPE = Scope(NAMESPACE, "Deployment", TARGET, (NAMESPACE,))
POLICY = Policy(namespace=NAMESPACE)
# Quick enough for a real clock; the same rules.
QUICK = replace(POLICY, cooldown_s=0.3, hopeless_after_s=1.5)


async def until(
    done: Callable[[], object], *, limit_s: float = 30.0, every_s: float = 0.01
) -> None:
    """Waits for something to happen; fails the test if it does not."""
    with anyio.move_on_after(limit_s):
        while not done():
            await anyio.sleep(every_s)
        return
    pytest.fail(f"it did not happen within {limit_s:g} s")


def server_in(cluster: Cluster, **options: Any) -> ApiServer:
    """An API server whose clock is the event loop's."""
    return ApiServer(cluster.objects, clock=anyio.current_time, **options)


def furnished(*, nodes: int = 4, **options: Any) -> Cluster:
    """A cluster of 8-GPU nodes with our Deployment, scaled to nothing."""
    cluster = Cluster(Objects(), **options)
    for number in range(nodes):
        cluster.objects.create("nodes", "", node(f"node-{number}"))
    cluster.objects.create("deployments", NAMESPACE, deployment(TARGET))
    return cluster


@dataclass(slots=True)
class Wire:
    """An `Api` to the toy server in the same process, for virtual time; `agent` is who asks."""

    server: ApiServer
    agent: str = "test"
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    latency_s: tuple[float, float] = (0.001, 0.01)
    abort: float = 0.0  # the share of requests that break off, half of them after they took effect
    cut: float = 0.0  # the share of watch events at which the stream breaks
    parted: bool = False  # nothing arrives, nothing comes back, nobody is told

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_S,
        fence: Callable[[], bool] | None = None,
    ) -> Json:
        query = query or {}
        try:
            with anyio.fail_after(timeout_s):
                await self._travel()
                if fence is not None and not fence():
                    raise errors.Unreachable("fenced")
                answer = self._answer(method, path, body, query)
                await self._travel()
                return answer
        except TimeoutError:
            raise errors.Unreachable(f"{method} {path}: no answer in time") from None

    def _answer(self, method: str, path: str, body: Json | None, query: Mapping[str, str]) -> Json:
        request = self.server.asked(method, path, query)
        try:
            answer = self.server.answer(request, query, body)
        except ApiError as error:
            self.server.note(request, error.code, body, self.agent)
            errors.refuse(f"{method} {path}", error.code, str(error))
        self.server.note(request, 200, body, self.agent)
        return answer

    async def watch(
        self,
        path: str,
        query: Mapping[str, str],
        handle: Callable[[Json], None],
        *,
        opened: Callable[[], None],
        silence_s: float,
    ) -> None:
        try:
            with anyio.fail_after(15):
                await self._travel()
        except TimeoutError:
            raise errors.Unreachable(f"WATCH {path}: no answer in time") from None
        query = {**query, "watch": "true"}
        request = self.server.asked("GET", path, query)
        try:
            self.server.authorise(request)
        except ApiError as error:
            self.server.note(request, error.code, None, self.agent)
            errors.refuse(f"WATCH {path}", error.code, str(error))
        self.server.note(request, 200, None, self.agent)
        opened()
        async with aclosing(self.server.follow(request, query)) as stream:
            while (event := await self._next(stream, silence_s)) is not None:
                if self.rng.random() < self.cut:
                    raise errors.Unreachable(f"WATCH {path}: cut")
                handle(event)

    async def _next(self, stream: AsyncIterator[Json], silence_s: float) -> Json | None:
        try:
            with anyio.fail_after(silence_s):
                event = await anext(stream, None)
                while self.parted:
                    await anyio.sleep(0.05)
                return event
        except TimeoutError:
            raise errors.Silent("silence") from None

    async def _travel(self) -> None:
        await anyio.sleep(self.rng.uniform(*self.latency_s))
        while self.parted:
            await anyio.sleep(0.05)
        if self.rng.random() < self.abort / 2:
            raise errors.Unreachable("aborted")


@dataclass(slots=True)
class Seen:
    """What a display reported last."""

    status: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def take(self, status: Mapping[str, Any], problem: str | None) -> None:
        self.status, self.problem = dict(status), problem


@dataclass(slots=True)
class Watched:
    """A governor with all that it shows."""

    governor: Governor
    metrics: AutokickMetrics
    seen: Seen

    def value(self, name: str, **labels: str) -> float:
        """One of the autokicker's metrics."""
        found = self.metrics.registry.get_sample_value(f"emiliad_autokick_{name}", labels)
        assert found is not None, name
        return found


def governed(
    api: Any,
    *,
    policy: Policy = POLICY,
    scope: Scope = SCOPE,
    clock: Callable[[], float] = anyio.current_time,
) -> Watched:
    """A governor on `api`, as it leads."""
    metrics, seen = AutokickMetrics(CollectorRegistry()), Seen()
    display = Display(metrics, seen.take, facts={}, clock=clock)
    display.leads(True)
    return Watched(Governor(api, Plan(scope, policy), display, clock=clock), metrics, seen)


@asynccontextmanager
async def background(*tasks: Callable[[], Any]) -> AsyncIterator[None]:
    """Runs things while the context lasts."""
    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(task)
        yield
        group.cancel_scope.cancel()


async def nobody(refused: bool) -> str | None:
    """An authorization for a server that asks for none."""
    return None


def access_to(url: str) -> Access:
    """A toy server's HTTP front."""
    return Access(url, True, nobody, namespace=NAMESPACE)


def kubeconfig(folder: Path, url: str, *, token: str = "secret-token") -> Path:
    """A kubeconfig for a toy server; JSON is YAML, too."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "toy",
        "contexts": [
            {"name": "toy", "context": {"cluster": "toy", "user": "me", "namespace": NAMESPACE}}
        ],
        "clusters": [{"name": "toy", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return path


def pods(objects: Objects, *, ours: bool = True) -> list[Json]:
    """Our pods, or everybody else's."""
    return [
        pod
        for pod in objects.all("pods")
        if (pod["metadata"].get("labels", {}).get("app") == TARGET) == ours
    ]


def bound(objects: Objects) -> int:
    """How many of our pods have a node, terminating ones included."""
    return sum(bool(pod["spec"].get("nodeName")) for pod in pods(objects))


def full(objects: Objects) -> bool:
    """Whether every node has a pod of ours and exactly one waits."""
    slots = len(objects.all("nodes"))
    return bound(objects) == slots and len(pods(objects)) == slots + 1 == wanted(objects)


def wanted(objects: Objects) -> int:
    """The target's replicas."""
    return int(objects.get("deployments", NAMESPACE, TARGET)["spec"]["replicas"])


def home(objects: Objects, name: str, namespace: str = NAMESPACE) -> str:
    """The node of a pod; empty while it has none."""
    return str(objects.get("pods", namespace, name)["spec"].get("nodeName") or "")
