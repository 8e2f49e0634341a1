"""The composition root: the daemon as a pipeline of actors between the queue and the GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
from anyio import create_memory_object_stream
from anyio.streams.memory import MemoryObjectReceiveStream

from emiliad import logs
from emiliad.actors import claim, execute, prefetch, renew, sweep, upload
from emiliad.board import Board
from emiliad.bucket import UPLOADERS, opened
from emiliad.config import Config, Settings
from emiliad.crew import Crew
from emiliad.executor.deadline import Deadline
from emiliad.executor.host import Executor
from emiliad.executor.keeper import Keeper, Upkeep
from emiliad.fleet import build_executors
from emiliad.metrics import Metrics
from emiliad.outcomes import Outcomes
from emiliad.probe import honours_conditions
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.scratch import Scratch
from emiliad.store import Store
from emiliad.types import Claim, Outcome, Prefetched, Processed

_LAST_WORDS_S = 5.0  # seconds that handing back the leases may take at the very end
_log = logs.get("daemon")


@dataclass(frozen=True, slots=True)
class Daemon:
    """One node's daemon, put together but not yet running."""

    settings: Settings
    store: Store
    scratch: Scratch
    leases: Leases
    publisher: Publisher
    sweeper: Sweeper
    metrics: Metrics
    board: Board
    outcomes: Outcomes
    executors: tuple[Executor, ...]


async def run(settings: Settings, *, exit_when_empty: bool = False) -> Counter[Outcome]:
    """Runs until it is told to stop, or with `exit_when_empty` until every task is settled.

    The first SIGTERM or SIGINT drains, the second stops now; both end with no lease held. Returns
    how many attempts ended which way. Raises EmiliadError when this machine or the store cannot do
    the work.
    """
    async with AsyncExitStack() as stack:
        daemon = await _assemble(settings, stack)
        try:
            await _operate(daemon, exit_when_empty=exit_when_empty)
        finally:
            with anyio.move_on_after(_LAST_WORDS_S, shield=True):
                await daemon.leases.release_all()
        totals = Counter(daemon.outcomes.totals)
        totals[Outcome.FAILED] += daemon.leases.given_up
        return totals


async def _assemble(settings: Settings, stack: AsyncExitStack) -> Daemon:
    config = settings.daemon
    metrics = Metrics()
    bucket = await stack.enter_async_context(
        opened(config, observe=metrics.store_answered, transferred=metrics.transferred)
    )
    store, layout = bucket.store, bucket.layout
    if bucket.remote:
        await honours_conditions(store, layout.probes)
    scratch = Scratch(config.scratch_dir)
    stack.callback(scratch.close)
    outputs = Outputs(store, layout, concurrency=config.upload_concurrency)
    leases = Leases(
        store,
        layout,
        owner=scratch.owner,
        ttl_s=config.lease_ttl_s,
        max_attempts=config.max_attempts,
        retry_backoff_s=config.retry_backoff_s,
        write_spacing_s=bucket.write_spacing_s,
        outputs=outputs,
    )
    executors = await anyio.to_thread.run_sync(build_executors, settings, dict(os.environ))
    outcomes = Outcomes(leases, scratch, metrics)
    publisher = Publisher(store, layout, leases, outputs=outputs)
    sweeper = Sweeper(store, layout, ttl_s=config.lease_ttl_s, outputs=outputs)
    return Daemon(
        settings,
        store,
        scratch,
        leases,
        publisher,
        sweeper,
        metrics,
        Board(metrics),
        outcomes,
        executors,
    )


async def _operate(daemon: Daemon, *, exit_when_empty: bool) -> None:
    config = daemon.settings.daemon
    stop = _Stop(config.drain_timeout_s, Crew(executor.name for executor in daemon.executors))
    async with anyio.create_task_group() as background:
        background.start_soon(_obey_signals, stop)
        background.start_soon(
            partial(
                renew.run, leases=daemon.leases, metrics=daemon.metrics, ttl_s=config.lease_ttl_s
            )
        )
        background.start_soon(
            partial(
                sweep.run,
                sweeper=daemon.sweeper,
                every_s=config.lease_ttl_s,
                busy=lambda: bool(daemon.leases.held),
            )
        )
        with stop.work:
            await _flow(daemon, stop, exit_when_empty=exit_when_empty)
        background.cancel_scope.cancel()


async def _flow(daemon: Daemon, stop: _Stop, *, exit_when_empty: bool) -> None:
    """The way of a task: claim -> prefetch -> execute -> upload; closing a stream ends the next."""
    config = daemon.settings.daemon
    claims_in, claims_out = create_memory_object_stream[Claim](0)
    ready_in, ready_out = create_memory_object_stream[Prefetched](config.prefetch_depth)
    done_in, done_out = create_memory_object_stream[Processed](0)
    upkeep = Upkeep.of(config)
    async with anyio.create_task_group() as work:
        for executor in daemon.executors:
            work.start_soon(
                partial(
                    execute.run,
                    ready_out.clone(),
                    done_in.clone(),
                    keeper=Keeper(executor, upkeep=upkeep, board=daemon.board, crew=stop.crew),
                    leases=daemon.leases,
                    outcomes=daemon.outcomes,
                    deadline=Deadline.of(config),
                )
            )
        for _ in range(UPLOADERS):
            work.start_soon(
                partial(
                    upload.run,
                    done_out.clone(),
                    publisher=daemon.publisher,
                    outcomes=daemon.outcomes,
                )
            )
        done_in.close()
        done_out.close()
        async with ready_out:
            with stop.intake:
                await stop.ready.wait()
                async with anyio.create_task_group() as intake:
                    intake.start_soon(
                        partial(
                            claim.run,
                            claims_in,
                            leases=daemon.leases,
                            outcomes=daemon.outcomes,
                            metrics=daemon.metrics,
                            crew=stop.crew,
                            poll_s=config.poll_s or _poll_s(config),
                            exit_when_empty=exit_when_empty,
                        )
                    )
                    intake.start_soon(
                        partial(
                            prefetch.run,
                            claims_out,
                            ready_in,
                            store=daemon.store,
                            scratch=daemon.scratch,
                            outcomes=daemon.outcomes,
                            full_disk_wait_s=config.retry_backoff_s,
                        )
                    )
            stop.crew.dismiss()
            await _release_waiting(ready_out, daemon.outcomes)
        ready_in.close()


async def _release_waiting(
    waiting: MemoryObjectReceiveStream[Prefetched], outcomes: Outcomes
) -> None:
    """Hands back what was fetched but not begun when the daemon was told to stop."""
    with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
        while True:
            item = waiting.receive_nowait()
            await outcomes.released(item.claim, item.workdir, why="the daemon stops")


class _Stop:
    """How the daemon ends: `intake` is cancelled to drain, `work` to stop."""

    def __init__(self, drain_timeout_s: float, crew: Crew) -> None:
        self.intake = anyio.CancelScope()
        self.work = anyio.CancelScope()
        self.crew = crew
        self.ready = crew.ready
        self.drain_timeout_s = drain_timeout_s

    def drain(self) -> None:
        """Takes no more work; running work has until the deadline."""
        self.intake.cancel()
        self.work.deadline = anyio.current_time() + self.drain_timeout_s
        if not self.ready.is_set():
            self.work.cancel()

    def now(self) -> None:
        """Cancels running work too."""
        self.work.cancel()


async def _obey_signals(stop: _Stop) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        draining = False
        async for number in signals:
            if draining:
                _log.warning("daemon.stop_now", signal=number.name)
                stop.now()
                return
            _log.info("daemon.drain", signal=number.name, seconds=stop.drain_timeout_s)
            draining = True
            stop.drain()


def _poll_s(config: Config) -> float:
    """A look costs money where requests are paid for."""
    return 5.0 if config.store_url.startswith("file:") else 60.0
