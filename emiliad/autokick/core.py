"""The state machine: what is seen and remembered -> what to do now, and why."""

from __future__ import annotations

from dataclasses import replace

from emiliad.autokick.model import Action, Decision, Pod, Policy, Scheduled, Stage, State, View
from emiliad.autokick.selectors import selects


def decide(view: View, state: State, policy: Policy, now: float) -> tuple[Decision, State]:
    """What to do now; `now` is any clock that never goes back, in seconds.

    Call it whenever the view changes and when `next_look_s` has passed. Keep the returned state
    even if the write that was decided on failed: the next call decides on it again.
    """
    if (reason := _frozen(view, policy)) is not None or view.target is None:
        stage = Stage.FROZEN
        return Decision(action=Action.NONE, stage=stage, reason=reason or ""), replace(
            state, stage=stage
        )
    target = view.target
    waiting = tuple(pod.full_name for pod in view.others if _blocked(pod, view, policy))
    bound = sum(1 for pod in view.ours if pod.node and not (pod.terminating or pod.finished))
    if waiting:
        action = Action.KICK if target.replicas else Action.NONE
        decision = Decision(
            action=action,
            stage=Stage.YIELD,
            reason=f"{waiting[0]} waits for what we hold",
            replicas=0 if action is Action.KICK else None,
            blocked=waiting,
        )
        return decision, replace(state, stage=Stage.YIELD)
    want = max(bound + policy.buffer, 1)
    action = Action.GROW if want > target.replicas else Action.NONE
    return Decision(
        action=action,
        stage=Stage.FILL,
        reason="nobody waits for what we hold",
        replicas=want if action is Action.GROW else None,
    ), replace(state, stage=Stage.FILL)


def _frozen(view: View, policy: Policy) -> str | None:
    if policy.mode == "off":
        return "AUTOKICK_MODE is off"
    if not view.leader:
        return "another autokicker leads"
    if not view.synced or view.stale_s > policy.stale_s:
        return "what is known of the cluster is not up to date"
    if view.target is None:
        return "the target does not exist"
    if view.fought_by is not None:
        return f"{view.fought_by} scales the target, too"
    return "the target is paused" if view.target.paused else None


def _blocked(pod: Pod, view: View, policy: Policy) -> bool:
    assert view.target is not None
    if pod.node or pod.terminating or pod.gated or pod.scheduled is not Scheduled.UNSCHEDULABLE:
        return False
    ours = pod.namespace == view.target.namespace and selects(view.target.selector, pod.labels)
    return not ours and pod.labels.get(policy.exclude_label) != policy.exclude_value
