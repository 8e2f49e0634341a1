"""The decision core with one mistake each: what the histories must find to be worth anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest

from emiliad.autokick import core, crowd, fill, mutes
from emiliad.autokick.crowd import Crowd
from emiliad.autokick.fit import Room
from emiliad.autokick.model import Action, Cut, Pod, Policy, Scheduled, Stage, State, Target, View
from ops.cluster.keeper import Keeper
from ops.cluster.objects import GPU, Life
from tests.autokick import plan as plans
from tests.autokick.plan import Plan

Patch: TypeAlias = pytest.MonkeyPatch
Worlds: TypeAlias = Callable[[int], Plan]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake, histories in which it shows soon, and the promises one of which it breaks."""

    name: str
    apply: Callable[[Patch], None]
    worlds: Worlds
    breaks: str = "I"


# --- histories that are rough on something


def busy(seed: int) -> Plan:
    """Ordinary work alone, on a good network."""
    plan = plans.plan_of(seed)
    works = tuple(work for work in plan.works if work.kind == "work")
    wire = replace(plan.wire, fails=0.0)
    return replace(plan, works=works, events=(), wire=wire).with_policy(mode="all")


def whole(seed: int) -> Plan:
    """One of our pods takes a node, and nothing caps them."""
    policy = Policy(mode="all")
    return replace(
        busy(seed), kind="Deployment", ours=plans.WHOLE, quota=None, policy=policy, nodes=3
    )


def thrifty(seed: int) -> Plan:
    """As few as needed."""
    return whole(seed).with_policy(mode="needed")


def blind(seed: int) -> Plan:
    """Nodes and others' bound pods cannot be seen."""
    plan = plans.hopeless(seed)
    return replace(plan, wire=replace(plan.wire, sees_nodes=False, sees_bound=False))


def sighted(seed: int) -> Plan:
    """Nodes can be seen."""
    plan = whole(seed)
    return replace(plan, wire=replace(plan.wire, sees_nodes=True))


def meddled(seed: int) -> Plan:
    """Somebody changes the target's replicas and our pods, again and again."""
    plan = whole(seed)
    kinds = ("someone scales up", "our pod crashes", "someone scales up")
    events = tuple(
        plans.Event(work.at + delay, kinds[number % 3], number)
        for number, work in enumerate(plan.works)
        for delay in (0.0, 5.0, 12.0, 400.0)
    )
    return replace(plan, events=tuple(sorted(events, key=lambda event: event.at)))


def stopped(seed: int) -> Plan:
    """The target is paused, or another leads, while others come."""
    plan = whole(seed)
    kind = ("paused", "another leads")[seed % 2]
    return replace(plan, events=tuple(plans.Event(w.at - 1.0, kind) for w in plan.works[:1]))


def streams(seed: int) -> Plan:
    """After the first, small pods come every 15 s for hours; each has a place at once."""
    plan = whole(seed)
    first = plans.Work(200.0, "w0", "work", {GPU: 1, "cpu": 1}, run_s=30.0)
    small = plans.Work(
        210.0, "w1", "work", {"cpu": 1, "memory": 1.0}, size=200, apart_s=15.0, run_s=3.0
    )
    return replace(plan, works=(first, small), events=(), horizon_s=3000.0, hopeless_at=None)


def without_buffer(seed: int) -> Plan:
    """No pod of ours is to wait for room."""
    return plans.quiet(seed).with_policy(buffer=0)


def crowded(seed: int) -> Plan:
    """Pods that count for nothing wait, among others that do."""
    plan = whole(seed)
    works = tuple(
        replace(work, kind=plans.UNCOUNTED[(seed + number) % len(plans.UNCOUNTED)])
        for number, work in enumerate(plan.works)
    )
    return replace(plan, works=works)


def slow(seed: int) -> Plan:
    """Our pods take their time to go."""
    return replace(whole(seed), drain_s=25.0)


def moving(seed: int) -> Plan:
    """Somebody waits for a node where there is none, again and again; then one joins.

    Our waiting pod is older, so it takes the node.
    """
    gpu = {GPU: 8, "cpu": 8}
    gang = plans.Work(200.0, "w0", "work", gpu, size=3, again_s=170.0 + seed)
    base = replace(whole(seed), nodes=2, works=(gang,), horizon_s=2400.0)
    return replace(base, events=(plans.Event(900.0, "node joins", seed),), priority=0)


# --- the mistakes


def _decided_on(patch: Patch, change: Callable[[View], View]) -> None:
    """The core sees another view than there is."""
    decide = core.decide

    def mistaken(view: View, state: State, policy: Policy, now: float) -> Any:
        return decide(change(view), state, policy, now)

    patch.setattr(core, "decide", mistaken)


def ready_instead_of_bound(patch: Patch) -> None:
    """A pod of ours has a place when it is ready."""
    ready: dict[str, bool] = {}
    changed = Keeper._pod_changed

    def notice(self: Keeper, life: Life, gone: bool) -> None:
        ready[life.pod.uid] = life.ready
        changed(self, life, gone)

    def unready_are_unbound(view: View) -> View:
        ours = tuple(p if ready.get(p.uid) else replace(p, node=None) for p in view.ours)
        return replace(view, ours=ours)

    patch.setattr(Keeper, "_pod_changed", notice)
    _decided_on(patch, unready_are_unbound)


def any_pending_counts(patch: Patch) -> None:
    """Whatever is Pending waits, be it for its image."""
    sort = crowd.crowd_of

    def mistaken(view: View, target: Target, policy: Policy) -> Crowd:
        seen = sort(view, target, policy)
        pending = tuple(pod for pod in seen.arrived if pod.phase == "Pending")
        return replace(seen, blocked=seen.blocked + pending)

    patch.setattr(core, "crowd_of", mistaken)


def never_mute(patch: Patch) -> None:
    """Who waits is waited for, for ever."""
    patch.setattr(mutes, "is_muted", lambda *_: False)


def always_mute(patch: Patch) -> None:
    """Who still waits when we are gone is not helped by it."""
    patch.setattr(mutes, "verdict_in_s", lambda *_: -1.0)


def mute_while_we_leave(patch: Patch) -> None:
    """The patience runs from the kick, not from our being gone; it is short, to show it soon."""
    look = core._look

    def mistaken(*args: Any) -> Any:
        scene, state = look(*args)
        return replace(scene, gone=scene.target.replicas == 0), state

    def hasty(state: State, kind: str, policy: Policy, now: float) -> float | None:
        return None if state.gone_since is None else 20.0 - (now - state.gone_since)

    patch.setattr(core, "_look", mistaken)
    patch.setattr(mutes, "verdict_in_s", hasty)


def mute_by_uid(patch: Patch) -> None:
    """A verdict is on one pod; its successor is another matter."""
    patch.setattr(mutes, "kind_of", lambda pod: pod.uid)


def mutes_of_one_length(patch: Patch) -> None:
    """A mute lasts five minutes, the tenth as the first, and costs as long."""
    patch.setattr(mutes, "WINDOW_S", 300.0)
    patch.setattr(mutes, "WINDOW_MAX_S", 300.0)
    patch.setattr(mutes, "PROBE_S", 300.0)


def deaf_to_change(patch: Patch) -> None:
    """A mute is served in full, whatever happens."""
    patch.setattr(mutes, "_changed", lambda *_: False)


def words_clear_nobody(patch: Patch) -> None:
    """What the scheduler says when we are gone is not remembered when we are back."""
    patch.setattr(mutes, "clear", lambda state, *_: state)


def undecided_restart_the_cooldown(patch: Patch) -> None:
    """Each new pod begins the cool-down anew."""
    enter = core._enter

    def mistaken(scene: core.Scene, state: State, live: Any) -> State:
        if state.stage is Stage.SETTLE and scene.crowd.undecided:
            state = replace(state, settle_since=scene.now)
        return enter(scene, state, live)

    patch.setattr(core, "_enter", mistaken)


def kick_on_undecided(patch: Patch) -> None:
    """A pod without a node waits for what we hold."""
    sort = crowd.crowd_of

    def mistaken(view: View, target: Target, policy: Policy) -> Crowd:
        seen = sort(view, target, policy)
        return replace(seen, blocked=seen.blocked + seen.undecided)

    patch.setattr(core, "crowd_of", mistaken)


def fill_without_a_first(patch: Patch) -> None:
    """The replicas are those that are bound and the buffer, be that nothing."""
    patch.setattr(fill, "wanted", lambda bound, policy: bound + policy.buffer)


def trims_bound_pods(patch: Patch) -> None:
    """Replicas in excess go at once, though their pods may just have found a place."""

    def mistaken(target: Target, seen: Crowd, want: int, state: State, *_: Any) -> Any:
        return fill.Wish(Action.TRIM, max(len(seen.bound) - 1, 0), "trims"), state

    patch.setattr(fill, "_trim", mistaken)


def no_reassertion(patch: Patch) -> None:
    """Having left once is enough."""
    stay = core._stay_away

    def mistaken(scene: core.Scene, reason: str) -> fill.Wish:
        if not scene.crowd.bound:
            return fill.Wish(Action.NONE, None, reason)
        return stay(scene, reason)

    patch.setattr(core, "_stay_away", mistaken)


def only_gpus_count(patch: Patch) -> None:
    """Who lacks CPU does not wait for us."""
    patch.setattr(crowd, "held_by_us", lambda *_: frozenset({GPU}))


def unknown_words_are_not_ours(patch: Patch) -> None:
    """Only 'Insufficient' for the first node counts."""

    def mistaken(message: str, held: Any) -> bool:
        return not message.split(": ")[1].startswith(("1 Insufficient cpu", "2 Insufficient cpu"))

    patch.setattr(crowd, "not_ours", mistaken)


def everything_frozen_acts(patch: Patch) -> None:
    """Whatever is wrong, somebody waits."""
    patch.setattr(core, "why_frozen", lambda *_: None)


def daemons_count(patch: Patch) -> None:
    """Any pod without a node is somebody's who waits."""
    patch.setattr(crowd, "counts", lambda *_: True)


def one_less_frees_a_place(patch: Patch) -> None:
    """One replica less is one running pod less, though one of them is waiting."""

    def mistaken(waiting: Any, ours: Any, bound: int, floor: int) -> Cut:
        return Cut(bound, frozenset(pod.uid for pod in waiting))

    def never(cut: Cut, *_: Any, **__: Any) -> Cut:
        return cut

    patch.setattr(core, "first_cut", mistaken)
    patch.setattr(core, "next_cut", never)


def fit_beside_ours(patch: Patch) -> None:
    """With the nodes in sight: a pod waits for us if it would fit as things are."""
    without = Room.without_ours

    def mistaken(nodes: Any, others: Any) -> Room:
        return without(nodes, [*others, *seen["ours"]])

    seen: dict[str, tuple[Pod, ...]] = {"ours": ()}

    def note(view: View) -> View:
        seen["ours"] = view.ours
        return view

    _decided_on(patch, note)
    patch.setattr(Room, "without_ours", mistaken)


def growth_waits_for_nobody(patch: Patch) -> None:
    """Who has gone ahead leaves room for us at once."""
    enter = core._enter

    def mistaken(scene: core.Scene, state: State, live: Any) -> State:
        state = enter(scene, state, live)
        if state.stage is Stage.SETTLE:
            return replace(state, stage=Stage.FILL)
        return state

    patch.setattr(core, "_enter", mistaken)


def ours_are_others(patch: Patch) -> None:
    """Our waiting pod waits for what we hold."""
    patch.setattr(crowd, "is_ours", lambda *_: False)
    _decided_on(
        patch,
        lambda view: replace(
            view,
            ours=tuple(pod for pod in view.ours if pod.scheduled is Scheduled.YES),
            others=(*view.others, *(p for p in view.ours if p.scheduled is not Scheduled.YES)),
        ),
    )


MUTANTS = (
    Mutant("ready instead of bound", ready_instead_of_bound, plans.quiet),
    Mutant("any Pending counts", any_pending_counts, whole),
    Mutant("never mute", never_mute, blind, "I5"),
    Mutant("always mute", always_mute, whole),
    Mutant("mute while we leave", mute_while_we_leave, slow, "I8"),
    Mutant("mute keyed by uid", mute_by_uid, blind, "I5"),
    Mutant("mutes of one length", mutes_of_one_length, blind, "I5"),
    Mutant("deaf to change", deaf_to_change, moving, "I4"),
    Mutant("words clear nobody", words_clear_nobody, blind, "I5"),
    Mutant("cool-down restarted by undecided pods", undecided_restart_the_cooldown, streams, "I2"),
    Mutant("kick on undecided", kick_on_undecided, whole),
    Mutant("FILL without max(..., 1)", fill_without_a_first, without_buffer, "I2"),
    Mutant("trims bound pods", trims_bound_pods, meddled, "I3"),
    Mutant("no re-assertion in YIELD", no_reassertion, meddled, "I1"),
    Mutant("only GPUs count", only_gpus_count, busy, "I1"),
    Mutant("unknown words are not ours", unknown_words_are_not_ours, whole, "I1"),
    Mutant("acts although frozen", everything_frozen_acts, stopped, "I3"),
    Mutant("daemons, gates and strangers count", daemons_count, crowded),
    Mutant("needed: one replica less", one_less_frees_a_place, thrifty, "I4"),
    Mutant("fit beside ours", fit_beside_ours, sighted, "I1"),
    Mutant("no cool-down", growth_waits_for_nobody, whole, "I7"),
    Mutant("ours are others", ours_are_others, plans.quiet),
)
