"""All that the autokicker sees of a cluster, mirrored, as one view for the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import anyio

from emiliad import logs
from emiliad.autokick.model import Node, Pod, Target, View
from emiliad.autokick.pods import node_from, pod_from, target_from
from emiliad.autokick.selectors import Selector, selector_text
from emiliad.kube.api import AUTOSCALERS, DAEMONSETS, DEPLOYMENTS, NODES, PODS, Api, Json
from emiliad.kube.errors import Forbidden, KubeError
from emiliad.kube.reflector import Reflector, Source

T = TypeVar("T")

ALL = "*"  # as AUTOKICK_NAMESPACES says it
_UNBOUND = "spec.nodeName=,status.phase=Pending"  # costs what is unbound, not the whole cluster
_UNFINISHED = "status.phase!=Succeeded,status.phase!=Failed"
_RETRY_S = 2.0  # seconds until the rights are tried again
_log = logs.get("kube.mirror")


@dataclass(frozen=True, slots=True)
class Scope:
    """What is looked at. `selector` None: our pods are those that the target selects."""

    namespace: str
    kind: str  # of the target
    name: str
    namespaces: tuple[str, ...]  # whose pending pods count; (ALL,): everybody's
    selector: Selector | None = None


class Mirror:
    """The target, our pods, those of others, and with the rights to it the nodes.

    `changed` is called after every change; `restarted` as by `Reflector`.
    """

    def __init__(
        self,
        api: Api,
        scope: Scope,
        *,
        changed: Callable[[], None],
        restarted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._scope = scope
        self._on_change = changed
        self._restarted = restarted
        self._change = anyio.Event()
        resource = DAEMONSETS if scope.kind == DAEMONSETS.kind else DEPLOYMENTS
        only = {"fieldSelector": f"metadata.name={scope.name}"}
        self._targets = self._reflector(
            Source("target", resource.path(scope.namespace), only), target_from
        )
        # Nothing scales a DaemonSet.
        self._scalers = self._reflector(
            Source("autoscalers", AUTOSCALERS.path(scope.namespace)), _scaled_by
        )
        self._pods = _Pods()

    @property
    def target(self) -> Target | None:
        """The Deployment or DaemonSet; None if there is none, or none was seen yet."""
        return self._targets.get(self._scope.namespace, self._scope.name)

    @property
    def problems(self) -> list[str]:
        """What keeps parts of this from being up to date, a sentence each."""
        parts = (self._targets, self._scalers, *self._pods.all())
        return [part.problem for part in parts if part.problem]

    def view(self) -> View:
        """What is known now, for one who may write."""
        pods = self._pods
        needed = (self._targets, *pods.all())
        if self.target is None:
            synced = self._targets.synced  # nothing more is mirrored then
        else:
            synced = pods.ours is not None and all(part.synced for part in needed)
        return View(
            target=self.target,
            ours=tuple(pods.ours.values()) if pods.ours else (),
            others=tuple(pod for part in pods.others for pod in part.values()),
            nodes=tuple(pods.nodes.values()) if pods.nodes else None,
            stale_s=max(part.age_s() for part in needed),
            synced=synced and self._scalers_known(),
            fought_by=self._fought_by(),
        )

    def wrote(self, version: str, target: Target) -> None:
        """Shows what we wrote at once, so that it is not written twice."""
        self._targets.apply(target.namespace, target.name, version, target)

    async def run(self) -> NoReturn:
        """Mirrors until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._targets.run)
            if self._scope.kind == DEPLOYMENTS.kind:
                group.start_soon(self._scalers.run)
            while True:
                await self._follow(await self._until_selector())
        raise AssertionError("unreachable")

    def _selector(self) -> Selector:
        """What selects our pods; empty while it is not known."""
        if self._scope.selector is not None:
            return self._scope.selector
        return self.target.selector if self.target else ()

    async def _until_selector(self) -> Selector:
        while not self._selector():  # an empty one would select everybody's pods
            await self._change.wait()
        return self._selector()

    async def _follow(self, selector: Selector) -> None:
        """Mirrors the pods for as long as ours are selected like this."""
        nodes = self._scope.namespaces == (ALL,) and await self._may_see_nodes()
        pods = self._pods = self._chosen(selector, nodes=nodes)
        async with anyio.create_task_group() as group:
            for part in pods.all():
                group.start_soon(part.run)
            while self._selector() in ((), selector):
                await self._change.wait()
            group.cancel_scope.cancel()

    def _chosen(self, selector: Selector, *, nodes: bool) -> _Pods:
        scope = self._scope
        ours = {"labelSelector": selector_text(selector)}
        # Who is to say what fits where must know who is where.
        theirs = {"fieldSelector": _UNFINISHED if nodes else _UNBOUND}
        spaces = [None] if scope.namespaces == (ALL,) else [*scope.namespaces]
        return _Pods(
            self._reflector(Source("our pods", PODS.path(scope.namespace), ours), pod_from),
            tuple(
                self._reflector(
                    Source(f"pods of {space or 'all'}", PODS.path(space), theirs), pod_from
                )
                for space in spaces
            ),
            self._reflector(Source("nodes", NODES.path(None)), node_from) if nodes else None,
        )

    async def _may_see_nodes(self) -> bool:
        """Whether the rights reach that far; without them the scheduler's words must do."""
        while True:
            try:
                await self._api.call("GET", NODES.path(None), query={"limit": "1"})
            except Forbidden:
                _log.info("mirror.without_nodes")
                return False
            except KubeError as error:
                _log.warning("mirror.failed", error=str(error))
                await anyio.sleep(_RETRY_S)
                continue
            return True

    def _scalers_known(self) -> bool:
        """A role without the right to see autoscalers is complained of, but does not stop us."""
        deployment = self._scope.kind == DEPLOYMENTS.kind
        return not deployment or self._scalers.synced or self._scalers.forbidden

    def _fought_by(self) -> str | None:
        mine = (self._scope.kind, self._scope.name)
        return next((s.name for s in self._scalers.values() if s.scales == mine), None)

    def _reflector(self, source: Source, convert: Callable[[Json], T]) -> Reflector[T]:
        return Reflector(
            self._api, source, convert, changed=self._noticed, restarted=self._restarted
        )

    def _noticed(self) -> None:
        self._change.set()
        self._change = anyio.Event()
        self._on_change()


@dataclass(frozen=True, slots=True)
class _Pods:
    """The mirrors that depend on what selects our pods."""

    ours: Reflector[Pod] | None = None
    others: tuple[Reflector[Pod], ...] = ()
    nodes: Reflector[Node] | None = None

    def all(self) -> tuple[Reflector[Pod] | Reflector[Node], ...]:
        parts = (self.ours, *self.others, self.nodes)
        return tuple(part for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class _Scaler:
    name: str
    scales: tuple[str, str]  # kind and name


def _scaled_by(item: Json) -> _Scaler:
    """Which object an autoscaler scales; KEDA's ScaledObjects work through one as well."""
    target = (item.get("spec") or {}).get("scaleTargetRef") or {}
    return _Scaler(
        f"HorizontalPodAutoscaler {item['metadata']['name']}",
        (str(target.get("kind", "")), str(target.get("name", ""))),
    )
