"""The values that flow through the daemon: a task's way from claim to outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task as its todo object states it; immutable once enqueued."""

    episode_id: str
    language: str
    audio_key: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease that this daemon holds on a task."""

    task: TaskRef
    attempt: int  # 1 for the first
    lost: int = 0  # owners that vanished in the middle of this task
    nonce: str = ""  # names this attempt's pack of outputs
    interrupted: int = 0  # times that a stop cut it off after its processing had begun


@dataclass(frozen=True, slots=True)
class Prefetched:
    """A claimed task whose audio lies in scratch."""

    claim: Claim
    workdir: Path
    audio: Path


@dataclass(frozen=True, slots=True)
class Processed:
    """A task whose outputs lie in `out_dir`, waiting to be committed."""

    claim: Claim
    workdir: Path
    out_dir: Path
    manifest: Mapping[str, Any]
    stage_seconds: Mapping[str, float]


class Outcome(StrEnum):
    """How an attempt ended: the values of the label of `emiliad_tasks_total`."""

    COMPLETED = "completed"
    FAILED = "failed"  # dead-lettered: no attempt is left, or none would help
    RETRIED = "retried"  # failed, and free for another attempt
    RELEASED = "released"  # handed back unfinished, nothing counted
    LOST = "lost"  # another owner took the lease, or committed first


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, as the dead letter records it."""

    kind: str  # bad_audio, crash, timeout, out_of_memory, error, download, ...
    reason: str  # one sentence
    traceback: str = ""  # its tail
    retriable: bool = True
