"""Finishes what others left behind: half-published episodes, orphaned claims, litter."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio

from emiliad import logs

RARELY = 12  # intervals between two sweeps of a busy node: with the default TTL, an hour
SOON = 2  # intervals until what one sweep found has stood for more than 1.1 TTL
_log = logs.get("sweep")


class Sweeper(Protocol):
    """What sweeps: `emiliad.queue.sweep.Sweeper`."""

    async def sweep_once(self) -> Mapping[str, int]: ...


async def run(
    *,
    sweeper: Sweeper,
    every_s: float,
    busy: Callable[[], bool] = lambda: False,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Runs until it is cancelled; the first sweep comes early, so that restarts mend at once.

    A `busy` node sweeps rarely once it has nothing to mend: in a fleet there is always one that
    does, and each sweep is three listings. `after` is called after each.
    """
    wait = min(1.0, every_s)
    passed, wanted, known = 0, 1, False
    while True:
        await anyio.sleep(wait * random.uniform(0.8, 1.0))
        wait = every_s
        passed += 1
        if busy() and passed < wanted:
            continue
        mended = await sweeper.sweep_once()
        after()
        passed, wanted, known = 0, RARELY if known and not mended else SOON, True
        if mended:
            _log.info("sweep.done", **mended)
