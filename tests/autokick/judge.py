"""Watches one history of the toy cluster and says which promise was broken.

The oracle is the truth of the cluster ("remove ours: does it fit?"), never the autokicker's view.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from emiliad.autokick.model import Action, Decision, Stage, View
from ops.cluster.cluster import Cluster
from ops.cluster.controllers import OurController
from ops.cluster.keeper import Keeper
from ops.cluster.objects import GPU, Life, Machine
from tests.autokick.plan import Plan

_TICK_S = 10.0
_RETRY_S = 11.0  # by when the scheduler has looked at everyone again, after 10 s of back-off
_NEEDED_S = 300.0  # within which going down by as few as needed has made room, step by step
_RETURN_S = 95.0  # the cool-down, and a minute for pods that no scheduler looks at
_NEVER_OURS = ("selector", "exotic")  # wait for what nobody of us holds, and say so


class Violation(AssertionError):
    """A promise that was not kept."""


class Judge:
    """Judges I1 to I8; see docs/autokicker.md."""

    def __init__(self, cluster: Cluster, ours: OurController, plan: Plan) -> None:
        self._cluster, self._clock, self._ours, self._plan = cluster, cluster.clock, ours, plan
        self._kinds = {work.name: work.kind for work in plan.works}
        self._keeper: Keeper | None = None
        self._blocked: dict[str, float] = {}  # uid -> we are in its way since
        self._helpable: dict[str, float] = {}  # uid -> refused although it would fit without us
        self._cause_at = -1e9  # when somebody last waited for what we may hold
        self._calm_since = 0.0
        self._yielded_at = -1e9
        self._free_since = 0.0
        self._template = ours.template()
        self._writes = 0
        self._muted: dict[str, float] = {}  # work -> muted since
        self._verdicts: Counter[str] = Counter()  # work -> verdicts
        self._stage = Stage.FILL
        self._silent = False
        self._due = False
        self._idle_s = 0.0  # node-seconds during which nobody used a place that we could have
        self._idle: list[tuple[float, float]] = []  # at -> node-seconds so far
        self._idle_at, self._idle_nodes = 0.0, 0
        slow = 3.0 if plan.wire.fails else 0.0
        self._limit_s = 1.0 + slow
        cluster.listen(self._pod_changed, self._soon)
        self._clock.every(_TICK_S, self._look)

    def watch(self, keeper: Keeper) -> None:
        """The autokicker that is judged."""
        self._keeper = keeper

    # --- what it is told

    def disturb(self) -> None:
        """Something happened after which some action is right."""
        self._calm_since = self._clock.now

    def meddled(self) -> None:
        """Something happened that our pods or their number suffer from: clocks begin anew."""
        self._blocked.clear()
        self._free_since = self._clock.now
        self.disturb()

    def replaced(self) -> None:
        """Another process takes over, which knows nothing of what was."""
        self._yielded_at = -1e9
        self.disturb()

    def silence(self, silent: bool) -> None:
        """The autokicker hears nothing, so nothing can be asked of it."""
        self._silent = silent
        self.disturb()

    def joined(self, machine: Machine) -> None:
        """I6: where all is quiet, a new node is taken within one round of the scheduler."""
        if self._calm() and self._fills():
            at = self._clock.now
            self._clock.after(_RETRY_S, partial(self._check_joined, machine, at))
        self.disturb()

    def _check_joined(self, machine: Machine, at: float) -> None:
        if self._calm_since == at and machine.used.get(GPU, 0.0) == 0.0:
            self._fail("I6: a new node is still empty after a round of the scheduler")

    def decided(self, view: View, decision: Decision) -> None:
        """The autokicker has decided."""
        now = self._clock.now
        if decision.stage is Stage.FROZEN or self._stage is Stage.FROZEN:
            self.disturb()
        self._judge_kill(decision)
        works = {_work(name) for name in decision.muted}
        for work in works - self._muted.keys():
            self._verdicts[work] += 1
            self._yielded_at = -1e9
            self._judge_verdict(work)
        self._muted = {work: self._muted.get(work, now) for work in works}
        self._judge_right_to_write(view, decision)
        self._stage = decision.stage

    def _judge_right_to_write(self, view: View, decision: Decision) -> None:
        """Nothing is written on a guess, nor while somebody has only just gone ahead."""
        now, action = self._clock.now, decision.action
        stale = view.stale_s > self._plan.policy.stale_s
        forbidden = stale or not view.leader or (view.target is not None and view.target.paused)
        if action is not Action.NONE and (forbidden or decision.stage is Stage.FROZEN):
            self._fail(f"I3: {action} without the right to")
        if decision.stage is Stage.YIELD:
            self._yielded_at = now
        elif decision.stage is Stage.FROZEN:
            self._yielded_at = -1e9
        elif action in (Action.GROW, Action.RELEASE) and now - self._yielded_at < 19.9:
            self._fail(f"I7: {action} {now - self._yielded_at:.1f} s after somebody waited")

    def _judge_kill(self, decision: Decision) -> None:
        """I3, I7: nothing of ours that runs is removed for nobody."""
        live = sum(1 for life in self._cluster.ours() if _runs(life))
        left = 0 if decision.action is Action.HOLD else decision.replicas
        if left is None or left >= live or self._silent:
            return
        cap = self._plan.policy.max_replicas
        if decision.action is Action.TRIM and (cap is None or left < cap):
            self._fail(f"I3: trims {live} running pods to {left}")
        if decision.action in (Action.KICK, Action.HOLD) and self._clock.now - self._cause_at > 26:
            self._fail(f"I7: kicks {live - left} running pods, but nobody waits")

    def _judge_verdict(self, work: str) -> None:
        """I8: nobody is muted whom the removal of ours would help."""
        for uid, since in self._helpable.items():
            if _work(uid) == work and self._clock.now - since > _RETRY_S:
                self._fail(f"I8: {uid} is muted although it would fit without us")

    # --- what it looks at

    def _pod_changed(self, life: Life, gone: bool) -> None:
        if not life.ours and not (life.refused and not gone):
            self.disturb()
        self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._clock.after(0.0, self._look)

    def _look(self) -> None:
        self._due = False
        self._measure_idle()
        others = self._others()
        waiting = [life for life in others if life.refused]
        if waiting:
            self._look_at(waiting)
        else:
            self._helpable = self._blocked = {}
        if any(life.waits for life in others):
            self.disturb()
        self._judge_return(waiting)
        self._judge_calm()

    def _look_at(self, waiting: list[Life]) -> None:
        now = self._clock.now
        if any(self._kinds.get(_work(life.pod.uid)) not in _NEVER_OURS for life in waiting):
            self._cause_at = now
        helpable = [life for life in waiting if self._cluster.fits_without_ours(life)]
        self._helpable = {life.pod.uid: self._helpable.get(life.pod.uid, now) for life in helpable}
        blind = self._silent or self._stage is Stage.FROZEN
        blocked = [] if blind else [life for life in helpable if not self._cluster.fits_now(life)]
        self._blocked = {life.pod.uid: self._blocked.get(life.pod.uid, now) for life in blocked}
        for uid, since in self._blocked.items():
            self._judge_wait(uid, now - since)

    def _judge_return(self, waiting: list[Life]) -> None:
        """I2: however much comes and goes, a free place for which nobody waits is taken."""
        frozen = self._silent or self._stage is Stage.FROZEN
        if frozen or waiting or not self._fills() or not self._has_place():
            self._free_since = self._clock.now
        elif self._clock.now - self._free_since > _RETURN_S:
            self._fail(f"I2: nobody waited for {_RETURN_S:.0f} s, and a place is free")

    def _has_place(self) -> bool:
        return self._plan.kind == "Deployment" and self._cluster.fits_now(self._template)

    def _others(self) -> list[Life]:
        return [life for life in self._cluster.pods.values() if life.counts and not life.ours]

    def _judge_wait(self, uid: str, wait_s: float) -> None:
        """I1 of whom we do not know better, I4 of whom we took for hopeless."""
        muted_since = self._muted.get(_work(uid))
        if muted_since is not None:
            self._judge_muted_wait(uid, wait_s, muted_since)
        elif self._plan.policy.partial:
            if wait_s > _NEEDED_S:
                self._fail(f"I4: {uid} waits for {wait_s:.0f} s")
        else:
            self._judge_absence(uid, wait_s)

    def _judge_absence(self, uid: str, wait_s: float) -> None:
        if wait_s > self._limit_s and any(map(_lives, self._cluster.ours())):
            self._fail(f"I1a: {uid} waits for {wait_s:.1f} s and pods of ours live on")
        if wait_s > self._limit_s + self._plan.drain_s + 1.0 and any(self._cluster.ours()):
            self._fail(f"I1b: {uid} waits for {wait_s:.1f} s and pods of ours still terminate")

    def _judge_muted_wait(self, uid: str, wait_s: float, muted_since: float) -> None:
        """Room that appeared since must end the mute: at the first time within 90 s."""
        verdicts = self._verdicts[_work(uid)]
        began = self._clock.now - wait_s
        wary_until = muted_since + 60.0 * 2 ** (verdicts - 1)
        window_s = min(900.0 * 2 ** (verdicts - 1), 7200.0)
        if began > muted_since + _RETRY_S and self._sees_room():
            allowed = max(wary_until - began, 0.0) + 30.0
        else:
            allowed = window_s + 30.0
        if wait_s > allowed:
            self._fail(f"I4: {uid} is muted and waits for {wait_s:.0f} s, not {allowed:.0f}")

    def _sees_room(self) -> bool:
        """Whether the autokicker can notice that room has appeared: its waiting pod takes it."""
        whole = self._plan.ours[GPU] == 8
        return whole and self._fills() and self._plan.kind == "Deployment"

    def _fills(self) -> bool:
        plan = self._plan
        return plan.policy.buffer > 0 and plan.policy.max_replicas is None and plan.quota is None

    def _calm(self) -> bool:
        quiet_s = 60.0 + self._plan.drain_s
        frozen = self._silent or self._stage is Stage.FROZEN
        return not frozen and self._clock.now - self._calm_since > quiet_s

    def _judge_calm(self) -> None:
        """I2, I3: in a quiet world all is taken, one pod waits, and nothing is written."""
        assert self._keeper is not None
        if not self._calm():
            self._writes = self._keeper.writes
            return
        if self._keeper.writes != self._writes:
            self._fail("I3: a write in a quiet world")
        if self._plan.kind == "DaemonSet":
            if sum(1 for _ in self._cluster.ours()) != len(self._cluster.machines):
                self._fail("I2: not every node has a pod of ours")
            return
        mine = [*self._cluster.ours()]
        bound = sum(map(_holds, mine))
        unbound = sum(life.pod.node is None for life in mine)
        replicas, buffer = self._ours.target.replicas, self._plan.policy.buffer
        if self._fills() and (unbound, replicas) != (buffer, bound + buffer):
            self._fail(f"I2: {bound} bound, {unbound} unbound, {replicas} replicas")
        if self._fills() and self._cluster.fits_now(self._ours.template()):
            self._fail("I2: a place is free")
        if not self._fills() and self._plan.policy.max_replicas != 0 and replicas < 1:
            self._fail("I2: nothing was begun")

    # --- what hopeless pods cost

    def _measure_idle(self) -> None:
        now = self._clock.now
        self._idle_s += self._idle_nodes * (now - self._idle_at)
        self._idle_at = now
        self._idle.append((now, self._idle_s))
        self._idle_nodes = sum(
            machine.used.get(GPU, 0.0) == 0.0 for machine in self._cluster.machines.values()
        )

    def ended(self) -> None:
        """I5: whom nobody can help costs half of the first window at most, and ever less."""
        began = self._plan.hopeless_at
        if began is None:
            return
        first, second, third = (
            self._idle_share(began + start, began + end)
            for start, end in ((0.0, 1200.0), (1200.0, 7200.0), (7200.0, 14400.0))
        )
        if first > 0.5 or second > max(first / 2, 0.02) or third > max(second, 0.02):
            self._fail(f"I5: idle {first:.0%}, then {second:.0%}, then {third:.0%}")

    def _idle_share(self, start: float, end: float) -> float:
        """The part of the nodes' time during which they were empty."""

        def until(at: float) -> float:
            return max((idle for moment, idle in self._idle if moment <= at), default=0.0)

        return (until(end) - until(start)) / (end - start) / len(self._cluster.machines)

    def _fail(self, what: str) -> None:
        raise Violation(f"{self._clock.now:.1f} s: {what}")


def _work(name: str) -> str:
    """The gang that a pod is of, by its uid or full name."""
    return name.partition("/")[2].partition("-")[0]


def _lives(life: Life) -> bool:
    return not life.pod.terminating


def _holds(life: Life) -> bool:
    return life.pod.node is not None and _lives(life)


def _runs(life: Life) -> bool:
    return _holds(life) and life.pod.phase == "Running"
