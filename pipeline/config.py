"""What the pipeline can be told; every field is an environment variable. Standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.settings import SettingsError, read, setting

SAMPLE_RATE = 24_000  # Hz; what the stages hand on and what the MP3s have by default


def _default_models_dir() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "emiliad" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """All settings of the pipeline. Fields that change results are part of `config_hash`."""

    models: str = setting("MODELS", "emilia", "the set of models", choices=("emilia", "demo"))
    models_dir: Path = setting("MODELS_DIR", _default_models_dir(), "where the models are")
    device: str = setting("DEVICE", "auto", "where the models run", choices=("auto", "cpu", "cuda"))
    cpu_threads: int = setting(
        "CPU_THREADS", 0, "threads of one executor on a CPU; 0: one per core", minimum=0
    )

    separation_model: Path | None = setting(
        "SEPARATION_MODEL", None, "your own MDX weights (.onnx), in place of the set's"
    )
    separation_device: str = setting(
        "SEPARATION_DEVICE",
        "",
        "where separation runs; default: DEVICE",
        choices=("", "auto", "cpu", "cuda"),
    )
    separation_chunks: float = setting(
        "SEPARATION_CHUNKS",
        15.0,
        "seconds of audio separated at a time",
        minimum=1.0,
        maximum=600.0,
    )
    separation_margin: float = setting(
        "SEPARATION_MARGIN_S",
        1.0,
        "seconds of context on each side of such a chunk",
        minimum=0.0,
        maximum=5.0,
    )
    separation_denoise: bool = setting(
        "SEPARATION_DENOISE", True, "average the net over the mix and its negative"
    )
    separation_batch: int = setting(
        "SEPARATION_BATCH", 0, "windows a run of the net; 0: 8 on CUDA, 1 on a CPU", minimum=0
    )
    ort_cuda_mem_limit_gb: float = setting(
        "ORT_CUDA_MEM_LIMIT_GB",
        0.0,
        "GPU memory that ONNX Runtime may take, GB; 0: no limit",
        minimum=0.0,
    )

    diarization_model: str = setting(
        "DIARIZATION_MODEL",
        "",
        "community-1, 3.1, or a folder with your own pipeline's config.yaml; default: the set's",
    )
    diarization_batch: int = setting(
        "DIARIZATION_BATCH_SIZE", 32, "windows a run of the diarization's nets", minimum=1
    )

    min_segment_s: float = setting(
        "MIN_SEGMENT_S", 3.0, "seconds that a segment lasts at least", minimum=0.1
    )
    max_segment_s: float = setting(
        "MAX_SEGMENT_S", 30.0, "seconds that a segment lasts at most", minimum=1.0, maximum=30.0
    )
    pad_short: bool = setting(
        "PAD_SHORT_SEGMENTS",
        True,
        "extend an utterance that is a little too short into the silence around it",
    )

    asr_model: str = setting(
        "ASR_MODEL",
        "",
        "a Whisper of the set (medium, large-v3-turbo) or a CTranslate2 folder; default: the set's",
    )
    asr_language: str = setting(
        "ASR_LANGUAGE", "", "the language of all audio (ISO 639-1); default: identified per segment"
    )
    asr_compute_type: str = setting(
        "ASR_COMPUTE_TYPE", "", "CTranslate2 number format; default: float16 on CUDA, int8 on a CPU"
    )
    asr_window: str = setting(
        "ASR_WINDOW",
        "whole",
        "what Whisper encodes: its whole 30 s, or the segment and some silence, which on a CPU "
        "takes a third of the time at nearly the same error rate",
        choices=("whole", "short"),
    )
    batch_size: int = setting("BATCH_SIZE", 16, "segments transcribed at a time", minimum=1)
    supported_languages: tuple[str, ...] = setting(
        "SUPPORTED_LANGUAGES",
        ("zh", "en", "fr", "ja", "ko", "de"),
        "languages that pass the filter; others are flagged",
    )

    dnsmos_model: Path | None = setting(
        "DNSMOS_MODEL", None, "your own DNSMOS P.835 model (.onnx), in place of the set's"
    )
    dnsmos_device: str = setting(
        "DNSMOS_DEVICE",
        "",
        "where DNSMOS runs; default: DEVICE",
        choices=("", "auto", "cpu", "cuda"),
    )
    dnsmos_threshold: float = setting(
        "DNSMOS_THRESHOLD", 3.0, "DNSMOS OVRL from which a segment passes the filter"
    )

    mp3_sample_rate: int = setting(
        "MP3_SAMPLE_RATE",
        SAMPLE_RATE,
        "Hz of the MP3 segments",
    )
    mp3_bitrate_kbps: int = setting(
        "MP3_BITRATE_KBPS", 128, "kbit/s of the MP3 segments", minimum=32, maximum=320
    )

    def __post_init__(self) -> None:
        if self.min_segment_s >= self.max_segment_s:
            raise SettingsError(
                [
                    f"MIN_SEGMENT_S: {self.min_segment_s:g} is not less than "
                    f"MAX_SEGMENT_S: {self.max_segment_s:g}"
                ]
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> PipelineConfig:
        """Reads the settings from `env` (default: the process's). Raises SettingsError."""
        return read(cls, os.environ if env is None else env)

    def result_settings(self) -> dict[str, Any]:
        """The settings that can change the results, as JSON values."""
        facts = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _DO_NOT_CHANGE_RESULTS
        }
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in facts.items()
        }

    @property
    def config_hash(self) -> str:
        """16 hex digits that change when a setting that can change the results changes."""
        text = json.dumps(self.result_settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_DO_NOT_CHANGE_RESULTS = frozenset(
    {
        "models_dir",
        "device",
        "cpu_threads",
        "separation_device",
        "separation_batch",
        "ort_cuda_mem_limit_gb",
        "dnsmos_device",
    }
)
