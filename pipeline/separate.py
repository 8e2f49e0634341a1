"""Source separation: takes the music out of a recording with an MDX net, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
import torch

from pipeline.config import SAMPLE_RATE
from pipeline.runtime import onnx_session, pick_device, run_bound
from pipeline.types import ModelError

Samples = npt.NDArray[np.float32]

# What the nets of this family (UVR-MDX-NET-Inst_HQ_3 is one) were trained on.
NET_RATE = 44_100  # Hz
N_FFT = 6144  # samples
HOP = 1024  # samples
FREQUENCIES = 3072  # bins that the net sees: all but the Nyquist bin
FRAMES = 256
INTERFACE = (4, FREQUENCIES, FRAMES)  # real and imaginary part of left and right
WINDOW = HOP * (FRAMES - 1)  # samples of one run of the net: 261,120
TRIM = N_FFT // 2  # samples at each end of a window that are not used
STEP = WINDOW - 2 * TRIM  # new samples of one window: 254,976

CUDA_BATCH = 8  # windows; a GPU is idle between smaller runs
CPU_BATCH = 1  # a window fills every core, more of them only the memory
BLOCK_S = 10  # seconds handed to the resampler at a time


class Separator:
    """An MDX net that turns a mix into its vocals.

    Behaves as the `separate_fast.py` of Emilia-Pipe (open-mmlab/Amphion), after UVR: mono to
    stereo by doubling, 44.1 kHz, chunks of `chunk_s` with `margin_s` of context on each side
    (at most half a chunk), each chunk in windows from its own start, `denoise` as
    (f(x) - f(-x)) / 2, the vocals as mix minus instrumental, the left channel kept.

    One deliberate difference: where two chunks meet, Emilia cuts the margins off and abuts the
    rest, which leaves a step in the sound. Here the chunks are cross-faded over their shared
    margins with raised-cosine weights that sum to one, so that a chunk counts least where it
    has least context. Outside the margins the result is the same.

    The memory needed, besides the input and the output, does not grow with their length; `batch`
    may be changed between two calls.
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str = "cpu",
        chunk_s: float = 15.0,
        margin_s: float = 1.0,
        denoise: bool = True,
        batch: int = 0,
        threads: int = 0,
        cuda_mem_limit_gb: float = 0.0,
        primary_stem: Literal["instrumental", "vocals"] = "instrumental",
    ) -> None:
        """Loads the net; `batch` is windows a run, 0 for the device's default.

        `primary_stem` says what the net returns. Raises ModelError when `model` is missing,
        unreadable, or not a net of this interface.
        """
        self._device = pick_device(device)
        self._session = onnx_session(
            model, device=self._device, threads=threads, cuda_mem_limit_gb=cuda_mem_limit_gb
        )
        best = CUDA_BATCH if self._device == "cuda" else CPU_BATCH
        self.batch = (batch or best) if _takes_batches(self._session, model) else 1
        self._plan = _Plan.of_seconds(chunk_s, margin_s)
        self._denoise = denoise
        self._primary_stem = primary_stem
        self._hann = torch.hann_window(N_FFT, periodic=True, device=self._device)

    def __call__(self, samples: Samples) -> Samples:
        """The vocals of `samples`: float32 [n] at 24 kHz in and out."""
        mix = _resampled(_blocks(samples), SAMPLE_RATE, NET_RATE)
        vocals = _joined(mix, self._vocals_of, self._plan)
        return _gathered(_resampled(vocals, NET_RATE, SAMPLE_RATE), len(samples))

    def stem(self, samples: Samples) -> Samples:
        """What the net itself returns for `samples`, its left channel: float32 [n] at 44.1 kHz."""
        return _gathered(_joined([samples], self._stem_of, self._plan), len(samples))

    def _vocals_of(self, chunk: Samples) -> Samples:
        stem = self._stem_of(chunk)
        return stem if self._primary_stem == "vocals" else chunk - stem

    def _stem_of(self, chunk: Samples) -> Samples:
        windows = _windows(torch.from_numpy(chunk).to(self._device))
        # With `denoise` every window is two for the net.
        group = max(1, self.batch // 2) if self._denoise else self.batch
        parts = [self._inverse(self._net(self._spectra(few))) for few in windows.split(group)]
        trimmed = torch.cat(parts)[:, TRIM:-TRIM].reshape(-1)
        stem: Samples = trimmed[: len(chunk)].cpu().numpy()
        return stem

    def _spectra(self, windows: Any) -> Any:
        """float32 [w, samples] to the net's input [w, 4, frequencies, frames]."""
        spectrum = torch.stft(
            windows, N_FFT, HOP, window=self._hann, center=True, return_complex=True
        )
        parts = torch.view_as_real(spectrum[:, :FREQUENCIES]).permute(0, 3, 1, 2)
        return parts.repeat(1, 2, 1, 1)  # left and right are equal

    def _net(self, spectra: Any) -> Any:
        """The stem's left channel, [w, 2, frequencies, frames]."""
        if not self._denoise:
            return self._run(spectra)
        plus, minus = self._run(torch.cat([spectra, -spectra])).chunk(2)
        return (plus - minus) / 2

    def _run(self, spectra: Any) -> Any:
        runs = [
            run_bound(self._session, part, tuple(part.shape))[:, :2]
            for part in spectra.split(self.batch)
        ]
        return torch.cat(runs)

    def _inverse(self, channel: Any) -> Any:
        """[w, 2, frequencies, frames] to samples, float32 [w, samples]."""
        whole = torch.nn.functional.pad(channel, (0, 0, 0, N_FFT // 2 + 1 - FREQUENCIES))
        spectrum = torch.view_as_complex(whole.permute(0, 2, 3, 1).contiguous())
        return torch.istft(spectrum, N_FFT, HOP, window=self._hann, center=True, length=WINDOW)


def _takes_batches(session: Any, model: Path) -> bool:
    """Whether the net takes several windows at a time; raises ModelError when it is another net."""
    shape = session.get_inputs()[0].shape
    free = [given is None or isinstance(given, str) for given in shape]
    fits = len(shape) == 4 and all(
        any_size or given == wanted
        for any_size, given, wanted in zip(free, shape, (1, *INTERFACE), strict=True)
    )
    if not fits or len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise ModelError(
            f"{model} is not an MDX separation net: its input is {shape}, "
            f"not [batch, {', '.join(map(str, INTERFACE))}]"
        )
    return free[0]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a recording is cut: lengths in samples at the net's rate."""

    chunk: int
    margin: int

    @classmethod
    def of_seconds(cls, chunk_s: float, margin_s: float) -> _Plan:
        chunk = round(chunk_s * NET_RATE)
        # More than half a chunk, and three chunks would overlap.
        return cls(chunk, min(round(margin_s * NET_RATE), chunk // 2))

    @property
    def rise(self) -> Samples:
        """The weights of a chunk that begins; those of the one that ends are 1 minus these."""
        phase = (np.arange(2 * self.margin) + 0.5) / max(2 * self.margin, 1)
        return (0.5 - 0.5 * np.cos(np.pi * phase)).astype(np.float32)


def _windows(chunk: Any) -> Any:
    """The net's windows of a chunk, float32 [w, samples]; window i's use begins at i * STEP."""
    count = -(-len(chunk) // STEP)
    padded = torch.nn.functional.pad(chunk, (TRIM, TRIM + count * STEP - len(chunk)))
    return padded.unfold(0, WINDOW, STEP)


def _chunks(mix: Iterable[Samples], plan: _Plan) -> Iterator[tuple[Samples, int]]:
    """Cuts a stream into chunks with their margins, each with what it shares with the next."""
    blocks = iter(mix)
    held = np.zeros(0, np.float32)  # from the start of the next chunk's left margin on
    left = 0  # samples of that margin
    while True:
        right = left + plan.chunk  # where the right margin begins
        held = _filled(held, blocks, right + max(plan.margin, 1))  # one beyond: there is more
        chunk = held[: right + plan.margin]
        if len(held) <= right:
            if len(held):
                yield chunk, 0
            return
        yield chunk, len(chunk) - (right - plan.margin)
        held = held[right - plan.margin :]
        left = plan.margin


def _filled(held: Samples, blocks: Iterator[Samples], wanted: int) -> Samples:
    """`held` and what follows it, until it has `wanted` samples or the stream ends."""
    parts, length = [held], len(held)
    while length < wanted:
        block = next(blocks, None)
        if block is None:
            break
        parts.append(block)
        length += len(block)
    return np.concatenate(parts)


def _joined(
    mix: Iterable[Samples], process: Callable[[Samples], Samples], plan: _Plan
) -> Iterator[Samples]:
    """Processes a stream chunk by chunk and cross-fades the results over the shared margins."""
    rise = plan.rise
    tail = np.zeros(0, np.float32)  # the end of the chunk before, weighted
    for chunk, shared in _chunks(mix, plan):
        result = process(chunk)
        head = len(tail)
        result[:head] = result[:head] * rise[:head] + tail
        tail = result[len(result) - shared :] * (1 - rise[:shared])
        yield result[: len(result) - shared]


def _resampled(blocks: Iterable[Samples], rate_in: int, rate_out: int) -> Iterator[Samples]:
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _blocks(samples: Samples) -> Iterator[Samples]:
    step = BLOCK_S * SAMPLE_RATE
    for start in range(0, len(samples), step):
        yield samples[start : start + step]


def _gathered(parts: Iterable[Samples], length: int) -> Samples:
    """The first `length` samples of a stream; zeros where it ends before (by a sample at most)."""
    whole = np.zeros(length, np.float32)
    filled = 0
    for part in parts:
        taken = part[: length - filled]
        whole[filled : filled + len(taken)] = taken
        filled += len(taken)
    return whole
