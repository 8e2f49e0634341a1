"""Who speaks when: speaker turns by pyannote.audio, from local files alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]  # comes with pyannote
from numpy.typing import NDArray

from pipeline._embedding import OnnxEmbedding
from pipeline._pyannote import PLDA, BoundedDiarization, Model, SideBySide
from pipeline.audio import resample
from pipeline.config import SAMPLE_RATE
from pipeline.types import ModelError, Turn

_NET_RATE = 16_000  # Hz; what pyannote's nets were trained on
_CHECKPOINT = "pytorch_model.bin"
_CONFIG = "config.yaml"

# For a folder without a config.yaml: segmentation-3.0 as in speaker-diarization-3.1, with the
# threshold that suits CAM++ embeddings.
_PARTS_SEGMENTATION = f"segmentation-3.0/{_CHECKPOINT}"
_PARTS_EMBEDDING = "wespeaker-campplus.onnx"
_PARTS_CLUSTERING = "AgglomerativeClustering"
_PARTS_PARAMETERS = {
    "clustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.70},
    "segmentation": {"min_duration_off": 0.0},
}


class Diarizer:
    """Finds the speakers' turns with pyannote's segmentation, embedding and clustering.

    `model` is a folder with a `config.yaml` (a clone of `pyannote/speaker-diarization-community-1`
    or `-3.1`, or your own) or with `segmentation-3.0/pytorch_model.bin` and
    `wespeaker-campplus.onnx`. What a config.yaml names by its name on a hub
    (`pyannote/segmentation-3.0`) is looked for in the folder and beside it, by the last part of
    that name; nothing is ever downloaded, and pyannote's telemetry is off.

    `batch` is the number of 10 s windows a run of the nets, `threads` those of the CPU (0: torch's
    own choice, one per core; it is set for the whole process). Raises ModelError, which says which
    file is missing or unreadable and what to do.

    Memory beyond the nets and a batch, per hour of audio: the waveform at 16 kHz (230 MB), the
    segmentation (25 MB, a few copies), the embeddings (10 MB), and 2 MB per speaker; clustering
    takes up to half a GB for a moment. On CUDA only the nets and one batch are on the device.
    From some two hours on, not all embeddings are clustered (see `pipeline._pyannote`).
    """

    def __init__(
        self, model: Path, *, device: str = "cpu", batch: int = 32, threads: int = 0
    ) -> None:
        if threads > 0:
            torch.set_num_threads(threads)
        _forbid_tf32(device)
        run = SideBySide(device=device, threads=torch.get_num_threads())
        with _told_plainly(model):
            self._pipeline = _load(model, device, batch=batch, run=run)
            self._pipeline.to(torch.device(device))

    @property
    def batch(self) -> int:
        """10 s windows a run of the nets; may be changed between two calls."""
        return self._pipeline.batch

    @batch.setter
    def batch(self, windows: int) -> None:
        self._pipeline.batch = windows

    def __call__(self, samples: NDArray[np.float32]) -> list[Turn]:
        """The speakers' turns in `samples` (float32 [n], 24 kHz), by start, end and speaker.

        Turns of different speakers may overlap: the regular output of pyannote is used and not the
        exclusive one, because the overlap of a segment is computed from it. Times are seconds,
        rounded to milliseconds, within the recording; speakers are SPEAKER_00, SPEAKER_01 and so
        on in the order in which they first speak. Without speech there are none. Equal samples
        give equal turns on a CPU.
        """
        heard = resample(samples, SAMPLE_RATE, _NET_RATE)
        if not len(heard):
            return []
        waveform = torch.from_numpy(heard)[None]
        with torch.inference_mode(), _quiet_about_little_speech():
            found = self._pipeline({"waveform": waveform, "sample_rate": _NET_RATE})
        tracks = found.speaker_diarization.itertracks(yield_label=True)
        spans = ((track.start, track.end, str(label)) for track, _, label in tracks)
        return _turns(spans, len(samples) / SAMPLE_RATE)


def _turns(spans: Iterable[tuple[float, float, str]], duration: float) -> list[Turn]:
    """Sorted, in milliseconds, within the recording, and the speakers named as they appear."""
    clipped = ((round(max(0.0, a), 3), round(min(b, duration), 3), who) for a, b, who in spans)
    ordered = sorted(span for span in clipped if span[0] < span[1])
    names: dict[str, str] = {}
    for _, _, who in ordered:
        names.setdefault(who, f"SPEAKER_{len(names):02d}")
    return sorted(
        (Turn(start, end, names[who]) for start, end, who in ordered),
        key=lambda turn: (turn.start, turn.end, turn.speaker),
    )


def _forbid_tf32(device: str) -> None:
    """Computes in full float32 on CUDA; otherwise pyannote does this itself, with a warning."""
    if device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def _load(folder: Path, device: str, **how: Any) -> BoundedDiarization:
    if (folder / _CONFIG).is_file():
        return _load_configured(folder, device, **how)
    pipeline = BoundedDiarization(
        segmentation=_load_net(_existing(folder / _PARTS_SEGMENTATION), device),
        embedding=_load_net(_existing(folder / _PARTS_EMBEDDING), device),
        plda=None,
        clustering=_PARTS_CLUSTERING,
        embedding_exclude_overlap=True,
        **how,
    )
    pipeline.instantiate(_PARTS_PARAMETERS)
    return pipeline


def _load_configured(folder: Path, device: str, **how: Any) -> BoundedDiarization:
    """What `pyannote.audio.Pipeline.from_pretrained` does, for local files alone."""
    config = yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))
    name = config["pipeline"]["name"]
    if name.rsplit(".", 1)[-1] != "SpeakerDiarization":
        raise ModelError(f"{folder / _CONFIG} describes a {name}, not a SpeakerDiarization")
    options = dict(config["pipeline"]["params"])
    clustering = options.pop("clustering", "VBxClustering")
    plda = _named(folder, options.pop("plda", "plda")) if clustering == "VBxClustering" else None
    segmentation = _named(folder, options.pop("segmentation"))
    embedding = _named(folder, options.pop("embedding"))
    for ours in ("plda", "segmentation_batch_size", "embedding_batch_size", "token", "cache_dir"):
        options.pop(ours, None)
    pipeline = BoundedDiarization(
        segmentation=_load_net(segmentation, device),
        embedding=_load_net(embedding, device),
        plda=plda and PLDA.from_pretrained(plda),
        clustering=clustering,
        **options,
        **how,
    )
    pipeline.instantiate(config["params"])
    return pipeline


def _named(folder: Path, name: str) -> Path:
    """The local file or folder for the `name` that a config.yaml gives. Raises ModelError."""
    local = Path(name.removeprefix("$model/")).expanduser()
    for found in (folder / local, folder / local.name, folder.parent / local.name):
        if found.exists():
            return found
    raise ModelError(
        f"{folder / _CONFIG} names {name!r}, which is neither in {folder} nor beside it: "
        "run `emiliad models pull`, or put it there"
    )


def _load_net(path: Path, device: str) -> Model:
    if path.suffix == ".onnx":
        return OnnxEmbedding(path, device=device)
    # strict=False: checkpoints carry the weights of the loss, which only training needs.
    checkpoint = _existing(path / _CHECKPOINT if path.is_dir() else path)
    return Model.from_pretrained(checkpoint, strict=False)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"no diarization model at {path}: run `emiliad models pull`")
    return path


@contextmanager
def _told_plainly(folder: Path) -> Iterator[None]:
    """Turns whatever goes wrong while loading into a ModelError."""
    if not folder.is_dir():
        raise ModelError(f"no diarization model at {folder}: run `emiliad models pull`")
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # pickle, torch, YAML and pyannote raise whatever they like
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"cannot read the diarization model in {folder} ({type(error).__name__}: {reason}): "
            "run `emiliad models pull`"
        ) from error


@contextmanager
def _quiet_about_little_speech() -> Iterator[None]:
    """Too little speech to tell speakers apart: pyannote takes it for one, but averages nothing."""
    with warnings.catch_warnings():
        for message in ("Mean of empty slice", "invalid value encountered in"):
            warnings.filterwarnings("ignore", message, RuntimeWarning)
        yield
