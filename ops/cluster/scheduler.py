"""A scheduler like Kubernetes': one pod after the other, with back-off, reasons and preemption."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from ops.cluster.cluster import Cluster
from ops.cluster.objects import Life, Machine

ATTEMPT_S = 0.01
_BACKOFF_S, _BACKOFF_MAX_S = 1.0, 10.0  # Kubernetes' defaults
FLUSH_S = 300.0  # after which it looks again although nothing happened


@dataclass(frozen=True, slots=True)
class Habits:
    """What differs between versions and set-ups of Kubernetes."""

    tells_preemption: bool = True  # since 1.23 or so
    knows_too_great: bool = False  # since 1.34: says of what exceeds a node that nothing helps


class Scheduler:
    """Serves the waiting pods by priority, then by age."""

    def __init__(self, cluster: Cluster, habits: Habits = Habits()) -> None:
        self._cluster, self._clock, self._habits = cluster, cluster.clock, habits
        self._active: dict[str, Life] = {}
        self._parked: dict[str, Life] = {}
        self._nominated: list[Life] = []
        self._awake = False
        cluster.listen(self._pod_changed, self._look_again)
        self._clock.every(FLUSH_S / 10, self._flush)

    def _pod_changed(self, life: Life, gone: bool) -> None:
        uid = life.pod.uid
        if gone:
            self._active.pop(uid, None)
            self._parked.pop(uid, None)
            if life.pod.node is not None:
                self._look_again()
        elif life.waits and life.pod.message == "" and uid not in self._parked:
            self._active[uid] = life
            self._wake()

    def _look_again(self) -> None:
        """Room may have appeared: whoever was refused gets another try, after a back-off."""
        for uid, life in [*self._parked.items()]:
            backoff = 0.0 if life.nominated else min(2.0 ** (life.tries - 1), _BACKOFF_MAX_S)
            del self._parked[uid]
            ready_at = max(self._clock.now, life.tried_at + backoff * _BACKOFF_S)
            self._clock.after(ready_at - self._clock.now, partial(self._activate, life))

    def _flush(self) -> None:
        old = self._clock.now - FLUSH_S
        for uid in [uid for uid, life in self._parked.items() if life.tried_at <= old]:
            self._activate(self._parked.pop(uid))

    def _activate(self, life: Life) -> None:
        if self._cluster.pods.get(life.pod.uid) is life and life.waits:
            self._active[life.pod.uid] = life
            self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._clock.after(ATTEMPT_S, self._attempt)

    def _attempt(self) -> None:
        self._awake = False
        waiting = [life for life in self._active.values() if life.waits]
        if not waiting:
            self._active.clear()
            return
        life = min(waiting, key=lambda life: (-life.pod.priority, life.pod.created, life.pod.uid))
        del self._active[life.pod.uid]
        self._place(life)
        if self._active:
            self._wake()

    def _place(self, life: Life) -> None:
        cluster = self._cluster
        found = [
            machine
            for machine in cluster.machines.values()
            if cluster.welcomes(machine, life)
            and cluster.has_room(machine, life.pod.requests, self._promised(machine, life))
        ]
        if found:
            cluster.bind(life, cluster.rng.choice(found))
            return
        life.tries += 1
        life.tried_at = self._clock.now
        self._parked[life.pod.uid] = life
        cluster.refuse(life, self._reasons(life))
        self._preempt(life)

    def _promised(self, machine: Machine, life: Life) -> dict[str, float]:
        """What is used of a node or kept for pods of no lower priority, which wait for victims."""
        used = dict(machine.used)
        for other in self._nominated:
            waits = other.waits and other is not life and other.nominated == machine.name
            if waits and other.pod.priority >= life.pod.priority:
                for name, amount in other.pod.requests.items():
                    used[name] = used.get(name, 0.0) + amount
        return used

    def _preempt(self, life: Life) -> None:
        """Evicts pods of lower priority from one node, as few as needed, unless it has begun to."""
        pods = self._cluster.pods
        self._nominated = [one for one in self._nominated if one.waits and one.pod.uid in pods]
        if life.nominated and any(other.pod.terminating for other in pods.values()):
            return
        for machine in self._cluster.machines.values():
            victims = self._victims(life, machine)
            if victims:
                life.nominated = machine.name
                self._nominated.append(life)
                for victim in victims:
                    self._cluster.delete(victim.pod.uid)
                return

    def _victims(self, life: Life, machine: Machine) -> list[Life]:
        if not self._cluster.welcomes(machine, life):
            return []
        used, victims = dict(machine.used), []
        for other in self._cluster.pods.values():
            pod = other.pod
            if pod.node != machine.name or pod.priority >= life.pod.priority or pod.terminating:
                continue
            victims.append(other)
            for name, amount in pod.requests.items():
                used[name] -= amount
            if self._cluster.has_room(machine, life.pod.requests, used):
                return victims
        return []

    def _reasons(self, life: Life) -> str:
        """The first reason of each node, counted, in Kubernetes' words."""
        reasons: Counter[str] = Counter()
        unhelpful = 0
        for machine in self._cluster.machines.values():
            found, hopeless = self._refusals(life, machine)
            reasons.update(found)
            unhelpful += hopeless
        total = len(self._cluster.machines)
        text = f"0/{total} nodes are available: "
        text += ", ".join(sorted(f"{number} {reason}" for reason, number in reasons.items()))
        return text + "." + (self._about_preemption(total, unhelpful))

    def _refusals(self, life: Life, machine: Machine) -> tuple[list[str], bool]:
        """Why this node will not do, and whether no removal of pods could change it."""
        if machine.cordoned:
            return ["node(s) were unschedulable"], True
        if not machine.ready:
            return ["node(s) had untolerated taint {node.kubernetes.io/not-ready: }"], True
        if any(machine.labels.get(k) != v for k, v in life.pod.selector.items()):
            return ["node(s) didn't match Pod's node affinity/selector"], True
        room, requests = self._cluster.has_room, life.pod.requests
        used = self._promised(machine, life)
        short = [name for name in requests if not room(machine, {name: requests[name]}, used)]
        if short:
            great = any(not room(machine, {name: requests[name]}, {}) for name in short)
            return [f"Insufficient {n}" for n in short], great and self._habits.knows_too_great
        return ["node(s) had volume node affinity conflict"], True

    def _about_preemption(self, total: int, unhelpful: int) -> str:
        if not self._habits.tells_preemption:
            return ""
        parts = []
        if total - unhelpful:
            parts.append(f"{total - unhelpful} No preemption victims found for incoming pod")
        if unhelpful:
            parts.append(f"{unhelpful} Preemption is not helpful for scheduling")
        return f" preemption: 0/{total} nodes are available: {', '.join(parts)}."
