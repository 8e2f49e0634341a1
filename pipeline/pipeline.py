"""The recipe: one recording in, its segments with transcripts and scores out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import audio as sound
from pipeline import export, keep, naming, provenance
from pipeline.config import SAMPLE_RATE, PipelineConfig
from pipeline.diarize import Diarizer
from pipeline.models import identities, locate
from pipeline.quality import Dnsmos
from pipeline.runtime import pick_device
from pipeline.segment import Rules, Segmentation, segment
from pipeline.separate import Separator
from pipeline.transcribe import Transcriber
from pipeline.types import Scores, Segment, Stage, Transcript
from pipeline.vad import VoiceActivity

OnStage = Callable[[str, float, float], None]
Samples = NDArray[np.float32]
_SCORE_RATE = 16_000  # Hz; DNSMOS was trained on it
_PADDED_SHARE = 2.2 / 3  # of a padded segment that must be speech: 2.2 s of 3


class Pipeline:
    """The Emilia pipeline (He et al., 2024) with its models loaded; one `run` at a time.

    Raises ModelError when a model is missing or unreadable, or when DEVICE cannot be had.
    """

    def __init__(self, config: PipelineConfig | None = None) -> None:
        self.config = config = config or PipelineConfig.from_env()
        paths = locate(config)
        self.device = device = pick_device(config.device)
        threads = config.cpu_threads
        self.separate = Separator(
            paths.separation,
            device=pick_device(config.separation_device or config.device),
            chunk_s=config.separation_chunks,
            margin_s=config.separation_margin,
            denoise=config.separation_denoise,
            batch=config.separation_batch,
            threads=threads,
            cuda_mem_limit_gb=config.ort_cuda_mem_limit_gb,
        )
        self.diarize = Diarizer(
            paths.diarization, device=device, batch=config.diarization_batch, threads=threads
        )
        self.voice_activity = VoiceActivity(paths.vad)
        self.transcribe = Transcriber(
            paths.asr,
            device=device,
            compute_type=config.asr_compute_type,
            batch=config.batch_size,
            language=config.asr_language,
            threads=threads,
            whole_window=config.asr_window == "whole",
        )
        self.score = Dnsmos(
            paths.dnsmos,
            device=pick_device(config.dnsmos_device or config.device),
            threads=threads,
            cuda_mem_limit_gb=config.ort_cuda_mem_limit_gb,
        )
        self._models = identities(paths, config.models_dir)

    def run(
        self,
        audio: Path,
        out_dir: Path,
        *,
        name: str | None = None,
        on_stage: OnStage | None = None,
    ) -> dict[str, Any]:
        """Processes the recording `audio` and writes its outputs into `out_dir`.

        The outputs are one MP3 per segment, `filtered_segments.json`, `episode.json` and, last of
        all, `all_segments.json`, named after `name` (default: the audio's stem). `on_stage` is
        called with (stage, seconds, seconds of audio) as each stage ends.

        Returns the manifest: what `episode.json` says of durations, counts, models and settings.
        Raises BadAudio with the reason when the input cannot be used; OSError when it cannot be
        read or the outputs cannot be written.
        """
        name = naming.safe_name(audio.stem if name is None else name)
        out_dir.mkdir(parents=True, exist_ok=True)
        stages = _Stages(on_stage)
        with stages.timed("standardise"):
            recording = sound.decode(audio)
            stages.audio_seconds = recording.seconds
            samples = sound.standardise(recording.samples)
        with stages.timed("separate"):
            samples = self.separate(samples)
        with stages.timed("diarize"):
            turns = self.diarize(samples)
        with stages.timed("segment"):
            cut = segment(
                turns,
                self.voice_activity(samples),
                duration=recording.seconds,
                quietest=partial(sound.quietest, samples, SAMPLE_RATE),
                rules=self._rules(),
            )
        with stages.timed("transcribe"):
            transcripts = self.transcribe(samples, cut.segments)
        with stages.timed("score"):
            scores = self.score(_clips(samples, cut.segments))
        with stages.timed("export"):
            files = export.write_clips(
                samples,
                cut.segments,
                out_dir,
                name,
                sample_rate=self.config.mp3_sample_rate,
                bitrate_kbps=self.config.mp3_bitrate_kbps,
            )
            rows = self._rows(cut.segments, transcripts, scores, files)
            kept = self._kept(rows)
            export.write_json(out_dir / naming.FILTERED_SEGMENTS, kept)
        manifest = self._manifest(recording, cut, rows, kept, stages.seconds)
        export.write_json(out_dir / naming.EPISODE, {"episode": name, **manifest})
        export.write_json(out_dir / naming.ALL_SEGMENTS, rows)
        return manifest

    @contextmanager
    def reduced(self, halvings: int) -> Iterator[None]:
        """For the time of the context, every net runs on batches `halvings` times halved.

        For an episode on which the device's memory runs out. Batches of one stay.
        """
        stages: list[Separator | Diarizer | Transcriber | Dnsmos]
        stages = [self.separate, self.diarize, self.transcribe, self.score]
        before = [stage.batch for stage in stages]
        try:
            for stage, batch in zip(stages, before, strict=True):
                stage.batch = max(1, batch >> halvings)
            yield
        finally:
            for stage, batch in zip(stages, before, strict=True):
                stage.batch = batch

    def _rules(self) -> Rules:
        shortest = self.config.min_segment_s
        return Rules(
            min_s=shortest,
            max_s=self.config.max_segment_s,
            pad_short=self.config.pad_short,
            pad_from_s=shortest * _PADDED_SHARE,
        )

    def _rows(
        self,
        segments: Sequence[Segment],
        transcripts: Sequence[Transcript],
        scores: Sequence[Scores],
        files: Sequence[str],
    ) -> list[dict[str, Any]]:
        supported = self.config.supported_languages
        return [
            keep.row(
                piece, said, score, flags=keep.flags(piece, said, supported=supported), audio=file
            )
            for piece, said, score, file in zip(segments, transcripts, scores, files, strict=True)
        ]

    def _kept(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return keep.keep(
            rows,
            supported=self.config.supported_languages,
            dnsmos_threshold=self.config.dnsmos_threshold,
            min_s=self.config.min_segment_s,
            max_s=self.config.max_segment_s,
        )

    def _manifest(
        self,
        recording: sound.Recording,
        cut: Segmentation,
        rows: Sequence[Mapping[str, Any]],
        kept: Sequence[Mapping[str, Any]],
        stage_seconds: Mapping[str, float],
    ) -> dict[str, Any]:
        return {
            "segments": len(rows),
            "filtered_segments": len(kept),
            "audio_seconds": round(recording.seconds, 3),
            **provenance.of_segments(cut, rows),
            **provenance.of_recording(recording),
            "stage_seconds": {stage: round(s, 3) for stage, s in stage_seconds.items()},
            **provenance.of_software(self.config, self._models),
        }


def _clips(samples: Samples, segments: Sequence[Segment]) -> list[Samples]:
    """The segments' audio at 16 kHz, each resampled on its own."""
    return [
        sound.resample(sound.cut(samples, SAMPLE_RATE, piece), SAMPLE_RATE, _SCORE_RATE)
        for piece in segments
    ]


@dataclass(slots=True)
class _Stages:
    """Times the stages and reports each as it ends."""

    report: OnStage | None
    audio_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - began
        if self.report is not None:
            self.report(stage, self.seconds[stage], self.audio_seconds)
