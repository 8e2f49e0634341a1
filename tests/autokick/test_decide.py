"""One look at a time: what is decided, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emiliad.autokick.model import Action, Owner, Pod, Scheduled, Stage, View
from tests.autokick.views import FULL, GPU, Talk, a_target, a_view, our_pod, ours, someone

# --- FROZEN


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"leader": False}, "another autokicker leads"),
        ({"synced": False}, "not everything"),
        ({"stale_s": 91.0}, "91 s ago"),
        ({"fought_by": "HorizontalPodAutoscaler speech/emiliad"}, "Autoscaler speech/emiliad"),
    ],
)
def test_what_is_not_known_freezes(facts: dict[str, Any], says: str) -> None:
    """Nothing is written on a guess, however much somebody waits, and the reason is told."""
    decision = Talk().look(a_view(a_target(3), ours(2, 1), [someone()], **facts))
    assert (decision.action, decision.stage, decision.replicas) == (Action.NONE, "frozen", None)
    assert says in decision.reason


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (None, "no such Deployment"),
        (a_target(3, paused=True), "paused"),
        (a_target(3, terminating=True), "being deleted"),
        (a_target(3, annotations={"emiliad.io/autokick": "off"}), "annotation"),
        (a_target(3, selector=()), "selector"),
        (a_target(3, kind="DaemonSet"), "no Deployment"),
    ],
)
def test_a_target_that_is_not_to_be_touched_freezes(target: Any, says: str) -> None:
    """A missing, paused, foreign or switched-off target is left alone."""
    decision = Talk().look(a_view(target, ours(2, 1), [someone()]))
    assert (decision.action, decision.stage) == (Action.NONE, Stage.FROZEN)
    assert says in decision.reason


def test_off_is_off() -> None:
    """With AUTOKICK_MODE=off nothing is ever done."""
    decision = Talk(mode="off").look(a_view(a_target(3), ours(2, 1), [someone()]))
    assert (decision.action, decision.stage) == (Action.NONE, Stage.FROZEN)


@pytest.mark.parametrize("rules", [{"mode": "all"}, {"mode": "needed", "kind": "DaemonSet"}])
def test_who_would_remove_itself_does_nothing(rules: dict[str, Any]) -> None:
    """Embedded, with all pods to go, nobody would be left to bring them back."""
    target = a_target(3, kind=rules.get("kind", "Deployment"))
    decision = Talk(standalone=False, **rules).look(a_view(target, ours(2, 1), [someone()]))
    assert (decision.action, decision.stage) == (Action.NONE, Stage.FROZEN)
    assert "emiliad autokick" in decision.reason


def test_an_embedded_one_goes_down_to_its_own_pod() -> None:
    """With mode `needed` one pod stays, however many wait, and they are muted in the end."""
    talk = Talk(standalone=False, mode="needed")
    crowd = [someone(f"job-{n}", requests={GPU: 8}) for n in range(9)]
    decision = talk.look(a_view(a_target(4), ours(3, 1), crowd))
    assert (decision.action, decision.replicas) == (Action.KICK, 1)
    alone = a_view(a_target(1), ours(1), crowd)
    assert talk.look(alone, 10).action is Action.NONE
    assert talk.look(alone, 290).stage is Stage.YIELD
    assert talk.look(alone, 15).stage is Stage.FILL


# --- FILL


def test_one_pod_waits_for_every_world() -> None:
    """FILL: as many replicas as have a place, and the buffer; with a buffer of 0 at least one."""
    assert Talk().look(a_view(a_target(0))).replicas == 1
    assert Talk().look(a_view(a_target(3), ours(3))).replicas == 4
    assert Talk(buffer=2).look(a_view(a_target(3), ours(3))).replicas == 5
    assert Talk(buffer=0).look(a_view(a_target(0))).replicas == 1
    assert Talk(max_replicas=3).look(a_view(a_target(3), ours(3))).action is Action.NONE


def test_growth_counts_places_not_readiness() -> None:
    """A pod that loads its models has a place already; growth does not wait for it."""
    decision = Talk().look(a_view(a_target(2), ours(2)))
    assert (decision.action, decision.replicas) == (Action.GROW, 3)


def test_growth_waits_for_the_scheduler_but_not_for_ever() -> None:
    """A pod of somebody else that is not decided on holds growth, for a minute at most."""
    talk = Talk()
    fresh = [someone(scheduled=Scheduled.UNKNOWN, message="")]
    view = a_view(a_target(2), ours(2), fresh)
    decision = talk.look(view)
    assert (decision.action, decision.next_look_s) == (Action.NONE, 60.0)
    assert "team/job" in decision.reason
    assert talk.look(view, 60.0).action is Action.GROW


def test_who_asks_for_nothing_of_ours_holds_nobody() -> None:
    """Growth does not wait for pods that ask for nothing that we hold."""
    fresh = [someone(scheduled=Scheduled.UNKNOWN, requests={"example.com/fpga": 1.0})]
    assert Talk().look(a_view(a_target(2), ours(2), fresh)).action is Action.GROW


def test_two_writes_keep_their_distance() -> None:
    """Growth and trims are 0.2 s apart; a kick comes at once."""
    talk = Talk()
    assert talk.look(a_view(a_target(1), ours(1))).action is Action.GROW
    held = talk.look(a_view(a_target(2), ours(2)), 0.05)
    assert held.action is Action.NONE
    assert held.next_look_s == pytest.approx(0.15)
    assert talk.look(a_view(a_target(2), ours(2), [someone()]), 0.05).action is Action.KICK


def test_enough_of_ours_wait_whatever_is_asked_for() -> None:
    """Someone asked for fewer: pods go, and only then is it clear how many are to be added."""
    decision = Talk().look(a_view(a_target(1), ours(3, 1)))
    assert decision.action is Action.NONE
    assert "3 pods run and 1 wait" in decision.reason


def test_a_surplus_is_trimmed_when_it_has_settled() -> None:
    """Pods in excess go if all were refused for 15 s, nothing terminates, and nothing rolls out."""
    for facts, pods in (
        ({}, ours(2, 3, scheduled=Scheduled.UNKNOWN)),
        ({}, ours(2, 3, leaving=1)),
        ({"rolling": True}, ours(2, 3)),
    ):
        talk = Talk()
        view = a_view(a_target(5, **facts), pods)
        assert talk.look(view).action is Action.NONE
        assert talk.look(view, 100).action is Action.NONE
    talk = Talk()
    view = a_view(a_target(5), ours(2, 3))
    assert talk.look(view).next_look_s == 15.0
    decision = talk.look(view, 15)
    assert (decision.action, decision.replicas) == (Action.TRIM, 3)


def test_a_quota_is_told_and_not_fought() -> None:
    """Where Kubernetes creates no pods, the reason names its complaint; nothing is written."""
    target = a_target(3, problem="exceeded quota: gpus")
    decision = Talk().look(a_view(target, ours(2)))
    assert decision.action is Action.NONE
    assert "exceeded quota: gpus" in decision.reason


def test_max_replicas_is_a_cap_for_what_runs() -> None:
    """Lowering it is the user's way to take pods away."""
    decision = Talk(max_replicas=2).look(a_view(a_target(5), ours(4, 1)))
    assert (decision.action, decision.replicas) == (Action.TRIM, 2)


# --- YIELD and SETTLE


def test_who_waits_for_what_we_hold_gets_all() -> None:
    """Mode all: replicas 0 at the first look, asserted again if anyone scales up."""
    talk = Talk()
    decision = talk.look(a_view(a_target(4), ours(3, 1), [someone()]))
    assert (decision.action, decision.replicas, decision.state) == (Action.KICK, 0, "yield")
    assert decision.blocked == ("team/job",)
    assert "team/job waits" in decision.reason
    assert "Insufficient nvidia.com/gpu" in decision.reason
    assert talk.look(a_view(a_target(0), ours(leaving=3), [someone()]), 1).action is Action.NONE
    assert talk.look(a_view(a_target(2), (), [someone()]), 1).action is Action.KICK


@pytest.mark.parametrize(
    "facts",
    [
        {"node": "n1", "scheduled": Scheduled.YES},  # pulls its image
        {"scheduled": Scheduled.UNKNOWN},
        {"gated": True},
        {"terminating": True},
        {"mirror": True},
        {"phase": "Failed"},
        {"scheduler": "volcano"},
        {"labels": {"lowprio": "true"}},
        {"owner": Owner("DaemonSet", "agent")},
        {"namespace": "speech", "labels": {"app": "emiliad"}},
        {"namespace": "speech", "labels": {"app.kubernetes.io/component": "autokick"}},
        {"message": "0/2 nodes are available: 2 Insufficient example.com/fpga."},
    ],
)
def test_who_does_not_count_does_not_count(facts: dict[str, Any]) -> None:
    """Pods with a place, undecided, gated, leaving, of a node, or ours are no reason to go."""
    decision = Talk().look(a_view(a_target(4), ours(3, 1), [someone(**facts)]))
    assert (decision.action, decision.stage, decision.blocked) == (Action.NONE, Stage.FILL, ())


def test_we_come_back_after_the_cool_down() -> None:
    """20 s after the last one waited; an undecided pod delays it but does not begin it anew."""
    talk = Talk()
    talk.look(a_view(a_target(4), ours(3, 1), [someone()]))
    empty = a_view(a_target(0))
    decision = talk.look(empty, 12)
    assert (decision.stage, decision.action, decision.next_look_s) == ("settle", Action.NONE, 20.0)
    assert talk.look(a_view(a_target(2)), 5).replicas == 0  # nobody else brings us back either
    fresh = a_view(a_target(0), (), [someone("new", scheduled=Scheduled.UNKNOWN)])
    assert talk.look(fresh, 5).stage is Stage.SETTLE
    assert talk.look(fresh, 11).stage is Stage.SETTLE
    assert talk.look(empty, 0.1).action is Action.GROW


def test_a_daemonset_is_held_and_released() -> None:
    """It has no replicas: all of its pods go, and may come back."""
    talk = Talk(kind="DaemonSet")
    there, held = a_target(3, kind="DaemonSet"), a_target(3, kind="DaemonSet", held=True)
    decision = talk.look(a_view(there, ours(3), [someone()]))
    assert (decision.action, decision.replicas) == (Action.HOLD, None)
    assert talk.look(a_view(held, ours(leaving=3), [someone()]), 1).action is Action.NONE
    assert talk.look(a_view(held), 10).stage is Stage.SETTLE
    assert talk.look(a_view(there), 1).action is Action.HOLD  # someone let them back too soon
    fresh = [someone(scheduled=Scheduled.UNKNOWN)]
    assert talk.look(a_view(held, (), fresh), 20).action is Action.NONE
    assert talk.look(a_view(held), 1).action is Action.RELEASE
    assert talk.look(a_view(there, ours(3)), 1).action is Action.NONE


# --- as few as needed


def test_as_few_go_as_are_needed() -> None:
    """Mode needed: one of ours holds eight GPUs, so one is enough for three who ask for two."""
    talk = Talk(mode="needed")
    three = [someone(f"job-{n}", requests={GPU: 2}) for n in range(3)]
    decision = talk.look(a_view(a_target(5), ours(4, 1), three))
    assert (decision.action, decision.replicas) == (Action.KICK, 3)
    going = a_view(a_target(3), ours(3, leaving=1), three)
    assert talk.look(going, 1).action is Action.NONE
    fourth = [*three, someone("big", requests={GPU: 8})]
    decision = talk.look(a_view(a_target(3), ours(3, leaving=1), fourth), 1)
    assert decision.replicas == 2


def test_if_it_was_the_wrong_place_more_go() -> None:
    """15 s after the room was made and not taken twice as many go, until none is left."""
    talk = Talk(mode="needed")
    talk.look(a_view(a_target(9), ours(8, 1), [someone()]))
    left = []
    for bound in (7, 5, 1):
        decision = talk.look(a_view(a_target(bound), ours(bound), [someone()]), 1)
        assert decision.next_look_s == 15.0
        left.append(talk.look(a_view(a_target(bound), ours(bound), [someone()]), 15).replicas)
    assert left == [5, 1, 0]


def test_a_pod_of_ours_that_ends_meanwhile_stays_away() -> None:
    """Its successor would compete with those for whom we made room."""
    talk = Talk(mode="needed")
    talk.look(a_view(a_target(5), ours(4, 1), [someone()]))
    decision = talk.look(a_view(a_target(3), ours(2, 1), [someone()]), 1)
    assert (decision.action, decision.replicas) == (Action.KICK, 2)


# --- muting


def _gone(talk: Talk, *pods: Pod) -> View:
    talk.look(a_view(a_target(4), ours(3, 1), pods))
    view = a_view(a_target(0), (), pods)
    talk.look(view, 10)
    return view


def test_who_is_not_helped_is_muted_for_longer_each_time() -> None:
    """300 s after we have gone, for 15 min; then a minute's probe, for twice as long."""
    talk = Talk()
    hopeless = someone("great", requests={GPU: 16})
    gone = _gone(talk, hopeless)
    decision = talk.look(gone, 299)
    assert decision.next_look_s == pytest.approx(1.0)
    decision = talk.look(gone, 1)
    assert (decision.stage, decision.action) == ("fill", Action.GROW)
    assert (decision.blocked, decision.muted) == ((), ("team/great",))
    back = a_view(a_target(4), ours(3, 1), [hopeless])
    assert talk.look(back, 899).stage is Stage.FILL
    assert talk.look(back, 1).action is Action.KICK
    talk.look(gone, 10)
    assert talk.look(gone, 60).stage is Stage.FILL
    assert talk.look(back, 1799).stage is Stage.FILL
    assert talk.look(back, 1).action is Action.KICK


def test_the_patience_begins_when_we_have_gone() -> None:
    """While one of ours still terminates, whoever waits may be waiting for it."""
    talk = Talk()
    talk.look(a_view(a_target(4), ours(3, 1), [someone()]))
    leaving = a_view(a_target(0), ours(leaving=1), [someone()])
    assert talk.look(leaving, 1).stage is Stage.YIELD
    assert talk.look(leaving, 298).stage is Stage.YIELD
    assert talk.look(a_view(a_target(0), (), [someone()]), 1).stage is Stage.YIELD
    assert talk.look(a_view(a_target(0), (), [someone()]), 299).stage is Stage.YIELD


def test_a_pod_on_a_dead_node_does_not_keep_us_away() -> None:
    """After 300 s of terminating it is not ours to remove; the patience begins."""
    talk = Talk()
    talk.look(a_view(a_target(4), ours(3, 1), [someone()]))
    stuck = a_view(a_target(0), ours(leaving=1), [someone()])
    assert talk.look(stuck, 1).next_look_s == 300.0
    talk.look(stuck, 300)
    assert talk.look(stuck, 300).stage is Stage.FILL


def test_a_successor_is_muted_with_its_like() -> None:
    """Re-created pods are of one kind: by owner without serial, requests and selector."""
    talk = Talk()
    first = someone("run-28391040-x", owner=Owner("Job", "run-28391040", "u1"))
    talk.look(_gone(talk, first), 300)
    second = someone("run-28391045-y", owner=Owner("Job", "run-28391045", "u2"))
    decision = talk.look(a_view(a_target(4), ours(3, 1), [second]), 100)
    assert (decision.stage, decision.muted) == (Stage.FILL, ("team/run-28391045-y",))
    other = someone("run-28391045-y", owner=second.owner, requests={GPU: 2})
    assert talk.look(a_view(a_target(4), ours(3, 1), [other]), 1).action is Action.KICK


def test_a_daemonset_that_begins_held_waits_for_the_scheduler() -> None:
    """A new leader finds it held and nobody refused: it looks before it lets the pods back."""
    talk = Talk(kind="DaemonSet")
    held = a_target(3, kind="DaemonSet", held=True)
    fresh = [someone(scheduled=Scheduled.UNKNOWN)]
    decision = talk.look(a_view(held, (), fresh))
    assert (decision.stage, decision.action, decision.next_look_s) == ("fill", Action.NONE, 60.0)


def test_two_kinds_are_judged_apart() -> None:
    """One that waited long is muted; another that has just come is still waited for."""
    talk = Talk()
    old, new = someone("old", requests={GPU: 16}), someone("new", requests={GPU: 15})
    gone = _gone(talk, old)
    talk.look(gone, 299)
    talk.look(a_view(a_target(0), (), [old, new]), 0.5)
    decision = talk.look(a_view(a_target(0), (), [old, new]), 1)
    assert (decision.stage, decision.blocked) == (Stage.YIELD, ("team/new",))
    assert decision.muted == ("team/old",)


def test_whom_we_saw_arrive_is_not_hopeless() -> None:
    """A pod of the kind that found a place clears its like of what was counted against them."""
    talk = Talk()
    gang = [someone(f"gang-{n}", owner=Owner("Job", "gang")) for n in range(2)]
    gone = _gone(talk, gang[0])
    talk.look(gone, 299)
    placed = replace(gang[0], node="n1", scheduled=Scheduled.YES)
    talk.look(a_view(a_target(0), (), [placed, gang[1]]), 0.5)
    assert talk.look(a_view(a_target(0), (), [placed, gang[1]]), 299).stage is Stage.YIELD


def test_members_that_bind_keep_us_away() -> None:
    """A gang's patience begins anew with each member that finds a place."""
    talk = Talk()
    gang = [someone(f"gang-{n}", owner=Owner("Job", "gang")) for n in range(4)]
    _gone(talk, *gang)
    for left in (3, 2, 1):
        assert talk.look(a_view(a_target(0), (), gang[:left]), 250).stage is Stage.YIELD
    assert talk.look(a_view(a_target(0), (), gang[:1]), 299).stage is Stage.YIELD
    assert talk.look(a_view(a_target(0), (), gang[:1]), 1).stage is Stage.FILL


@pytest.mark.parametrize("how", ["a node", "a place", "a release"])
def test_what_changes_ends_a_mute(how: str) -> None:
    """New nodes in the scheduler's words, a place for our waiting pod, or somebody's GPUs freed."""
    talk = Talk()
    holder = someone("holder", node="x", scheduled=Scheduled.YES, message="", phase="Running")
    hopeless = someone("great", requests={GPU: 16})
    talk.look(_gone(talk, hopeless, holder), 300)
    view = a_view(a_target(4), ours(3, 1), [hopeless, holder])
    assert talk.look(view, 70).stage is Stage.FILL
    changed = {
        "a node": a_view(
            a_target(4), ours(3, 1), [someone("great", requests={GPU: 16}, message=_of(5)), holder]
        ),
        "a place": a_view(a_target(4), ours(4), [hopeless, holder]),
        "a release": a_view(a_target(4), ours(3, 1), [hopeless]),
    }[how]
    assert talk.look(changed, 1).action is Action.KICK


def _of(nodes: int) -> str:
    return FULL.replace("0/4", f"0/{nodes}")


def test_a_change_soon_after_a_verdict_waits() -> None:
    """No mute ends within a minute of its verdict; then what has changed meanwhile counts."""
    talk = Talk()
    hopeless = someone("great", requests={GPU: 16})
    talk.look(_gone(talk, hopeless), 300)
    seen = someone("great", requests={GPU: 16}, message=_of(5))
    view = a_view(a_target(4), ours(3, 1), [seen])
    assert talk.look(view, 10).next_look_s == pytest.approx(50.0)
    assert talk.look(view, 50).action is Action.KICK


def test_whom_the_scheduler_clears_us_of_is_muted_at_once() -> None:
    """With us gone it names the true reason; once we are back it would say 'full' again."""
    talk = Talk()
    talk.look(a_view(a_target(4), ours(3, 1), [someone("db")]))
    truth = "0/4 nodes are available: 4 node(s) had volume node affinity conflict."
    decision = talk.look(a_view(a_target(0), (), [someone("db", message=truth)]), 12)
    assert (decision.stage, decision.action) == (Stage.FILL, Action.GROW)
    assert decision.muted == ("team/db",)
    decision = talk.look(a_view(a_target(4), ours(3, 1), [someone("db")]), 100)
    assert decision.stage is Stage.FILL


def test_one_cleared_of_two_alike_clears_nobody() -> None:
    """While the scheduler still calls the nodes full for one of a kind, we are not cleared."""
    talk = Talk()
    alike = [someone(f"db-{n}", owner=Owner("StatefulSet", "db")) for n in range(2)]
    talk.look(a_view(a_target(4), ours(3, 1), alike))
    truth = "0/4 nodes are available: 4 node(s) had volume node affinity conflict."
    told = [replace(alike[0], message=truth), alike[1]]
    decision = talk.look(a_view(a_target(0), (), told), 12)
    assert (decision.stage, decision.blocked) == (Stage.YIELD, ("team/db-1",))


def test_a_freeze_keeps_verdicts_and_forgets_the_rest() -> None:
    """Lost leadership does not set the hopeless free."""
    talk = Talk()
    hopeless = someone("great", requests={GPU: 16})
    talk.look(_gone(talk, hopeless), 300)
    view = a_view(a_target(4), ours(3, 1), [hopeless])
    frozen = a_view(a_target(4), ours(3, 1), [hopeless], leader=False)
    assert talk.look(frozen, 30).stage is Stage.FROZEN
    assert talk.look(view, 30).stage is Stage.FILL


# --- anything at all

_facts = st.fixed_dictionaries(
    {
        "node": st.sampled_from([None, "n1", "n2"]),
        "terminating": st.booleans(),
        "scheduled": st.sampled_from([*Scheduled]),
        "message": st.sampled_from(["", FULL, "0/0 nodes are available: .", "nonsense"]),
        "phase": st.sampled_from(["Pending", "Running", "Failed"]),
    }
)
_names = st.sampled_from("abcdefg")
_pods = st.builds(lambda name, facts: someone(name, **facts), _names, _facts) | st.builds(
    lambda name, facts: our_pod(name, **facts), _names, _facts
)


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(["all", "needed"]),
    standalone=st.booleans(),
    kind=st.sampled_from(["Deployment", "DaemonSet"]),
    cap=st.sampled_from([None, 0, 2]),
    looks=st.lists(
        st.tuples(
            st.integers(0, 6), st.lists(_pods, max_size=8), st.floats(0, 2000), st.booleans()
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_every_decision_makes_sense(
    mode: str, standalone: bool, kind: str, cap: int | None, looks: list[Any]
) -> None:
    """Whatever is seen: kicks lower, growth raises, timers lie ahead, and frozen is frozen."""
    talk = Talk(mode=mode, standalone=standalone, kind=kind, max_replicas=cap)
    for replicas, pods, after_s, held in looks:
        mine = [pod for pod in pods if pod.namespace == "speech"]
        target = a_target(replicas, kind=kind, held=held)
        decision = talk.look(a_view(target, mine, pods), after_s)
        bound = sum(
            bool(p.node) and not p.terminating and not p.finished
            for p in {pod.uid: pod for pod in mine}.values()
        )
        assert decision.next_look_s is None or decision.next_look_s > 0
        assert not set(decision.blocked) & set(decision.muted)
        match decision.action:
            case Action.KICK:
                assert decision.replicas is not None
                assert decision.replicas < replicas
                assert decision.stage in (Stage.YIELD, Stage.SETTLE)
            case Action.GROW:
                assert decision.replicas is not None
                assert decision.replicas > replicas
                assert not decision.blocked
            case Action.TRIM:
                assert decision.replicas is not None
                assert min(bound, cap or bound) <= decision.replicas < replicas or cap == 0
            case _:
                assert decision.replicas is None
        if decision.stage is Stage.FROZEN:
            assert decision.action is Action.NONE
