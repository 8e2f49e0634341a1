"""Plays one history: the toy cluster, the autokicker in it, and the judge."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from emiliad.autokick.model import Action, Decision, View
from ops.cluster.clock import Clock
from ops.cluster.cluster import Cluster
from ops.cluster.controllers import Gang, OurController
from ops.cluster.keeper import Keeper
from ops.cluster.objects import Life, Machine
from ops.cluster.scheduler import Scheduler
from tests.autokick.judge import Judge, Violation
from tests.autokick.plan import NODE, Event, Plan, Work, maker


@dataclass(slots=True)
class Report:
    """How a history went."""

    plan: Plan
    violation: str | None = None
    lines: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def digest(self) -> str:
        """Equal for equal histories."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def __str__(self) -> str:
        text = "\n".join(self.lines[-60:])
        return f"seed {self.plan.seed}: {self.violation}\n{self.plan}\n{text}"


class World:
    """One history."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.report = plan, Report(plan)
        self.clock = Clock()
        self.rng = random.Random(plan.seed)
        self.cluster = Cluster(self.clock, self.rng)
        for number in range(plan.nodes):
            self.cluster.add(_machine(number))
        Scheduler(self.cluster, plan.habits)
        self.ours = OurController(
            self.cluster,
            plan.ours,
            kind=plan.kind,
            priority=plan.priority,
            drain_s=plan.drain_s,
            load_s=plan.load_s,
            quota=plan.quota,
        )
        self.judge = Judge(self.cluster, self.ours, plan)
        self.keeper = Keeper(self.cluster, self.ours, plan.policy, plan.wire, self._decided)
        self.judge.watch(self.keeper)
        self._cordoned: dict[int, str] = {}
        for work in plan.works:
            self.clock.after(work.at, partial(self._begin, work))
        for event in plan.events:
            self.clock.after(event.at, partial(self._happen, event))

    def run(self) -> Report:
        """Until the horizon, or until a promise is broken."""
        with self._noted():
            self.clock.run(self.plan.horizon_s)
            self.judge.ended()
        return self.report

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Violation as violation:
            self.report.violation = str(violation)

    def _decided(self, view: View, decision: Decision) -> None:
        self.report.seen[decision.stage] += 1
        if decision.action is not Action.NONE:
            self.report.seen[decision.action] += 1
            self._note(f"{decision.stage} {decision.action} {decision.replicas}: {decision.reason}")
        if decision.muted:
            self.report.seen["muted"] += 1
        self.judge.decided(view, decision)

    def _note(self, line: str) -> None:
        self.report.lines.append(f"{self.clock.now:9.2f} {line}")

    def _begin(self, work: Work) -> None:
        self._note(f"work: {work}")
        self.judge.disturb()
        Gang(
            self.cluster,
            maker(work),
            size=work.size,
            again_s=work.again_s,
            apart_s=work.apart_s,
            gap_s=work.gap_s,
        )

    # --- events

    def _happen(self, event: Event) -> None:
        self._note(f"event: {event.kind} {event.number}")
        self.report.seen[event.kind] += 1
        if event.kind not in ("readiness flakes", "node joins"):
            self.judge.meddled()
        getattr(self, "_" + event.kind.replace(" ", "_"))(event.number)

    def _some_machine(self, number: int) -> Machine | None:
        machines = [*self.cluster.machines.values()]
        return machines[number % len(machines)] if machines else None

    def _some_of_ours(self, number: int) -> Life | None:
        held = [life for life in self.cluster.ours() if life.pod.node and not life.pod.terminating]
        return held[number % len(held)] if held else None

    def _node_joins(self, number: int) -> None:
        machine = _machine(100 + len(self.report.lines))
        self.cluster.add(machine)
        self.judge.joined(machine)

    def _node_dies(self, number: int) -> None:
        machine = self._some_machine(number)
        if machine is not None and len(self.cluster.machines) > 1:
            self.cluster.remove(machine.name)

    def _node_cordoned(self, number: int) -> None:
        machine = self._some_machine(number)
        if machine is not None:
            self._cordoned[number] = machine.name
            machine.cordoned = True
            self.cluster.machines_changed()

    def _node_back(self, number: int) -> None:
        machine = self.cluster.machines.get(self._cordoned.get(number, ""))
        if machine is not None:
            machine.cordoned = False
            self.cluster.machines_changed()

    def _readiness_flakes(self, number: int) -> None:
        life = self._some_of_ours(number)
        if life is not None and life.ready:
            self.cluster.set_ready(life, ready=False)
            self.clock.after(20.0, partial(self._ready_again, life))

    def _ready_again(self, life: Life) -> None:
        if self.cluster.pods.get(life.pod.uid) is life and not life.pod.terminating:
            self.cluster.set_ready(life, ready=True)

    def _our_pod_crashes(self, number: int) -> None:
        life = self._some_of_ours(number)
        if life is not None:
            self.cluster.delete(life.pod.uid)

    def _someone_scales_up(self, number: int) -> None:
        self.ours.change(replicas=self.ours.target.replicas + 1 + number % 4, held=False)

    def _someone_scales_down(self, number: int) -> None:
        self.ours.change(replicas=max(self.ours.target.replicas - 1 - number % 4, 0))

    def _paused(self, number: int) -> None:
        self.ours.change(paused=True)

    def _resumed(self, number: int) -> None:
        self.ours.change(paused=False)

    def _silence(self, number: int) -> None:
        self.keeper.silence()
        self.judge.silence(True)

    def _heard_again(self, number: int) -> None:
        self.keeper.resume()
        self.judge.silence(False)

    def _another_leads(self, number: int) -> None:
        self.keeper.lead(False)

    def _we_lead(self, number: int) -> None:
        self.keeper.lead(True)

    def _takes_over(self, number: int) -> None:
        self.keeper.restart()
        self.judge.replaced()


def _machine(number: int) -> Machine:
    return Machine(f"n{number}", NODE, labels={"name": f"n{number}"})


def run(plan: Plan) -> Report:
    """Plays a history."""
    return World(plan).run()
