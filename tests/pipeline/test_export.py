"""Each segment becomes an MP3 of its own length, and JSON is written whole or not at all."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audio import Recording, Samples, cut, decode, resample
from pipeline.export import MP3_RATES, encode_mp3, write_clips, write_json
from pipeline.types import Span
from tests.pipeline._sound import lag_ms

RATE = 24_000
SEGMENTS = [Span(0.0, 3.217), Span(2.5, 9.75), Span(9.0, 10.999), Span(10.0, 99.0)]


@pytest.fixture(scope="module")
def speech(jfk: Path) -> Samples:
    """Eleven seconds of real speech at 24 kHz."""
    return decode(jfk).samples


def _decoded(mp3: bytes, folder: Path) -> Recording:
    path = folder / "clip.mp3"
    path.write_bytes(mp3)
    return decode(path)


# MP3s


def test_each_segment_is_an_mp3_in_its_place(speech: Samples, tmp_path: Path) -> None:
    """Named by index, mono, 24 kHz, as long as the segment and aligned with it to 1 ms."""
    files = write_clips(speech, SEGMENTS, tmp_path, "it's 第七回")
    assert files == [f"it's 第七回_{index:06d}.mp3" for index in range(len(SEGMENTS))]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    for file, segment in zip(files, SEGMENTS, strict=True):
        clip, original = decode(tmp_path / file), cut(speech, RATE, segment)
        assert (clip.codec, clip.container) == ("mp3", "mp3")
        assert (clip.source_rate, clip.channels, clip.warnings) == (RATE, 1, ())
        assert abs(clip.seconds - len(original) / RATE) <= 0.001
        assert abs(lag_ms(clip.samples, original)) < 1
        size = min(len(clip.samples), len(original))
        assert np.corrcoef(clip.samples[:size], original[:size])[0, 1] > 0.99


@pytest.mark.parametrize("over", [0, 1, 23, 24, 47, 48, 300, 575])
def test_the_length_is_kept_wherever_the_last_frame_ends(
    over: int, speech: Samples, tmp_path: Path
) -> None:
    """Decoders give back the clip's length to 1 ms, whatever is left for MP3's last frame."""
    clip = speech[: 100 * 576 + over]
    assert abs(_decoded(encode_mp3(clip, RATE, 64), tmp_path).seconds - len(clip) / RATE) <= 0.001


@pytest.mark.parametrize("rate", MP3_RATES)
def test_clips_may_have_another_rate(rate: int, speech: Samples, tmp_path: Path) -> None:
    """Every rate that MP3 has, at a bit rate that LAME finds for it."""
    (file,) = write_clips(speech, [Span(0, 5)], tmp_path, "a", sample_rate=rate, bitrate_kbps=320)
    clip = decode(tmp_path / file)
    assert clip.source_rate == rate
    assert clip.seconds == pytest.approx(5, abs=0.001)
    assert abs(lag_ms(clip.samples, speech[: 5 * RATE])) < 1


def test_the_bit_rate_is_the_one_asked_for(speech: Samples) -> None:
    """64 and 128 kbit/s give files of those rates, to a few per cent."""
    for kbps in (64, 128):
        size = len(encode_mp3(speech, RATE, kbps))
        assert size * 8 / 11 / 1000 == pytest.approx(kbps, rel=0.03)


def test_equal_input_gives_equal_bytes(speech: Samples, tmp_path: Path) -> None:
    """Whatever the number of threads: the bytes depend on the sound alone."""
    one, many = tmp_path / "one", tmp_path / "many"
    for folder, threads in ((one, 1), (many, 4)):
        folder.mkdir()
        write_clips(speech, SEGMENTS * 3, folder, "a", threads=threads)
    for path in one.iterdir():
        assert path.read_bytes() == (many / path.name).read_bytes()


def test_the_bytes_do_not_name_the_library(speech: Samples) -> None:
    """Another version of FFmpeg alone must not change a dataset's files."""
    assert not re.search(rb"Lav[cf]\d|LAME\d", encode_mp3(speech, RATE, 64)[:500])


def test_what_is_too_loud_is_clipped(tmp_path: Path) -> None:
    """A tone beyond full scale becomes a clipped tone, not one that wraps around."""
    tone = 3 * np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE).astype(np.float32)
    decoded = _decoded(encode_mp3(tone, RATE, 128), tmp_path).samples
    clipped = tone.clip(-1, 1)
    size = min(len(decoded), len(clipped))
    assert np.abs(decoded[:size] - clipped[:size]).max() < 0.2
    assert np.corrcoef(decoded[:size], clipped[:size])[0, 1] > 0.99


def test_silence_and_a_moment_can_be_written(tmp_path: Path) -> None:
    """A silent segment is silent, and one of 50 ms is a file too."""
    files = write_clips(np.zeros(RATE, np.float32), [Span(0, 1), Span(0, 0.05)], tmp_path, "a")
    silent, short = (decode(tmp_path / file) for file in files)
    assert not silent.samples.any()
    assert short.seconds == pytest.approx(0.05, abs=0.001)


def test_no_segments_are_no_files(speech: Samples, tmp_path: Path) -> None:
    """An episode without speech has nothing to cut."""
    assert write_clips(speech, [], tmp_path, "a") == []
    assert list(tmp_path.iterdir()) == []


def test_a_segment_without_a_sample_is_an_error(speech: Samples, tmp_path: Path) -> None:
    """It would be an MP3 of nothing; the message says which segment it is."""
    with pytest.raises(ValueError, match="segment 1 holds no sample"):
        write_clips(speech, [Span(0, 1), Span(20, 21)], tmp_path, "a")


def test_a_rate_that_mp3_has_not_is_an_error(speech: Samples, tmp_path: Path) -> None:
    """The message names the rates that it has."""
    with pytest.raises(ValueError, match="no sample rate of 24001 Hz"):
        write_clips(speech, SEGMENTS, tmp_path, "a", sample_rate=24_001)


def test_the_samples_are_left_as_they_are(speech: Samples, tmp_path: Path) -> None:
    """Clipping happens on a copy of the clip."""
    loud = speech * np.float32(9)
    before = loud.copy()
    write_clips(loud, SEGMENTS, tmp_path, "a")
    np.testing.assert_array_equal(loud, before)


# JSON


def test_json_is_readable_text(tmp_path: Path) -> None:
    """UTF-8 as it is spoken, indented, with a newline at the end."""
    path = tmp_path / "all_segments.json"
    write_json(path, [{"text": "Grüße, 世界 🎙", "start": 0.5}])
    assert path.read_text("utf-8") == (
        '[\n  {\n    "text": "Grüße, 世界 🎙",\n    "start": 0.5\n  }\n]\n'
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_equal_values_give_equal_json(tmp_path: Path) -> None:
    """Order is the value's, and nothing else gets in."""
    value = {"b": [1.25, None, True], "a": "x"}
    for name in ("one.json", "two.json"):
        write_json(tmp_path / name, value)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert list(json.loads((tmp_path / "one.json").read_text())) == ["b", "a"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused(number: float, tmp_path: Path) -> None:
    """NaN would make a file that other readers refuse; nothing is written, the old one stays."""
    path = tmp_path / "a.json"
    write_json(path, "old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"dnsmos": number})
    assert path.read_text() == '"old"\n'
    assert len(list(tmp_path.iterdir())) == 1


def _full_disk(path: Path) -> None:
    """Lets what is written for `path` go to a device that is always full."""
    path.with_name(f".{path.name}.part").symlink_to("/dev/full")


@pytest.mark.parametrize("old", [None, "old"])
def test_a_full_disk_leaves_no_half_json(old: Any, tmp_path: Path) -> None:
    """The error is ENOSPC, the final name holds what it held, and nothing else is left."""
    path = tmp_path / "all_segments.json"
    if old:
        write_json(path, old)
    _full_disk(path)
    with pytest.raises(OSError, match="No space left") as failed:
        write_json(path, ["x" * 100_000])
    assert failed.value.errno == errno.ENOSPC
    assert [file.read_text() for file in tmp_path.iterdir()] == (['"old"\n'] if old else [])


def test_a_full_disk_leaves_no_half_clip(speech: Samples, tmp_path: Path) -> None:
    """One clip that cannot be written ends the export with ENOSPC; the others are whole."""
    _full_disk(tmp_path / "a_000001.mp3")
    with pytest.raises(OSError, match="No space left"):
        write_clips(speech, SEGMENTS, tmp_path, "a", threads=2)
    left = {path.name for path in tmp_path.iterdir()}
    assert "a_000001.mp3" not in left
    assert all(not decode(tmp_path / name).warnings for name in left)


def test_resampled_clips_are_cut_first(speech: Samples, tmp_path: Path) -> None:
    """A clip at another rate is the segment's, resampled: the neighbours do not leak in."""
    (file,) = write_clips(speech, [Span(4, 6)], tmp_path, "a", sample_rate=16_000)
    alone = resample(speech[4 * RATE : 6 * RATE], RATE, 16_000)
    assert (tmp_path / file).read_bytes() == encode_mp3(alone, 16_000, 128)
