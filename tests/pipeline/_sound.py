"""Makes the files that the tests of decoding need, and finds known sound in what was decoded."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_STEP = 4096  # samples a frame


@dataclass(frozen=True, slots=True)
class Kind:
    """A container with a codec in it, as FFmpeg names them, and what its encoder takes."""

    container: str
    codec: str
    format: str
    delay: int = 0  # samples of encoder delay that the container does not state
    options: tuple[tuple[str, str], ...] = ()


MP3 = Kind("mp3", "libmp3lame", "fltp")
WAV = Kind("wav", "pcm_s16le", "s16")
FLOAT_WAV = Kind("wav", "pcm_f32le", "flt")
FLAC = Kind("flac", "flac", "s16")
M4A = Kind("ipod", "aac", "fltp", options=(("movflags", "faststart"),))
MP4 = Kind("mp4", "aac", "fltp")
AAC = Kind("adts", "aac", "fltp", delay=1024)
OGG = Kind("ogg", "vorbis", "fltp")  # FFmpeg's own encoder: stereo, 44.1 or 48 kHz
OPUS = Kind("ogg", "libopus", "flt")
WMA = Kind("asf", "wmav2", "fltp")
TS = Kind("mpegts", "aac", "fltp", delay=1024)
WEBM = Kind("webm", "libopus", "flt")


def encoded(
    kind: Kind, samples: Samples, rate: int, channels: int = 1, *, gap_s: float = 0.0
) -> bytes:
    """`samples` (float32, (n,) for all channels alike or (channels, n)) as a file's bytes.

    `gap_s` seconds are missing from the timestamps after the first half.
    """
    planes = np.broadcast_to(samples, (channels, samples.shape[-1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        _encode(path, kind, planes, rate, gap_s)
        return path.read_bytes()


def _encode(path: Path, kind: Kind, planes: Samples, rate: int, gap_s: float) -> None:
    channels = len(planes)
    with av.open(path, "w", format=kind.container, options=dict(kind.options)) as container:
        stream = container.add_stream(kind.codec, rate=rate)
        context = stream.codec_context
        context.layout = _layout(channels)
        context.format = kind.format
        context.options = {"strict": "experimental"}  # for FFmpeg's Vorbis encoder
        context.bit_rate = 64_000 * channels
        for frame in _frames(planes, rate, gap_s):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def video(
    *,
    seconds: float = 1.0,
    sound: Samples | None = None,
    sound_at: float = 0.0,
    container_name: str = "mp4",
) -> bytes:
    """A video of grey frames, with 48 kHz sound from `sound_at` on if there is any."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_name) as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        stream = None
        if sound is not None:
            stream = container.add_stream("aac", rate=48_000)
            stream.codec_context.layout = "mono"
        for _ in range(round(10 * seconds)):
            frame = av.VideoFrame(64, 64, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if stream is not None and sound is not None:
            for sound_frame in _frames(sound[np.newaxis], 48_000, at=sound_at):
                container.mux(stream.encode(sound_frame))
            container.mux(stream.encode(None))
    return file.getvalue()


def lag_ms(found: Samples, known: Samples, rate: int = 24_000) -> float:
    """By how much `found` lies later than `known`, by cross-correlation."""
    size = 1 << (len(found) + len(known)).bit_length()
    spectrum = np.fft.rfft(found, size) * np.conj(np.fft.rfft(known, size))
    at = int(np.argmax(np.fft.irfft(spectrum)))
    return (at - size if at > size // 2 else at) / rate * 1000


def raw(path: Path) -> Samples:
    """The samples of a 16-bit mono file as they are stored, full scale 1."""
    with av.open(path) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / np.float32(2**15)


def resampled(samples: Samples, source: int, target: int) -> Samples:
    """`samples` at another rate, by soxr in one piece."""
    out: Samples = soxr.resample(samples, source, target)
    return out


def _frames(
    planes: Samples, rate: int, gap_s: float = 0.0, at: float = 0.0
) -> Iterator[av.AudioFrame]:
    for start in range(0, planes.shape[1], _STEP):
        block = planes[:, start : start + _STEP]
        packed = np.ascontiguousarray(block.T.reshape(1, -1), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=_layout(len(planes)))
        late = gap_s if start >= planes.shape[1] // 2 else 0.0
        frame.sample_rate = rate
        frame.pts = start + round((late + at) * rate)
        yield frame


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels]
