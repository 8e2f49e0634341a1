"""The values that flow between the stages, and the errors that a stage may raise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Stage = Literal["standardise", "separate", "diarize", "segment", "transcribe", "score", "export"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class BadAudio(ValueError):
    """The input cannot be processed, however often it is tried; the message says why."""


class ModelError(RuntimeError):
    """A model is missing or unreadable; the message says which, where, and what to do."""


class DeviceError(ModelError):
    """A GPU that was to be used cannot be, at least now; the message says what it is about."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in the original file, in seconds."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Turn(Span):
    """A stretch in which one speaker is active, as the diarization names them (`SPEAKER_00`)."""

    speaker: str


@dataclass(frozen=True, slots=True)
class Segment(Span):
    """One utterance of one speaker, on its way to become an MP3 and a row of the dataset."""

    speaker: str
    overlap: float = 0.0  # share of the segment in which another speaker is active, 0..1
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a segment, and how sure the recogniser is of it."""

    text: str
    language: str  # ISO 639-1
    language_probability: float  # 0..1
    avg_logprob: float
    no_speech_prob: float  # 0..1
    compression_ratio: float


@dataclass(frozen=True, slots=True)
class Scores:
    """DNSMOS P.835 (Reddy et al., 2022): mean opinion scores, nominally 1..5."""

    ovrl: float
    sig: float
    bak: float
