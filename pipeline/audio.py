"""Any recording as mono samples at 24 kHz, and the small operations on samples that stages share.

Memory: an hour is 24,000 x 3,600 x 4 bytes = 346 MB, once. Decoding holds that and a few blocks
of a second at the source's rate; `standardise` returns a copy (another 346 MB until the caller
lets go of the first); the rest returns views or pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline._media import links, opened
from pipeline._tape import QUALITY, Tape
from pipeline.types import BadAudio, Span

Samples = NDArray[np.float32]

TARGET_DBFS = -20.0  # Emilia's target loudness
MAX_GAIN_DB = 3.0  # Emilia's limit, either way

_BLOCK = 1 << 20  # samples per step where a whole recording is walked through
_WINDOW_S = 0.05  # the length of speech over which `quietest` takes the energy
_HOP_S = 0.01


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded file.

    `samples` is float32, mono, shape (n,), 24 kHz, finite, nominally within [-1, 1] (lossy codecs
    overshoot). `seconds` is what was decoded, holes included: times within `samples` are times in
    the file as a player shows them.
    """

    samples: Samples
    seconds: float
    source_rate: int  # Hz, of the first frame
    channels: int  # of the first frame
    codec: str
    container: str
    warnings: tuple[str, ...] = ()


def decode(path: Path) -> Recording:
    """Decodes whatever FFmpeg can, judged by its content, to mono at 24 kHz.

    Channels are averaged with equal weights, as pydub's `set_channels(1)` does for Emilia. What
    FFmpeg knows of encoder delay is trimmed. Holes in the timestamps of 0.1 s to 10 min become
    silence, so that times stay those of the file. What is damaged is left out, with a warning.

    Raises BadAudio when no sound can be decoded, OSError when the file cannot be read.
    """
    tape = Tape()
    refusals: list[str] = []
    with path.open("rb") as file:
        if not file.read(1):
            raise BadAudio("the file is empty (0 bytes)")
        for link in links(file):
            try:
                with opened(link) as media:
                    tape.record(media)
            except BadAudio as error:
                refusals.append(str(error))
    if tape.origin is None and refusals:
        raise BadAudio(refusals[0])
    return _recording(tape, tuple(f"a part was left out: {refusal}" for refusal in refusals))


def standardise(samples: Samples) -> Samples:
    """Brings loudness to -20 dBFS within +-3 dB, then the peak to 1, as Emilia-Pipe does.

    Loudness is pydub's dBFS: 20 log10(rms / full scale). Like pydub, a gain that exceeds full
    scale clips; unlike it, no step rounds to 16 bits (Emilia's samples are integers until the
    peak is normalised; the difference is below one such step), and a peak beyond full scale
    counts as full scale instead of being clipped by the decoder. Silence stays silence.

    Takes and returns float32 of shape (n,); the input is not changed.
    """
    peak = _peak(samples)
    if peak == 0.0:
        return samples.copy()
    scale = 1.0 / max(peak, 1.0)
    gain = np.clip(TARGET_DBFS - dbfs(samples) - 20 * np.log10(scale), -MAX_GAIN_DB, MAX_GAIN_DB)
    out = samples * np.float32(scale * 10 ** (gain / 20))
    np.clip(out, -1.0, 1.0, out=out)
    out /= np.float32(_peak(out))
    return out


def dbfs(samples: Samples) -> float:
    """pydub's dBFS of float32 samples: 20 log10(rms), minus infinity for silence."""
    energy = sum(
        float(np.square(samples[at : at + _BLOCK], dtype=np.float64).sum())
        for at in range(0, len(samples), _BLOCK)
    )
    return float(10 * np.log10(energy / len(samples))) if energy > 0 else float("-inf")


def resample(samples: Samples, source: int, target: int) -> Samples:
    """`samples` (float32, shape (n,)) from `source` to `target` Hz by soxr, aligned in time.

    The result has exactly round(n * target / source) samples; equal rates return the input.
    """
    if source == target or not len(samples):
        return samples
    out: Samples = soxr.resample(np.ascontiguousarray(samples), source, target, QUALITY)
    return _fitted(out, round(len(samples) * target / source))


def cut(samples: Samples, rate: int, span: Span) -> Samples:
    """The samples of `span`, as a view; what lies outside the recording is left out."""
    return samples[max(0, round(span.start * rate)) : max(0, round(span.end * rate))]


def clips(samples: Samples, spans: Sequence[Span], rate: int) -> list[Samples]:
    """The samples of each span, as views."""
    return [cut(samples, rate, span) for span in spans]


def quietest(samples: Samples, rate: int, start: float, end: float) -> float:
    """The time (s) between `start` and `end` at which the speech is least loud.

    It is the middle of the 50 ms with the lowest energy, looked at every 10 ms; of equals the one
    nearest to the middle. Where the stretch is shorter than 50 ms, its middle.
    """
    middle = (start + end) / 2
    size, hop = round(_WINDOW_S * rate), max(1, round(_HOP_S * rate))
    first = max(0, round(start * rate))
    stretch = samples[first : max(0, round(end * rate))]
    if len(stretch) < size:
        return middle
    windows = np.lib.stride_tricks.sliding_window_view(stretch, size)[::hop]
    energies = np.einsum("ij,ij->i", windows, windows, dtype=np.float64)
    times = (first + size / 2 + hop * np.flatnonzero(energies == energies.min())) / rate
    return float(times[np.argmin(np.abs(times - middle))])


def _recording(tape: Tape, warnings: tuple[str, ...]) -> Recording:
    samples, noted = tape.finish()
    assert tape.origin is not None
    return Recording(
        samples=samples,
        seconds=tape.seconds,
        source_rate=tape.origin.rate,
        channels=tape.origin.channels,
        codec=tape.origin.codec,
        container=tape.origin.container,
        warnings=noted + warnings,
    )


def _peak(samples: Samples) -> float:
    return float(max(samples.max(), -samples.min())) if len(samples) else 0.0


def _fitted(samples: Samples, length: int) -> Samples:
    """Cut, or padded with silence, by the sample or two that a resampler may be off."""
    if len(samples) >= length:
        return samples[:length]
    return np.pad(samples, (0, length - len(samples)))
