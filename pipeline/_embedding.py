"""Speaker embeddings by a net in ONNX format, as a model that pyannote's pipelines accept."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline._torchaudio import import_pyannote
from pipeline.runtime import onnx_session

import_pyannote()

import torchaudio.compliance.kaldi as kaldi  # noqa: E402 - as import_pyannote prepared it
from pyannote.audio import Model  # noqa: E402

Floats = NDArray[np.float32]

_INT16_SCALE = 1 << 15  # Kaldi's filter banks expect samples of that range
_SHORT = 100  # frames (1 s); no embedding net needs more


class OnnxEmbedding(Model):  # type: ignore[misc]  # untyped library
    """A WeSpeaker-style embedding net in ONNX format: float32 [1, frames, 80] to [1, dimension].

    Given filter banks of 16 kHz audio (25 ms, every 10 ms), as WeSpeaker (Wang et al., 2023) and
    pyannote's class for it compute them. One speaker of one window at a time: their lengths differ,
    and a batch or several threads took more CPU time (measured with CAM++). Raises ModelError when
    the model cannot be read.
    """

    def __init__(self, path: Path, *, device: str) -> None:
        super().__init__(sample_rate=16_000)
        self._session = onnx_session(path, device=device, threads=1)
        self._input = self._session.get_inputs()[0].name

    @cached_property
    def dimension(self) -> int:
        return len(self._embed(np.zeros((_SHORT, 80), np.float32)))

    @cached_property
    def fewest_frames(self) -> int:
        """The number of frames from which the net gives numbers."""
        noise = np.random.default_rng(0).standard_normal((_SHORT, 80), np.float32)
        usable = (n for n in range(1, _SHORT) if np.isfinite(self._embed(noise[:n])).all())
        return next(usable, _SHORT)

    def forward(self, waveforms: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings [batch, dimension] of [batch, 1, samples]; ValueError if too short."""
        frames = self.forward_frames(waveforms)
        if frames.shape[1] < self.fewest_frames:
            raise ValueError(f"{frames.shape[1]} frames are too few for an embedding")
        if weights is None:
            weights = torch.ones(len(frames), frames.shape[1])
        return self.forward_embedding(frames, weights[:, None])[:, 0]

    def forward_frames(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Filter banks around their mean: [batch, frames, 80] of [batch, 1, samples]."""
        fbank = partial(
            kaldi.fbank,
            num_mel_bins=80,
            sample_frequency=self.hparams.sample_rate,
            window_type="hamming",
            dither=0.0,
        )
        features = torch.vmap(fbank)(waveforms * _INT16_SCALE)
        return features - features.mean(dim=1, keepdim=True)

    def forward_embedding(self, frames: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, speakers, dimension] of the frames that each mask picks.

        `weights` are masks [batch, speakers, any number of frames]. NaN where too few are picked.
        """
        picked = torch.nn.functional.interpolate(weights, size=frames.shape[1], mode="nearest")
        found = [
            self._embed_if_enough(frame[mask].numpy(force=True))
            for frame, masks in zip(frames, picked > 0.5, strict=True)
            for mask in masks
        ]
        return torch.from_numpy(np.stack(found)).reshape(*weights.shape[:2], -1)

    def _embed_if_enough(self, frames: Floats) -> Floats:
        if len(frames) < self.fewest_frames:
            return np.full(self.dimension, np.nan, np.float32)
        return self._embed(frames)

    def _embed(self, frames: Floats) -> Floats:
        found: Floats = self._session.run(None, {self._input: frames[None]})[0][0]
        return found
