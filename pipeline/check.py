"""`python -m pipeline.check`: loads every model, runs each once, and reports in lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.config import SAMPLE_RATE, PipelineConfig
from pipeline.pipeline import Pipeline
from pipeline.settings import SettingsError
from pipeline.types import ModelError, Span

_SECONDS = 12.0  # two windows of separation, more than one of diarization and of DNSMOS
_SCORE_RATE = 16_000


def main() -> int:
    """Returns 0, or 1 if a stage cannot run here."""
    began = time.perf_counter()
    try:
        pipeline = Pipeline(PipelineConfig.from_env())
    except (SettingsError, ModelError, RuntimeError) as error:
        return _say("load", time.perf_counter() - began, str(error))
    broken = _say("load", time.perf_counter() - began, "", device=pipeline.device)
    for stage, run in _runs(pipeline):
        began = time.perf_counter()
        problem = ""
        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the finding
            problem = f"{type(error).__name__}: {error}"
        broken |= _say(stage, time.perf_counter() - began, problem)
    return broken


def _runs(pipeline: Pipeline) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each stage that has a model, on noise: what comes out does not matter, that it does does."""
    noise = np.random.default_rng(0).normal(0, 0.1, int(_SECONDS * SAMPLE_RATE))
    samples = noise.astype(np.float32)
    yield "separate", lambda: pipeline.separate(samples)
    yield "diarize", lambda: pipeline.diarize(samples)
    yield "segment", lambda: pipeline.voice_activity(samples)
    yield "transcribe", lambda: pipeline.transcribe(samples, [Span(0.0, 4.0), Span(4.0, 12.0)])
    yield "score", lambda: pipeline.score([samples[: 4 * _SCORE_RATE], samples])


def _say(stage: str, seconds: float, problem: str, **facts: str) -> int:
    report = {"stage": stage, "seconds": round(seconds, 3), "problem": problem, **facts}
    print(json.dumps(report), flush=True)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
