"""Emilia's segmentation rules, each by name; our differences, each by name; what holds always."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.segment import Rules, Segmentation, segment
from pipeline.types import Segment, Span, Turn

EMILIA = Rules(pad_short=False)
Row = tuple[float, float, str]


def cut(
    *turns: Row,
    speech: Iterable[tuple[float, float]] = (),
    duration: float = 100.0,
    quietest: Callable[[float, float], float] = max,
    rules: Rules = EMILIA,
) -> Segmentation:
    return segment(
        [Turn(*turn) for turn in turns],
        [Span(*span) for span in speech],
        duration=duration,
        quietest=quietest,
        rules=rules,
    )


def times(found: Segmentation) -> list[Row]:
    return [(s.start, s.end, s.speaker) for s in found.segments]


# --- Emilia's rules ---------------------------------------------------------------------------


def test_turn_of_up_to_20_s_stays_as_it_is() -> None:
    """Only a turn of more than 20 s is looked at with the voice activity."""
    assert times(cut((1, 21, "A"), speech=[(2, 5), (9, 20)])) == [(1, 21, "A")]


def test_longer_turn_is_trimmed_to_its_speech() -> None:
    """Silence at the edges of a turn of more than 20 s is lost, and is accounted for."""
    found = cut((0, 25, "A"), speech=[(2, 10), (11, 20.5)])
    assert times(found) == [(2, 20.5, "A")]
    assert found.dropped == {"too_short": 0.0, "no_speech": 6.5}


def test_longer_turn_is_split_at_its_longest_pause() -> None:
    """Not at the pause nearest to the middle, and not at the first one."""
    found = cut((0, 25, "A"), speech=[(0, 4), (4.5, 8), (9, 16), (16.7, 25)])
    assert times(found) == [(0, 8, "A"), (9, 25, "A")]


def test_first_of_equal_pauses_splits() -> None:
    """Two pauses of the same length: the earlier one is taken."""
    assert times(cut((0, 24, "A"), speech=[(0, 6), (7, 17), (18, 24)])) == [
        (0, 6, "A"),
        (7, 24, "A"),
    ]


def test_split_recurs_while_a_piece_lasts_20_s_or_more() -> None:
    """A piece of exactly 20 s is split again, one of 19.999 s is not."""
    speech = [(0, 9.5), (10, 20), (25, 34), (34.5, 44.999)]
    assert times(cut((0, 45, "A"), speech=speech)) == [
        (0, 9.5, "A"),
        (10, 20, "A"),
        (25, 44.999, "A"),
    ]


def test_speech_without_a_pause_is_not_split() -> None:
    """A single stretch of voice of 20 s or more stays one piece."""
    assert times(cut((0, 29, "A"), speech=[(0, 29)])) == [(0, 29, "A")]


def test_longer_turn_without_speech_is_lost() -> None:
    """A long turn in which no voice is heard gives nothing."""
    found = cut((0, 25, "A"), speech=[(26, 28)])
    assert found == Segmentation((), {"too_short": 0.0, "no_speech": 25.0})


@pytest.mark.parametrize(("start", "joins"), [(6.999, True), (7.0, False)])
def test_neighbours_merge_when_the_gap_is_less_than_2_s(start: float, joins: bool) -> None:
    """A gap of exactly 2 s is too long."""
    found = cut((0, 5, "A"), (start, start + 1, "A"))
    assert times(found) == [(0, start + 1 if joins else 5, "A")]


@pytest.mark.parametrize(("end", "joins"), [(8.875, True), (9.0, False)])
def test_neighbours_merge_when_the_new_piece_lasts_less_than_3_s(end: float, joins: bool) -> None:
    """A new piece of exactly 3 s stands alone."""
    found = cut((0, 5, "A"), (6, end, "A"))
    assert times(found) == ([(0, end, "A")] if joins else [(0, 5, "A"), (6, end, "A")])


@pytest.mark.parametrize(("end", "joins"), [(29.999, True), (30.0, False)])
def test_neighbours_merge_when_the_sum_is_less_than_30_s(end: float, joins: bool) -> None:
    """A sum of exactly 30 s is too long."""
    found = cut((0, 10, "A"), (10.5, 28, "A"), (28, end, "A"))
    assert times(found)[-1] == (10.5, end, "A")
    found = cut((0, 19, "A"), (19.5, 22, "A"), (22.5, 25, "A"), (25.5, 28, "A"), (28, end, "A"))
    assert times(found) == [(0, end if joins else 28, "A")]


def test_short_pieces_gather() -> None:
    """Pieces that are all too short make a segment together."""
    assert times(cut((0, 1, "A"), (2, 3, "A"), (4, 5, "A"))) == [(0, 5, "A")]


def test_other_speaker_in_the_gap_prevents_merging() -> None:
    """Neighbours follow each other in the list of all turns; here B stands between."""
    found = cut((0, 5, "A"), (5.2, 5.8, "B"), (6, 8, "A"))
    assert times(found) == [(0, 5, "A")]
    assert found.dropped == {"too_short": 2.6, "no_speech": 0.0}


def test_other_speaker_reaching_into_the_gap_prevents_merging() -> None:
    """B begins during A's first turn and ends during A's second: still between them."""
    assert times(cut((0, 5, "A"), (4, 7, "B"), (5.5, 8, "A"))) == [(0, 5, "A"), (4, 7, "B")]


@pytest.mark.parametrize(("end", "kept"), [(4.0, True), (3.999, False)])
def test_pieces_of_less_than_3_s_are_dropped(end: float, kept: bool) -> None:
    """A piece of exactly 3 s stays; the rest is accounted for."""
    found = cut((1, end, "A"))
    assert times(found) == ([(1, end, "A")] if kept else [])
    assert found.dropped["too_short"] == (0.0 if kept else 2.999)


def test_nothing_said_gives_nothing() -> None:
    """An episode without turns has no segments and nothing dropped."""
    assert cut() == Segmentation((), {"too_short": 0.0, "no_speech": 0.0})


def emilia(turns: Sequence[Row]) -> list[Row]:
    """Emilia's merging and dropping, for turns of at most 20 s that are not nested."""
    pieces: list[Row] = []
    for start, end, speaker in sorted(turns):
        before = pieces[-1] if pieces and pieces[-1][2] == speaker else None
        if before and end - start < 3 and start - before[1] < 2 and end - before[0] < 30:
            pieces[-1] = (before[0], end, speaker)
        else:
            pieces.append((start, end, speaker))
    return [piece for piece in pieces if piece[1] - piece[0] >= 3]


@st.composite
def unnested_turns(draw: st.DrawFn) -> list[Row]:
    """Turns on a grid of 1/8 s (exact in binary); what begins later ends later."""
    turns: list[Row] = []
    ends: dict[str, int] = defaultdict(int)
    start = last = -1
    for speaker in draw(st.lists(st.sampled_from("ABC"), max_size=12)):
        start = max(start + draw(st.integers(1, 24)), ends[speaker] + 1)
        end = max(start, last) + draw(st.integers(1, 40))
        if end - start > 160:
            continue
        turns.append((start / 8, end / 8, speaker))
        ends[speaker] = last = end
    return turns


@settings(deadline=None)
@given(unnested_turns())
def test_result_is_emilias_where_turns_are_not_nested(turns: list[Row]) -> None:
    """Without the extras, merging per speaker is Emilia's merging of neighbours in the list."""
    assert times(cut(*turns, duration=1000)) == emilia(turns)


# --- deliberate differences -------------------------------------------------------------------


def test_nested_turn_is_kept() -> None:
    """Emilia loses a turn that lies within another one; here it is a segment, marked."""
    found = cut((0, 10, "A"), (3, 7, "B"))
    assert found.segments == (
        Segment(0, 10, "A", overlap=0.4, flags=("overlap",)),
        Segment(3, 7, "B", overlap=1.0, flags=("overlap",)),
    )


def test_merging_does_not_hide_a_nested_turn() -> None:
    """A's neighbours merge although B spoke during the first of them, and the mark says so."""
    found = cut((0, 5, "A"), (2, 3, "B"), (6, 8, "A"))
    assert found.segments == (Segment(0, 8, "A", overlap=0.125, flags=("overlap",)),)


@pytest.mark.parametrize(("share", "marked"), [(0.049, False), (0.05, True)])
def test_overlap_is_marked_from_one_twentieth(share: float, marked: bool) -> None:
    """The share is always there; the flag comes with 5 % of the segment."""
    (found,) = cut((0, 10, "A"), (0, 10 * share, "B")).segments
    assert found.overlap == share
    assert found.flags == (("overlap",) if marked else ())


def test_overlap_counts_time_and_not_speakers() -> None:
    """Two others who speak at once overlap once."""
    first, *_ = cut((0, 10, "A"), (2, 4, "B"), (3, 5, "C"), (9, 12, "C")).segments
    assert first.overlap == 0.4


def test_cut_falls_at_the_quietest_point() -> None:
    """Not at 30 s sharp: the last 5 s before the limit are searched; both sides are marked."""
    asked: list[tuple[float, float]] = []

    def quietest(start: float, end: float) -> float:
        asked.append((start, end))
        return start + 1.25

    found = cut((1, 51, "A"), speech=[(0, 60)], quietest=quietest)
    assert asked == [(25.999, 30.999)]
    assert found.segments == (
        Segment(1, 27.249, "A", flags=("forced_cut",)),
        Segment(27.249, 51, "A", flags=("forced_cut",)),
    )


def test_cuts_recur() -> None:
    """Every piece lasts less than 30 s however long the speech without a pause."""
    found = cut((0, 95, "A"), speech=[(0, 95)], quietest=min)
    assert times(found) == [
        (0, 24.999, "A"),
        (24.999, 49.998, "A"),
        (49.998, 74.997, "A"),
        (74.997, 95, "A"),
    ]


@pytest.mark.parametrize(("end", "cuts"), [(29.999, 0), (30.0, 1)])
def test_piece_of_30_s_is_cut(end: float, cuts: int) -> None:
    """Exactly 30 s are too long, as for Emilia."""
    assert len(cut((0, end, "A"), speech=[(0, end)]).segments) == 1 + cuts


def test_cut_leaves_no_rest_that_is_too_short() -> None:
    """Emilia cuts 31 s into 30 and 1 and drops the one; here the cut moves forward."""
    found = cut((0, 31, "A"), speech=[(0, 31)], quietest=max)
    assert times(found) == [(0, 27.999, "A"), (27.999, 31, "A")]


@pytest.mark.parametrize(("answer", "at"), [(31.0, 29.999), (3.0, 24.999)])
def test_cut_obeys_its_own_range(answer: float, at: float) -> None:
    """A quietest point outside the range that was asked for is not believed."""
    found = cut((0, 40, "A"), speech=[(0, 40)], quietest=lambda *_: answer)
    assert times(found) == [(0, at, "A"), (at, 40, "A")]


def test_short_rest_is_dropped_where_limits_leave_no_choice() -> None:
    """With 20 to 30 s, 35 s cannot be cut into two that last: the rest is accounted for."""
    rules = replace(EMILIA, min_s=20)
    found = cut((0, 35, "A"), speech=[(0, 35)], rules=rules)
    assert times(found) == [(0, 29.999, "A")]
    assert found.dropped == {"too_short": 5.001, "no_speech": 0.0}


def test_lower_maximum_splits_at_pauses_too() -> None:
    """With at most 10 s, a turn of 12 s is split at its pause and not cut."""
    found = cut((0, 12, "A"), speech=[(0, 5), (5.5, 12)], rules=replace(EMILIA, max_s=10))
    assert found.segments == (Segment(0, 5, "A"), Segment(5.5, 12, "A"))


@pytest.mark.parametrize("wrong", [{"min_s": 0.0}, {"min_s": 30.0}, {"max_s": 2.0}])
def test_contradictory_limits_are_refused(wrong: dict[str, float]) -> None:
    """A minimum that is not below the maximum cannot be meant."""
    with pytest.raises(ValueError, match="at least"):
        Rules(**wrong)  # type: ignore[arg-type]


FORWARD = replace(EMILIA, merge_forward=True)


def test_short_first_piece_merges_forward() -> None:
    """Emilia drops a short piece before a long one of the same speaker; here the two join."""
    turns: list[Row] = [(0, 1, "A"), (2, 8, "A")]
    assert times(cut(*turns)) == [(2, 8, "A")]
    assert times(cut(*turns, rules=FORWARD)) == [(0, 8, "A")]


@pytest.mark.parametrize(
    "turns",
    [
        [(0, 1, "A"), (3, 9, "A")],
        [(0, 1, "A"), (1.2, 1.8, "B"), (2, 8, "A")],
        [(0, 3, "A"), (4, 8, "A")],
        [(0, 2, "A"), (2.5, 10, "B"), (11, 15, "A")],
    ],
    ids=["gap of 2 s", "another speaker between", "not short", "not the same speaker"],
)
def test_merging_forward_has_the_limits_of_merging(turns: list[Row]) -> None:
    """The gap less than 2 s, nobody else in it, and only for a piece that is too short."""
    assert times(cut(*turns, rules=FORWARD)) == times(cut(*turns))


def test_merging_forward_stops_at_30_s() -> None:
    """The two together last less than 30 s, or stay apart."""
    speech = [(0.5, 2.5), (4, 30.5)]
    assert times(cut((0.5, 2.5, "A"), (4, 30.5, "A"), speech=speech, rules=FORWARD)) == [
        (4, 30.5, "A")
    ]
    assert times(cut((1, 2.5, "A"), (4, 30.5, "A"), speech=speech, rules=FORWARD)) == [
        (1, 30.5, "A")
    ]


def test_merging_forward_is_off() -> None:
    """It gains coverage with other people's speech; extending is on, for it does not."""
    assert not Rules().merge_forward
    assert Rules().pad_short


def test_merging_backward_goes_first() -> None:
    """A short piece between two long ones joins the first of them, as Emilia has it."""
    assert times(cut((0, 4, "A"), (5, 6, "A"), (7, 11, "A"), rules=FORWARD)) == [
        (0, 6, "A"),
        (7, 11, "A"),
    ]


PADDED = replace(EMILIA, pad_short=True)


def test_utterance_is_extended_evenly_into_silence() -> None:
    """2.5 s become a little over 3 s, half of what was missing on each side."""
    found = cut((10, 12.5, "A"), rules=PADDED)
    assert found.segments == (Segment(9.75, 12.751, "A", flags=("padded",)),)
    assert found.dropped == {"too_short": 0.0, "no_speech": 0.0}


@pytest.mark.parametrize(("end", "kept"), [(12.2, True), (12.199, False)])
def test_utterance_is_extended_from_2_2_s(end: float, kept: bool) -> None:
    """Shorter ones would be more than a quarter of silence."""
    assert bool(cut((10, end, "A"), rules=PADDED).segments) == kept


def test_extension_ends_where_the_file_does() -> None:
    """What one side lacks, the other gives."""
    assert times(cut((0.1, 2.6, "A"), rules=PADDED)) == [(0, 3.001, "A")]
    assert times(cut((97.4, 99.9, "A"), rules=PADDED)) == [(96.999, 100, "A")]


def test_extension_ends_at_another_speakers_turn() -> None:
    """However short that turn, and though it is dropped itself."""
    assert times(cut((9, 9.9, "B"), (10, 12.5, "A"), rules=PADDED)) == [(9.9, 12.901, "A")]
    assert times(cut((10, 12.5, "A"), (12.5, 13, "B"), rules=PADDED)) == [(9.499, 12.5, "A")]


def test_extension_ends_at_the_speakers_own_turns() -> None:
    """Half a word of the next utterance is no silence."""
    assert times(cut((10, 12.5, "A"), (14.5, 20, "A"), (20.2, 20.4, "B"), rules=PADDED)) == [
        (9.75, 12.751, "A"),
        (14.5, 20, "A"),
    ]
    assert times(cut((7.8, 8, "A"), (8, 9.9, "B"), (10, 12.5, "A"), rules=PADDED))[-1] == (
        9.9,
        12.901,
        "A",
    )


def test_extension_ends_at_another_extension() -> None:
    """Two utterances that want the same silence share it: the earlier is served first."""
    found = cut((5, 7.5, "A"), (8, 10.5, "B"), rules=PADDED)
    assert times(found) == [(4.75, 7.751, "A"), (7.751, 10.752, "B")]


def test_extension_does_not_enter_the_gap_of_merged_pieces() -> None:
    """B begins together with A's second turn; the gap before it is part of A's segment."""
    turns: list[Row] = [(9, 10, "A"), (11, 13, "A"), (11, 13.5, "B")]
    assert times(cut(*turns, rules=PADDED)) == [(9, 13, "A"), (11, 14.001, "B")]


def test_two_that_end_together_do_not_share_an_extension() -> None:
    """The silence after both goes to the first, which takes all it needs there."""
    turns: list[Row] = [(10, 12.5, "A"), (10.1, 12.5, "B")]
    assert times(cut(*turns, rules=PADDED)) == [(9.75, 12.751, "A")]


def test_extension_ends_at_speech_that_nobody_claims() -> None:
    """Voice outside of all turns may be anybody's."""
    found = cut((10, 12.5, "A"), speech=[(9, 9.9), (10, 12.5)], rules=PADDED)
    assert times(found) == [(9.9, 12.901, "A")]


def test_extension_covers_the_audible_ends_of_the_utterance() -> None:
    """Voice that runs on from the turn is the same voice: what the diarizer cut too tightly."""
    found = cut((10, 12.5, "A"), speech=[(9.9, 12.6)], rules=PADDED)
    assert times(found) == [(9.75, 12.751, "A")]


def test_utterance_without_room_is_dropped() -> None:
    """Between two others there is no silence to extend into, and none is stolen."""
    found = cut((6, 10, "B"), (10.1, 12.5, "A"), (12.6, 17, "B"), rules=PADDED)
    assert times(found) == [(6, 10, "B"), (12.6, 17, "B")]
    assert found.dropped == {"too_short": 2.4, "no_speech": 0.0}


def test_parts_of_one_turn_count_once() -> None:
    """A speaker's overlapping turns are one."""
    found = cut((0, 4, "A"), (2, 6, "A"), (3, 5, "A"))
    assert found.segments == (Segment(0, 6, "A"),)


def test_times_beyond_the_file_are_cut_off() -> None:
    """A turn may begin before the file or end after it; an empty one is nothing."""
    found = cut((-1, 4, "A"), (8, 12, "B"), (5, 5, "C"), (7, 6, "C"), duration=11.0)
    assert times(found) == [(0, 4, "A"), (8, 11, "B")]


def test_thousands_of_pauses_are_no_depth() -> None:
    """A speech of an hour, whose pauses only grow, is split without recursion."""
    start, speech = 0.0, []
    for pause in range(1, 2001):
        speech.append((start, start + 1))
        start += 1 + pause / 1000
    found = cut((0, start, "A"), speech=speech, duration=start)
    assert len(found.segments) > 100


# --- what holds always ------------------------------------------------------------------------

moments = st.integers(0, 120_000).map(lambda ms: ms / 1000) | st.floats(-5, 125)
lengths = st.floats(0, 6) | st.floats(0, 90) | st.sampled_from([2.2, 3.0, 20.0, 30.0])
spans = st.builds(lambda start, length: (start, start + length), moments, lengths)
rules = st.builds(
    Rules,
    min_s=st.sampled_from([3.0, 1.0, 6.0]),
    max_s=st.sampled_from([30.0, 12.0, 7.5]),
    pad_short=st.booleans(),
    merge_forward=st.booleans(),
)


@st.composite
def episodes(draw: st.DrawFn) -> tuple[list[Turn], list[Span], Rules]:
    named = st.tuples(spans, st.sampled_from("ABC"))
    turns = [Turn(start, end, who) for (start, end), who in draw(st.lists(named, max_size=14))]
    speech = [Span(*span) for span in draw(st.lists(spans, max_size=14))]
    return turns, speech, draw(rules)


DURATION = 120.0


def run(turns: Sequence[Turn], speech: Sequence[Span], rules: Rules) -> Segmentation:
    return segment(turns, speech, duration=DURATION, quietest=lambda a, b: (a + b) / 2, rules=rules)


def active(spans: Iterable[Span]) -> NDArray[np.bool_]:
    """Whether any of the spans is active, for every millisecond: the slow and obvious way."""
    found = np.zeros(round(DURATION * 1000), bool)
    for span in spans:
        found[max(0, round(span.start * 1000)) : max(0, round(span.end * 1000))] = True
    return found


@settings(deadline=None)
@given(episodes())
def test_segments_keep_their_limits_and_order(
    episode: tuple[list[Turn], list[Span], Rules],
) -> None:
    """Within the file, within the lengths, three decimals, in order, one speaker never twice."""
    rules = episode[2]
    found = run(*episode).segments
    assert list(found) == sorted(found, key=lambda s: (s.start, s.end, s.speaker))
    ends: dict[str, float] = {}
    for each in found:
        assert 0 <= each.start < each.end <= DURATION
        assert rules.min_s <= each.end - each.start < rules.max_s
        assert (each.start, each.end) == (round(each.start, 3), round(each.end, 3))
        assert ends.get(each.speaker, 0.0) <= each.start
        assert list(each.flags) == sorted(set(each.flags))
        ends[each.speaker] = each.end


@settings(deadline=None)
@given(episodes())
def test_all_speaker_time_is_accounted_for(episode: tuple[list[Turn], list[Span], Rules]) -> None:
    """What a speaker's turns cover is in the speaker's segments or among what was dropped."""
    turns, _, _ = episode
    found = run(*episode)
    lost = 0
    for who in {turn.speaker for turn in turns}:
        own = active(turn for turn in turns if turn.speaker == who)
        lost += (own & ~active(s for s in found.segments if s.speaker == who)).sum()
    assert math.isclose(sum(found.dropped.values()), lost / 1000, abs_tol=1e-9)
    assert all(seconds >= 0 for seconds in found.dropped.values())


@settings(deadline=None)
@given(episodes())
def test_overlap_is_the_others_share(episode: tuple[list[Turn], list[Span], Rules]) -> None:
    """Counted by the millisecond, and marked whenever it is not small."""
    turns, _, _ = episode
    for each in run(*episode).segments:
        others = active(turn for turn in turns if turn.speaker != each.speaker)
        inside = active([each])
        assert math.isclose(each.overlap, others[inside].mean())
        assert ("overlap" in each.flags) == (each.overlap >= 0.05)


@settings(deadline=None)
@given(episodes())
def test_extension_touches_nobody(episode: tuple[list[Turn], list[Span], Rules]) -> None:
    """What an extension adds is in no one's turn (pauses within the own one aside) or segment."""
    turns, speech, rules = episode
    found = run(turns, speech, rules).segments
    bare = run(turns, speech, replace(rules, pad_short=False)).segments
    assert [s for s in found if "padded" not in s.flags] == list(bare)
    for each in found:
        if "padded" in each.flags:
            spoken = active(turn for turn in turns if turn.speaker == each.speaker)
            added = active([each]) & ~spoken
            assert not added[active(turn for turn in turns if turn.speaker != each.speaker)].any()
            assert not added[active(s for s in found if s is not each)].any()


@settings(deadline=None)
@given(episodes(), st.randoms(use_true_random=False))
def test_order_of_the_turns_is_no_matter(
    episode: tuple[list[Turn], list[Span], Rules], random: object
) -> None:
    """The same turns and speech in any order give the same segments."""
    turns, speech, rules = episode
    mixed_turns, mixed_speech = list(turns), list(speech)
    random.shuffle(mixed_turns)  # type: ignore[attr-defined]
    random.shuffle(mixed_speech)  # type: ignore[attr-defined]
    assert run(mixed_turns, mixed_speech, rules) == run(turns, speech, rules)


@settings(deadline=None)
@given(episodes())
def test_extras_only_add(episode: tuple[list[Turn], list[Span], Rules]) -> None:
    """Merging forward and extending never lose a moment that Emilia's rules keep."""
    turns, speech, rules = episode
    plain = run(turns, speech, replace(rules, pad_short=False, merge_forward=False)).segments
    extra = run(turns, speech, replace(rules, pad_short=True, merge_forward=True)).segments
    for who in {turn.speaker for turn in turns}:
        before = active(s for s in plain if s.speaker == who)
        assert active(s for s in extra if s.speaker == who)[before].all()
