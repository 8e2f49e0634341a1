"""The toy cluster's state, its kubelets, and the truth about who fits where."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from emiliad.autokick.model import Requests, Scheduled
from ops.cluster.clock import Clock
from ops.cluster.objects import Life, Machine

_EPSILON = 1e-9


class Cluster:
    """Nodes and pods; tells its listeners of every pod and node that changes."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock, self.rng = clock, rng
        self.machines: dict[str, Machine] = {}
        self.pods: dict[str, Life] = {}
        self.killed = 0  # running pods of ours that were removed
        self._on_pod: list[Callable[[Life, bool], None]] = []
        self._on_machine: list[Callable[[], None]] = []

    def listen(self, on_pod: Callable[[Life, bool], None], on_machine: Callable[[], None]) -> None:
        """`on_pod` gets a pod that changed, and whether it no longer exists."""
        self._on_pod.append(on_pod)
        self._on_machine.append(on_machine)

    def _tell(self, life: Life, gone: bool = False) -> None:
        for listener in self._on_pod:
            listener(life, gone)

    def machines_changed(self) -> None:
        """Tells the listeners that a node came, went, or is otherwise than before."""
        for listener in self._on_machine:
            listener()

    # --- pods

    def ours(self) -> Iterator[Life]:
        return (life for life in self.pods.values() if life.ours)

    def create(self, life: Life) -> None:
        """A new pod, which no scheduler has seen yet."""
        life.show(created=self.clock.now)
        self.pods[life.pod.uid] = life
        self._tell(life)

    def bind(self, life: Life, machine: Machine) -> None:
        """The scheduler's decision; the kubelet goes to work."""
        self._account(life, machine, 1.0)
        life.nominated = None
        life.show(node=machine.name, scheduled=Scheduled.YES, message="")
        self._tell(life)
        self._later(life.pull_s, life, self._start)

    def _start(self, life: Life) -> None:
        life.show(phase="Running")
        self._tell(life)
        self._later(life.load_s, life, partial(self.set_ready, ready=True))
        if life.run_s is not None:
            self._later(life.run_s, life, self._finish)

    def set_ready(self, life: Life, *, ready: bool) -> None:
        """Readiness, as a probe finds it."""
        life.ready = ready
        self._tell(life)

    def _finish(self, life: Life) -> None:
        life.show(phase="Succeeded")
        self._remove(life)

    def refuse(self, life: Life, message: str) -> None:
        """The scheduler found no node; it does not repeat itself."""
        if life.refused and life.pod.message == message:
            return
        life.show(scheduled=Scheduled.UNSCHEDULABLE, message=message)
        self._tell(life)

    def delete(self, uid: str) -> None:
        """Asks a pod to go: at once without a node, else after its drain."""
        life = self.pods.get(uid)
        if life is None or life.pod.terminating:
            return
        if life.pod.node is None:
            self._remove(life)
            return
        self.killed += life.ours and life.pod.phase == "Running"
        life.ready = False
        life.show(terminating=True)
        self._tell(life)
        self.clock.after(life.drain_s, partial(self._gone, life))

    def _gone(self, life: Life) -> None:
        if self.pods.get(life.pod.uid) is life:
            self._remove(life)

    def _remove(self, life: Life) -> None:
        del self.pods[life.pod.uid]
        if life.pod.node in self.machines:
            self._account(life, self.machines[life.pod.node], -1.0)
        self._tell(life, gone=True)

    def _later(self, delay_s: float, life: Life, step: Callable[[Life], None]) -> None:
        """Goes on with a pod's life, unless it ends before."""

        def go_on() -> None:
            if self.pods.get(life.pod.uid) is life and not life.pod.terminating:
                step(life)

        self.clock.after(delay_s, go_on)

    # --- nodes

    def add(self, machine: Machine) -> None:
        """A node joins."""
        self.machines[machine.name] = machine
        self.machines_changed()

    def remove(self, name: str) -> None:
        """A node dies, and its pods with it."""
        del self.machines[name]
        for life in [life for life in self.pods.values() if life.pod.node == name]:
            self._remove(life)
        self.machines_changed()

    @staticmethod
    def _account(life: Life, machine: Machine, sign: float) -> None:
        for used in (machine.used,) if life.ours else (machine.used, machine.by_others):
            for name, amount in life.pod.requests.items():
                used[name] = used.get(name, 0.0) + sign * amount

    # --- the truth

    @staticmethod
    def welcomes(machine: Machine, life: Life) -> bool:
        """Whether anything but room keeps the pod off the node."""
        if not machine.ready or machine.cordoned:
            return False
        if life.zone is not None and machine.zone != life.zone:
            return False
        return all(machine.labels.get(k) == v for k, v in life.pod.selector.items())

    @staticmethod
    def has_room(machine: Machine, requests: Requests, used: Requests) -> bool:
        """Whether the node can hold so much more than what is used of it."""
        for name, amount in requests.items():
            free = machine.allocatable.get(name, 0.0) - used.get(name, 0.0)
            if amount > free + _EPSILON:
                return False
        return True

    def fits_now(self, life: Life) -> bool:
        """Whether a node would take the pod as things are."""
        return any(
            self.has_room(m, life.pod.requests, m.used) and self.welcomes(m, life)
            for m in self.machines.values()
        )

    def fits_without_ours(self, life: Life) -> bool:
        """The oracle: remove ours, does it fit?"""
        return any(
            self.has_room(m, life.pod.requests, m.by_others) and self.welcomes(m, life)
            for m in self.machines.values()
        )
