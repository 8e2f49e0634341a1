"""Views and pods for tests that look at one decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from emiliad.autokick.core import decide
from emiliad.autokick.model import Decision, Pod, Policy, Requests, Scheduled, State, Target, View
from emiliad.autokick.selectors import Requirement

GPU = "nvidia.com/gpu"
OURS: Requests = {GPU: 8, "cpu": 32, "memory": 512.0}
FULL = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."


def a_target(replicas: int = 0, **facts: Any) -> Target:
    """Our Deployment."""
    base = Target(
        name="emiliad",
        namespace="speech",
        replicas=replicas,
        selector=(Requirement("app", "In", ("emiliad",)),),
        requests=OURS,
    )
    return replace(base, **facts)


def ours(bound: int = 0, unbound: int = 0, leaving: int = 0, **facts: Any) -> tuple[Pod, ...]:
    """Pods of ours; those without a node have been refused, unless `facts` say otherwise."""
    running = [our_pod(f"b{n}", node=f"n{n}", scheduled=Scheduled.YES) for n in range(bound)]
    waiting = [
        our_pod(f"u{n}", **{"scheduled": Scheduled.UNSCHEDULABLE, **facts}) for n in range(unbound)
    ]
    parting = [our_pod(f"t{n}", node=f"m{n}", terminating=True) for n in range(leaving)]
    return (*running, *waiting, *parting)


def our_pod(name: str, **facts: Any) -> Pod:
    """One of our pods."""
    labels = {"app": "emiliad"}
    return Pod(uid=name, namespace="speech", name=name, labels=labels, requests=OURS, **facts)


def someone(name: str = "job", **facts: Any) -> Pod:
    """Somebody else's pod, which was refused for want of GPUs, unless `facts` say otherwise."""
    base = Pod(
        uid=f"team/{name}",
        namespace="team",
        name=name,
        scheduled=Scheduled.UNSCHEDULABLE,
        message=FULL,
        requests={GPU: 1, "cpu": 4},
    )
    return replace(base, **facts)


def a_view(
    target: Target | None, mine: Iterable[Pod] = (), others: Iterable[Pod] = (), **facts: Any
) -> View:
    """What is known at one moment."""
    return View(target=target, ours=tuple(mine), others=tuple(others), **facts)


class Talk:
    """One autokicker and what it is shown, one look after the other."""

    def __init__(self, **rules: Any) -> None:
        self.policy = Policy(**rules)
        self.state = State()
        self.now = 1000.0

    def look(self, view: View, after_s: float = 0.0) -> Decision:
        """Lets time pass, then shows a view."""
        self.now += after_s
        decision, self.state = decide(view, self.state, self.policy, self.now)
        return decision
