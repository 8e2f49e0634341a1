"""pyannote's diarization with less work and bounded memory; the same turns.

What differs from pyannote.audio 4.0's `SpeakerDiarization` (Bredin, 2023):

- the embedding net sees a window once and not once per speaker: the speakers' masks matter only
  where its frames are pooled; windows without speech are not looked at;
- on a CPU windows run side by side, each on one thread;
- an embedding net in ONNX format may have any name;
- `reconstruct` adds the windows up one by one. Upstream first builds the array of windows x frames
  x speakers in float64, twice, and that for two results: gigabytes for hours of many speakers;
- what is clustered is thinned out beyond `CLUSTERED_AT_MOST` embeddings, since the memory of
  agglomerative clustering grows with their number squared. All are then assigned to the speakers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline._torchaudio import import_pyannote

import_pyannote()

from pyannote.audio import Inference, Model  # noqa: E402 - as import_pyannote prepared it
from pyannote.audio.core.plda import PLDA  # noqa: E402
from pyannote.audio.pipelines import SpeakerDiarization  # noqa: E402
from pyannote.audio.pipelines.clustering import Clustering  # noqa: E402
from pyannote.core import SlidingWindowFeature  # noqa: E402

# Model and PLDA too: who takes them from here need not know how pyannote is imported.
__all__ = ["PLDA", "BoundedDiarization", "Model", "SideBySide"]

Floats = NDArray[np.float32]

# Some two hours of conversation. SciPy's linkage takes 16 bytes a pair: half a GB.
CLUSTERED_AT_MOST = 8000
_FRAMES_AT_ONCE = 2**16  # some 18 minutes; bounds what sorting the speakers of each frame takes
_SEGMENTED_TOGETHER = 8  # windows; the fastest on a CPU, more do not stay in its caches


class SideBySide:
    """Runs nets on the parts of a batch: on a CPU at the same time, each part on one thread.

    Threads within torch would wait for each other at every step of an LSTM, and wait busily: with
    another process on the same 2 cores segmentation took 10 to 30 times as long (measured). On idle
    cores they gain less than this does.
    """

    def __init__(self, *, device: str, threads: int) -> None:
        self._threads = threads
        self._pool = (
            ThreadPoolExecutor(threads, "diarize", partial(torch.set_num_threads, 1))
            if device == "cpu"
            else None
        )

    def __call__(
        self, net: Callable[..., Floats], *batch: torch.Tensor, together: int = 1
    ) -> Floats:
        """What `net` gives for `batch`; on a CPU for at most `together` items of it at a time."""
        if self._pool is None:
            return net(*batch)
        size = min(together, math.ceil(len(batch[0]) / self._threads))
        parts = zip(*(tensor.split(size) for tensor in batch), strict=True)
        return np.concatenate(list(self._pool.map(lambda part: net(*part), parts)))


class _SegmentedSideBySide(Inference):  # type: ignore[misc]  # untyped library
    """pyannote's `Inference` on parts of each batch."""

    def __init__(self, run: SideBySide, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run = run

    def infer(self, chunks: torch.Tensor) -> Floats:
        return self._run(super().infer, chunks, together=_SEGMENTED_TOGETHER)


class BoundedDiarization(SpeakerDiarization):  # type: ignore[misc]  # untyped library
    """`SpeakerDiarization` with the differences that this module's docstring lists.

    `segmentation` and `embedding` are loaded models; `plda` may be None for a clustering other
    than VBx; `batch` counts windows. `options` are those of `SpeakerDiarization`.
    """

    def __init__(
        self,
        *,
        segmentation: Model,
        embedding: Model,
        plda: PLDA | None,
        clustering: str,
        batch: int,
        run: SideBySide,
        **options: Any,
    ) -> None:
        super().__init__(
            segmentation=segmentation,
            embedding=embedding,
            plda=plda or _NoPlda(),
            clustering=clustering,
            embedding_batch_size=batch,
            **options,
        )
        self._run = run
        plain: Inference = self._segmentation
        self._segmentation: Inference = _SegmentedSideBySide(
            run,
            segmentation,
            duration=plain.duration,
            step=plain.step,
            skip_aggregation=True,
            batch_size=batch,
        )
        thinned = _thinned(Clustering[clustering].value)
        given = (self._plda,) if clustering == "VBxClustering" else ()
        self.clustering = thinned(*given, metric=self._embedding.metric)

    @property
    def batch(self) -> int:
        """Windows a run of the nets."""
        return int(self.embedding_batch_size)

    @batch.setter
    def batch(self, windows: int) -> None:
        self.embedding_batch_size = windows
        self._segmentation.batch_size = windows

    def get_embeddings(
        self,
        file: Any,
        binary_segmentations: SlidingWindowFeature,
        exclude_overlap: bool = False,
        hook: Any = None,
    ) -> Floats:
        """One embedding per window and speaker: float32 [windows, speakers, dimension].

        A speaker's is computed where the speaker is active in the window, without the overlaps if
        `exclude_overlap` and if enough remains. NaN marks a speaker with too little sound for one;
        the embeddings of silent speakers are all ones, which nobody looks at.
        """
        segmented = binary_segmentations.data.astype(np.float32, copy=False)
        windows, frames, speakers = segmented.shape
        enough = self._fewest_frames(frames, binary_segmentations) if exclude_overlap else frames
        embeddings = np.ones((windows, speakers, self._embedding.dimension), np.float32)
        spoken = np.flatnonzero(segmented.any(axis=(1, 2)))
        waveform, _ = self._audio(file)
        for some in _batches(spoken, self.embedding_batch_size):
            masks = _used_masks(segmented[some], enough)
            sounds = self._sounds(waveform, binary_segmentations, some)
            found = self._run(self._embed, sounds, torch.from_numpy(masks))
            active = segmented[some].any(axis=1)
            embeddings[some] = np.where(active[:, :, None], found, 1.0)
        return embeddings

    def _embed(self, sounds: torch.Tensor, masks: torch.Tensor) -> Floats:
        """Embeddings [windows, speakers, dimension] of [windows, 1, samples] under each mask."""
        net, device = self._embedding.model_, self._embedding.device
        with torch.inference_mode():
            frames = net.forward_frames(sounds.to(device))
            embeddings = net.forward_embedding(frames, weights=masks.to(device))
        found: Floats = embeddings.cpu().numpy()
        return found

    def _fewest_frames(self, frames: int, segmentations: SlidingWindowFeature) -> int:
        """How many of a window's `frames` an embedding needs at least."""
        samples = segmentations.sliding_window.duration * self._embedding.sample_rate
        fewest: int = math.ceil(frames * self._embedding.min_num_samples / samples)
        return fewest

    def _sounds(
        self, waveform: torch.Tensor, segmentations: SlidingWindowFeature, some: NDArray[np.intp]
    ) -> torch.Tensor:
        """The windows `some` of `waveform`, padded with zeros: [len(some), 1, samples]."""
        rate = self._embedding.sample_rate
        window = segmentations.sliding_window
        length = round(window.duration * rate)
        sounds = torch.zeros(len(some), 1, length)
        for sound, index in zip(sounds, some, strict=True):
            start = round(window[int(index)].start * rate)
            part = waveform[:, start : start + length]
            sound[:, : part.shape[1]] = part
        return sounds

    def reconstruct(
        self,
        segmentations: SlidingWindowFeature,
        hard_clusters: NDArray[np.integer[Any]],
        count: SlidingWindowFeature,
    ) -> SlidingWindowFeature:
        """Who speaks in each frame (0 or 1): float32 [frames, speakers].

        In each frame as many speakers are active as `count` says, those whom most windows support.
        """
        activations = self._activations(segmentations, hard_clusters, count)
        discrete = np.zeros_like(activations)
        for start in range(0, len(discrete), _FRAMES_AT_ONCE):
            some = slice(start, start + _FRAMES_AT_ONCE)
            ranking = np.argsort(-activations[some], axis=-1)
            chosen = np.arange(discrete.shape[1]) < count.data[some]
            np.put_along_axis(discrete[some], ranking, chosen.astype(np.float32), axis=-1)
        return SlidingWindowFeature(discrete, count.sliding_window)

    def _activations(
        self,
        segmentations: SlidingWindowFeature,
        hard_clusters: NDArray[np.integer[Any]],
        count: SlidingWindowFeature,
    ) -> Floats:
        """How many windows say that a speaker is active in a frame: float32 [frames, speakers]."""
        frames = count.sliding_window
        speakers = max(int(hard_clusters.max()) + 1, int(count.data.max()))
        total = np.zeros((len(count.data), speakers), np.float32)
        half = 0.5 * frames.duration
        for clusters, (window, scores) in zip(hard_clusters, segmentations, strict=True):
            start = frames.closest_frame(window.start + half)
            for speaker in np.unique(clusters[clusters >= 0]):
                heard = scores[:, clusters == speaker].max(axis=1)
                total[start : start + len(heard), speaker] += heard
        return total


class _NoPlda(PLDA):  # type: ignore[misc]  # untyped library
    """Takes the place of the PLDA that pyannote would fetch and only VBx uses."""

    def __init__(self) -> None:
        pass


def _thinned(clustering: type[Any]) -> type[Any]:
    """`clustering`, told to look at `CLUSTERED_AT_MOST` embeddings, evenly spread in time."""

    class Thinned(clustering):  # type: ignore[misc]  # untyped library
        def filter_embeddings(self, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], ...]:
            found = super().filter_embeddings(*args, **kwargs)
            last = len(found[0]) - 1
            if last < CLUSTERED_AT_MOST:
                return tuple(found)
            kept = np.linspace(0, last, CLUSTERED_AT_MOST).round().astype(np.intp)
            return tuple(part[kept] for part in found)

    return Thinned


def _used_masks(segmented: Floats, enough: int) -> Floats:
    """Masks [windows, speakers, frames]: the speaker alone where that is more than `enough`."""
    alone = segmented * (segmented.sum(axis=2, keepdims=True) < 2)
    used = np.where(alone.sum(axis=1, keepdims=True) > enough, alone, segmented)
    masks: Floats = np.ascontiguousarray(used.swapaxes(1, 2), dtype=np.float32)
    return masks


def _batches(indices: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
