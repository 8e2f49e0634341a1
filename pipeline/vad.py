"""Where there is speech: Silero VAD by ONNX Runtime, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import resample
from pipeline.config import SAMPLE_RATE
from pipeline.runtime import onnx_session
from pipeline.types import ModelError, Span

Floats = NDArray[np.float32]

RATE = 16_000  # Hz; what the net was trained on
FRAME = 512  # samples (32 ms) for each of which the net gives one probability
CONTEXT = 64  # samples before a frame that the net sees with it
FILE_NAME = "silero_vad_16k_sequence.onnx"

# The defaults of Silero's get_speech_timestamps, which Emilia uses.
THRESHOLD = 0.5  # speech begins at this probability
END_THRESHOLD = THRESHOLD - 0.15  # and may end below this one
MIN_SPEECH = RATE * 250 // 1000  # samples; speech that lasts no longer is dropped
MIN_SILENCE = RATE * 100 // 1000  # samples; a shorter silence is no pause
PAD = RATE * 30 // 1000  # samples added at each side

_BLOCK = 4096  # frames (131 s) a run of the net: 9 MB of input, and few runs

Stretch = tuple[int, int]  # samples at RATE


class VoiceActivity:
    """Silero VAD 6 (Silero Team, 2021-2026) over whole recordings; the rules are Silero's own.

    `model` is `silero_vad_16k_sequence.onnx`, or the folder that holds it: of Silero's files the
    one that takes many frames a run (input [frames, 576], state h and c [1, 1, 128]). Raises
    ModelError when it is missing, unreadable or another net.
    """

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        path = model / FILE_NAME if model.is_dir() else model
        self._session = onnx_session(path, device="cpu", threads=threads)
        inputs = {given.name: given.shape[1:] for given in self._session.get_inputs()}
        if inputs != {"input": [CONTEXT + FRAME], "h": [1, 128], "c": [1, 128]}:
            raise ModelError(f"{path} is not Silero's {FILE_NAME}: run `emiliad models pull`")

    def __call__(self, samples: Floats) -> tuple[Span, ...]:
        """The spans of speech in `samples` (float32 [n], 24 kHz), in order, in seconds.

        They do not overlap and lie within the recording. Beyond a copy at 16 kHz memory does not
        grow with the length.
        """
        heard = resample(samples, SAMPLE_RATE, RATE)
        found = speech(self.probabilities(heard), len(heard))
        duration = len(samples) / SAMPLE_RATE
        return tuple(Span(start / RATE, min(end / RATE, duration)) for start, end in found)

    def probabilities(self, samples: Floats) -> Floats:
        """How probable speech is in each 32 ms of `samples` (float32 [n], 16 kHz).

        float32 [ceil(n / 512)] in 0..1; the last frame is padded with silence. A frame depends on
        all that came before it.
        """
        h = c = np.zeros((1, 1, 128), np.float32)
        found = []
        for block in _blocks(samples):
            part, h, c = self._session.run(None, {"input": block, "h": h, "c": c})
            found.append(part)
        return np.concatenate(found) if found else np.zeros(0, np.float32)


def _blocks(samples: Floats) -> Iterator[Floats]:
    """Frames, each with its context before it: float32 [up to _BLOCK, CONTEXT + FRAME]."""
    size = _BLOCK * FRAME
    for start in range(0, len(samples), size):
        some = samples[max(0, start - CONTEXT) : start + size]
        before = CONTEXT if start == 0 else 0  # silence precedes the recording
        after = -(len(some) + before - CONTEXT) % FRAME
        padded = np.pad(some, (before, after))
        frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
        yield np.ascontiguousarray(frames, np.float32)


def speech(probabilities: Iterable[float], samples: int) -> list[Stretch]:
    """Stretches of speech, in samples at 16 kHz, by the probabilities of 512-sample frames.

    The rules are those of Silero's get_speech_timestamps: speech begins with a frame of at least
    THRESHOLD and ends with the first one below END_THRESHOLD that no frame of at least THRESHOLD
    follows within MIN_SILENCE. What lasts no longer than MIN_SPEECH is dropped, the rest padded.
    `samples` is the recording's length, where speech that goes on ends.
    """
    # Pauses last MIN_SILENCE at least, which is more than two PADs: the stretches stay apart.
    return [
        (max(0, start - PAD), min(samples, end + PAD))
        for start, end in _stretches(probabilities, samples)
        if end - start > MIN_SPEECH
    ]


def _stretches(probabilities: Iterable[float], samples: int) -> Iterator[Stretch]:
    start = end = None
    for index, probability in enumerate(probabilities):
        now = index * FRAME
        if probability >= THRESHOLD:
            start = now if start is None else start
            end = None
        elif probability < END_THRESHOLD and start is not None:
            end = now if end is None else end
            if now - end >= MIN_SILENCE:
                yield start, end
                start = end = None
    if start is not None:
        yield start, samples
