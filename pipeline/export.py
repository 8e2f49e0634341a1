"""The outputs as files: one MP3 per segment, and the JSON that describes them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.audio import cut, resample
from pipeline.config import SAMPLE_RATE
from pipeline.naming import segment_file
from pipeline.types import Span

Samples = NDArray[np.float32]

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz

# Where at most this many samples go over into a last frame, the tag that FFmpeg writes states too
# little padding, and the decoded clip is longer by what is missing to this number.
_OVERHANG = 47


def write_clips(
    samples: Samples,
    segments: Sequence[Span],
    out_dir: Path,
    name: str,
    *,
    sample_rate: int = SAMPLE_RATE,
    bitrate_kbps: int = 128,
    threads: int = 0,
) -> list[str]:
    """Writes `segments` of the recording as mono MP3s into `out_dir`; returns their file names.

    `samples` is the whole recording, float32, mono, 24 kHz. `sample_rate` and `bitrate_kbps` are
    those of the MP3s; LAME takes the nearest bit rate that the sample rate allows. `threads`: 0
    for one per usable core; the encoder runs outside Python's lock. Beyond `samples`, memory is a
    few segments per thread. Equal input gives equal bytes.

    Raises ValueError for a segment without a sample or a rate that MP3 has not, OSError where a
    file cannot be written (a full disk, for one); clips written before stay.
    """
    if sample_rate not in MP3_RATES:
        raise ValueError(f"MP3 has no sample rate of {sample_rate} Hz, only {MP3_RATES}")

    def write(index: int) -> str:
        clip = resample(cut(samples, SAMPLE_RATE, segments[index]), SAMPLE_RATE, sample_rate)
        if not len(clip):
            raise ValueError(f"segment {index} holds no sample: {segments[index]}")
        file = segment_file(name, index)
        _write(out_dir / file, encode_mp3(clip, sample_rate, bitrate_kbps))
        return file

    pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(write, range(len(segments))))
    finally:
        pool.shutdown(cancel_futures=True)


def encode_mp3(samples: Samples, rate: int, bitrate_kbps: int) -> bytes:
    """float32 samples of shape (n,) as a mono MP3 of constant bit rate, by LAME.

    Values beyond [-1, 1] are clipped. The Info tag states the encoder's delay and padding, so that
    players that read it (FFmpeg does) give every sample back in its place, n of them give or take
    24 (1 ms at 24 kHz), and exactly n eleven times out of twelve.
    """
    file = io.BytesIO()
    samples = _without_overhang(samples, 1152 if rate >= 32_000 else 576)
    with av.open(file, "w", format="mp3", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libmp3lame", rate=rate)
        stream.codec_context.layout = "mono"
        stream.codec_context.format = "fltp"
        stream.codec_context.bit_rate = bitrate_kbps * 1000
        frame = av.AudioFrame.from_ndarray(
            np.clip(samples, -1.0, 1.0, dtype=np.float32)[np.newaxis], format="fltp", layout="mono"
        )
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _without_overhang(samples: Samples, frame: int) -> Samples:
    over = len(samples) % frame
    return samples[:-over] if 0 < over <= _OVERHANG // 2 and len(samples) > frame else samples


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as UTF-8 JSON with two spaces of indent: whole, or not at all.

    Equal values give equal bytes. Raises ValueError for NaN and infinities, OSError (a full disk:
    ENOSPC) with nothing under the final name that was not there before.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2)
    _write(path, (text + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
