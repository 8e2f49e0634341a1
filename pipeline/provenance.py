"""What an episode's record says of where its segments come from. Standard library only."""

from __future__ import annotations

import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import PipelineConfig

if TYPE_CHECKING:
    from pipeline.audio import Recording
    from pipeline.segment import Segmentation

_PACKAGES = ("emiliad", "torch", "onnxruntime", "pyannote.audio", "faster-whisper", "ctranslate2")


def of_segments(cut: Segmentation, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds delivered per speaker, seconds dropped by reason, segments per language."""
    speakers: dict[str, float] = defaultdict(float)
    for piece in cut.segments:
        speakers[piece.speaker] += piece.duration
    return {
        "segment_seconds": round(sum(piece.duration for piece in cut.segments), 3),
        "speakers": {name: round(seconds, 3) for name, seconds in sorted(speakers.items())},
        "dropped_seconds": {why: round(s, 3) for why, s in sorted(cut.dropped.items())},
        "languages": dict(sorted(Counter(str(row["language"]) for row in rows).items())),
    }


def of_recording(recording: Recording) -> dict[str, Any]:
    """The raw file as it was found."""
    return {
        "source": {
            "container": recording.container,
            "codec": recording.codec,
            "sample_rate": recording.source_rate,
            "channels": recording.channels,
        },
        "warnings": list(recording.warnings),
    }


def of_software(config: PipelineConfig, models: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, models and versions: what has to be equal for results to be equal."""
    return {
        "config": config.result_settings(),
        "config_hash": config.config_hash,
        "models": dict(models),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
