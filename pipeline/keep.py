"""From a segment to its row of the dataset, and Emilia's own filter. Standard library only.

The filter is that of Emilia's preprocessors (He et al., 2024; `asr` in `main.py`, then
`calculate_audio_stats` in `utils/tool.py`). Where the two leave a choice:

- The quartiles of the seconds per character are taken over the rows whose language passes, for
  Emilia transcribes no others, and of these over all that have a character, short or noisy ones
  too. They are numpy's default: linear interpolation between the two nearest values.
- Characters are counted as Emilia counts them, without those in `_PUNCTUATION`; any other sign
  counts as a character.
- A duration is the difference of the two rounded times, itself rounded to milliseconds, so that
  3 s are 3 s wherever they lie in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.types import Scores, Segment, Transcript

_PUNCTUATION = str.maketrans("", "", ",.!?\"'，。！？“”‘’ ")
_LANGUAGE_PROBABILITY = 0.8  # Emilia's; a language is believed above it
_CHARACTERS = 2  # fewer are no text
_COMPRESSION_RATIO = 2.4  # Whisper's own sign of a loop (Radford et al., 2022, section 4.5)
_LOOP = re.compile(r"(.{2,100}?)\1{3,}", re.DOTALL)  # the same words at least four times in a row
_LOOP_CHARACTERS = 24  # people do say "no, no, no, no"


def flags(
    segment: Segment, transcript: Transcript, *, supported: Collection[str]
) -> tuple[str, ...]:
    """The segment's own flags and those of its transcript, sorted.

    `supported` are ISO 639-1 codes. A loop is seen by Whisper's compression ratio or, in texts too
    short for that, by the same characters at least four times in a row.
    """
    found = {
        "unsupported_language": transcript.language not in supported,
        "low_language_probability": not _believed(_rounded(transcript.language_probability)),
        "repetition": _loops(transcript),
        "no_text": _characters(transcript.text) < _CHARACTERS,
    }
    return tuple(sorted({*segment.flags, *(name for name, holds in found.items() if holds)}))


def row(
    segment: Segment, transcript: Transcript, scores: Scores, *, flags: Sequence[str], audio: str
) -> dict[str, Any]:
    """One element of `all_segments.json`: Emilia's six keys first, then our own.

    `audio` is the name of the segment's file. Times have 3 decimals, other numbers 4.
    """
    return {
        "text": transcript.text,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "speaker": segment.speaker,
        "language": transcript.language,
        "dnsmos": _rounded(scores.ovrl),
        "language_probability": _rounded(transcript.language_probability),
        "dnsmos_sig": _rounded(scores.sig),
        "dnsmos_bak": _rounded(scores.bak),
        "avg_logprob": _rounded(transcript.avg_logprob),
        "no_speech_prob": _rounded(transcript.no_speech_prob),
        "compression_ratio": _rounded(transcript.compression_ratio),
        "overlap": _rounded(segment.overlap),
        "flags": list(flags),
        "audio": audio,
    }


def keep(
    rows: Sequence[Mapping[str, Any]],
    *,
    supported: Collection[str],
    dnsmos_threshold: float = 3.0,
    min_s: float = 3.0,
    max_s: float = 30.0,
) -> list[Mapping[str, Any]]:
    """The rows of one episode that pass Emilia's filter, in their order."""
    candidates = [
        row
        for row in rows
        if row["language"] in supported and _believed(row["language_probability"])
    ]
    slowness = [_slowness(row) for row in candidates if _characters(row["text"])]
    low, high = _fences(slowness)
    return [
        row
        for row in candidates
        if min_s <= _duration(row) <= max_s
        and row["dnsmos"] >= dnsmos_threshold
        and _characters(row["text"]) >= _CHARACTERS
        and low <= _slowness(row) <= high
    ]


def _believed(language_probability: float) -> bool:
    return language_probability > _LANGUAGE_PROBABILITY


def _rounded(value: float) -> float:
    return round(value, 4)


def _characters(text: str) -> int:
    return len(text.translate(_PUNCTUATION))


def _duration(row: Mapping[str, Any]) -> float:
    return round(float(row["end"]) - float(row["start"]), 3)


def _slowness(row: Mapping[str, Any]) -> float:
    """Seconds per character."""
    return _duration(row) / _characters(row["text"])


def _fences(values: Sequence[float]) -> tuple[float, float]:
    """Tukey's fences: what lies outside is an outlier. Without values, nothing is."""
    if not values:
        return -math.inf, math.inf
    ordered = sorted(values)
    first, third = _quantile(ordered, 0.25), _quantile(ordered, 0.75)
    spread = third - first
    return first - 1.5 * spread, third + 1.5 * spread


def _quantile(ordered: Sequence[float], share: float) -> float:
    """As numpy's percentile, to the last bit: equal values must not fall outside by a rounding."""
    below, fraction = divmod(share * (len(ordered) - 1), 1)
    low = ordered[int(below)]
    high = ordered[min(int(below) + 1, len(ordered) - 1)]
    if fraction < 0.5:
        return low + (high - low) * fraction
    return high - (high - low) * (1 - fraction)


def _loops(transcript: Transcript) -> bool:
    if transcript.compression_ratio > _COMPRESSION_RATIO:
        return True
    text = transcript.text.casefold().translate(_PUNCTUATION)
    return any(len(loop[0]) >= _LOOP_CHARACTERS for loop in _LOOP.finditer(text))
