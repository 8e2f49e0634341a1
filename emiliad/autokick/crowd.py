"""Who is who: our pods by what they do, and those of others that wait for what we hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emiliad.autokick.fit import Room
from emiliad.autokick.model import Pod, Policy, Scheduled, Target, View
from emiliad.autokick.reasons import not_ours
from emiliad.autokick.selectors import selects


@dataclass(frozen=True, slots=True)
class Crowd:
    """The pods that matter, sorted."""

    bound: tuple[Pod, ...]  # ours, on a node, and staying
    unbound: tuple[Pod, ...]  # ours, without a node
    parting: tuple[Pod, ...]  # ours, terminating: they still hold what they have
    blocked: tuple[Pod, ...]  # others', waiting, perhaps for what we hold
    helpless: tuple[Pod, ...]  # others', waiting, and by the scheduler's words not for us
    undecided: tuple[Pod, ...]  # others', which ask for such things; no scheduler looked yet
    arrived: tuple[Pod, ...]  # others', on a node: all that can be seen
    holders: frozenset[str]  # uids of those of them that hold the scarce things we want


def crowd_of(view: View, target: Target, policy: Policy) -> Crowd:
    """Sorts the pods of a view; ours are known by their labels, whichever list they came in."""
    ours = [pod for pod in view.ours if not pod.finished]
    mine = {pod.uid for pod in ours}
    others = [p for p in view.others if p.uid not in mine and not is_ours(p, target, policy)]
    held = held_by_us(ours, target)
    unbound = [pod for pod in others if pod.node is None and counts(pod, target, policy)]
    waiting = [pod for pod in unbound if pod.scheduled is Scheduled.UNSCHEDULABLE]
    helpless = tuple(pod for pod in waiting if not_ours(pod.message, held))
    arrived = tuple(pod for pod in others if pod.node is not None and not pod.finished)
    scarce = frozenset(name for name in held if "/" in name) or held
    return Crowd(
        bound=tuple(pod for pod in ours if pod.node and not pod.terminating),
        unbound=tuple(pod for pod in ours if not pod.node and not pod.terminating),
        parting=tuple(pod for pod in ours if pod.node and pod.terminating),
        blocked=tuple(_blocked(waiting, helpless, view, others)),
        helpless=helpless,
        undecided=tuple(p for p in unbound if p.scheduled is Scheduled.UNKNOWN and _asks(p, held)),
        arrived=arrived,
        holders=frozenset(pod.uid for pod in arrived if _asks(pod, scarce)),
    )


def is_ours(pod: Pod, target: Target, policy: Policy) -> bool:
    """Whether the pod is the target's, by namespace and labels."""
    selector = target.selector if policy.our_selector is None else policy.our_selector
    return pod.namespace == target.namespace and selects(selector, pod.labels)


def counts(pod: Pod, target: Target, policy: Policy) -> bool:
    """Whether a pod of others may make us leave.

    Not the autokicker's own, a DaemonSet's or a node's own (they are bound to their nodes), one
    that leaves, has ended or is gated, one of another scheduler, or with the excluding label.
    """
    label, value = policy.autokicker_label
    return not (
        pod.terminating
        or pod.finished
        or pod.gated
        or pod.mirror
        or (pod.owner is not None and pod.owner.kind in ("DaemonSet", "Node"))
        or pod.scheduler != (policy.scheduler or target.scheduler)
        or (pod.namespace == target.namespace and pod.labels.get(label) == value)
        or (policy.exclude_label and pod.labels.get(policy.exclude_label) == policy.exclude_value)
    )


def held_by_us(ours: list[Pod], target: Target) -> frozenset[str]:
    """The names of the resources that our pods ask for: the template's and the running ones'."""
    asked = [target.requests, *(pod.requests for pod in ours)]
    return frozenset(name for requests in asked for name, amount in requests.items() if amount > 0)


def _asks(pod: Pod, resources: frozenset[str]) -> bool:
    return any(amount > 0 and name in resources for name, amount in pod.requests.items())


def _blocked(
    waiting: list[Pod], helpless: tuple[Pod, ...], view: View, others: list[Pod]
) -> Iterator[Pod]:
    """Unless it is certain that we are not in the way, we are."""
    cleared = {pod.uid for pod in helpless}
    blocked = [pod for pod in waiting if pod.uid not in cleared]
    if view.nodes is None or not blocked:
        return iter(blocked)
    room = Room.without_ours(view.nodes, others)
    return (pod for pod in blocked if room.could_take(pod))
