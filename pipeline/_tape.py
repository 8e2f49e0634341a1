"""Puts decoded frames end to end at 24 kHz, so that times are those of the file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline._media import Fault, Media, Sound
from pipeline.config import SAMPLE_RATE
from pipeline.types import BadAudio

Samples = NDArray[np.float32]

QUALITY = "HQ"  # soxr: 20 bits, beyond what 16-bit sources hold

_GAP_S = 0.1  # smaller holes between timestamps are rounding or encoder delay
_MAX_GAP_S = 600.0  # larger ones are broken timestamps, not silence
_SHORT_S = 0.25  # less than this missing at the end is padding, not damage
_SANE = 1e9  # no PCM scale reaches this: beyond it a float is as broken as NaN
_DAMAGED = "damaged packets: {count}, the first at {at:.1f} s ({detail})"
_ENDED = "damaged after {at:.1f} s: {detail}"
_HOLES = "holes: {count}, the first at {at:.1f} s; {amount:.1f} s of silence in their place"
_JUMPS = "jumps in the timestamps: {count}, the first at {at:.1f} s; the sound was joined"
_SHORT = "{detail}"
_BROKEN = "samples that are not finite numbers: {amount:.0f}, replaced by silence"

_GROWTH = 600 * SAMPLE_RATE  # samples; a long recording is extended by ten minutes at a time


@dataclass(frozen=True, slots=True)
class Origin:
    """What the file was, as its first frame shows it."""

    rate: int  # Hz
    channels: int
    codec: str
    container: str


class Tape:
    """What has been decoded so far. Holds the result and at most a second at the source's rate."""

    def __init__(self) -> None:
        self.origin: Origin | None = None
        self._notes = _Notes()
        self._store = _Store()
        self._lane: _Lane | None = None
        self._before = 0.0  # s on the tape before the current lane
        self._shift: float | None = None  # s from the tape's time to that of the timestamps
        self._heard = 0  # samples that came from the file
        self._broken = 0  # ... and were not finite numbers

    @property
    def seconds(self) -> float:
        """How much is on the tape."""
        return self._before + (self._lane.seconds if self._lane else 0.0)

    def record(self, media: Media) -> None:
        """Appends a whole file, or a link of a chained one."""
        began, self._shift = self.seconds, None
        for piece in media.sounds():
            if isinstance(piece, Fault):
                kind = _ENDED if piece.fatal else _DAMAGED
                self._notes.add(kind, self.seconds, piece.reason)
                continue
            self.origin = self.origin or Origin(
                piece.rate, piece.channels, media.codec, media.container
            )
            self._append(piece)
        held = self.seconds - began
        if media.declared is not None and held < media.declared - _SHORT_S:
            self._notes.add(_SHORT, detail=f"declares {media.declared:.1f} s, holds {held:.1f} s")

    def finish(self) -> tuple[Samples, tuple[str, ...]]:
        """The samples (float32, 24 kHz, round(seconds * 24,000) of them) and the warnings.

        Raises BadAudio when the file held no sample, or none that is a number.
        """
        self._end_lane()
        if not self._heard:
            raise BadAudio(f"nothing in it can be decoded: {self._notes.reason}")
        if self._broken == self._heard:
            raise BadAudio("none of its samples is a finite number")
        if self._broken:
            self._notes.add(_BROKEN, amount=self._broken)
        return self._store.taken(), self._notes.all()

    def _append(self, piece: Sound) -> None:
        if self._lane is None or self._lane.rate != piece.rate:
            self._end_lane()
            self._lane = _Lane(piece.rate)
        if piece.start is not None:
            self._place(piece.start, self._lane)
        with np.errstate(invalid="ignore"):
            broken = ~(np.abs(piece.samples) < _SANE)
        self._heard += len(broken)
        self._broken += int(broken.sum())
        self._push(np.where(broken, np.float32(0), piece.samples), self._lane)

    def _place(self, start: float, lane: _Lane) -> None:
        """Fills the hole before a frame that starts later than what is on the tape ends."""
        late = start - self.seconds - (self._shift or 0.0)
        if self._shift is None and (self.seconds or late <= _GAP_S):  # a link's first frame
            self._shift = late
        elif late < -_GAP_S or late > _MAX_GAP_S:
            self._notes.add(_JUMPS, self.seconds)
            self._shift = (self._shift or 0.0) + late
        elif late > _GAP_S:
            self._notes.add(_HOLES, self.seconds, amount=late)
            self._shift = self._shift or 0.0
            for _ in range(int(late)):
                self._push(np.zeros(lane.rate, np.float32), lane)
            self._push(np.zeros(round(late % 1 * lane.rate), np.float32), lane)

    def _push(self, samples: Samples, lane: _Lane) -> None:
        self._store.append(lane.push(samples))

    def _end_lane(self) -> None:
        if self._lane is None:
            return
        self._store.append(self._lane.end())
        self._before += self._lane.seconds
        self._lane = None
        self._store.fit(round(self._before * SAMPLE_RATE))


class _Lane:
    """Samples of one rate on their way to 24 kHz, in steps of about a second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._length = 0
        self._waiting: list[Samples] = []
        self._waiting_length = 0
        self._stream: Any = soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality=QUALITY)

    @property
    def seconds(self) -> float:
        return self._length / self.rate

    def push(self, samples: Samples) -> Samples:
        """Takes samples in; returns those that are ready."""
        self._length += len(samples)
        self._waiting.append(samples)
        self._waiting_length += len(samples)
        return self._step() if self._waiting_length >= self.rate else samples[:0]

    def end(self) -> Samples:
        """What is still on its way."""
        return self._step(last=True)

    def _step(self, *, last: bool = False) -> Samples:
        block = np.concatenate([*self._waiting, np.empty(0, np.float32)])
        self._waiting, self._waiting_length = [], 0
        if self.rate == SAMPLE_RATE:
            return block
        out: Samples = self._stream.resample_chunk(block, last=last)
        return out


class _Store:
    """Samples in one array that grows where it lies, so that nothing is ever held twice."""

    def __init__(self) -> None:
        self._samples = np.empty(0, np.float32)
        self._length = 0

    def append(self, samples: Samples) -> None:
        self._reserve(self._length + len(samples))
        self._samples[self._length : self._length + len(samples)] = samples
        self._length += len(samples)

    def fit(self, length: int) -> None:
        """Cuts or pads by the sample or two that a resampler may be off at its end."""
        self._reserve(length)
        self._samples[self._length : length] = 0
        self._length = length

    def taken(self) -> Samples:
        self._samples.resize(self._length, refcheck=False)
        return self._samples

    def _reserve(self, length: int) -> None:
        if length > len(self._samples):
            grown = length + min(length, _GROWTH)
            self._samples.resize(grown, refcheck=False)


class _Notes:
    """What was wrong, counted by kind: a damaged file has thousands of faults and one warning."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    @property
    def reason(self) -> str:
        """Why there is no sound."""
        return next((seen.detail for seen in self._seen.values()), "it holds no sound")

    def add(self, template: str, at: float = 0.0, detail: str = "", amount: float = 0.0) -> None:
        """Notes something at `at` seconds; the first time and its detail are what is told."""
        seen = self._seen.setdefault(template, _Seen(at, detail))
        seen.count += 1
        seen.amount += amount

    def all(self) -> tuple[str, ...]:
        return tuple(
            template.format(count=seen.count, at=seen.at, detail=seen.detail, amount=seen.amount)
            for template, seen in self._seen.items()
        )


@dataclass(slots=True)
class _Seen:
    at: float
    detail: str
    count: int = 0
    amount: float = 0.0
