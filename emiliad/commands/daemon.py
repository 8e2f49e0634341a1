"""`emiliad run`."""

from __future__ import annotations

from functools import partial

import anyio

from emiliad import daemon
from emiliad.config import Settings
from emiliad.types import Outcome


def run(settings: Settings, *, exit_when_empty: bool) -> int:
    """Returns 0, or 1 if a run that ends by itself has dead-lettered anything."""
    totals = anyio.run(partial(daemon.run, settings, exit_when_empty=exit_when_empty))
    return 1 if exit_when_empty and totals[Outcome.FAILED] else 0
