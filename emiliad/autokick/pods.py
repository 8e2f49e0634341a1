"""From the API's JSON objects to values: pods, the target, nodes; missing keys are defaults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from emiliad.autokick.model import Node, Owner, Pod, Requests, Scheduled, Taint, Target, Toleration
from emiliad.autokick.quantity import parse_quantity
from emiliad.autokick.selectors import Requirement, requirement_from, selector_from

Object: TypeAlias = Mapping[str, Any]

HOLD_KEY, HOLD_VALUE = "emiliad.io/yield", "hold"  # the node selector that keeps a DaemonSet off
_MIRROR = "kubernetes.io/config.mirror"  # the annotation of a static pod's image in the API


def pod_from(obj: Object) -> Pod:
    """A Pod object, of whatever API server."""
    meta, spec, status = _part(obj, "metadata"), _part(obj, "spec"), _part(obj, "status")
    scheduled, message, gated = _scheduled(status)
    return Pod(
        uid=str(meta.get("uid", "")),
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        labels=_part(meta, "labels"),
        owner=_owner(meta),
        node=spec.get("nodeName") or None,
        phase=str(status.get("phase", "Pending")),
        terminating=meta.get("deletionTimestamp") is not None,
        gated=gated or bool(spec.get("schedulingGates")),
        mirror=_MIRROR in _part(meta, "annotations"),
        scheduler=str(spec.get("schedulerName") or "default-scheduler"),
        priority=_integer(spec.get("priority")),
        created=_seconds(meta.get("creationTimestamp")),
        scheduled=scheduled,
        message=message,
        requests=requests_of(spec),
        selector=_part(spec, "nodeSelector"),
        node_terms=_node_terms(spec),
        tolerations=tuple(map(_toleration, _list(spec, "tolerations"))),
        shape=_shape(spec),
    )


def target_from(obj: Object) -> Target:
    """A Deployment or a DaemonSet."""
    meta, spec, status = _part(obj, "metadata"), _part(obj, "spec"), _part(obj, "status")
    template = _part(_part(spec, "template"), "spec")
    kind = str(obj.get("kind") or ("Deployment" if "replicas" in spec else "DaemonSet"))
    daemonset = kind == "DaemonSet"
    wanted = _integer(status.get("desiredNumberScheduled"))
    return Target(
        name=str(meta.get("name", "")),
        namespace=str(meta.get("namespace", "")),
        uid=str(meta.get("uid", "")),
        kind=kind,
        replicas=wanted if daemonset else _integer(spec.get("replicas"), 1),
        selector=selector_from(spec.get("selector")),
        paused=bool(spec.get("paused")),
        terminating=meta.get("deletionTimestamp") is not None,
        held=_part(template, "nodeSelector").get(HOLD_KEY) == HOLD_VALUE,
        rolling=_rolling(meta, status, "NumberScheduled" if daemonset else "Replicas"),
        annotations=_part(meta, "annotations"),
        requests=requests_of(template),
        scheduler=str(template.get("schedulerName") or "default-scheduler"),
        problem=_problem(status),
    )


def node_from(obj: Object) -> Node:
    """A Node object."""
    spec, status = _part(obj, "spec"), _part(obj, "status")
    meta = _part(obj, "metadata")
    ready = _condition(status, "Ready")
    return Node(
        name=str(meta.get("name", "")),
        allocatable=_amounts(_part(status, "allocatable")),
        labels=_part(meta, "labels"),
        taints=tuple(
            Taint(str(t.get("key", "")), str(t.get("value") or ""), str(t.get("effect", "")))
            for t in _list(spec, "taints")
        ),
        ready=ready.get("status", "True") == "True",
        unschedulable=bool(spec.get("unschedulable")),
    )


def requests_of(spec: Object) -> Requests:
    """What the scheduler reserves for a pod: containers together or the greatest init container.

    As in Kubernetes' `PodRequests`: an init container that restarts always is a sidecar and counts
    beside all that start after it; requests of the pod as a whole replace the sums; overhead is
    added.
    """
    sidecars: dict[str, float] = {}
    greatest: dict[str, float] = {}
    for container in _list(spec, "initContainers"):
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum([sidecars, asked])
            greatest = _max(greatest, sidecars)
        else:
            greatest = _max(greatest, _sum([sidecars, asked]))
    together = _sum([sidecars, *map(_asked, _list(spec, "containers"))])
    total = {**_max(greatest, together), **_amounts(_part(_part(spec, "resources"), "requests"))}
    return _sum([total, _amounts(_part(spec, "overhead"))])


def _asked(container: Object) -> dict[str, float]:
    """A template's container without requests gets its limits, as its pods will."""
    resources = _part(container, "resources")
    return _amounts({**_part(resources, "limits"), **_part(resources, "requests")})


def _amounts(quantities: Object) -> dict[str, float]:
    return {str(name): _amount(quantity) for name, quantity in quantities.items()}


def _amount(quantity: Any) -> float:
    try:
        return parse_quantity(quantity)
    except ValueError:
        return 0.0  # no API server lets such a one pass; that it is asked for stays known


def _sum(parts: Iterable[Requests]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _max(one: Requests, other: Requests) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in {**one, **other}}


def _scheduled(status: Object) -> tuple[Scheduled, str, bool]:
    """The condition's meaning, its message, and whether the pod is gated.

    Other reasons than Unschedulable (SchedulerError) are the scheduler's own trouble: not decided.
    """
    condition = _condition(status, "PodScheduled")
    if condition.get("status") == "True":
        return Scheduled.YES, "", False
    reason, message = condition.get("reason"), str(condition.get("message") or "")
    if reason == "Unschedulable":
        return Scheduled.UNSCHEDULABLE, message, False
    return Scheduled.UNKNOWN, message, reason == "SchedulingGated"


def _rolling(meta: Object, status: Object, counter: str) -> bool:
    generation = meta.get("generation")
    behind = status.get("observedGeneration", generation) != generation
    there = status.get("desiredNumberScheduled", status.get("replicas"))
    return behind or _integer(status.get(f"updated{counter}")) < _integer(there)


def _problem(status: Object) -> str | None:
    failure = _condition(status, "ReplicaFailure")
    return str(failure.get("message") or "") or None if failure.get("status") == "True" else None


def _owner(meta: Object) -> Owner | None:
    owners = _list(meta, "ownerReferences")
    owner = next((one for one in owners if one.get("controller")), owners[0] if owners else None)
    if owner is None:
        return None
    return Owner(str(owner.get("kind", "")), str(owner.get("name", "")), str(owner.get("uid", "")))


def _toleration(obj: Object) -> Toleration:
    return Toleration(
        key=str(obj.get("key") or ""),
        operator=str(obj.get("operator") or "Equal"),
        value=str(obj.get("value") or ""),
        effect=str(obj.get("effect") or ""),
    )


def _node_terms(spec: Object) -> tuple[tuple[Requirement, ...], ...]:
    """Required node affinity; a field (there is one: metadata.name) is taken for a label."""
    affinity = _part(_part(spec, "affinity"), "nodeAffinity")
    required = _part(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
    return tuple(
        tuple(
            requirement_from(entry)
            for entry in (*_list(term, "matchExpressions"), *_list(term, "matchFields"))
        )
        for term in _list(required, "nodeSelectorTerms")
    )


def _shape(spec: Object) -> str:
    """A short name for everything else that decides where a pod can go."""
    told = [
        spec.get("affinity"),
        spec.get("tolerations"),
        spec.get("topologySpreadConstraints"),
        spec.get("resourceClaims"),
        [
            _part(volume, "persistentVolumeClaim").get("claimName")
            for volume in _list(spec, "volumes")
        ],
        [
            port.get("hostPort")
            for container in _list(spec, "containers")
            for port in _list(container, "ports")
        ],
        spec.get("priority"),
    ]
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _condition(status: Object, kind: str) -> Object:
    return next((one for one in _list(status, "conditions") if one.get("type") == kind), {})


def _seconds(timestamp: Any) -> float:
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp() if timestamp else 0.0
    except ValueError:
        return 0.0


def _part(obj: Object, key: str) -> Object:
    """A nested object; {} where there is none or it is null."""
    part = obj.get(key)
    return part if isinstance(part, Mapping) else {}


def _list(obj: Object, key: str) -> list[Object]:
    """A nested list of objects; whatever else is in it is left out."""
    part = obj.get(key)
    return [one for one in part if isinstance(one, Mapping)] if isinstance(part, list) else []


def _integer(number: Any, default: int = 0) -> int:
    return number if isinstance(number, int) else default
