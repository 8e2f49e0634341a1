"""Looks now and then at what changes by itself: the disk, the leases' age, the queue's outlook."""

from __future__ import annotations

from dataclasses import asdict

import anyio
import anyio.to_thread

from emiliad.board import Board
from emiliad.metrics import Metrics
from emiliad.queue.leases import Leases
from emiliad.scratch import Scratch

_EVERY_S = 2.0


async def run(*, board: Board, metrics: Metrics, leases: Leases, scratch: Scratch) -> None:
    """Runs until it is cancelled."""
    while True:
        oldest = leases.oldest_write_s
        board.fact(
            outlook=asdict(leases.outlook),
            oldest_renewal_s=None if oldest is None else round(oldest, 3),
        )
        board.count_time()
        try:
            used = await anyio.to_thread.run_sync(scratch.used_bytes)
            free = await anyio.to_thread.run_sync(scratch.free_bytes)
        except OSError as error:
            board.problem("scratch_reading", f"scratch space cannot be looked at: {error}")
        else:
            board.problem("scratch_reading", None)
            metrics.scratch_bytes.set(used)
            metrics.scratch_free_bytes.set(free)
        await anyio.sleep(_EVERY_S)
