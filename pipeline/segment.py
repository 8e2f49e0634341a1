"""Speaker turns in, segments of one speaker and 3 to 30 s out. Standard library only.

The rules are Emilia's (He et al., 2024; `cut_by_speaker_label` and `models/silero_vad.py` of its
preprocessors), per speaker and in this order:

1. A turn of more than 20 s becomes pieces: the voice activity within it, split at the longest
   pause (the first of equals), again and again while a piece lasts 20 s or more. Silence at the
   edges and at the splits is lost. A shorter turn stays as it is.
2. A piece of 30 s or more is cut.
3. A piece of less than 3 s joins its predecessor when the gap is less than 2 s and the two
   together, gap included, last less than 30 s.
4. What still lasts less than 3 s is dropped.

Deliberate differences from Emilia:

- A turn that lies within another one is kept; Emilia loses it.
- A cut falls where the sound is quietest in the last `cut_search_s` before the limit and not at
  30 s sharp, and leaves no rest below `min_s` where that can be had; both sides get `forced_cut`.
- Pieces join when nobody else speaks in the gap. For turns that are not nested this is Emilia's
  own rule, that they follow each other in the list of all speakers' turns.
- With `merge_forward`, a short piece that found no predecessor joins its successor by the same
  limits. It is off: with the demo's diarizer 3 of 3 such pieces in meetings, and 9 of 14 in
  conversations put together from real utterances, were another person's, taken for this one's.
- An utterance of at least `pad_from_s` is extended to `min_s` into the silence around it, as evenly
  as there is room, and flagged `padded` (`pad_short`). The silence ends at any speaker's turn or
  segment, at the file's ends, and at speech that no turn claims, unless that speech is the
  audible beginning or end of the utterance itself.
- `overlap` is the share of a segment in which others are active; the flag of that name marks it.
- A turn of several overlapping parts of one speaker counts as one.

Inside, times are whole milliseconds: the resolution of the results, so nothing shifts at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.pieces import Piece, Speaker, on_grid, speakers_of
from pipeline.timeline import Stretch, Timeline
from pipeline.types import Segment, Span, Turn

Quietest = Callable[[float, float], float]


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits, in seconds; Emilia's numbers where Emilia has them. Raises ValueError."""

    min_s: float = 3.0
    max_s: float = 30.0
    split_above_s: float = 20.0  # no more than max_s takes effect
    merge_gap_s: float = 2.0
    pad_short: bool = True
    pad_from_s: float = 2.2  # under this, more than a quarter of the segment would be silence
    merge_forward: bool = False
    cut_search_s: float = 5.0  # people pause for breath every few seconds
    overlap_from: float = 0.05  # share that earns the flag; a diarizer's edges err by less

    def __post_init__(self) -> None:
        if not 0 < self.min_s < self.max_s:
            raise ValueError(
                f"segments cannot last {self.min_s} s at least, {self.max_s} s at most"
            )

    @property
    def safe_min_ms(self) -> int:
        """Longer than min_s even when a reader subtracts the rounded times in floating point."""
        return math.floor(self.min_s * 1000) + 1

    @property
    def safe_max_ms(self) -> int:
        """The longest that is less than max_s."""
        return math.ceil(self.max_s * 1000) - 1


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The segments, and where the rest of the speakers' time went.

    Per speaker, the union of the turns is what lies in the speaker's segments plus what `dropped`
    counts: `too_short` (in no piece that lasts long enough) and `no_speech` (trimmed as silence
    from a long turn); both keys are always there.
    """

    segments: tuple[Segment, ...]  # in order of (start, end, speaker)
    dropped: Mapping[str, float]  # seconds by reason, summed over the speakers


def segment(
    turns: Sequence[Turn],
    speech: Sequence[Span],
    *,
    duration: float,
    quietest: Quietest,
    rules: Rules = Rules(),
) -> Segmentation:
    """Cuts the speakers' `turns` into segments by `rules`; the order of the turns is no matter.

    `speech` is the voice activity over the whole recording, `duration` its length in seconds, and
    `quietest(start, end)` the time of least energy between two times. All times are seconds; those
    of the segments have three decimals and lie within the recording.
    """
    limit = math.floor(duration * 1000)
    voiced = Timeline(on_grid(speech, limit))
    speakers = speakers_of(turns, limit)
    pieces: list[Piece] = []
    for who in speakers:
        pieces += _merged(_pieces(who, voiced, quietest, rules), rules)
    pieces.sort(key=Piece.order)
    if rules.pad_short:
        pieces = sorted(_padded(pieces, voiced, limit, rules), key=Piece.order)
    kept = [piece for piece in pieces if not piece.lasts_less_than(rules.min_s)]
    return Segmentation(
        segments=tuple(_finished(piece, rules) for piece in kept),
        dropped=_dropped(speakers, pieces, rules),
    )


def _pieces(who: Speaker, voiced: Timeline, quietest: Quietest, rules: Rules) -> list[Piece]:
    return [
        piece
        for turn in who.turns
        for start, end in _split(turn, voiced, rules)
        for piece in _cut(Piece(start, end, who), quietest, rules)
    ]


def _split(turn: Stretch, voiced: Timeline, rules: Rules) -> list[Stretch]:
    """Rule 1: a long turn at its longest pauses. A stack, for a turn may have 1,000s of pauses."""
    above = min(rules.split_above_s, rules.max_s) * 1000
    if turn[1] - turn[0] <= above:
        return [turn]
    heard = voiced.within(*turn)
    pieces: list[Stretch] = []
    stack = [(0, len(heard))] if heard else []
    while stack:
        first, stop = stack.pop()
        start, end = heard[first][0], heard[stop - 1][1]
        if stop - first == 1 or end - start < above:
            pieces.append((start, end))
            continue
        pauses = {i: heard[i][0] - heard[i - 1][1] for i in range(first + 1, stop)}
        widest = max(pauses, key=pauses.__getitem__)
        stack += [(widest, stop), (first, widest)]
    return pieces


def _cut(piece: Piece, quietest: Quietest, rules: Rules) -> Iterator[Piece]:
    """Rule 2: pieces that are too long, at the quietest point before each limit."""
    rest = piece
    while rest.end - rest.start > rules.safe_max_ms:
        earliest, latest = _cut_range(rest, rules)
        found = round(quietest(earliest / 1000, latest / 1000) * 1000)
        at = min(max(found, earliest), latest)
        rest = replace(rest, flags=rest.flags | {"forced_cut"})
        yield replace(rest, end=at)
        rest = replace(rest, start=at)
    yield rest


def _cut_range(piece: Piece, rules: Rules) -> Stretch:
    search = round(rules.cut_search_s * 1000)
    latest = min(piece.start + rules.safe_max_ms, piece.end - rules.safe_min_ms)
    earliest = max(piece.start + rules.safe_min_ms, latest - search)
    if earliest < latest:
        return earliest, latest
    # The limits are too close together for two pieces that are long enough: one will be short.
    latest = piece.start + rules.safe_max_ms
    return max(piece.start + 1, latest - search), latest


def _merged(pieces: Iterable[Piece], rules: Rules) -> list[Piece]:
    """Rule 3, then the same for short pieces that can only join what follows them."""
    joined = _joined(pieces, lambda _, later: later.lasts_less_than(rules.min_s), rules)
    if rules.merge_forward:
        joined = _joined(joined, lambda earlier, _: earlier.lasts_less_than(rules.min_s), rules)
    return joined


def _joined(
    pieces: Iterable[Piece], wanted: Callable[[Piece, Piece], bool], rules: Rules
) -> list[Piece]:
    """One speaker's pieces, with neighbours made one where that is `wanted` and allowed."""
    done: list[Piece] = []
    for piece in pieces:
        if done and wanted(done[-1], piece) and _may_join(done[-1], piece, rules):
            done[-1] = replace(done[-1], end=piece.end, flags=done[-1].flags | piece.flags)
        else:
            done.append(piece)
    return done


def _may_join(earlier: Piece, later: Piece, rules: Rules) -> bool:
    return (
        later.start - earlier.end < rules.merge_gap_s * 1000
        and later.end - earlier.start < rules.max_s * 1000
        and not earlier.speaker.others.covered(earlier.end, later.start)
    )


def _padded(pieces: Sequence[Piece], voiced: Timeline, limit: int, rules: Rules) -> Iterator[Piece]:
    """The pieces, the earlier first; those a little too short extended where there is room."""
    walls = {piece.speaker.name: _walls(piece.speaker, pieces) for piece in pieces}
    taken = 0  # what was extended lies before this
    for piece in pieces:
        if (
            piece.lasts_less_than(rules.min_s)
            and piece.end - piece.start >= rules.pad_from_s * 1000
        ):
            start, end = _room(piece, walls[piece.speaker.name], voiced, limit)
            room = max(start, min(taken, piece.start)), end if taken <= piece.end else piece.end
            extended = _extended(piece, room, rules.safe_min_ms)
            taken = max(taken, extended.end)
            yield extended
        else:
            yield piece


def _walls(who: Speaker, pieces: Sequence[Piece]) -> tuple[Timeline, Timeline]:
    """Where the speaker's utterances must end: the speaker's own pieces, and what others have."""
    own = Timeline((piece.start, piece.end) for piece in pieces if piece.speaker is who)
    theirs = ((piece.start, piece.end) for piece in pieces if piece.speaker is not who)
    return own, Timeline([*who.others, *theirs])


def _room(piece: Piece, walls: Iterable[Timeline], voiced: Timeline, limit: int) -> Stretch:
    """How far the piece may reach; its own audible beginning and end are no walls."""
    start, end = voiced.around(piece.start, piece.end)
    start, end = voiced.last_before(start), voiced.first_after(end, limit)
    for wall in walls:
        start = max(start, wall.last_before(piece.start))
        end = min(end, wall.first_after(piece.end, limit))
    return start, end


def _extended(piece: Piece, room: Stretch, length: int) -> Piece:
    """The piece made `length` ms long, evenly if possible; or as it was if there is no room."""
    missing = length - (piece.end - piece.start)
    before, after = piece.start - room[0], room[1] - piece.end
    if before + after < missing:
        return piece
    left = min(before, max(missing // 2, missing - after))
    return replace(
        piece,
        start=piece.start - left,
        end=piece.end + missing - left,
        flags=piece.flags | {"padded"},
    )


def _finished(piece: Piece, rules: Rules) -> Segment:
    shared = piece.speaker.others.covered(piece.start, piece.end) / (piece.end - piece.start)
    flags = piece.flags | {"overlap"} if shared >= rules.overlap_from else piece.flags
    return Segment(
        start=piece.start / 1000,
        end=piece.end / 1000,
        speaker=piece.speaker.name,
        overlap=shared,
        flags=tuple(sorted(flags)),
    )


def _dropped(
    speakers: Sequence[Speaker], pieces: Sequence[Piece], rules: Rules
) -> dict[str, float]:
    """Seconds of the turns that lie in a piece that is too short, and in no piece at all."""
    spoken = sum(end - start for who in speakers for start, end in who.turns)
    kept = short = 0
    for piece in pieces:
        active = piece.speaker.turns.covered(piece.start, piece.end)
        if piece.lasts_less_than(rules.min_s):
            short += active
        else:
            kept += active
    return {"too_short": short / 1000, "no_speech": (spoken - kept - short) / 1000}
