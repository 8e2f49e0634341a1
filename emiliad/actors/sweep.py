"""Finishes what others left behind: half-published episodes, orphaned claims, litter."""

from __future__ import annotations

import random

import anyio

from emiliad import logs
from emiliad.metrics import Metrics
from emiliad.queue.sweep import Sweeper

_log = logs.get("sweep")


async def run(*, sweeper: Sweeper, metrics: Metrics, every_s: float) -> None:
    """Runs until it is cancelled; the first sweep comes early, so that restarts mend at once."""
    wait = min(1.0, every_s)
    while True:
        await anyio.sleep(wait * random.uniform(0.8, 1.0))
        wait = every_s
        mended = await sweeper.sweep_once()
        if sweeper.dead_letters is not None:
            metrics.failed_tasks.set(sweeper.dead_letters)
        if mended:
            _log.info("sweep.done", **mended)
