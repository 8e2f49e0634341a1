"""Segments in the making: speakers and their stretches of time. Standard library only.

Times are whole milliseconds, the resolution of the results, so nothing shifts at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.timeline import Stretch, Timeline
from pipeline.types import Span, Turn


@dataclass(frozen=True, slots=True)
class Speaker:
    """When one speaker is active, and when anybody else is."""

    name: str
    turns: Timeline
    others: Timeline


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment in the making; times in milliseconds."""

    start: int
    end: int
    speaker: Speaker
    flags: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        """As a reader of the results will compute it, floating-point error included."""
        return self.end / 1000 - self.start / 1000

    def lasts_less_than(self, seconds: float) -> bool:
        return self.seconds < seconds

    def order(self) -> tuple[int, int, str]:
        return self.start, self.end, self.speaker.name


def on_grid(spans: Iterable[Span], limit: int) -> list[Stretch]:
    """In milliseconds and within the file; what is then empty is left out."""
    rounded = ((round(span.start * 1000), round(span.end * 1000)) for span in spans)
    clipped = ((max(0, start), min(limit, end)) for start, end in rounded)
    return [(start, end) for start, end in clipped if start < end]


def speakers_of(turns: Sequence[Turn], limit: int) -> list[Speaker]:
    """Everybody who speaks within the file, by name."""
    spoken: dict[str, list[Stretch]] = defaultdict(list)
    for turn in turns:
        spoken[turn.speaker] += on_grid([turn], limit)
    return [
        Speaker(
            name=name,
            turns=Timeline(own),
            others=Timeline(x for other in spoken if other != name for x in spoken[other]),
        )
        for name, own in sorted(spoken.items())
    ]
