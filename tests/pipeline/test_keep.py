"""Rows, flags, and Emilia's filter rule by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keep
from pipeline.types import Scores, Segment, Transcript

SUPPORTED = ("zh", "en", "fr", "ja", "ko", "de")
SEGMENT = Segment(1.5, 6.25, "SPEAKER_01", overlap=0.123456, flags=("overlap", "padded"))
TRANSCRIPT = Transcript(
    text="And so, my fellow Americans.",
    language="en",
    language_probability=0.987654,
    avg_logprob=-0.234567,
    no_speech_prob=0.012345,
    compression_ratio=1.234567,
)


def said(text: str = "And so.", **facts: Any) -> Transcript:
    return Transcript(
        **{
            "text": text,
            "language": "en",
            "language_probability": 0.9,
            "avg_logprob": -0.2,
            "no_speech_prob": 0.0,
            "compression_ratio": 1.0,
            **facts,
        }
    )


def flags(transcript: Transcript) -> tuple[str, ...]:
    return keep.flags(Segment(0, 5, "A"), transcript, supported=SUPPORTED)


def row(text: str = "x" * 50, start: float = 0.0, end: float = 5.0, **facts: Any) -> dict[str, Any]:
    usual = {"language": "en", "language_probability": 0.9, "dnsmos": 3.5}
    return {"text": text, "start": start, "end": end, **usual, **facts}


def passes(*rows: Mapping[str, Any], **limits: Any) -> list[Mapping[str, Any]]:
    return keep.keep(rows, supported=SUPPORTED, **limits)


# --- rows -------------------------------------------------------------------------------------


def test_row_has_the_contracts_keys_in_order_and_rounded() -> None:
    """Emilia's six keys first, then our own; times with 3 decimals, the rest with 4."""
    made = keep.row(
        SEGMENT, TRANSCRIPT, Scores(3.14159, 3.54321, 4.0), flags=("overlap",), audio="a_000000.mp3"
    )
    assert json.dumps(made) == (
        '{"text": "And so, my fellow Americans.", "start": 1.5, "end": 6.25,'
        ' "speaker": "SPEAKER_01", "language": "en", "dnsmos": 3.1416,'
        ' "language_probability": 0.9877, "dnsmos_sig": 3.5432, "dnsmos_bak": 4.0,'
        ' "avg_logprob": -0.2346, "no_speech_prob": 0.0123, "compression_ratio": 1.2346,'
        ' "overlap": 0.1235, "flags": ["overlap"], "audio": "a_000000.mp3"}'
    )


def test_row_rounds_times_to_milliseconds() -> None:
    """Times that come with more decimals leave with three."""
    made = keep.row(
        Segment(1.23456, 6.78912, "A"), TRANSCRIPT, Scores(3, 3, 3), flags=(), audio="a.mp3"
    )
    assert (made["start"], made["end"]) == (1.235, 6.789)


# --- flags ------------------------------------------------------------------------------------


def test_good_transcript_earns_no_flag() -> None:
    """The segment's own flags come through alone, sorted."""
    assert flags(TRANSCRIPT) == ()
    assert keep.flags(SEGMENT, TRANSCRIPT, supported=SUPPORTED) == ("overlap", "padded")


def test_all_flags_are_sorted_and_unique() -> None:
    """Whatever their source, so that equal results are equal bytes."""
    bad = said("", language="xx", language_probability=0.1, compression_ratio=9)
    segment = Segment(0, 5, "A", flags=("padded", "forced_cut", "no_text"))
    assert keep.flags(segment, bad, supported=SUPPORTED) == (
        "forced_cut",
        "low_language_probability",
        "no_text",
        "padded",
        "repetition",
        "unsupported_language",
    )


def test_language_outside_of_the_supported_is_flagged() -> None:
    """However sure the recogniser is of it."""
    assert flags(said(language="es", language_probability=0.99)) == ("unsupported_language",)


@pytest.mark.parametrize(
    ("probability", "flagged"), [(0.8, True), (0.80004, True), (0.8001, False)]
)
def test_language_is_believed_above_080(probability: float, flagged: bool) -> None:
    """Exactly 0.8 is not enough, and the rounded number of the row decides."""
    found = flags(said(language_probability=probability))
    assert found == (("low_language_probability",) if flagged else ())


@pytest.mark.parametrize(("ratio", "flagged"), [(2.4, False), (2.41, True)])
def test_compression_above_whispers_limit_is_repetition(ratio: float, flagged: bool) -> None:
    """Whisper calls a text a loop above 2.4."""
    assert flags(said(compression_ratio=ratio)) == (("repetition",) if flagged else ())


@pytest.mark.parametrize(
    ("text", "flagged"),
    [
        ("Thank you. Thank you. Thank you, thank you.", True),
        ("I said: thank you thank you thank you THANK YOU and left.", True),
        ("Thank you. Thank you. Thank you.", False),
        ("No, no, no, no!", False),
        ("no " * 12, True),
        ("no " * 11 + "n", False),
        ("abcdef " * 4, True),
        ("abcde " * 4 + "abc", False),
        ("谢谢大家。" * 6, True),
        ("请不吝点赞订阅转发打赏" * 3, False),
        ("a\nbcdefg" * 4, True),
    ],
)
def test_short_loop_is_repetition(text: str, flagged: bool) -> None:
    """The same words at least four times in a row, 24 characters or more of them."""
    assert flags(said(text)) == (("repetition",) if flagged else ())


@pytest.mark.parametrize(
    ("text", "flagged"),
    [("", True), ("  .,!?\"'，。！？“”‘’ ", True), ("I.", True), ("Ok", False), ("“是的”", False)],
)
def test_fewer_than_two_characters_are_no_text(text: str, flagged: bool) -> None:
    """Counted without punctuation and spaces."""
    assert flags(said(text)) == (("no_text",) if flagged else ())


# --- Emilia's filter --------------------------------------------------------------------------


def test_good_row_passes_as_it_is() -> None:
    """The row itself comes back, nothing added, and in the order of the rows."""
    rows = [row(start=start, end=start + 5) for start in (0.0, 10.0, 5.0)]
    assert [id(kept) for kept in passes(*rows)] == [id(each) for each in rows]


@pytest.mark.parametrize(
    ("fact", "kept"),
    [
        ({"language": "es"}, False),
        ({"language": "de"}, True),
        ({"language_probability": 0.8}, False),
        ({"language_probability": 0.8001}, True),
        ({"dnsmos": 2.9999}, False),
        ({"dnsmos": 3.0}, True),
        ({"start": 0.0, "end": 2.999}, False),
        ({"start": 1.1, "end": 4.1}, True),  # 2.9999999999999996 in floating point
        ({"start": 0.0, "end": 30.0}, True),
        ({"start": 0.1, "end": 30.101}, False),
        ({"text": "a"}, False),
        ({"text": "a, b"}, True),
        ({"text": "“，。”"}, False),
    ],
)
def test_each_limit_of_the_filter(fact: dict[str, Any], kept: bool) -> None:
    """The limits themselves pass, but for the language's probability, which must exceed 0.8."""
    assert bool(passes(row(**fact))) == kept


def test_limits_are_settings() -> None:
    """Threshold and lengths follow the configuration."""
    assert passes(row(dnsmos=2.5), dnsmos_threshold=2.5)
    assert passes(row(end=1.5), min_s=1.5)
    assert not passes(row(end=12.5), max_s=12)


def spoken_at(*seconds_per_character: float) -> list[dict[str, Any]]:
    """Rows of 8 characters each."""
    return [row("x" * 8, end=8 * each) for each in seconds_per_character]


def test_outliers_in_seconds_per_character_fail() -> None:
    """The quartiles are 1 and 1.25, so the fences 0.625 and 1.625; what lies on them passes."""
    rows = spoken_at(0.625, 1.0, 1.125, 1.25, 1.625)
    assert passes(*rows) == rows
    rows = spoken_at(0.624, 1.0, 1.125, 1.25, 1.626)
    assert passes(*rows) == rows[1:-1]


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("text", ["x" * 7, "x" * 31, "x" * 49])
def test_equal_rows_all_pass(count: int, text: str) -> None:
    """Without spread both fences lie on the value itself, and no rounding may exclude it."""
    rows = [row(text, end=10.1)] * count
    assert passes(*rows) == rows


def test_quartiles_are_over_the_rows_of_passing_language() -> None:
    """Emilia transcribes no others, so a slow foreign row moves no fence."""
    rows = spoken_at(0.8, 0.84, 0.88, 0.92, 1.6)
    foreign = [{**each, "language": "es"} for each in spoken_at(2, 2, 2, 2)]
    unsure = [{**each, "language_probability": 0.5} for each in spoken_at(2, 2, 2, 2)]
    assert passes(*rows, *foreign, *unsure) == rows[:-1]


def test_quartiles_include_rows_that_other_limits_remove() -> None:
    """Noisy rows and single characters count: with them in, 1.6 is nothing unusual."""
    rows = spoken_at(0.8, 0.84, 0.88, 0.92, 1.6)
    noisy = [{**each, "dnsmos": 1.0} for each in spoken_at(1.6, 1.6, 1.6)]
    assert passes(*rows, *noisy) == rows
    assert passes(*rows, *[row("I", end=5)] * 3) == rows


def test_rows_without_text_move_no_fence() -> None:
    """Nothing can be divided by no characters; such rows fail and the rest is unmoved."""
    rows = spoken_at(0.8, 0.84)
    assert passes(row(""), *rows, row(" ... ")) == rows
    assert passes(row("")) == []
    assert passes() == []


def emilia(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The filter as Emilia computes it, with numpy, on rows that passed its transcription."""

    def count(text: str) -> int:
        return sum(sign not in ",.!?\"'，。！？“”‘’ " for sign in text)

    rows = [r for r in rows if r["language"] in SUPPORTED and r["language_probability"] > 0.8]
    slow = [(r["end"] - r["start"]) / count(r["text"]) for r in rows if count(r["text"])]
    q1, q3 = np.percentile(slow, [25, 75]) if slow else (0, np.inf)
    low, high = (q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)) if slow else (0, np.inf)
    return [
        r
        for r in rows
        if 3 <= r["end"] - r["start"] <= 30
        and r["dnsmos"] >= 3
        and count(r["text"]) >= 2
        and low <= (r["end"] - r["start"]) / count(r["text"]) <= high
    ]


some_rows = st.builds(
    row,
    text=st.text("ab ,。", max_size=12),
    end=st.integers(8, 256).map(lambda eighths: eighths / 8),  # exact in binary
    language=st.sampled_from(["en", "zh", "es"]),
    language_probability=st.sampled_from([0.5, 0.8, 0.81, 0.99]),
    dnsmos=st.sampled_from([2.5, 3.0, 3.5]),
)


@settings(deadline=None)
@given(st.lists(some_rows, max_size=20))
def test_filter_is_emilias(rows: list[dict[str, Any]]) -> None:
    """On any rows, the same pass as with Emilia's own definition and numpy's quartiles."""
    assert passes(*rows) == emilia(rows)


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), st.sampled_from([0.25, 0.5, 0.75]))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    """To the last bit, for a value on a fence must fall on the same side."""
    assert keep._quantile(sorted(values), share) == np.percentile(values, share * 100)
