"""What is kept in mind about room: who has just come or leaves, and whether more has appeared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from emiliad.autokick.crowd import Crowd
from emiliad.autokick.model import Node, Pod, Scheduled, Stage, State

UNDECIDED_S = 60.0  # after which we no longer wait for the scheduler to look at a pod
LOST_S = 300.0  # a pod that terminates for longer sits on a dead node: it is not ours to remove


def remember(state: State, crowd: Crowd, nodes: tuple[Node, ...] | None, now: float) -> State:
    """Notes this look; `moved_at` is set where room is seen that was not there before."""
    marks = None if nodes is None else frozenset(map(_mark, nodes))
    new_nodes = bool(marks and state.nodes is not None and marks - state.nodes)
    bound = len(crowd.bound)
    more = state.full is not None and bound > state.full
    moved = new_nodes or more or bool(state.holders - crowd.holders)
    return replace(
        state,
        undecided=_since(state.undecided, crowd.undecided, now),
        parting=_since(state.parting, crowd.parting, now),
        nodes=marks,
        holders=crowd.holders,
        moved_at=now if moved else state.moved_at,
        full=_full(state, crowd),
    )


def _full(state: State, crowd: Crowd) -> int | None:
    """How many of us there are when there is no room for one more; None while that is not known."""
    if state.stage is not Stage.FILL:
        return None
    refused = [pod.scheduled is Scheduled.UNSCHEDULABLE for pod in crowd.unbound]
    if refused and all(refused):
        return len(crowd.bound)
    return None if state.full is None else max(state.full, len(crowd.bound))


def still_parting(state: State, crowd: Crowd, now: float) -> list[Pod]:
    """Our terminating pods that will be gone some time."""
    return [pod for pod in crowd.parting if now - state.parting.get(pod.uid, now) < LOST_S]


def decided_in_s(state: State, crowd: Crowd, now: float) -> float:
    """Seconds for which we still wait for the scheduler to look at others' pods; 0: for none."""
    waits = (UNDECIDED_S - (now - state.undecided.get(pod.uid, now)) for pod in crowd.undecided)
    return max(0.0, *waits, 0.0)


def _since(before: Mapping[str, float], pods: tuple[Pod, ...], now: float) -> dict[str, float]:
    return {pod.uid: before.get(pod.uid, now) for pod in pods}


def _mark(node: Node) -> str:
    """Differs where a node has changed in what it can take."""
    sizes = sorted(node.allocatable.items())
    labels = sorted(node.labels.items())
    return f"{node.name}|{node.ready}|{node.unschedulable}|{sizes}|{labels}|{node.taints}"
