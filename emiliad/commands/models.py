"""`emiliad models`: fetches and checks the set that MODELS names."""

from __future__ import annotations

from emiliad.config import Settings


def run(settings: Settings, action: str) -> int:
    """Returns 0, or 1 when a model is missing, damaged or cannot be had."""
    raise SystemExit(1)
