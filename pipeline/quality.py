"""Speech quality: DNSMOS P.835 scores of clips, without computing any stretch of sound twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx.utils import Extractor

from pipeline.runtime import onnx_session, pick_device, run_bound
from pipeline.types import ModelError, Scores

Samples = npt.NDArray[np.float32]

# P.835: what the model was trained on.
QUALITY_RATE = 16_000  # Hz
WINDOW = 144_160  # samples that one score is about: 9.01 s
HOP = 16_000  # samples between two windows
FRAME = 320  # samples of a frame of the model's spectrogram
FRAME_HOP = 160  # samples
WINDOW_FRAMES = 900  # frames that the model sees of a window
HOP_FRAMES = HOP // FRAME_HOP

# From the model's raw outputs to mean opinion scores, highest power first; see `Dnsmos`.
OVRL = (-0.06766283, 1.11546468, 0.04602535)
SIG = (-0.08397278, 1.22083953, 0.0052439)
BAK = (-0.13166888, 1.60915514, -0.39604546)

# Where the graph is cut: `FRAMES_TENSOR` to `POOLED_TENSOR` is the front, the rest the head.
FRAMES_TENSOR = "mos_estimator_logpow/concat:0"  # [b, frames, 320]
POOLED_TENSOR = "mos_estimator_logpow/conv2d_3/Relu:0_pooling0"  # [b, 32, frames / 2, 80]
CHANNELS, BANDS = 32, 80
POOL = 2  # frames in one column of the pooled map
REACH = 4  # frames on each side that the front's four 3 x 3 convolutions look at
EDGE = REACH // POOL  # columns of a window that its borders change
PATCH = 2 * REACH  # frames that give the columns at one border

BLOCK = WINDOW_FRAMES // 3  # new frames in one block of the front, whose widest map takes 25 MB
CPU_BATCH = 1  # blocks a run: one fills every core
CUDA_BATCH = 64
PATCHES_PER_BLOCK = BLOCK // PATCH  # as many take the same memory
WINDOWS_PER_BLOCK = 8  # 37 MB; more of them are no faster
GROUP_S = 120.0  # seconds of sound whose maps are held at a time, 0.5 MB a second


class Dnsmos:
    """The P.835 model of DNSMOS (Reddy et al., 2022; microsoft/DNS-Challenge).

    A clip shorter than a window is doubled until it is long enough. Windows start every second,
    as many as `dnsmos.py` in Emilia-Pipe and in DNS-Challenge count: whole seconds of the clip
    less nine, at least one. The three raw outputs go through the polynomials and are averaged
    over the windows. Deliberate difference: upstream cuts the windows that start at 7 to 23 s
    one sample short by a rounding error, and then skips them; here every window counts.

    Two neighbouring windows share 8 of their 9 seconds, and nearly all the work lies in four
    convolutions at full resolution. So the graph is cut behind them: they run once over a clip,
    and the small rest once per window. The zero padding at a window's borders reaches 4 frames
    into it; those come from patches of 8 frames that are computed with the borders in place. The
    scores are those of the uncut model, to float rounding.
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str = "cpu",
        threads: int = 0,
        batch: int = 0,
        cuda_mem_limit_gb: float = 0.0,
    ) -> None:
        """Loads the model; `batch` is blocks (of 3 s) a run, 0: the device's default.

        Raises ModelError when `model` is missing, unreadable, or not this model.
        """
        self._device = pick_device(device)
        self.batch = batch or (CUDA_BATCH if self._device == "cuda" else CPU_BATCH)
        load = partial(
            onnx_session,
            model,
            device=self._device,
            threads=threads,
            cuda_mem_limit_gb=cuda_mem_limit_gb,
        )
        load()  # tells whether the file is there and whole
        self._front, self._head = (load(content=half) for half in _halves(model))

    def __call__(self, clips: Sequence[Samples]) -> list[Scores]:
        """Scores clips, each float32 [n] at 16 kHz; one Scores per clip, in their order.

        A clip's scores do not depend on the others. An empty clip is scored as silence.
        """
        return [scores for group in _groups(clips) for scores in self._scored(group)]

    def _scored(self, clips: Sequence[Samples]) -> Iterator[Scores]:
        """Scores clips laid end to end on one tape of frames."""
        tapes = [self._frames(clip) for clip in clips]
        starts: list[list[int]] = []
        offset = 0
        for frames in tapes:
            end = offset + len(frames)
            starts.append(list(range(offset, end - WINDOW_FRAMES + 1, HOP_FRAMES)))
            offset = end
        raw = self._raw(torch.cat(tapes), [start for each in starts for start in each])
        for part in np.split(raw, np.cumsum([len(each) for each in starts])[:-1]):
            yield _mapped(part)

    def _frames(self, clip: Samples) -> Any:
        """The frames of a clip that its windows use, float32 [t, 320]; t is even."""
        clip = _doubled(clip)
        count = (_window_count(len(clip)) - 1) * HOP_FRAMES + WINDOW_FRAMES
        used = clip[: (count - 1) * FRAME_HOP + FRAME]
        samples = torch.tensor(used, dtype=torch.float32, device=self._device)
        return samples.unfold(0, FRAME, FRAME_HOP)

    def _raw(self, tape: Any, starts: list[int]) -> npt.NDArray[np.float32]:
        """The model's raw outputs (SIG, BAK, OVRL) for the windows at `starts`, [w, 3]."""
        pooled = self._pooled(tape)
        first, last = self._edges(tape, starts)
        few = self.batch * WINDOWS_PER_BLOCK
        # One buffer for all runs: fresh memory of this size costs as much as the head itself.
        maps = torch.empty(min(few, len(starts)), *_map_shape(WINDOW_FRAMES), device=self._device)
        runs = []
        for i in range(0, len(starts), few):
            now = maps[: len(starts) - i]
            for j, start in enumerate(starts[i : i + few]):
                now[j] = pooled[:, start // POOL : (start + WINDOW_FRAMES) // POOL]
            now[:, :, :EDGE] = first[i : i + few]
            now[:, :, -EDGE:] = last[i : i + few]
            runs.append(run_bound(self._head, now, (len(now), 3)))
        raw: npt.NDArray[np.float32] = torch.cat(runs).cpu().numpy()
        return raw

    def _pooled(self, tape: Any) -> Any:
        """The front's map of a tape, [32, t / 2, 80], without any border."""
        count = -(-len(tape) // BLOCK)
        padded = torch.nn.functional.pad(tape, (0, 0, REACH, REACH + count * BLOCK - len(tape)))
        blocks = padded.unfold(0, BLOCK + 2 * REACH, BLOCK).transpose(1, 2)
        inner = self._front_map(blocks, self.batch)[:, :, EDGE:-EDGE]
        return inner.transpose(0, 1).reshape(CHANNELS, -1, BANDS)

    def _edges(self, tape: Any, starts: list[int]) -> tuple[Any, Any]:
        """The columns at both borders of the windows at `starts`, each [w, 32, 2, 80]."""
        ends = [start + WINDOW_FRAMES for start in starts]
        patches = [tape[start : start + PATCH] for start in starts]
        patches += [tape[end - PATCH : end] for end in ends]
        maps = self._front_map(torch.stack(patches), self.batch * PATCHES_PER_BLOCK)
        first, last = maps.chunk(2)
        return first[:, :, :EDGE], last[:, :, -EDGE:]

    def _front_map(self, frames: Any, batch: int) -> Any:
        """float32 [b, t, 320] to [b, 32, t / 2, 80], each with the zero padding around it."""
        shape = _map_shape(frames.shape[1])
        return torch.cat(
            [run_bound(self._front, part, (len(part), *shape)) for part in frames.split(batch)]
        )


def _map_shape(frames: int) -> tuple[int, int, int]:
    return CHANNELS, frames // POOL, BANDS


def _halves(model: Path) -> tuple[bytes, bytes]:
    """Cuts the model's graph into front and head; raises ModelError if it is another graph."""
    whole = onnx.shape_inference.infer_shapes(onnx.load(model))
    made = {name for node in whole.graph.node for name in node.output}
    if not {FRAMES_TENSOR, POOLED_TENSOR} <= made:
        raise ModelError(f"{model} is not DNSMOS P.835 (sig_bak_ovr.onnx): another graph")
    extractor = Extractor(whole)
    front = extractor.extract_model([FRAMES_TENSOR], [POOLED_TENSOR])
    head = extractor.extract_model([POOLED_TENSOR], [whole.graph.output[0].name])
    # Free the front of the length of a window, which is written into its inferred shapes.
    front.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "frames"
    front.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "columns"
    del front.graph.value_info[:]
    return front.SerializeToString(), head.SerializeToString()


def _groups(clips: Iterable[Samples]) -> Iterator[list[Samples]]:
    """Neighbouring clips of about GROUP_S together, so that short ones share a run."""
    group: list[Samples] = []
    seconds = 0.0
    for clip in clips:
        group.append(clip)
        seconds += max(len(clip), WINDOW) / QUALITY_RATE
        if seconds >= GROUP_S:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group


def _doubled(clip: Samples) -> Samples:
    """Repeats a short clip 2, 4, 8... times until a window fits."""
    if not len(clip):
        return np.zeros(WINDOW, np.float32)
    times = 1
    while times * len(clip) < WINDOW:
        times *= 2
    return np.tile(clip, times)


def _window_count(length: int) -> int:
    # int() of a number between -1 and 0 is 0: a clip of 9.01 to 10 s has one window.
    return int(length // QUALITY_RATE - WINDOW / QUALITY_RATE) + 1


def _mapped(raw: npt.NDArray[np.float32]) -> Scores:
    """Raw outputs of a clip's windows, [w, 3], to its scores."""
    sig, bak, ovrl = (
        float(np.polyval(polynomial, raw[:, i].astype(np.float64)).mean())
        for i, polynomial in enumerate((SIG, BAK, OVRL))
    )
    return Scores(ovrl=ovrl, sig=sig, bak=bak)
