"""What this daemon is doing at this moment, as the actors write it and the pages show it.

The actors write from the event loop; readers come from the threads of the HTTP server, so that a
loop that stands still can be looked at. Every method takes the lock, for microseconds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from emiliad.metrics import Metrics
from emiliad.types import Claim, Outcome

_RECENT = 100  # attempts that ended, kept for people to see
_MINUTES = 60  # of throughput kept
_FAILING_S = 60.0  # for which a store is called unhealthy after a request that failed, unless
# another one succeeded later


@dataclass(slots=True)
class Job:
    """A task in an executor."""

    episode_id: str
    audio_key: str
    attempt: int
    began: float
    audio_seconds: float | None = None  # known once the first stage has ended
    stages: dict[str, float] = field(default_factory=dict)  # seconds of those that ended

    def view(self, now: float) -> dict[str, Any]:
        running = now - self.began
        done = self.audio_seconds / running if self.audio_seconds and running > 0 else None
        return {
            "episode_id": self.episode_id,
            "audio_key": self.audio_key,
            "attempt": self.attempt,
            "running_s": round(running, 3),
            "audio_seconds": self.audio_seconds,
            "stages": [{"name": k, "seconds": round(v, 3)} for k, v in self.stages.items()],
            "realtime": None if done is None else round(done, 3),  # if it ended now: a bound
        }


@dataclass(slots=True)
class Row:
    """One executor."""

    name: str
    device: str
    state: str = ""
    since: float = 0.0
    pid: int | None = None
    memory_bytes: int = 0
    tasks: int = 0
    restarts: int = 0
    reason: str | None = None  # why it is dead or loads again
    job: Job | None = None

    def view(self, now: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "device": self.device,
            "state": self.state,
            "since_s": round(now - self.since, 3),
            "pid": self.pid,
            "memory_bytes": self.memory_bytes,
            "tasks": self.tasks,
            "restarts": self.restarts,
            "reason": self.reason,
            "task": None if self.job is None else self.job.view(now),
        }


@dataclass(slots=True)
class Minute:
    """What was completed in one minute."""

    number: int  # of the clock since 1970
    audio_seconds: float = 0.0
    episodes: int = 0


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
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._minutes: deque[Minute] = deque(maxlen=_MINUTES)
        self._store_ok: float | None = None
        self._store_failed: tuple[float, str] | None = None
        self._problems: dict[str, str] = {}
        self._state = "starting"

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
                self._problems[name] = sentence

    @property
    def state(self) -> str:
        """starting, running, draining or stopping."""
        return self._state

    def enter(self, state: str) -> None:
        """Moves the daemon as a whole to another state."""
        with self._lock:
            self._state = state
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
        now = self._clock()
        with self._lock:
            row = self._executors.setdefault(name, Row(name, device))
            self._leave(row, now)
            row.state, row.since, row.device = state, now, device or row.device
            for key, value in seen.items():
                setattr(row, key, value)
        self._metrics.executors.labels(state).inc()
        self._count_ready()

    def _leave(self, row: Row, now: float) -> None:
        if not row.state:
            return
        self._metrics.executors.labels(row.state).dec()
        if row.state == "busy":
            self._metrics.executor_busy_seconds.labels(row.name).inc(now - row.since)
        elif row.state == "idle":
            self._metrics.executor_idle_seconds.labels(row.name).inc(now - row.since)

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
            self._executors[name].memory_bytes = size
        self._metrics.executor_memory_bytes.labels(name).set(size)

    def begin(self, name: str, claim: Claim) -> None:
        """Notes that an executor begins a task."""
        task = claim.task
        job = Job(task.episode_id, task.audio_key, claim.attempt, self._clock())
        with self._lock:
            self._executors[name].job = job
        self.show(name, "busy", reason=None)

    def stage(self, name: str, stage: str, seconds: float, audio_seconds: float) -> None:
        """Notes that a stage of an executor's task ended."""
        with self._lock:
            job = self._executors[name].job
            if job is not None:
                job.stages[stage] = job.stages.get(stage, 0.0) + seconds
                job.audio_seconds = max(job.audio_seconds or 0.0, audio_seconds) or None
        self._metrics.stage_ended(stage, seconds, audio_seconds)

    def end(self, name: str) -> None:
        """Notes that an executor is through with its task."""
        with self._lock:
            row = self._executors[name]
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
            self._recent.appendleft(
                {
                    "at": _iso(at),
                    "episode_id": claim.task.episode_id,
                    "outcome": outcome.value,
                    "attempt": claim.attempt,
                    **{k: v for k, v in facts.items() if k != "stages"},
                }
            )
            if outcome is Outcome.COMPLETED:
                self._add(int(at // 60), float(facts.get("audio_seconds", 0.0)))
                self._segments += int(facts.get("segments", 0))

    def _add(self, minute: int, audio_seconds: float) -> None:
        if not self._minutes or self._minutes[-1].number < minute:
            self._minutes.append(Minute(minute))
        self._minutes[-1].audio_seconds += audio_seconds
        self._minutes[-1].episodes += 1
        self._audio_seconds += audio_seconds

    def store_answered(self, operation: str, result: str, seconds: float) -> None:
        """Notes a request to the store; counts it in the metrics, too."""
        now = self._clock()
        with self._lock:
            if result in ("ok", "not_found", "precondition"):
                self._store_ok = now
            else:
                self._store_failed = (now, f"{operation}: {result}")
        self._metrics.store_answered(operation, result, seconds)

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON values; ages and durations in seconds."""
        now, wall = self._clock(), self._wall()
        reason = self.not_ready()
        with self._lock:
            return {
                **self._facts,
                "now": _iso(wall),
                "uptime_s": round(now - self._began, 3),
                "state": self._state,
                "ready": reason is None,
                "not_ready": reason,
                "problems": [*self._problems.values()],
                "executors": [row.view(now) for row in self._executors.values()],
                "flow": {name: self._depths[name] for name in ("claimed", "prefetched", "upload")},
                "store": self._store_view(now),
                "totals": {
                    **self._totals,
                    "audio_seconds": round(self._audio_seconds, 3),
                    "segments": self._segments,
                },
                "throughput": self._throughput(int(wall // 60)),
                "recent": [*self._recent],
            }

    def _store_view(self, now: float) -> dict[str, Any]:
        ok, failed = self._store_ok, self._store_failed
        sick = failed is not None and now - failed[0] < _FAILING_S and (ok or 0.0) < failed[0]
        return {
            "healthy": not sick,
            "last_answer_s": None if ok is None else round(now - ok, 3),
            "last_failure_s": None if failed is None else round(now - failed[0], 3),
            "last_failure": None if failed is None else failed[1],
        }

    def _throughput(self, this_minute: int) -> list[dict[str, Any]]:
        """The last hour, minute by minute, the newest last."""
        seen = {minute.number: minute for minute in self._minutes}
        empty = Minute(0)
        return [
            {
                "minute": _iso(number * 60),
                "audio_seconds": round(seen.get(number, empty).audio_seconds, 3),
                "episodes": seen.get(number, empty).episodes,
            }
            for number in range(this_minute - _MINUTES + 1, this_minute + 1)
        ]

    def _count_ready(self) -> None:
        self._metrics.ready.set(self.not_ready() is None)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
