"""When memory runs out, the nets are given smaller batches for one episode, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import audio, quality, separate
from pipeline.config import SAMPLE_RATE, PipelineConfig
from pipeline.pipeline import Pipeline
from pipeline.types import Span

pytestmark = pytest.mark.models
FULL = 4
STAGES = ("separate", "diarize", "transcribe", "score")


@pytest.fixture(scope="module")
def pipeline(models_dir: Path) -> Pipeline:
    """Every net with batches of four, on a CPU too."""
    config = PipelineConfig(
        models="demo",
        models_dir=models_dir,
        device="cpu",
        separation_batch=FULL,
        diarization_batch=FULL,
        batch_size=FULL,
        asr_window="short",
    )
    made = Pipeline(config)
    made.score.batch = FULL  # a CPU's default is one block
    return made


class Largest:
    """The largest batch that each stage's nets were given."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = dict.fromkeys(STAGES, 0)
        for stage, owner, name, position in (
            ("separate", separate, "run_bound", 1),
            ("score", pipeline.score, "_front_map", None),
            ("diarize", pipeline.diarize._pipeline, "_run", 1),
            ("diarize", pipeline.diarize._pipeline._segmentation, "_run", 1),
            ("transcribe", pipeline.transcribe, "_whisper", 0),
        ):
            monkeypatch.setattr(owner, name, self._spy(getattr(owner, name), stage, position))

    def _spy(self, net: Callable[..., Any], stage: str, position: int | None) -> Callable[..., Any]:
        def spied(*given: Any, **options: Any) -> Any:
            if position is None:  # blocks of sound, or the patches that fit into that many blocks
                frames, size = given
                size //= quality.PATCHES_PER_BLOCK if frames.shape[1] == quality.PATCH else 1
            else:
                size = len(given[position])
            self.seen[stage] = max(self.seen[stage], size)
            return net(*given, **options)

        return spied


@pytest.fixture(scope="module")
def speech(jfk: Path) -> audio.Samples:
    """Eleven seconds, and once more."""
    samples = audio.standardise(audio.decode(jfk).samples)
    return np.concatenate([samples, samples])


def _work(pipeline: Pipeline, speech: audio.Samples) -> None:
    pipeline.separate(speech)
    pipeline.diarize(speech)
    pipeline.transcribe(speech, [Span(start, start + 2.0) for start in (0, 3, 6, 9)])
    pipeline.score([audio.resample(speech, SAMPLE_RATE, 16_000)])


@pytest.mark.parametrize(("halvings", "largest"), [(0, 4), (1, 2), (5, 1)])
def test_every_net_gets_smaller_batches(
    pipeline: Pipeline,
    speech: audio.Samples,
    monkeypatch: pytest.MonkeyPatch,
    halvings: int,
    largest: int,
) -> None:
    """What reaches the nets is halved as often as asked, down to one, and they all still work."""
    spy = Largest(pipeline, monkeypatch)
    with pipeline.reduced(halvings):
        _work(pipeline, speech)
    assert spy.seen == dict.fromkeys(STAGES, largest)


def test_it_is_undone_after_the_episode(pipeline: Pipeline) -> None:
    """The batches are as before, whatever the episode ended with."""

    def batches() -> list[int]:
        return [getattr(pipeline, stage).batch for stage in STAGES]

    assert batches() == [FULL] * 4
    seen: list[int] = []

    def run_out() -> None:
        with pipeline.reduced(1):
            seen.extend(batches())
            raise MemoryError

    with pytest.raises(MemoryError):
        run_out()
    assert seen == [FULL // 2] * 4
    assert batches() == [FULL] * 4
