"""Where nodes can be seen: would a pod fit somewhere if none of ours were there?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emiliad.autokick.model import Node, Pod, Requests

_NAME = "metadata.name"  # node affinity may name nodes by this field
_CORDON = "node.kubernetes.io/unschedulable"
_ROUNDING = 1e-9  # relative: sums of tenths of a core are not exact


@dataclass(frozen=True, slots=True)
class Room:
    """What others leave free on each node; pods of ours are not in it."""

    nodes: tuple[Node, ...]
    free: Mapping[str, Requests]

    @classmethod
    def without_ours(cls, nodes: tuple[Node, ...], others: Iterable[Pod]) -> Room:
        """`others`: all pods but ours; those that are bound and not finished take room."""
        free = {node.name: dict(node.allocatable) for node in nodes}
        for pod in others:
            if pod.node in free and not pod.finished:
                _take(free[pod.node], pod.requests)
        return cls(nodes, free)

    def could_take(self, pod: Pod) -> bool:
        """Whether a node has room for it; doubt, as about volumes, is taken for a yes."""
        return any(
            _fits(pod.requests, self.free[node.name]) and _welcomes(node, pod)
            for node in self.nodes
        )


def _take(free: dict[str, float], requests: Requests) -> None:
    for name, amount in {"pods": 1.0, **requests}.items():
        if name in free:
            free[name] -= amount


def _fits(requests: Requests, free: Requests) -> bool:
    return (
        all(
            amount <= free.get(name, 0.0) + _ROUNDING * max(amount, 1.0)
            for name, amount in requests.items()
            if amount > 0
        )
        and free.get("pods", 1.0) >= 1.0
    )


def _welcomes(node: Node, pod: Pod) -> bool:
    if not node.ready or (node.unschedulable and not _bears_cordons(pod)):
        return False
    labels = {**node.labels, _NAME: node.name}
    if any(labels.get(key) != value for key, value in pod.selector.items()):
        return False
    if pod.node_terms and not any(
        term and all(one.matches(labels) for one in term) for term in pod.node_terms
    ):
        return False
    return _bears_taints(node, pod)


def _bears_cordons(pod: Pod) -> bool:
    return any(one.operator == "Exists" and one.key in ("", _CORDON) for one in pod.tolerations)


def _bears_taints(node: Node, pod: Pod) -> bool:
    """A taint of pressure does not count: it may be our own pods that press."""
    return all(
        any(one.bears(taint) for one in pod.tolerations)
        for taint in node.taints
        if taint.effect in ("NoSchedule", "NoExecute") and not taint.key.endswith("-pressure")
    )
