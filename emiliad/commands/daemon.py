"""`emiliad run`."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial

import anyio

from emiliad import daemon
from emiliad.config import Settings
from emiliad.types import Outcome


def run(settings: Settings, *, exit_when_empty: bool) -> int:
    """Returns 0, or 1 if a run that ends by itself has dead-lettered anything."""
    work = partial(daemon.run, settings, exit_when_empty=exit_when_empty, end_within=_end_within)
    totals = anyio.run(work)
    return 1 if exit_when_empty and totals[Outcome.FAILED] else 0


def _end_within(seconds: float) -> None:
    """Ends the process by force when it should be gone and is not: a disk or a resolver hangs."""
    last_resort = threading.Timer(seconds, _give_up)
    last_resort.daemon = True
    last_resort.start()


def _give_up() -> None:
    print("emiliad: something hangs; the leases that are left expire", file=sys.stderr, flush=True)
    os._exit(0)  # the executors die with their parent
