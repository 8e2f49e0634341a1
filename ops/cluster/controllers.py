"""The toy cluster's controllers: of a Deployment's or a DaemonSet's pods, and of other people's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

from emiliad.autokick.model import Owner, Requests, Target
from emiliad.autokick.selectors import Requirement
from ops.cluster.cluster import Cluster
from ops.cluster.objects import OURS, Life, a_pod

_LAG_S = 0.05  # from a change to what the controller makes of it
_HOSTNAME = "kubernetes.io/hostname"


class OurController:
    """Keeps as many of our pods as are asked for; shrinks in Kubernetes' order."""

    def __init__(
        self,
        cluster: Cluster,
        requests: Requests,
        *,
        kind: str = "Deployment",
        priority: int = 0,
        drain_s: float = 10.0,
        load_s: float = 60.0,
        quota: int | None = None,
        replicas: int = 1,
    ) -> None:
        self._cluster, self._clock = cluster, cluster.clock
        self._priority, self._drain_s, self._load_s = priority, drain_s, load_s
        self.quota = quota
        self.target = Target(
            name="emiliad",
            namespace="speech",
            uid="t",
            kind=kind,
            replicas=replicas,
            selector=(Requirement("app", "In", ("emiliad",)),),
            requests=requests,
        )
        self._serial = count(1)
        self._on_target: list[Callable[[], None]] = []
        self._due = False
        cluster.listen(self._pod_changed, self._soon)
        self._soon()

    def listen(self, on_target: Callable[[], None]) -> None:
        self._on_target.append(on_target)

    def change(self, **changes: object) -> None:
        """Someone changes the target: replicas, paused, held, annotations, ..."""
        self.target = replace(self.target, **changes)  # type: ignore[arg-type]
        for listener in self._on_target:
            listener()
        self._soon()

    def template(self) -> Life:
        """One of our pods, as it would be created next; not yet in the cluster."""
        pod = a_pod(
            f"emiliad-{next(self._serial)}",
            self.target.requests,
            namespace="speech",
            labels=OURS,
            owner=Owner("ReplicaSet", "emiliad-1"),
            priority=self._priority,
        )
        return Life(pod, ours=True, load_s=self._load_s, drain_s=self._drain_s)

    def _pod_changed(self, life: Life, gone: bool) -> None:
        if life.ours and (gone or life.pod.terminating):
            self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._clock.after(_LAG_S, self._reconcile)

    def _reconcile(self) -> None:
        self._due = False
        active = [life for life in self._cluster.ours() if not life.pod.terminating]
        if self.target.kind == "DaemonSet":
            self._reconcile_daemons(active)
        elif len(active) < self.target.replicas:
            self._create(self.target.replicas - len(active), len(active))
        else:
            for life in sorted(active, key=_first_to_go)[: len(active) - self.target.replicas]:
                self._cluster.delete(life.pod.uid)

    def _create(self, number: int, active: int) -> None:
        room = number if self.quota is None else min(number, max(self.quota - active, 0))
        problem = "exceeded quota" if room < number else None
        if problem != self.target.problem:
            self.change(problem=problem)
        for _ in range(room):
            self._cluster.create(self.template())

    def _reconcile_daemons(self, active: list[Life]) -> None:
        """One pod for each node that would have it, sent there by its selector."""
        wanted = set() if self.target.held else {*self._cluster.machines}
        for life in active:
            name = life.pod.selector[_HOSTNAME]
            if name not in wanted:
                self._cluster.delete(life.pod.uid)
            wanted.discard(name)
        for name in sorted(wanted):
            self._cluster.machines[name].labels[_HOSTNAME] = name
            life = self.template()
            life.show(selector={_HOSTNAME: name})
            self._cluster.create(life)


def _first_to_go(life: Life) -> tuple[bool, bool, bool, float]:
    """Without a node, then not running, then not ready, then the youngest."""
    pod = life.pod
    return (pod.node is not None, pod.phase == "Running", life.ready, -pod.created)


class Gang:
    """Someone else's pods: created together, perhaps again and again while they wait."""

    def __init__(
        self,
        cluster: Cluster,
        make: Callable[[str], Life],
        *,
        size: int = 1,
        again_s: float | None = None,
        apart_s: float = 0.0,
        gap_s: float = 0.0,
    ) -> None:
        """`again_s`: a pod that waits for so long is replaced, `gap_s` later."""
        self._cluster, self._make = cluster, make
        self._again_s, self._gap_s = again_s, gap_s
        self._serial = count(1)
        self._ended = False
        for number in range(size):
            cluster.clock.after(number * apart_s, self._create)

    def end(self) -> None:
        """Its owner deletes it."""
        self._ended = True

    def _create(self) -> None:
        if self._ended:
            return
        life = self._make(str(next(self._serial)))
        self._cluster.create(life)
        if self._again_s is not None:
            self._cluster.clock.after(self._again_s, partial(self._replace, life))

    def _replace(self, life: Life) -> None:
        if self._cluster.pods.get(life.pod.uid) is life and life.pod.node is None:
            self._cluster.delete(life.pod.uid)
            self._cluster.clock.after(self._gap_s, self._create)
