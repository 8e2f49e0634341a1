"""What several rooms of tests share: the real recordings, the demo's models."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def jfk() -> Path:
    """Eleven seconds of one speaker, 16 kHz mono FLAC."""
    return DATA / "jfk.flac"


@pytest.fixture(scope="session")
def conversation() -> Path:
    """Thirty seconds of a telephone call of two speakers, 16 kHz mono WAV; truth beside it."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "sample" / "sample.wav"


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where the demo set of models lies; `make models` puts it there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = Path(os.environ.get("MODELS_DIR") or cache / "emiliad" / "models")
    assert found.is_dir(), f"no models in {found}: run `make models`"
    return found
