"""What this daemon is doing at this moment, as the actors write it and the pages show it.

The actors write from the event loop; readers come from the threads of the HTTP server, so that a
loop that stands still can be looked at. Every method takes the lock, for microseconds, and looks
at the clock only when it has it: counters do not run backwards.

The page shows these facts where they are given (`board.fact(version=...)`): `version`, `node`,
`store_url`, `lease_ttl_s`, `most_leases`, `oldest_renewal_s`, `outlook` (a mapping: the queue as
last seen) and `autokick` (a mapping: its status); all other scalars it lists by their names.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from emiliad.metrics import QUEUES, Metrics
from emiliad.readings import readings
from emiliad.rows import Job, LastHour, Pace, Recent, Row, StoreHealth, iso
from emiliad.types import Claim, Outcome


class Board:
    """The daemon's view of itself; keeps the metrics that say the same in step."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._began = clock()
        self._facts: dict[str, Any] = {}
        self._executors: dict[str, Row] = {}
        self._depths: Counter[str] = Counter()
        self._totals: Counter[str] = Counter({outcome.value: 0 for outcome in Outcome})
        self._audio_seconds = 0.0
        self._segments = 0
        self._recent = Recent()
        self._hour = LastHour()
        self._pace = Pace()
        self._store = StoreHealth()
        self._problems: dict[str, tuple[float, str]] = {}  # since when, and what
        self._state = "starting"
        self._entered = self._began

    def fact(self, **facts: Any) -> None:
        """Notes things that are shown as they are: JSON values."""
        with self._lock:
            self._facts.update(facts)

    def problem(self, name: str, sentence: str | None) -> None:
        """Notes what is wrong, or with None that it no longer is."""
        with self._lock:
            if sentence is None:
                self._problems.pop(name, None)
            else:
                since, _ = self._problems.get(name, (self._clock(), ""))
                self._problems[name] = since, sentence

    @property
    def state(self) -> str:
        """starting, running, draining or stopping."""
        return self._state

    def enter(self, state: str) -> None:
        """Moves the daemon as a whole to another state."""
        with self._lock:
            self._state, self._entered = state, self._clock()
        self._metrics.draining.set(state in ("draining", "stopping"))
        self._count_ready()

    def not_ready(self) -> str | None:
        """Why no task can be processed here now; None if one can."""
        if self._state in ("draining", "stopping"):
            return f"the daemon is {self._state}"
        with self._lock:
            states = Counter(row.state for row in self._executors.values())
            reasons = [row.reason for row in self._executors.values() if row.reason]
        if states["idle"] or states["busy"]:
            return None
        if states["dead"] and states["dead"] == states.total():
            return f"every executor is given up: {reasons[0] if reasons else 'no reason known'}"
        return "no executor has its models loaded yet"

    def show(self, name: str, state: str, *, device: str = "", **seen: Any) -> None:
        """Moves an executor to another state; `seen` may hold pid, reason and memory_bytes."""
        with self._lock:
            self._move(name, state, device=device, **seen)
        self._count_ready()

    def _move(self, name: str, state: str, *, device: str = "", **seen: Any) -> None:
        now = self._clock()
        row = self._executors.setdefault(name, Row(name, device, since=now, counted=now))
        self._accrue(row, now)
        if row.state:
            self._metrics.executors.labels(row.state).dec()
        self._metrics.executors.labels(state).inc()
        for spent in (self._metrics.executor_busy_seconds, self._metrics.executor_idle_seconds):
            spent.labels(name)  # at 0, from the start
        row.state, row.since, row.device = state, now, device or row.device
        for key, value in seen.items():
            setattr(row, key, value)

    def _accrue(self, row: Row, now: float) -> None:
        """Counts the time in a state while it lasts, too: tasks are longer than a rate's window."""
        passed = row.accrue(now)
        if row.state == "busy":
            self._metrics.executor_busy_seconds.labels(row.name).inc(passed)
        elif row.state == "idle":
            self._metrics.executor_idle_seconds.labels(row.name).inc(passed)

    def restarted(self, name: str, reason: str, why: str) -> None:
        """Counts that an executor must be started again; `reason` is the metric's label."""
        with self._lock:
            row = self._executors[name]
            row.restarts += 1
            row.reason = why
        self._metrics.executor_restarts.labels(reason).inc()

    def memory(self, name: str, size: int) -> None:
        """Notes the resident memory of an executor, in bytes."""
        with self._lock:
            row = self._executors[name]
            row.memory_bytes = size
            self._accrue(row, self._clock())
        self._metrics.executor_memory_bytes.labels(name).set(size)

    def begin(self, name: str, claim: Claim) -> None:
        """Notes that an executor begins a task."""
        task = claim.task
        with self._lock:
            now = self._clock()
            job = Job(task.episode_id, task.audio_key, claim.attempt, began=now, stage_began=now)
            self._move(name, "busy", job=job, reason=None)
        self._count_ready()

    def stage(self, name: str, stage: str, seconds: float, audio_seconds: float) -> None:
        """Notes that a stage of an executor's task ended."""
        with self._lock:
            now = self._clock()
            row = self._executors[name]
            self._accrue(row, now)
            if row.job is not None:
                row.job.ended(stage, seconds, audio_seconds, now)
        self._metrics.stage_ended(stage, seconds, audio_seconds)

    def end(self, name: str) -> None:
        """Notes that an executor is through with its task."""
        with self._lock:
            row = self._executors[name]
            if row.job is not None:
                self._pace.learn(row.job)
            row.job = None
            row.tasks += 1

    def moved(self, queue: str, by: int) -> None:
        """Notes that an episode entered (1) or left (-1) a queue."""
        with self._lock:
            self._depths[queue] += by
            depth = self._depths[queue]
        self._metrics.queue_depth.labels(queue).set(depth)

    def ended(self, claim: Claim, outcome: Outcome, facts: Mapping[str, Any]) -> None:
        """Notes how an attempt ended; `facts` may hold segments, audio_seconds, seconds, kind,
        reason."""
        at = self._wall()
        with self._lock:
            self._totals[outcome.value] += 1
            self._recent.add(at, claim, outcome, facts)
            if outcome is Outcome.COMPLETED:
                self._add(at, facts)

    def _add(self, at: float, facts: Mapping[str, Any]) -> None:
        seconds = float(facts.get("audio_seconds", 0.0))
        self._hour.add(at, seconds if math.isfinite(seconds) else 0.0)
        self._audio_seconds += seconds if math.isfinite(seconds) else 0.0
        self._segments += int(facts.get("segments", 0))

    def store_answered(self, operation: str, result: str, seconds: float) -> None:
        """Notes a request to the store; counts it in the metrics, too."""
        with self._lock:
            self._store.answered(operation, result, self._clock())
        self._metrics.store_answered(operation, result, seconds)

    def count_time(self) -> None:
        """Counts the executors' time up to now, for one that does the same for hours."""
        with self._lock:
            now = self._clock()
            for row in self._executors.values():
                self._accrue(row, now)

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON values; ages and durations in seconds."""
        reason = self.not_ready()
        with self._lock:
            now, wall = self._clock(), self._wall()
            for row in self._executors.values():
                self._accrue(row, now)
            return {
                **self._facts,
                **readings(self._metrics),
                "now": iso(wall),
                "uptime_s": round(now - self._began, 3),
                "state": self._state,
                "state_s": round(now - self._entered, 3),
                "ready": reason is None,
                "not_ready": reason,
                "problems": self._all_problems(now),
                "stages": [*self._pace.stages],
                "executors": [row.view(now, self._pace) for row in self._executors.values()],
                "flow": {name: self._depths[name] for name in QUEUES},
                "store": self._store.view(now),
                "totals": {
                    **self._totals,
                    "audio_seconds": round(self._audio_seconds, 3),
                    "segments": self._segments,
                },
                "throughput": self._hour.view(wall),
                "recent": self._recent.view(),
            }

    def _all_problems(self, now: float) -> list[dict[str, Any]]:
        """The store's, which can be seen from here, and those that were noted."""
        seen = [*self._store.problems(now), *self._problems.values()]
        return [{"text": text, "for_s": round(now - since, 3)} for since, text in seen]

    def _count_ready(self) -> None:
        self._metrics.ready.set(self.not_ready() is None)
