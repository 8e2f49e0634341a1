"""Our autokicker in the toy cluster: the decision core behind lagging caches and failing writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from emiliad.autokick import core
from emiliad.autokick.model import Action, Decision, Node, Pod, Policy, Stage, State, Target, View
from ops.cluster.cluster import Cluster
from ops.cluster.controllers import OurController
from ops.cluster.objects import Life

OnDecision: TypeAlias = Callable[[View, Decision], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What lies between the autokicker and the API server."""

    sees_bound: bool = False  # whether the watch covers others' pods that have a node
    sees_nodes: bool = False  # then it sees all pods, too
    lag_s: float = 0.05  # at most, from a change to the cache
    answer_s: float = 0.02  # of a write
    fails: float = 0.0  # the share of writes that are refused


class Keeper:
    """Feeds `decide` with what the watches say, and does what it decides."""

    def __init__(
        self,
        cluster: Cluster,
        ours: OurController,
        policy: Policy,
        wire: Wire = Wire(),
        on_decision: OnDecision | None = None,
    ) -> None:
        self._cluster, self._clock, self._ours = cluster, cluster.clock, ours
        self._policy, self._wire = policy, wire
        self._rng = random.Random(cluster.rng.random())
        self._on_decision = on_decision
        self._mine: dict[str, Pod] = {}
        self._others: dict[str, Pod] = {}
        self._nodes: tuple[Node, ...] = ()
        self._target: Target = ours.target
        self._state = State()
        self._last_s = 0.0  # when the latest word arrives: words do not overtake one another
        self._due = self._in_flight = False
        self._alarm = 0
        self._silent_since: float | None = None
        self.leader = True
        self.writes = 0
        cluster.listen(self._pod_changed, self._machines_changed)
        ours.listen(self._target_changed)
        self._machines_changed()
        self._target_changed()

    # --- what it sees

    def _pod_changed(self, life: Life, gone: bool) -> None:
        self._deliver(partial(self._note, life.pod, life.ours, gone))

    def _note(self, pod: Pod, ours: bool, gone: bool) -> None:
        cache = self._mine if ours else self._others
        everything = ours or self._wire.sees_bound or self._wire.sees_nodes
        if gone or (pod.node is not None and not everything):
            cache.pop(pod.uid, None)
        else:
            cache[pod.uid] = pod

    def _machines_changed(self) -> None:
        self._deliver(self._read_nodes)

    def _read_nodes(self) -> None:
        self._nodes = tuple(machine.seen() for machine in self._cluster.machines.values())

    def _target_changed(self) -> None:
        self._deliver(self._read_target)

    def _read_target(self) -> None:
        self._target = self._ours.target

    def _deliver(self, news: Callable[[], None]) -> None:
        if self._silent_since is not None:
            return
        lag_s = self._rng.random() * self._wire.lag_s
        self._last_s = max(self._last_s, self._clock.now + lag_s)
        self._clock.after(self._last_s - self._clock.now, partial(self._hear, news))

    def _hear(self, news: Callable[[], None]) -> None:
        news()
        self._soon()

    def silence(self) -> None:
        """The watches are cut: nothing is heard until `resume`."""
        if self._silent_since is None:
            self._silent_since = self._clock.now
            self._clock.after(self._policy.stale_s + 1.0, self._soon)

    def resume(self) -> None:
        """The watches are back, and begin with a list of all that there is."""
        self._silent_since = None
        self._deliver(self._list)

    def _list(self) -> None:
        self._mine.clear()
        self._others.clear()
        for life in self._cluster.pods.values():
            self._note(life.pod, life.ours, gone=False)
        self._read_nodes()
        self._read_target()

    def restart(self) -> None:
        """Another process takes over, which remembers nothing."""
        self._state = State()
        self._soon()

    def lead(self, leader: bool) -> None:
        """The Lease is lost or won."""
        self.leader = leader
        self._soon()

    # --- what it does

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._clock.after(0.0, self._decide)

    def _view(self) -> View:
        silent = self._silent_since
        return View(
            target=self._target,
            ours=tuple(self._mine.values()),
            others=tuple(self._others.values()),
            nodes=self._nodes if self._wire.sees_nodes else None,
            stale_s=0.0 if silent is None else self._clock.now - silent,
            leader=self.leader,
        )

    def _decide(self) -> None:
        self._due = False
        if self._in_flight:
            return
        view = self._view()
        decision, self._state = core.decide(view, self._state, self._policy, self._clock.now)
        if self._on_decision is not None:
            self._on_decision(view, decision)
        self._alarm += 1
        if decision.next_look_s is not None:
            self._clock.after(decision.next_look_s, partial(self._ring, self._alarm))
        if decision.action is not Action.NONE:
            assert decision.stage is not Stage.FROZEN
            self._in_flight = True
            self._clock.after(self._wire.answer_s, partial(self._write, decision))

    def _ring(self, alarm: int) -> None:
        if alarm == self._alarm:
            self._soon()

    def _write(self, decision: Decision) -> None:
        """The write reaches the server, or does not; its answer is put into the cache at once."""
        self._in_flight = False
        if self._rng.random() < self._wire.fails:
            self._clock.after(self._rng.uniform(0.05, 0.3), self._soon)
            return
        self.writes += 1
        if decision.replicas is not None:
            self._ours.change(replicas=decision.replicas)
        else:
            self._ours.change(held=decision.action is Action.HOLD)
        self._read_target()
        self._soon()
