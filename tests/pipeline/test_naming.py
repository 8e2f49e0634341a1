"""Any title becomes one usable file name, and the outputs are called as the contract says."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.naming import ALL_SEGMENTS, EPISODE, FILTERED_SEGMENTS, safe_name, segment_file

ANY_STEM = st.text(st.characters(exclude_categories=()), max_size=400)  # surrogates included


def digest(stem: str) -> str:
    return hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def test_a_segment_is_named_after_its_episode_and_its_index() -> None:
    """Six digits, zero-padded, and more where an episode has more than a million segments."""
    assert segment_file("Talk 7", 0) == "Talk 7_000000.mp3"
    assert segment_file("Talk 7", 123456) == "Talk 7_123456.mp3"
    assert segment_file("Talk 7", 1234567) == "Talk 7_1234567.mp3"


def test_the_json_files_have_the_names_that_consumers_look_for() -> None:
    """Loaders find the outputs by these names."""
    assert (ALL_SEGMENTS, FILTERED_SEGMENTS, EPISODE) == (
        "all_segments.json",
        "filtered_segments.json",
        "episode.json",
    )


@pytest.mark.parametrize(
    "stem",
    [
        "Talk 7",
        'it\'s "quoted"',
        "第七回",
        "ep 🎙️ 1",
        "v1.2.tar",
        "..hidden",
        "a\\b",
        "-dash",
        "x" * 200,
    ],
)
def test_an_ordinary_name_is_kept(stem: str) -> None:
    """Spaces, quotes, dots, emoji and other scripts need no replacement."""
    assert safe_name(stem) == stem


def test_a_decomposed_name_is_composed() -> None:
    """The two spellings of an accented letter are one name: NFC."""
    assert safe_name("A\u030arhus") == "\u00c5rhus"


@pytest.mark.parametrize(
    ("stem", "kept"),
    [
        ("", "_"),
        (".", "_"),
        ("..", "_"),
        ("a/b", "a_b"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("two\nlines", "two_lines"),
        ("nul\x00\x1b[31m", "nul_[31m"),
        ("half \ud83c pair", "half _ pair"),
        ("x" * 201, "x" * 191),
        ("é" * 101, "é" * 95),
    ],
)
def test_an_unusable_name_is_replaced_and_marked(stem: str, kept: str) -> None:
    """What had to change carries eight hex digits of the original's SHA-256."""
    assert safe_name(stem) == f"{kept}-{digest(stem)}"


def test_names_that_differ_after_the_cut_stay_apart() -> None:
    """Two long titles with the same beginning get two names."""
    assert safe_name("x" * 300 + "a") != safe_name("x" * 300 + "b")


@given(ANY_STEM)
@example("🎙" * 60)
def test_any_stem_is_one_path_component(stem: str) -> None:
    """No input escapes its folder, and the longest segment file still fits into 255 bytes."""
    name = safe_name(stem)
    assert Path("/d", name).parent == Path("/d")
    assert Path("/d", name).name == name
    assert name not in ("", ".", "..")
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)
    assert len(segment_file(name, 0).encode()) <= 255
    assert safe_name(name) == name
