"""The state machine: what is seen and remembered -> what to do now, and why.

FROZEN: something is wrong or unknown; nothing is written. FILL: nobody waits for what we hold; the
target has a pod for every place and one that waits. YIELD: somebody waits; our pods go, all of them
or as many as needed. SETTLE: nobody waits any more; for a moment we do not come back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from emiliad.autokick import fill, mutes, room
from emiliad.autokick.crowd import Crowd, crowd_of
from emiliad.autokick.fill import Wish
from emiliad.autokick.frozen import why_frozen
from emiliad.autokick.model import Action, Decision, Pod, Policy, Stage, State, Target, View
from emiliad.autokick.mutes import ByKind
from emiliad.autokick.needed import AGAIN_S, first_cut, next_cut


@dataclass(frozen=True, slots=True)
class Scene:
    """One look: what the helpers of `decide` work on."""

    target: Target
    crowd: Crowd
    policy: Policy
    now: float
    gone: bool  # no pod of ours is left, or none that may go
    blocked: ByKind  # the waiting pods of others, muted ones too


def decide(view: View, state: State, policy: Policy, now: float) -> tuple[Decision, State]:
    """What to do now; `now` is any clock that never goes back, in seconds.

    Call it whenever the view changes and when `next_look_s` has passed. Keep the returned state
    even if the write that was decided on failed: the next call decides on it again.
    """
    reason = why_frozen(view, policy)
    if reason is not None or view.target is None:
        frozen = Decision(action=Action.NONE, stage=Stage.FROZEN, reason=reason or "no target")
        return frozen, State(mutes=state.mutes, tallies=state.tallies)
    scene, state = _look(view, view.target, state, policy, now)
    state, live = _judge(scene, state)
    state = _enter(scene, state, live)
    wish, state = _wish(scene, state, live)
    return _decision(scene, state, wish, live), replace(state, looked_at=now)


def _look(
    view: View, target: Target, state: State, policy: Policy, now: float
) -> tuple[Scene, State]:
    crowd = crowd_of(view, target, policy)
    state = room.remember(state, crowd, view.nodes, now)
    left = len(crowd.bound) + len(crowd.unbound) + len(room.still_parting(state, crowd, now))
    gone = left <= policy.floor and target.replicas <= policy.floor
    if policy.holds:
        gone = left == 0
    return Scene(target, crowd, policy, now, gone, mutes.by_kind(crowd.blocked)), state


def _judge(scene: Scene, state: State) -> tuple[State, ByKind]:
    """Whom we still leave for: the waiting pods that are not muted, by kind."""
    now = scene.now
    state = mutes.lift(state, scene.blocked, now)
    live = _live(scene, state)
    state = mutes.count(state, live, scene.crowd.arrived, now)
    since = now if state.gone_since is None else state.gone_since
    state = replace(state, gone_since=since if scene.gone else None)
    state = mutes.strike(state, live, scene.policy, now)
    state = mutes.clear(state, live, scene.crowd.helpless, now)
    live = _live(scene, state)
    waiting = {pod.uid: kind for kind, pods in live.items() for pod in pods}
    return replace(state, waiting=waiting), live


def _live(scene: Scene, state: State) -> ByKind:
    return {
        kind: pods
        for kind, pods in scene.blocked.items()
        if not mutes.is_muted(state, kind, scene.now)
    }


def _enter(scene: Scene, state: State, live: ByKind) -> State:
    """Moves on to the stage that the waiting pods call for."""
    now = scene.now
    if live:
        return replace(state, stage=Stage.YIELD, settle_since=None)
    if state.stage is Stage.YIELD:
        if any(mute.since == now for mute in state.mutes.values()):
            return _fill(state)  # they were not helped, so there is nobody to wait for
        return replace(state, stage=Stage.SETTLE, settle_since=now, cut=None)
    if state.stage is Stage.SETTLE and settled_in_s(scene, state) <= 0:
        return _fill(state)
    return state


def _fill(state: State) -> State:
    return replace(state, stage=Stage.FILL, settle_since=None, cut=None)


def settled_in_s(scene: Scene, state: State) -> float:
    """Seconds until we may come back; who is undecided delays it, but does not begin it anew."""
    since = scene.now if state.settle_since is None else state.settle_since
    cooling = scene.policy.cooldown_s - (scene.now - since)
    return max(cooling, room.decided_in_s(state, scene.crowd, scene.now))


def _wish(scene: Scene, state: State, live: ByKind) -> tuple[Wish, State]:
    if state.stage is Stage.YIELD:
        return _make_room(scene, state, [pod for pods in live.values() for pod in pods])
    state = replace(state, cut=None)
    if state.stage is Stage.SETTLE:
        reason = "those who waited have gone ahead; more may follow, so we wait a moment"
        return _stay_away(scene, reason), state
    return fill.wish(scene.target, scene.crowd, state, scene.policy, scene.now)


def _make_room(scene: Scene, state: State, waiting: list[Pod]) -> tuple[Wish, State]:
    first = min(waiting, key=lambda pod: (pod.created, pod.full_name))
    more = f" and {len(waiting) - 1} more wait" if len(waiting) > 1 else " waits"
    reason = f"{first.full_name}{more} for what we hold: {first.message or 'no reason given'}"
    if scene.policy.partial:
        return _go_down(scene, state, waiting, reason)
    return _stay_away(scene, reason), state


def _stay_away(scene: Scene, reason: str) -> Wish:
    """All of ours go, or stay gone, whoever asks for them."""
    if scene.policy.holds:
        return Wish(Action.NONE if scene.target.held else Action.HOLD, None, reason)
    if scene.policy.partial or scene.target.replicas == 0:
        return Wish(Action.NONE, None, reason)
    return Wish(Action.KICK, 0, reason)


def _go_down(scene: Scene, state: State, waiting: list[Pod], reason: str) -> tuple[Wish, State]:
    crowd, floor, now = scene.crowd, scene.policy.floor, scene.now
    bound, ours = len(crowd.bound), scene.target.requests
    if state.cut is None:
        cut = first_cut(waiting, ours, bound, floor)
    else:
        parting = room.still_parting(state, crowd, now)
        clear = not parting and not crowd.unbound and bound <= state.cut.ceiling
        cut = next_cut(state.cut, waiting, ours, bound=bound, clear=clear, floor=floor, now=now)
    kick = scene.target.replicas > cut.ceiling
    wish = Wish(Action.KICK if kick else Action.NONE, cut.ceiling if kick else None, reason)
    return wish, replace(state, cut=cut)


def _decision(scene: Scene, state: State, wish: Wish, live: ByKind) -> Decision:
    muted = (pod for kind, pods in scene.blocked.items() if kind not in live for pod in pods)
    cleared = (
        pod for pod in scene.crowd.helpless if mutes.is_muted(state, mutes.kind_of(pod), scene.now)
    )
    return Decision(
        action=wish.action,
        stage=state.stage,
        reason=wish.reason,
        replicas=wish.replicas,
        blocked=tuple(sorted(pod.full_name for pods in live.values() for pod in pods)),
        muted=tuple(sorted(pod.full_name for pod in (*muted, *cleared))),
        next_look_s=_next_look_s(scene, state, wish, live),
    )


_SOONEST_S = 0.05  # a timer that is due in no time at all would turn into a busy loop


def _next_look_s(scene: Scene, state: State, wish: Wish, live: ByKind) -> float | None:
    """When a timer next matters; everything else comes as a change of the view."""
    now = scene.now
    due = [] if wish.again_s is None else [wish.again_s]
    if state.stage is Stage.SETTLE:
        due.append(settled_in_s(scene, state))
    if state.stage is Stage.YIELD:
        due += [room.LOST_S - (now - since) for since in state.parting.values()]
        due += [mutes.verdict_in_s(state, kind, scene.policy, now) or 0.0 for kind in live]
    if state.cut is not None and state.cut.clear_since is not None:
        due.append(AGAIN_S - (now - state.cut.clear_since))
    for kind in scene.blocked.keys() - live.keys():
        mute = state.mutes[kind]
        due += [mute.until - now, mutes.wary_until(mute) - now]
    return max(min(soon), _SOONEST_S) if (soon := [wait for wait in due if wait > 0]) else None
