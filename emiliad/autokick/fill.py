"""Nobody waits for what we hold: a pod for every place that is free, and one that waits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from emiliad.autokick import room
from emiliad.autokick.crowd import Crowd
from emiliad.autokick.model import Action, Policy, Scheduled, State, Target

SPACING_S = 0.2  # between writes that are not urgent; fills five nodes a second
SURPLUS_S = 15.0  # pods in excess are left alone so long: schedulers look again within 10 s


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be done, and in how many seconds to look again."""

    action: Action
    replicas: int | None
    reason: str
    again_s: float | None = None


def wanted(bound: int, policy: Policy) -> int:
    """The replicas that keep `buffer` pods waiting; with a buffer of 0 still one, to begin with."""
    want = max(bound + policy.buffer, 1)
    return want if policy.max_replicas is None else min(want, policy.max_replicas)


def wish(
    target: Target, crowd: Crowd, state: State, policy: Policy, now: float
) -> tuple[Wish, State]:
    """What to write while nobody waits."""
    if policy.holds:
        return _release(target, crowd, state, now), state
    want = wanted(len(crowd.bound), policy)
    if target.replicas > want:
        return _trim(target, crowd, want, state, policy, now)
    state = replace(state, surplus_since=None)
    if target.replicas == want:
        return Wish(Action.NONE, None, _content(target, crowd)), state
    return _grow(crowd, want, state, policy, now)


def _release(target: Target, crowd: Crowd, state: State, now: float) -> Wish:
    if not target.held:
        return Wish(Action.NONE, None, "nobody waits for what we hold")
    wait_s = room.decided_in_s(state, crowd, now)
    if wait_s > 0:
        return Wish(Action.NONE, None, _undecided(crowd), wait_s)
    return Wish(Action.RELEASE, None, "nobody waits for what we held any more")


def _grow(crowd: Crowd, want: int, state: State, policy: Policy, now: float) -> tuple[Wish, State]:
    bound, unbound = len(crowd.bound), len(crowd.unbound)
    wait_s = room.decided_in_s(state, crowd, now)
    if wait_s > 0:
        return Wish(Action.NONE, None, _undecided(crowd), wait_s), state
    if unbound >= max(policy.buffer, 1):
        reason = f"{bound} pods run and {unbound} wait: enough to see when there is room"
        return Wish(Action.NONE, None, reason), state
    reason = f"nobody waits for what we hold and {bound} pods have a place: one more may find one"
    return _paced(Wish(Action.GROW, want, reason), state, now)


def _trim(
    target: Target, crowd: Crowd, want: int, state: State, policy: Policy, now: float
) -> tuple[Wish, State]:
    """Fewer replicas, of which only pods without a place go.

    A Deployment that shrinks deletes pods without a node first, but one that rolls out shrinks its
    old and its new pods in proportion, and one whose pods have just gone is about to create others.
    """
    bound = len(crowd.bound)
    if policy.max_replicas is not None and bound > policy.max_replicas:
        reason = f"MAX_REPLICAS is {policy.max_replicas} and {bound} pods run"
        return _paced(Wish(Action.TRIM, want, reason), state, now)
    decided = all(pod.scheduled is Scheduled.UNSCHEDULABLE for pod in crowd.unbound)
    if target.rolling or crowd.parting or not decided:
        reason = "more pods than needed, but not all of them have settled"
        return Wish(Action.NONE, None, reason), replace(state, surplus_since=None)
    since = now if state.surplus_since is None else state.surplus_since
    state = replace(state, surplus_since=since)
    if now - since < SURPLUS_S:
        reason = "more pods than needed wait for room; perhaps they find some"
        return Wish(Action.NONE, None, reason, SURPLUS_S - (now - since)), state
    reason = f"{target.replicas - bound} pods wait for room, where {want - bound} would do"
    return _paced(Wish(Action.TRIM, want, reason), state, now)


def _paced(wish: Wish, state: State, now: float) -> tuple[Wish, State]:
    """No two writes in quick succession: the first one's effect is still to be seen."""
    if state.wrote_at is not None and now - state.wrote_at < SPACING_S:
        return Wish(Action.NONE, None, wish.reason, SPACING_S - (now - state.wrote_at)), state
    return wish, replace(state, wrote_at=now)


def _undecided(crowd: Crowd) -> str:
    names = ", ".join(sorted(pod.full_name for pod in crowd.undecided)[:3])
    return f"the scheduler has yet to look at {names}"


def _content(target: Target, crowd: Crowd) -> str:
    bound, unbound = len(crowd.bound), len(crowd.unbound)
    if bound + unbound < target.replicas and target.problem:
        return f"{bound} pods run; Kubernetes creates no more: {target.problem}"
    return f"nobody waits for what we hold; {bound} pods have a place, {unbound} wait for one"
