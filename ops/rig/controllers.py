"""What moves in a toy cluster: Deployments, DaemonSets, one scheduler, kubelets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import anyio.lowlevel

from ops.rig.objects import ApiError, Json, Objects

GPU = "nvidia.com/gpu"


@dataclass(slots=True)
class Cluster:
    """Runs the controllers over `objects`; the periods are seconds."""

    objects: Objects
    bind_s: float = 0.0  # the scheduler's pause before each round
    start_s: float = 0.0  # from being bound to Running
    drain_s: float = 0.2  # from being told to stop to being gone
    _due: dict[str, float] = field(default_factory=dict)  # a pod's uid -> when its kubelet acts
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def run(self) -> None:
        """Acts upon every change, until it is cancelled."""
        async with anyio.create_task_group() as group:
            for loop in (self._controllers, self._scheduler, self._kubelets):
                group.start_soon(loop)

    async def _controllers(self) -> None:
        while True:
            version = self.objects.version
            for deployment in self.objects.all("deployments"):
                self._deployment(deployment)
            for daemonset in self.objects.all("daemonsets"):
                self._daemonset(daemonset)
            await self._next(version)

    async def _scheduler(self) -> None:
        while True:
            version = self.objects.version
            await anyio.sleep(self.bind_s)
            for pod in sorted(self.objects.all("pods"), key=_rank):
                if not pod["spec"].get("nodeName") and not pod["spec"].get("schedulingGates"):
                    self._place(pod)
            await self._next(version)

    async def _next(self, version: int) -> None:
        """Waits for a change after `version`; another loop may have made one meanwhile."""
        if self.objects.version == version:
            await self.objects.wait()
        else:
            await anyio.lowlevel.checkpoint()

    # -- Deployments and DaemonSets

    def _deployment(self, owner: Json) -> None:
        pods = [p for p in self._owned(owner) if not p["metadata"].get("deletionTimestamp")]
        wanted = owner["spec"].get("replicas", 1)
        for _ in range(wanted - len(pods)):
            self._create(owner)
        pods.reverse()  # the newest first
        for pod in sorted(pods, key=_worth)[: max(0, len(pods) - wanted)]:
            self._delete(pod)
        ready = sum(_ready(pod) for pod in pods)
        self._status(owner, {"replicas": len(pods), "readyReplicas": ready})

    def _daemonset(self, owner: Json) -> None:
        wanted = owner["spec"]["template"]["spec"].get("nodeSelector") or {}
        nodes = {
            node["metadata"]["name"]
            for node in self.objects.all("nodes")
            if wanted.items() <= node["metadata"].get("labels", {}).items()
        }
        here = {_home(pod): pod for pod in self._owned(owner)}
        for name, pod in here.items():
            if name not in nodes:
                self._delete(pod)
        for name in nodes - here.keys():
            self._create(owner, node=name)
        self._status(owner, {"desiredNumberScheduled": len(nodes)})

    def _owned(self, owner: Json) -> list[Json]:
        uid = owner["metadata"]["uid"]
        return [
            pod
            for pod in self.objects.all("pods", owner["metadata"]["namespace"])
            if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", ()))
        ]

    def _create(self, owner: Json, *, node: str = "") -> None:
        meta, template = owner["metadata"], owner["spec"]["template"]
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
        }
        spec = {**template["spec"]}
        if node:
            spec["affinity"] = _only_on(node)
        self.objects.create(
            "pods",
            meta["namespace"],
            {
                "metadata": {
                    "name": f"{meta['name']}-{next(self._numbers):05d}",
                    "labels": template["metadata"]["labels"],
                    "ownerReferences": [reference],
                },
                "spec": spec,
            },
        )

    def _delete(self, pod: Json) -> None:
        self.objects.delete("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _status(self, owner: Json, status: Json) -> None:
        resource = "deployments" if owner["kind"] == "Deployment" else "daemonsets"
        meta = owner["metadata"]
        generation = {"observedGeneration": meta["generation"]}
        self.objects.update(
            resource,
            meta["namespace"],
            meta["name"],
            lambda item: {**item, "status": {**item.get("status", {}), **status, **generation}},
        )

    # -- the scheduler

    def _place(self, pod: Json) -> None:
        meta, spec = pod["metadata"], pod["spec"]
        nodes = self.objects.all("nodes")
        lacks = [self._lacks(node, pod) for node in nodes]
        fitting = [node for node, lack in zip(nodes, lacks, strict=True) if not lack]
        if fitting:
            name = fitting[0]["metadata"]["name"]
            condition = {"type": "PodScheduled", "status": "True"}
            change = {"spec": {**spec, "nodeName": name}, "status": _conditioned(pod, condition)}
        else:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": _message(lacks),
            }
            change = {"status": _conditioned(pod, condition)}
        self.objects.update(
            "pods", meta["namespace"], meta["name"], lambda item: {**item, **change}
        )

    def _lacks(self, node: Json, pod: Json) -> list[str]:
        """Why the pod does not fit there, in the scheduler's words."""
        selector = pod["spec"].get("nodeSelector") or {}
        home = _home(pod)
        name, labels = node["metadata"]["name"], node["metadata"].get("labels", {})
        if (home and home != name) or not selector.items() <= labels.items():
            return ["node(s) didn't match Pod's node affinity/selector"]
        free = {k: float(v) for k, v in node["status"]["allocatable"].items()}
        for other in self.objects.all("pods"):
            if other["spec"].get("nodeName") == name:
                for what, amount in requests(other).items():
                    free[what] = free.get(what, 0.0) - amount
        asked = requests(pod).items()
        return [f"Insufficient {what}" for what, amount in asked if amount > free.get(what, 0.0)]

    # -- kubelets

    async def _kubelets(self) -> None:
        while True:
            version = self.objects.version
            now = anyio.current_time()
            waits = [self._kubelet(pod, now) for pod in self.objects.all("pods")]
            alive = {pod["metadata"]["uid"] for pod in self.objects.all("pods")}
            self._due = {k: v for k, v in self._due.items() if k.partition("/")[0] in alive}
            if self.objects.version == version:
                with anyio.move_on_after(min(waits, default=float("inf"))):
                    await self.objects.wait()

    def _kubelet(self, pod: Json, now: float) -> float:
        """Does what is due for one pod; returns in how many seconds the next thing is."""
        meta = pod["metadata"]
        if not pod["spec"].get("nodeName"):
            return float("inf")
        if meta.get("deletionTimestamp"):
            due = self._due.setdefault(f"{meta['uid']}/end", now + self.drain_s)
            if due <= now:
                self.objects.delete("pods", meta["namespace"], meta["name"], now=True)
            return max(due - now, 0.0)
        if pod["status"]["phase"] != "Pending":
            return float("inf")
        due = self._due.setdefault(f"{meta['uid']}/start", now + self.start_s)
        if due <= now:
            status = {**_conditioned(pod, {"type": "Ready", "status": "True"}), "phase": "Running"}
            self.objects.update(
                "pods", meta["namespace"], meta["name"], lambda item: {**item, "status": status}
            )
        return max(due - now, 0.0)


def requests(pod: Json) -> dict[str, float]:
    """What a pod's containers ask for; plain numbers only."""
    total: dict[str, float] = {}
    for container in pod["spec"].get("containers", ()):
        for what, amount in container.get("resources", {}).get("requests", {}).items():
            total[what] = total.get(what, 0.0) + float(amount)
    return total


def node(name: str, *, gpus: int = 8, labels: Mapping[str, str] | None = None) -> Json:
    """A node of `gpus` GPUs with plenty of CPU."""
    return {
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {},
        "status": {
            "allocatable": {GPU: str(gpus), "cpu": "64"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def deployment(name: str, *, replicas: int = 0, gpus: int = 8, **spec: object) -> Json:
    """A Deployment of which one pod takes `gpus` GPUs."""
    labels = {"app": name, "lowprio": "true"}
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(gpus)},
            **spec,
        },
    }


def daemonset(name: str, *, gpus: int = 8) -> Json:
    """A DaemonSet of which one pod takes `gpus` GPUs."""
    found = deployment(name, gpus=gpus)
    del found["spec"]["replicas"]
    return found


def pod(name: str, *, gpus: int = 1) -> Json:
    """Somebody's pod."""
    return {"metadata": {"name": name}, "spec": pod_spec(gpus)}


def pod_spec(gpus: int) -> Json:
    """One container that asks for GPUs and a CPU."""
    asked = {"cpu": "1", **({GPU: str(gpus)} if gpus else {})}
    return {"containers": [{"name": "main", "resources": {"requests": asked, "limits": asked}}]}


def remove(objects: Objects, namespace: str, name: str) -> None:
    """Deletes a pod if it is still there, gracefully."""
    try:
        objects.delete("pods", namespace, name)
    except ApiError:
        return


def _rank(pod: Json) -> int:
    """The order in which the scheduler looks at pods; among equals the oldest comes first."""
    return -int(pod["spec"].get("priority") or 0)


def _worth(pod: Json) -> tuple[bool, bool, bool]:
    """What a ReplicaSet deletes first: unbound, then pending, then not ready, then the newest."""
    return bool(pod["spec"].get("nodeName")), pod["status"]["phase"] == "Running", _ready(pod)


def _ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _conditioned(pod: Json, condition: Json) -> Json:
    others = [c for c in pod["status"].get("conditions", ()) if c["type"] != condition["type"]]
    return {**pod["status"], "conditions": [*others, condition]}


def _message(lacks: list[list[str]]) -> str:
    """As `0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient nvidia.com/gpu.`"""
    counts: dict[str, int] = {}
    for reason in itertools.chain(*lacks):
        counts[reason] = counts.get(reason, 0) + 1
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f"0/{len(lacks)} nodes are available: {told}."


def _only_on(node: str) -> Json:
    match = {"key": "metadata.name", "operator": "In", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchFields": [match]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _home(pod: Json) -> str:
    """The one node that a DaemonSet's pod is for; empty for other pods."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in terms.get("nodeSelectorTerms", ()):
        for match in term.get("matchFields", ()):
            return str(match["values"][0])
    return ""
