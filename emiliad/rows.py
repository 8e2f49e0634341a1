"""What the board holds: executors and their tasks, how tasks ended, the last hour, the store.

Times are seconds of the board's clock; every `view` is JSON values, its durations in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from emiliad.types import Claim, Outcome
from pipeline.types import STAGES

_MEMORY = 0.9  # the share of what was learnt of a stage that stays when a task ends: ten weigh most
_RECENT = 50  # attempts that ended well, and as many that did not, kept for people to see
_MINUTES = 60  # of throughput kept
_FAILING_S = 60.0  # for which a store is called unhealthy after a request that failed, unless
# another one succeeded later
_ANSWERS = ("ok", "not_found", "precondition")  # results of a store that is well


class Pace:
    """How long the stages took here lately, to guess how far a task is."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}  # seconds of work and of audio
        self._silent = False  # the pipeline tells nothing of its stages

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in their order; those of a replacement pipeline as it reported them."""
        known = tuple(self._spent)
        return STAGES if set(known) <= set(STAGES) and not self._silent else known

    def learn(self, job: Job) -> None:
        """Takes a task that is through into account."""
        for stage, seconds in job.stages.items():
            work, audio = self._spent.get(stage, (0.0, 0.0))
            heard = job.audio_seconds or 0.0
            self._spent[stage] = work * _MEMORY + seconds, audio * _MEMORY + heard
        self._silent = not self._spent

    def remaining_s(self, job: Job, now: float) -> float | None:
        """Seconds that a task is likely to take from now on; None if nothing is known of that."""
        if job.audio_seconds is None or not set(self.stages) <= self._spent.keys():
            return None
        left = [stage for stage in self.stages if stage not in job.stages]
        expected = [self._expected_s(stage, job.audio_seconds) for stage in left]
        if not expected:
            return 0.0
        return max(expected[0] - (now - job.stage_began), 0.0) + sum(expected[1:])

    def _expected_s(self, stage: str, audio_seconds: float) -> float:
        work, audio = self._spent[stage]
        return work / audio * audio_seconds if audio > 0 else 0.0


@dataclass(slots=True)
class Job:
    """A task in an executor."""

    episode_id: str
    audio_key: str
    attempt: int
    began: float
    stage_began: float
    audio_seconds: float | None = None  # known once the first stage has ended
    stages: dict[str, float] = field(default_factory=dict)  # seconds of those that ended

    def ended(self, stage: str, seconds: float, audio_seconds: float, now: float) -> None:
        """Notes that a stage ended."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        self.audio_seconds = max(self.audio_seconds or 0.0, audio_seconds) or None
        self.stage_began = now

    def view(self, now: float, pace: Pace) -> dict[str, Any]:
        running = now - self.began
        remaining = pace.remaining_s(self, now)
        total = running + (remaining or 0.0)
        known = self.audio_seconds is not None and total > 0
        return {
            "episode_id": self.episode_id,
            "audio_key": self.audio_key,
            "attempt": self.attempt,
            "running_s": round(running, 3),
            "audio_seconds": self.audio_seconds,
            "stages": [{"name": k, "seconds": round(v, 3)} for k, v in self.stages.items()],
            "stage": next((stage for stage in pace.stages if stage not in self.stages), None),
            "stage_s": round(now - self.stage_began, 3),
            "remaining_s": None if remaining is None else round(remaining, 3),
            "progress": None if remaining is None or not total else round(running / total, 4),
            # Of the whole task; without an idea of what remains, no more than a bound.
            "realtime": round(self.audio_seconds / total, 3) if known else None,  # type: ignore[operator]
        }


@dataclass(slots=True)
class Row:
    """One executor."""

    name: str
    device: str
    state: str = ""
    since: float = 0.0
    counted: float = 0.0  # up to when `seconds` are counted
    seconds: dict[str, float] = field(default_factory=dict)  # spent in each state
    pid: int | None = None
    memory_bytes: int = 0
    tasks: int = 0
    restarts: int = 0
    reason: str | None = None  # why it is dead or loads again
    job: Job | None = None

    def accrue(self, now: float) -> float:
        """Counts the time in the present state up to now; returns what came to it."""
        passed, self.counted = now - self.counted, now
        self.seconds[self.state] = self.seconds.get(self.state, 0.0) + passed
        return passed

    def view(self, now: float, pace: Pace) -> dict[str, Any]:
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
            "busy_s": round(self.seconds.get("busy", 0.0), 3),
            "idle_s": round(self.seconds.get("idle", 0.0), 3),
            "task": None if self.job is None else self.job.view(now, pace),
        }


@dataclass(slots=True)
class Minute:
    """What was completed in one minute."""

    number: int  # of the clock since 1970
    audio_seconds: float = 0.0
    episodes: int = 0

    def view(self) -> dict[str, Any]:
        return {
            "minute": iso(self.number * 60),
            "audio_seconds": round(self.audio_seconds, 3),
            "episodes": self.episodes,
        }


class LastHour:
    """What was completed in the last hour, minute by minute."""

    def __init__(self) -> None:
        self._minutes: deque[Minute] = deque(maxlen=_MINUTES)

    def add(self, at: float, audio_seconds: float) -> None:
        """Counts an episode; `at` is in seconds since 1970."""
        number = int(at // 60)
        if not self._minutes or self._minutes[-1].number < number:
            self._minutes.append(Minute(number))
        self._minutes[-1].audio_seconds += audio_seconds
        self._minutes[-1].episodes += 1

    def view(self, now: float) -> list[dict[str, Any]]:
        """Sixty minutes, the newest last, those without an episode too."""
        seen = {minute.number: minute for minute in self._minutes}
        this = int(now // 60)
        return [seen.get(n, Minute(n)).view() for n in range(this - _MINUTES + 1, this + 1)]


@dataclass(slots=True)
class StoreHealth:
    """When the store last answered, and when it last failed to."""

    ok: float | None = None
    failed: float | None = None
    failure: str | None = None  # the operation and how it failed
    failing: float | None = None  # since when nothing has succeeded

    def answered(self, operation: str, result: str, now: float) -> None:
        """Notes a request; one that was given up, as by a stop, says nothing of the store."""
        if result == "cancelled":
            return
        if result in _ANSWERS:
            self.ok, self.failing = now, None
            return
        self.failed, self.failure = now, f"{operation}: {result}"
        self.failing = now if self.failing is None else self.failing

    def sick(self, now: float) -> bool:
        return self.failing is not None and now - (self.failed or 0.0) < _FAILING_S

    def problems(self, now: float) -> list[tuple[float, str]]:
        """Since when it is sick, and a sentence on that; nothing if it is well."""
        if not self.sick(now) or self.failing is None:
            return []
        return [(self.failing, f"the store fails ({self.failure})")]

    def view(self, now: float) -> dict[str, Any]:
        return {
            "healthy": not self.sick(now),
            "last_answer_s": _age(self.ok, now),
            "last_failure_s": _age(self.failed, now),
            "last_failure": self.failure,
            "failing_s": _age(self.failing, now),
        }


class Recent:
    """How the latest attempts ended."""

    def __init__(self) -> None:
        self._number = 0
        self._completed: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        # Apart, or a busy hour's completions would wash the one failure away.
        self._others: deque[dict[str, Any]] = deque(maxlen=_RECENT)

    def add(self, at: float, claim: Claim, outcome: Outcome, facts: Mapping[str, Any]) -> None:
        """Notes an attempt that ended; `at` is in seconds since 1970."""
        self._number += 1
        kept = self._completed if outcome is Outcome.COMPLETED else self._others
        kept.append(
            {
                **{key: value for key, value in facts.items() if key != "stages"},
                "number": self._number,
                "at": iso(at),
                "episode_id": claim.task.episode_id,
                "outcome": outcome.value,
                "attempt": claim.attempt,
            }
        )

    def view(self) -> list[dict[str, Any]]:
        """The newest first."""
        ended = [*self._completed, *self._others]
        return sorted(ended, key=lambda row: int(row["number"]), reverse=True)


def iso(seconds: float) -> str:
    """A time since 1970 as people and browsers read it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _age(then: float | None, now: float) -> float | None:
    return None if then is None else round(now - then, 3)
