"""The claim object's state table: pure transitions of one record, without any store.

A claim is a chain of compare-and-swaps; the names of the transitions are those of the protocol.

    from      event                           to       attempt  lost   history
    absent    C1 a node leases it             leased   1        0
    free      C2 a node leases it             leased   +1
    leased    C3 another owner, or its own    leased            +1
                 after a restart
    leased    R  renewal                      leased
    leased    X  a failure to be retried      free                     + incident
    leased    F  the last failure             failed                   + incident
    leased    G  handed back                  free     -1
    failed    retry                           free     0        0

G also counts in `interrupted` when the processing had begun: a task that never fits between two
stops of its nodes shows there; `retry` sets that to 0, and a commit removes the claim.

`attempt` is the number of the attempt that runs, or of the last one that counted. Every write has a
fresh nonce, for an etag is its content's MD5: equal content would bring an old etag back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from emiliad.errors import BadTask
from emiliad.queue.tasks import VERSION, lenient_task, parse_object, task_keys, to_json
from emiliad.types import Failure, TaskRef

HISTORY = 5  # failures remembered; a claim stays below 8 KB
_REASON_CHARS = 400
_TRACEBACK_CHARS = 1000  # of its end, where the error is
LONGEST_BACKOFF_S = 3600.0


class State(StrEnum):
    """What a claim object says of its task; a task without one is free as well."""

    FREE = "free"
    LEASED = "leased"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who writes a record, under which fresh nonce, and when (seconds since 1970, for people)."""

    owner: str
    nonce: str
    wall_s: float

    @property
    def time(self) -> str:
        return datetime.fromtimestamp(self.wall_s, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Incident:
    """A failed attempt, as claims and dead letters tell it."""

    when: str
    where: str  # the owner
    attempt: int
    kind: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """The content of a claim object. Times in it are for people: no decision rests on them."""

    task: TaskRef
    state: State = State.FREE
    owner: str = ""
    attempt: int = 0
    lost: int = 0  # owners that vanished in the middle of this task
    interrupted: int = 0  # times that it was handed back after its processing had begun
    lease: str = ""  # the nonce with which the lease began: its identity, and its pack's name
    nonce: str = ""
    leased: str = ""  # since when, ISO 8601
    written: str = ""  # when, ISO 8601
    retry_after_s: float = 0.0  # of a free claim: seconds after it was first seen so
    history: tuple[Incident, ...] = field(default=())

    def lease_to(self, stamp: Stamp, task: TaskRef) -> Self:
        """C1 and C2: the next attempt begins. C3: the attempt of an owner that vanished, again."""
        vanished = self.state is State.LEASED
        return self._write(
            stamp,
            task=task,
            state=State.LEASED,
            attempt=max(1, self.attempt) if vanished else self.attempt + 1,
            lost=self.lost + vanished,
            lease=stamp.nonce,
            leased=stamp.time,
            retry_after_s=0.0,
        )

    def renew(self, stamp: Stamp) -> Self:
        """R: the owner lives."""
        return self._write(stamp)

    def retry_later(self, stamp: Stamp, failure: Failure, backoff_s: float) -> Self:
        """X: free for another attempt, after a wait that doubles with each."""
        wait = min(backoff_s * 2 ** min(self.attempt - 1, 20), LONGEST_BACKOFF_S)
        history = self._history_with(stamp, failure)
        return self._write(stamp, state=State.FREE, retry_after_s=wait, history=history)

    def give_up(self, stamp: Stamp, failure: Failure) -> Self:
        """F: no attempt is left, or none would help."""
        history = self._history_with(stamp, failure)
        return self._write(stamp, state=State.FAILED, history=history)

    def hand_back(
        self, stamp: Stamp, retry_after_s: float = 0.0, *, interrupted: bool = False
    ) -> Self:
        """G: unfinished, and no attempt counted. `interrupted`: its processing had begun."""
        return self._write(
            stamp,
            state=State.FREE,
            attempt=max(0, self.attempt - 1),
            interrupted=self.interrupted + interrupted,
            retry_after_s=retry_after_s,
        )

    def reopen(self, stamp: Stamp) -> Self:
        """`retry`, and old scripts' claims: free, as if it were new; what happened is kept."""
        return self._write(
            stamp, state=State.FREE, attempt=0, lost=0, interrupted=0, retry_after_s=0.0
        )

    def _write(self, stamp: Stamp, **changes: Any) -> Self:
        return dataclasses.replace(
            self, owner=stamp.owner, nonce=stamp.nonce, written=stamp.time, **changes
        )

    def _history_with(self, stamp: Stamp, failure: Failure) -> tuple[Incident, ...]:
        incident = Incident(
            stamp.time,
            stamp.owner,
            self.attempt,
            failure.kind,
            failure.reason[:_REASON_CHARS],
            failure.traceback[-_TRACEBACK_CHARS:],
        )
        return (*self.history, incident)[-HISTORY:]

    def body(self) -> bytes:
        """The record as JSON."""
        return to_json(
            {
                "v": VERSION,
                "state": self.state.value,
                **task_keys(self.task),
                **({"extra": dict(self.task.extra)} if self.task.extra else {}),
                "owner": self.owner,
                "attempt": self.attempt,
                "lost": self.lost,
                "interrupted": self.interrupted,
                "lease": self.lease,
                "nonce": self.nonce,
                "leased": self.leased,
                "written": self.written,
                "retry_after_s": self.retry_after_s,
                "history": [dataclasses.asdict(incident) for incident in self.history],
            }
        )

    def dead_letter(self) -> bytes:
        """The content of the failed index, for people and cheap listing."""
        return to_json(
            {
                "v": VERSION,
                **task_keys(self.task),
                "failed": self.written,
                "owner": self.owner,
                "attempt": self.attempt,
                "lost": self.lost,
                "attempts": [dataclasses.asdict(incident) for incident in self.history],
            }
        )


def parse_claim(episode_id: str, body: bytes) -> ClaimRecord:
    """What a claim says. One of the old scripts, or one that nobody can read, is a lease of an
    unknown owner: it expires like any other."""
    try:
        content = parse_object(episode_id, body)
    except BadTask:
        return ClaimRecord(TaskRef(episode_id, "", ""), State.LEASED)
    task = lenient_task(episode_id, content)
    try:
        return _ours(task, content)
    except (KeyError, TypeError, ValueError):
        keys = ("episode_id", "language", "audio_key")
        extra = {name: value for name, value in content.items() if name not in keys}
        return ClaimRecord(dataclasses.replace(task, extra=extra), State.LEASED)


def _ours(task: TaskRef, content: Mapping[str, Any]) -> ClaimRecord:
    return ClaimRecord(
        task=dataclasses.replace(task, extra=dict(content.get("extra", {}))),
        state=State(content["state"]),
        owner=str(content["owner"]),
        attempt=int(content["attempt"]),
        lost=int(content["lost"]),
        interrupted=int(content.get("interrupted", 0)),  # absent in the records of old versions
        lease=str(content["lease"]),
        nonce=str(content["nonce"]),
        leased=str(content["leased"]),
        written=str(content["written"]),
        retry_after_s=float(content["retry_after_s"]),
        history=tuple(Incident(**incident) for incident in content["history"]),
    )
