"""Whatever comes in is heard at 24 kHz in its own time, or refused in one sentence."""

from __future__ import annotations

import http.server
import io
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import BadAudio
from pipeline._media import links
from pipeline.audio import Samples, clips, cut, dbfs, decode, quietest, resample, standardise
from pipeline.types import Span
from tests.pipeline import _sound as sound
from tests.pipeline._sound import Kind, encoded, lag_ms, resampled

RATE = 24_000
Decode = Callable[[bytes], Any]

EVERY_KIND = [
    pytest.param(sound.MP3, 44_100, 2, id="mp3"),
    pytest.param(sound.MP3, 8_000, 1, id="mp3-8k"),
    pytest.param(sound.WAV, 44_100, 2, id="wav"),
    pytest.param(sound.FLOAT_WAV, 48_000, 1, id="wav-float"),
    pytest.param(sound.FLAC, 96_000, 2, id="flac"),
    pytest.param(sound.M4A, 44_100, 2, id="m4a"),
    pytest.param(sound.AAC, 44_100, 1, id="aac"),
    pytest.param(sound.OGG, 44_100, 2, id="ogg-vorbis"),
    pytest.param(sound.OPUS, 48_000, 2, id="opus"),
    pytest.param(sound.OPUS, 16_000, 1, id="opus-16k"),
    pytest.param(sound.WMA, 44_100, 2, id="wma"),
    pytest.param(sound.WMA, 8_000, 1, id="wma-8k"),
    pytest.param(sound.WEBM, 48_000, 2, id="webm"),
    pytest.param(sound.MP4, 48_000, 2, id="mp4"),
]


@pytest.fixture(scope="module")
def speech(jfk: Path) -> Samples:
    """The recording at its own 16 kHz, by a decoder that is not the one under test."""
    return sound.raw(jfk)


@pytest.fixture(scope="module")
def known(speech: Samples) -> Samples:
    """The same at 24 kHz: what every file made of it must give back."""
    return resampled(speech, 16_000, RATE)


@pytest.fixture
def heard(tmp_path: Path) -> Decode:
    """Decodes bytes from a file whose name says nothing true about them."""

    def decode_bytes(data: bytes) -> Any:
        path = tmp_path / "notes.txt"
        path.write_bytes(data)
        return decode(path)

    return decode_bytes


# What is decoded, and where it lies


@pytest.mark.parametrize(("kind", "rate", "channels"), EVERY_KIND)
def test_every_format_is_heard_in_its_place(
    kind: Kind, rate: int, channels: int, speech: Samples, known: Samples, heard: Decode
) -> None:
    """Within a millisecond of the original, whole, without a warning, whatever its name."""
    recording = heard(encoded(kind, resampled(speech, 16_000, rate), rate, channels))
    delay = kind.delay / rate
    assert abs(lag_ms(recording.samples, known) - 1000 * delay) < 1
    assert 11 <= recording.seconds - delay < 11.05
    assert recording.samples.dtype == np.float32
    assert recording.samples.shape == (round(recording.seconds * RATE),)
    assert recording.channels == channels
    assert recording.warnings == ()
    size = min(len(recording.samples), len(known))
    assert (
        np.corrcoef(
            recording.samples[round(delay * RATE) : size], known[: size - round(delay * RATE)]
        )[0, 1]
        > 0.97
    )


def test_a_recording_tells_what_it_was(speech: Samples, heard: Decode) -> None:
    """Container, codec, rate and channels are those of the file."""
    recording = heard(encoded(sound.M4A, resampled(speech, 16_000, 44_100), 44_100, 2))
    assert (recording.container, recording.codec) == ("mov,mp4,m4a,3gp,3g2,mj2", "aac")
    assert (recording.source_rate, recording.channels) == (44_100, 2)


@pytest.mark.parametrize("rate", [4_000, 11_025, 24_000, 192_000])
def test_any_sample_rate_is_taken(
    rate: int, speech: Samples, known: Samples, heard: Decode
) -> None:
    """From 4 kHz to 192 kHz, in place and of the right length."""
    recording = heard(encoded(sound.WAV, resampled(speech, 16_000, rate), rate))
    assert recording.source_rate == rate
    assert len(recording.samples) == 11 * RATE
    assert abs(lag_ms(recording.samples, known)) < 1


@pytest.mark.parametrize(
    "codec",
    [
        "pcm_u8",
        "pcm_s16be",
        "pcm_s24le",
        "pcm_s32le",
        "pcm_s64le",
        "pcm_f32le",
        "pcm_f64le",
        "alac",
    ],
)
def test_any_sample_format_has_the_same_full_scale(
    codec: str, known: Samples, heard: Decode
) -> None:
    """8 to 64 bits, integers and floats, interleaved and planar: the same values come out."""
    container = {"pcm_s16be": "aiff", "alac": "ipod"}.get(codec, "wav")
    taken = {
        "pcm_u8": "u8",
        "pcm_s16be": "s16",
        "alac": "s16p",
        "pcm_f32le": "flt",
        "pcm_f64le": "dbl",
    }
    form = taken.get(codec, "s64" if codec == "pcm_s64le" else "s32")
    recording = heard(encoded(Kind(container, codec, form), known, RATE, 2))
    step = 2**-7 if codec == "pcm_u8" else 2**-15
    np.testing.assert_allclose(recording.samples, known, atol=step)


@pytest.mark.parametrize(
    "kind", [sound.WAV, sound.FLAC, sound.M4A, sound.OPUS], ids=lambda kind: kind.codec
)
def test_eight_channels_are_averaged(
    kind: Kind, speech: Samples, known: Samples, heard: Decode
) -> None:
    """7.1 sound of which one channel speaks is that speech at an eighth."""
    channels = np.zeros((8, 3 * len(speech)), np.float32)
    channels[0] = resampled(speech, 16_000, 48_000)
    recording = heard(encoded(kind, channels, 48_000, 8))
    assert recording.channels == 8
    assert abs(lag_ms(recording.samples, known)) < 1
    size = len(known)
    gain = float(recording.samples[:size] @ known / (known @ known))
    assert gain == pytest.approx(1 / 8, rel=0.02)


def test_channels_weigh_the_same_as_in_pydub(known: Samples, heard: Decode, pydub: Any) -> None:
    """Stereo becomes the mean of both sides, to a step of 16 bits what pydub makes of it."""
    both = np.stack([known, 0.3 * np.roll(known, 1000)])
    ours = heard(encoded(sound.WAV, both, RATE, 2)).samples
    theirs = pydub(both).set_channels(1).get_array_of_samples()
    np.testing.assert_allclose(ours, np.array(theirs) / 2**15, atol=2**-15)


def test_resampling_in_blocks_equals_resampling_at_once(known: Samples, heard: Decode) -> None:
    """No seam where one block of a second ends and the next begins."""
    at_44100 = resampled(known, RATE, 44_100)
    ours = heard(encoded(sound.FLOAT_WAV, at_44100, 44_100)).samples
    np.testing.assert_allclose(ours, resampled(at_44100, 44_100, RATE), atol=1e-6)


@pytest.mark.parametrize("length", [80_003, 80_005])
def test_the_length_is_rounded_to_even(length: int, heard: Decode) -> None:
    """Half a sample at the end goes where Python's round sends it, as everywhere in here."""
    recording = heard(encoded(sound.WAV, np.zeros(length, np.float32), 16_000))
    assert len(recording.samples) == round(length * 1.5)


def test_a_fifth_of_a_second_is_enough(known: Samples, heard: Decode) -> None:
    """Short is not bad."""
    recording = heard(encoded(sound.MP3, known[: RATE // 5], RATE))
    assert recording.seconds == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("level", [0.0, 0.5], ids=["silence", "DC"])
def test_sound_without_content_is_sound(level: float, heard: Decode) -> None:
    """Digital silence and a constant level decode as they are."""
    samples = heard(encoded(sound.FLAC, np.full(RATE, level, np.float32), RATE)).samples
    np.testing.assert_array_equal(samples, np.float32(level))


def test_the_source_is_never_whole_in_memory(known: Samples, heard: Decode, tmp_path: Path) -> None:
    """Eight channels at 192 kHz take 64 times the memory of the result; decoding does not."""
    data = encoded(sound.FLAC, resampled(known, RATE, 192_000), 192_000, 8)
    tracemalloc.start()
    recording = heard(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * recording.samples.nbytes


# A file of several parts, late, or with holes


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((sound.MP3, 44_100, 2), (sound.MP3, 16_000, 1), id="mp3"),
        pytest.param((sound.AAC, 44_100, 2), (sound.AAC, 16_000, 1), id="aac"),
        pytest.param((sound.OPUS, 48_000, 2), (sound.OPUS, 16_000, 1), id="opus"),
        pytest.param((sound.OGG, 44_100, 2), (sound.OGG, 48_000, 2), id="vorbis"),
        pytest.param((sound.OGG, 44_100, 2), (sound.OPUS, 48_000, 1), id="vorbis-opus"),
    ],
)
def test_rate_and_channels_may_change_on_the_way(
    first: tuple[Kind, int, int],
    second: tuple[Kind, int, int],
    speech: Samples,
    known: Samples,
    heard: Decode,
) -> None:
    """Joined files, as recorded web radio is, are heard to their end, one after the other."""
    parts = [
        encoded(kind, resampled(speech, 16_000, rate), rate, channels)
        for kind, rate, channels in (first, second)
    ]
    recording = heard(b"".join(parts))
    assert (recording.source_rate, recording.channels) == (first[1], first[2])
    assert recording.seconds == pytest.approx(22, abs=0.15)
    assert len(recording.samples) == round(recording.seconds * RATE)
    late = lag_ms(recording.samples[11 * RATE :], known)
    assert 0 <= late < 110, "the second part follows the first"


def test_a_link_that_is_broken_is_left_out_with_a_warning(speech: Samples, heard: Decode) -> None:
    """The first link of a chained file is worth having without the second."""
    opus = encoded(sound.OPUS, speech, 16_000)
    recording = heard(opus + opus[:60])
    assert recording.seconds == pytest.approx(11, abs=0.01)
    assert len(recording.warnings) == 1
    assert recording.warnings[0].startswith("a part was left out: not audio")


@pytest.mark.parametrize(
    "kind", [sound.WEBM, Kind("matroska", "libmp3lame", "fltp")], ids=["webm", "mkv"]
)
def test_a_pause_in_the_timestamps_is_silence(
    kind: Kind, speech: Samples, known: Samples, heard: Decode
) -> None:
    """What follows a hole of five seconds is heard where the file's timestamps say."""
    data = encoded(kind, resampled(speech, 16_000, 48_000), 48_000, gap_s=5.0)
    recording = heard(data)
    assert recording.seconds == pytest.approx(16, abs=0.05)
    half = len(known) // 2 + RATE // 2
    assert abs(lag_ms(recording.samples[half + 5 * RATE :], known[half:])) < 10
    assert not recording.samples[half : half + 4 * RATE].any()
    assert recording.warnings[0].startswith("holes: 1, the first at 5.")


def test_timestamps_that_jump_by_hours_are_not_believed(speech: Samples, heard: Decode) -> None:
    """A broken clock must not fill memory with silence: the sound is joined, with a warning."""
    recording = heard(encoded(sound.WEBM, speech, 16_000, gap_s=36_000.0))
    assert recording.seconds == pytest.approx(11, abs=0.05)
    assert recording.warnings[0].startswith("jumps in the timestamps: 1, the first at 5.")


def test_sound_that_begins_later_than_the_picture_stays_late(
    speech: Samples, known: Samples, heard: Decode
) -> None:
    """Times are those that a player shows, not those of the sound track."""
    track = resampled(speech, 16_000, 48_000)
    recording = heard(sound.video(seconds=2, sound=track, sound_at=1.5))
    assert recording.codec == "aac"
    assert lag_ms(recording.samples, known) == pytest.approx(1500, abs=1)


def test_a_stream_that_appears_late_does_not_end_the_run(speech: Samples, heard: Decode) -> None:
    """A broadcast may get other tracks on the way; the first is heard to its end."""
    track = resampled(speech, 16_000, 48_000)
    radio = encoded(sound.TS, track, 48_000)
    television = sound.video(sound=track, container_name="mpegts")
    padding = (b"\x47\x1f\xff\x10" + 184 * b"\xff") * 28_000  # FFmpeg looks 5 MB ahead
    recording = heard(radio + padding + television + 4 * radio)
    assert recording.seconds == pytest.approx(5 * 11, abs=1)
    assert any(told.startswith("jumps in the timestamps: 4") for told in recording.warnings)


# Damage


@pytest.mark.parametrize(
    ("kind", "warning"),
    [
        pytest.param(sound.WAV, "damaged packets: 1, the first at 5.", id="wav"),
        pytest.param(sound.MP3, "declares 11.0 s, holds 5.", id="mp3"),
        pytest.param(sound.FLAC, "declares 11.0 s, holds 5.", id="flac"),
        pytest.param(sound.M4A, "declares 11.0 s, holds 5.", id="m4a"),
        pytest.param(sound.WEBM, "declares 11.0 s, holds 5.", id="webm"),
    ],
)
def test_a_truncated_file_gives_what_it_holds(
    kind: Kind, warning: str, speech: Samples, known: Samples, heard: Decode
) -> None:
    """Half a file is half the sound, and a warning that says so."""
    data = encoded(kind, resampled(speech, 16_000, 48_000), 48_000)
    recording = heard(data[: len(data) // 2 + 77])
    assert 4 < recording.seconds < 7
    assert abs(lag_ms(recording.samples, known)) < 1
    assert any(told.startswith(warning) for told in recording.warnings), recording.warnings


@pytest.mark.parametrize(
    "kind",
    [sound.FLAC, sound.M4A, sound.OGG, sound.OPUS, sound.WMA, sound.WEBM],
    ids=["flac", "m4a", "ogg", "opus", "wma", "webm"],
)
def test_what_follows_damage_stays_in_its_place(
    kind: Kind, speech: Samples, known: Samples, heard: Decode
) -> None:
    """Bytes overwritten in the middle cost their own sound, not the times of the rest."""
    data = bytearray(encoded(kind, resampled(speech, 16_000, 48_000), 48_000, 2))
    middle, size = len(data) // 2, len(data) // 10
    data[middle : middle + size] = np.random.default_rng(1).bytes(size)
    recording = heard(bytes(data))
    assert recording.seconds == pytest.approx(11, abs=0.05)
    assert recording.warnings
    tail = 10 * RATE
    assert abs(lag_ms(recording.samples[tail:], known[tail:])) < 10


def test_a_guessed_duration_is_no_promise(speech: Samples, heard: Decode) -> None:
    """FFmpeg guesses how long raw AAC lasts; to hold less than that is not damage."""
    aac = encoded(sound.AAC, resampled(speech, 16_000, 48_000), 48_000)
    silence = encoded(sound.AAC, np.zeros(48_000 * 11, np.float32), 48_000)
    recording = heard(silence + aac)
    assert recording.seconds == pytest.approx(22, abs=0.1)
    assert not [told for told in recording.warnings if "declares" in told]


def test_a_header_that_points_anywhere_is_bad_audio_not_a_bad_disk() -> None:
    """FFmpeg follows broken headers to impossible offsets; nothing is there to be read."""
    with io.BytesIO(b"OggS rest") as file:
        (window,) = links(file)
        assert window.read(4) == b"OggS"
        assert window.seek(1 << 70) == 1 << 70
        assert window.read(4) == b""
        assert window.seek(-4, io.SEEK_END) == 5
        assert window.read(99) == b"rest"


def test_numbers_that_are_none_become_silence(known: Samples, heard: Decode) -> None:
    """NaN, infinities and absurd values are replaced, counted and told."""
    broken = known.copy()
    broken[100:200] = np.nan
    broken[300:310] = np.inf
    broken[400] = -1e30
    recording = heard(encoded(sound.FLOAT_WAV, broken, RATE))
    assert recording.warnings == ("samples that are not finite numbers: 111, replaced by silence",)
    assert not recording.samples[100:200].any()
    np.testing.assert_array_equal(recording.samples[1000:], known[1000:])


@pytest.mark.parametrize("sides", [(np.nan, 0.5), (np.inf, -np.inf)])
def test_a_broken_channel_breaks_the_average(sides: tuple[float, float], heard: Decode) -> None:
    """Nothing that is not finite gets through the averaging of channels."""
    both = np.tile(np.array(sides, dtype=np.float32)[:, np.newaxis], RATE)
    both[:, RATE // 2 :] = 0.25
    samples = heard(encoded(sound.FLOAT_WAV, both, RATE, 2)).samples
    np.testing.assert_array_equal(samples, np.repeat([0, 0.25], RATE // 2))


def test_damage_makes_no_noise_on_stderr(
    speech: Samples, heard: Decode, capfd: pytest.CaptureFixture[str]
) -> None:
    """FFmpeg's complaints about a broken file are not the reader's log."""
    data = bytearray(encoded(sound.M4A, resampled(speech, 16_000, 44_100), 44_100, 2))
    data[len(data) // 2 :: 50] = bytes(len(data[len(data) // 2 :: 50]))
    heard(bytes(data))
    with pytest.raises(BadAudio):
        heard(bytes(data[: len(data) // 100]))
    assert capfd.readouterr() == ("", "")


# What is refused


def _refusal(heard: Decode, data: bytes) -> str:
    with pytest.raises(BadAudio) as refused:
        heard(data)
    return str(refused.value)


def test_an_empty_file_is_refused(heard: Decode) -> None:
    """Zero bytes hold no audio, and the reason says so."""
    assert _refusal(heard, b"") == "the file is empty (0 bytes)"


@pytest.mark.parametrize(
    "data",
    [b"Dear all,\nplease find the recording attached.\n" * 99, b"?", bytes(100_000), b"\xff" * 999],
    ids=["letter", "one-byte", "zeros", "ones"],
)
def test_what_is_not_audio_is_refused(data: bytes, heard: Decode) -> None:
    """Text or noise under an audio file's name is not audio."""
    assert _refusal(heard, data).startswith("not audio that ffmpeg can decode: ")


def test_a_video_without_sound_is_refused(heard: Decode) -> None:
    """The reason says what is in it instead."""
    assert _refusal(heard, sound.video()) == "there is no sound in it, only video"


def test_subtitles_are_refused(heard: Decode) -> None:
    """FFmpeg opens them gladly, but they are text."""
    subtitles = (
        b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\n00:00:03,000 --> 00:00:04,000\nyou\n"
    )
    assert _refusal(heard, subtitles) == "there is no sound in it, only subtitle"


def test_sound_of_which_nothing_decodes_is_refused(speech: Samples, heard: Decode) -> None:
    """A container whose every packet is rubbish holds no sound."""
    data = bytearray(encoded(sound.FLAC, speech, 16_000))
    data[data.index(b"\xff\xf8") :] = bytes(len(data) - data.index(b"\xff\xf8"))
    assert _refusal(heard, bytes(data)).startswith("nothing in it can be decoded")


def test_a_file_cut_before_its_index_is_refused(speech: Samples, heard: Decode) -> None:
    """An MP4 without its moov box cannot be read, and the reason names the box."""
    data = encoded(sound.MP4, speech, 16_000)
    assert "moov atom not found" in _refusal(heard, data[: len(data) // 2])


def test_samples_of_which_none_is_a_number_are_refused(heard: Decode) -> None:
    """A file of NaN is not silence."""
    data = encoded(sound.FLOAT_WAV, np.full(RATE, np.nan, np.float32), RATE)
    assert _refusal(heard, data) == "none of its samples is a finite number"


def test_a_file_that_cannot_be_read_is_no_bad_audio(tmp_path: Path) -> None:
    """The disk's errors pass as they are: a retry may help."""
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "absent.mp3")
    with pytest.raises(IsADirectoryError):
        decode(tmp_path)


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A web server's address, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
    "hls-key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n'
    "#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=audio 5004 RTP/AVP 0\na=control:{target}\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/'
    '2016"><Id>{target}</Id></CompositionPlaylist>',
}


@pytest.mark.parametrize("playlist", PLAYLISTS)
@pytest.mark.parametrize("name", ["episode.mp3", "episode.m3u8"])
def test_a_playlist_opens_no_other_file(
    playlist: str,
    name: str,
    speech: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, list[str]],
) -> None:
    """An upload must not make this machine read its own files, or call addresses, for it."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encoded(sound.WAV, speech, 16_000))
    address, paths = asked
    for target in ("secret.wav", str(secret), f"file:{secret}", f"{address}/secret.wav"):
        upload = tmp_path / name
        upload.write_text(PLAYLISTS[playlist].format(target=target))
        with pytest.raises(BadAudio) as refused:
            decode(upload)
        if playlist in ("ffconcat", "sdp"):  # the others are not even recognised
            assert (
                str(refused.value)
                == "it holds no sound, only the names of other files or addresses"
            )
    assert paths == []


# Loudness


@pytest.fixture(scope="module")
def pydub() -> Callable[[Samples], Any]:
    """Makes a pydub.AudioSegment (16 bits, 24 kHz) of samples (n,) or (channels, n)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for an ffmpeg program, and uses audioop
        audio_segment = pytest.importorskip("pydub").AudioSegment

    def make(samples: Samples) -> Any:
        planes = np.atleast_2d(samples)
        data = np.round(planes * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2").T.tobytes()
        return audio_segment(data, sample_width=2, frame_rate=RATE, channels=len(planes))

    return make


def _as_emilia(segment: Any) -> Samples:
    """Emilia-Pipe's definition: gain towards -20 dBFS within +-3 dB, then peak to 1."""
    gain = min(max(-20.0 - segment.dBFS, -3.0), 3.0)
    samples = np.array(segment.apply_gain(gain).get_array_of_samples(), np.float32)
    normalised: Samples = samples / np.abs(samples).max()
    return normalised


@pytest.mark.parametrize("level", [1.0, 0.5, 0.2])
def test_loudness_is_pydubs(level: float, known: Samples, pydub: Any) -> None:
    """The same dBFS on real speech, to a hundredth of a decibel."""
    speech = known * np.float32(level / np.abs(known).max())
    assert dbfs(speech) == pytest.approx(pydub(speech).dBFS, abs=0.01)


@pytest.mark.parametrize("level", [1.0, 0.8, 0.3])
def test_standardising_is_emilias_but_for_rounding(
    level: float, known: Samples, pydub: Any
) -> None:
    """Real speech at any level, where the gain clips too, comes out as Emilia has it."""
    speech = known * np.float32(level / np.abs(known).max())
    np.testing.assert_allclose(standardise(speech), _as_emilia(pydub(speech)), atol=2e-4)


@pytest.mark.parametrize("loudness", [-40.0, -21.5, -19.0])
def test_speech_with_a_loud_click_is_clipped_as_in_pydub(
    loudness: float, known: Samples, pydub: Any
) -> None:
    """A gain of up to 3 dB that goes beyond full scale saturates: the click is cut, not kept."""
    speech = _with_click(known, loudness)
    np.testing.assert_allclose(standardise(speech), _as_emilia(pydub(speech)), atol=2e-4)


def test_a_peak_beyond_full_scale_counts_as_full_scale(known: Samples) -> None:
    """Floats may be larger than 1: they are scaled down, where a decoder would have clipped."""
    speech = _with_click(known, -21.5)
    speech[:10] = -1.0
    np.testing.assert_allclose(standardise(speech * 5), standardise(speech), atol=1e-6)


def _with_click(samples: Samples, loudness: float) -> Samples:
    out = samples * np.float32(10 ** ((loudness - dbfs(samples)) / 20))
    out[5000:5010] = 0.98
    return out


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-20, -0.5, 1.0, 1.5, 3e4, 1e9])
def test_standardising_gives_numbers_for_any_level(value: float) -> None:
    """Silence stays silence, anything else has its peak at 1, and nothing is NaN."""
    samples = np.full(RATE, value, np.float32)
    before = samples.copy()
    out = standardise(samples)
    np.testing.assert_allclose(out, np.sign(value), rtol=1e-6)
    np.testing.assert_array_equal(samples, before, "the input is not changed")
    assert out.dtype == np.float32


def test_no_samples_are_no_error() -> None:
    """The operations on samples take an empty array."""
    empty = np.empty(0, np.float32)
    assert len(standardise(empty)) == len(resample(empty, RATE, 16_000)) == 0
    assert dbfs(empty) == float("-inf")


# Resampling and cutting


@given(
    st.integers(1, 3000),
    st.sampled_from([8_000, 16_000, 24_000, 44_100, 48_000]),
    st.sampled_from([16_000, 24_000, 44_100]),
)
@settings(max_examples=60, deadline=None)
def test_the_resampled_length_is_exact(length: int, source: int, target: int) -> None:
    """n samples become round(n x target / source)."""
    out = resample(np.zeros(length, np.float32), source, target)
    assert out.shape == (round(length * target / source),)
    assert out.dtype == np.float32


def test_resampling_keeps_a_tone_and_its_phase() -> None:
    """A tone comes out as the same tone, sample by sample."""
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    inner = slice(200, -200)
    np.testing.assert_allclose(resample(tone, 44_100, 16_000)[inner], expected[inner], atol=1e-4)


def test_equal_rates_change_nothing(known: Samples) -> None:
    """There is nothing to resample, and nothing to copy."""
    assert resample(known, RATE, RATE) is known


def test_a_cut_is_a_view_within_the_recording(known: Samples) -> None:
    """No copy is made, and what lies outside is left out."""
    inside, beyond, outside = clips(known, [Span(1, 2.5), Span(-1, 0.5), Span(20, 30)], RATE)
    assert np.shares_memory(inside, known)
    np.testing.assert_array_equal(inside, known[RATE : RATE * 5 // 2])
    assert (len(beyond), len(outside)) == (RATE // 2, 0)
    assert len(cut(known, RATE, Span(10.5, 99))) == RATE // 2


# The quietest place


def test_the_quietest_place_is_the_pause() -> None:
    """A pause of 60 ms in noise is found to within a hop."""
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32)
    noise[round(2.50 * RATE) : round(2.56 * RATE)] *= 0.01
    assert quietest(noise, RATE, 0.5, 3.5) == pytest.approx(2.53, abs=0.01)


def test_of_equally_quiet_places_the_middle_one_is_taken() -> None:
    """Digital silence is cut in its middle, or as near to it as the stretch allows."""
    assert quietest(np.zeros(10 * RATE, np.float32), RATE, 2.0, 8.0) == pytest.approx(5, abs=0.01)
    loud = np.ones(10 * RATE, np.float32)
    loud[3 * RATE : 4 * RATE] = 0
    assert quietest(loud, RATE, 2.0, 8.0) == pytest.approx(3.975, abs=0.011)


@given(st.floats(-1, 12), st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_quietest_place_lies_within_the_stretch(start: float, length: float) -> None:
    """Even where the stretch is short, or outside the recording."""
    samples = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    found = quietest(samples, RATE, start, start + length)
    assert start <= found <= start + length
    assert found == quietest(samples, RATE, start, start + length)
