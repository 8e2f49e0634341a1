"""Opens files that nobody vouches for, with the FFmpeg in PyAV, and hands out their sound."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import av
import numpy as np
from av.audio.plane import AudioPlane
from av.codec.context import Flags2
from numpy.typing import NDArray

from pipeline.types import BadAudio

# Demuxers that open further files or addresses named in the input: playlists, session
# descriptions, devices, filter graphs. None of them is a recording.
_PLAYLISTS = {"concat", "concatf", "dash", "hls", "image2", "imf", "vobsub", "webm_dash_manifest"}
_SESSIONS = {"rtp", "rtsp", "sap", "sdp"}
_DEVICES = {"alsa", "fbdev", "kmsgrab", "lavfi", "oss", "v4l2", "video4linux2", "x11grab"}
_NOT_ALLOWED = "not on whitelist"  # how FFmpeg's log reports one of the above
_ESTIMATED = "Estimating duration"  # ... and that a duration is a guess from the bit rate
_READ_BYTES = 1 << 18  # per call from FFmpeg into Python: few calls, and memory still small
_OGG_PAGE = re.compile(rb"OggS\x00([\x00-\x07])", re.DOTALL)  # RFC 3533: magic, version, flags
_OGG_PAGE_BYTES = 6  # of that pattern
_OGG_FIRST = 2  # the flag of a page that begins a stream
_FORMATS: dict[str, tuple[Any, float]] = {  # FFmpeg's sample formats, and their full scale
    "u8": (np.uint8, 2.0**7),
    "s16": (np.int16, 2.0**15),
    "s32": (np.int32, 2.0**31),
    "s64": (np.int64, 2.0**63),
    "flt": (np.float32, 1.0),
    "dbl": (np.float64, 1.0),
}

_Log = list[tuple[int, str, str]]  # level, part of FFmpeg, message


@dataclass(frozen=True, slots=True)
class Sound:
    """One frame: float32, mono, full scale 1, not always finite."""

    samples: NDArray[np.float32]
    rate: int  # Hz
    channels: int  # before they were averaged
    start: float | None  # s in the file's own time, where the file says it


@dataclass(frozen=True, slots=True)
class Fault:
    """A place that could not be decoded; `fatal` where nothing follows it."""

    reason: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Media:
    """An opened file (or link of a chained one) and the stream in it that is worth hearing."""

    container: str  # FFmpeg's name of the format, as "mp3" or "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str
    declared: float | None  # s that the file says it lasts; None where that is only a guess
    _container: Any
    _stream: Any

    def sounds(self) -> Iterator[Sound | Fault]:
        """Yields the stream's frames in order, and a Fault where one is damaged.

        Raises MemoryError, and OSError where the file cannot be read.
        """
        origin = (self._container.start_time or 0) / av.time_base
        warm_up = _set_warm_up(self._stream.codec_context)
        for frame in self._frames():
            if isinstance(frame, Fault):
                yield frame
            elif warm_up:
                warm_up -= 1
            elif frame.samples:
                yield _sound(frame, origin)

    def _frames(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while (packet := _next(packets)) is not None:
            if isinstance(packet, Fault):
                yield packet
                return
            if packet.is_corrupt:
                yield Fault("a packet is incomplete")
            yield from _decoded(self._stream.codec_context, packet)


class Window:
    """The bytes `start` to `end` of an open file, as a file of their own without a name.

    Without a name FFmpeg judges by the content alone, never by the extension.
    """

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._end = end
        self._at = start

    def read(self, size: int) -> bytes:
        if self._at >= self._end:  # broken headers make FFmpeg seek anywhere
            return b""
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}
        self._at = max(self._start, origins[whence] + offset)
        return self.tell()

    def tell(self) -> int:
        return self._at - self._start


def links(file: BinaryIO) -> list[Window]:
    """The parts of a file that are media of their own: one, except for chained Ogg.

    Chained Ogg (RFC 3533, section 4; recorded web radio is) is several Ogg files one after the
    other, with times, rates and channels of their own; FFmpeg stops where the format changes.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    later = _ogg_links(file)[1:] if file.read(4) == b"OggS" else []
    bounds = [0, *later, size]
    return [Window(file, start, end) for start, end in pairwise(bounds)]


def _ogg_links(file: BinaryIO) -> list[int]:
    starts: list[int] = []
    inside = True  # past the first pages of a link, of which there is one per stream
    at = file.seek(0)
    while len(data := file.read(_READ_BYTES)) >= _OGG_PAGE_BYTES:
        for page in _OGG_PAGE.finditer(data):
            first = bool(page[1][0] & _OGG_FIRST)
            if first and inside:
                starts.append(at + page.start())
            inside = not first
        at = file.seek(at + len(data) - _OGG_PAGE_BYTES + 1)  # one may lie across two reads
    return starts


@contextmanager
def opened(window: Window) -> Iterator[Media]:
    """Opens `window` as media; nothing but those bytes is read, whatever they refer to.

    Raises BadAudio with the reason where there is no sound in it.
    """
    with _ffmpeg_log() as log:
        try:
            container = av.open(
                window,
                "r",
                metadata_errors="replace",
                buffer_size=_READ_BYTES,
                container_options={
                    "protocol_whitelist": "none",
                    "format_whitelist": ",".join(_allowed_formats()),
                },
            )
        except MemoryError:
            raise
        except av.FFmpegError as error:
            raise BadAudio(_refusal(error, log)) from error
    with container:
        yield _media(container, guessed=any(_ESTIMATED in message for _, _, message in log))


def _media(container: Any, *, guessed: bool) -> Media:
    stream = container.streams.best("audio")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise BadAudio(f"there is no sound in it, only {' and '.join(kinds)}")
    if stream.codec_context is None:
        raise BadAudio("its sound is in a format for which ffmpeg has no decoder")
    return Media(
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        declared=None if guessed else _declared(container, stream),
        _container=container,
        _stream=stream,
    )


def _declared(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and not container.streams.video:
        return float(container.duration / av.time_base)
    return None


def _set_warm_up(decoder: Any) -> int:
    """How many frames to leave out at the start, beyond what FFmpeg leaves out by itself.

    FFmpeg leaves out two of Windows Media Audio. Only the first is the transform's warm-up, the
    second is sound: with one left out, the length agrees with the header.
    """
    if decoder.codec.canonical_name not in ("wmav1", "wmav2"):
        return 0
    decoder.flags2 |= Flags2.skip_manual
    return 1


def _next(packets: Iterator[Any]) -> Any:
    try:
        return next(packets, None)
    except MemoryError:
        raise
    except IndexError:  # PyAV's way to end a file in which streams appeared after it was opened
        return None
    except av.FFmpegError as error:
        return Fault(_plain(error), fatal=True)


def _decoded(decoder: Any, packet: Any) -> list[Any]:
    try:
        return list(decoder.decode(packet))
    except MemoryError:
        raise
    except EOFError:  # the decoder found its end before the last packet
        return []
    except av.FFmpegError as error:
        return [Fault(_plain(error))]


def _sound(frame: Any, origin: float) -> Sound:
    start = None if frame.pts is None else float(frame.pts * frame.time_base) - origin
    return Sound(_mono(frame), frame.sample_rate, frame.layout.nb_channels, start)


def _mono(frame: Any) -> NDArray[np.float32]:
    """The average of the channels. What is not finite is dealt with later."""
    kind, full_scale = _FORMATS[frame.format.packed.name]
    channels = frame.layout.nb_channels
    planes = channels if frame.format.is_planar else 1
    # Not `frame.planes`: with 8 planes or more it runs past the end of FFmpeg's list of them.
    rows = [
        np.frombuffer(
            memoryview(AudioPlane(frame, index)), kind, frame.samples * channels // planes
        )
        for index in range(planes)
    ]
    with np.errstate(all="ignore"):
        mono: NDArray[np.float32] = sum(
            row.reshape(frame.samples, -1).sum(axis=1, dtype=np.float32) for row in rows
        ) / np.float32(full_scale * channels)
    return mono - np.float32(1) if kind is np.uint8 else mono


def _allowed_formats() -> list[str]:
    names = {name for names in av.formats_available for name in names.split(",")}
    return sorted(names - _PLAYLISTS - _SESSIONS - _DEVICES)


def _refusal(error: av.FFmpegError, log: _Log) -> str:
    lines = [message.strip() for _, _, message in log]
    if any(_NOT_ALLOWED in line for line in lines):
        return "it holds no sound, only the names of other files or addresses"
    said = next((line for line in reversed(lines) if "m3u8" not in line), _plain(error))
    return f"not audio that ffmpeg can decode: {said}"


def _plain(error: av.FFmpegError) -> str:
    text = str(error.strerror)
    return text[:1].lower() + text[1:]


@contextmanager
def _ffmpeg_log() -> Iterator[_Log]:
    """Collects what FFmpeg logs inside the block; outside, PyAV throws it away."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=False) as log:
            yield log
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
