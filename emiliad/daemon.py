"""The composition root: the daemon as a pipeline of actors between the queue and the GPUs.

It reads top to bottom: what the daemon shows of itself and how it is told to stop (`run`), what
goes on behind the work (`_operate`), and the work itself, the way of a task (`_flow`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import anyio
from anyio import create_memory_object_stream
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from emiliad import signals
from emiliad.actors import (
    announce,
    autokick,
    claim,
    execute,
    observe,
    prefetch,
    renew,
    sweep,
    upload,
)
from emiliad.assembly import Node, assemble
from emiliad.board import Board
from emiliad.config import Config, Settings
from emiliad.executor.deadline import Deadline
from emiliad.executor.keeper import Keeper, Upkeep
from emiliad.health.heartbeat import Heartbeat
from emiliad.health.server import HealthServer
from emiliad.metrics import Metrics
from emiliad.notify import Notifier
from emiliad.outcomes import Outcomes
from emiliad.stop import Stop
from emiliad.types import Claim, Outcome, Prefetched, Processed


async def run(
    settings: Settings,
    *,
    exit_when_empty: bool = False,
    end_within: Callable[[float], None] = lambda seconds: None,
) -> Counter[Outcome]:
    """Runs until it is told to stop, or with `exit_when_empty` until every task is settled.

    The first SIGTERM or SIGINT drains, the second stops now; both end with no lease held. When that
    begins, `end_within` hears how many seconds later the process should be gone, whatever hangs.
    Returns how many attempts ended which way. Raises EmiliadError when this machine or the store
    cannot do the work.
    """
    config = settings.daemon
    metrics = Metrics()
    board = Board(metrics)
    notifier = Notifier.from_env(os.environ)
    heartbeat = Heartbeat(lag=metrics.loop_lag_seconds, stalls=metrics.loop_stalls)

    def told(state: str, within_s: float) -> None:
        board.enter(state)
        notifier.stopping()
        end_within(within_s)

    stop = Stop(config.drain_timeout_s, told=told)
    totals: Counter[Outcome] = Counter()
    with _served(config, metrics, board, heartbeat):
        async with anyio.create_task_group() as beside:
            beside.start_soon(signals.obey, stop, board.snapshot)
            beside.start_soon(heartbeat.run)
            beside.start_soon(partial(announce.run, notifier=notifier, board=board))
            beside.start_soon(_watch_the_cluster, settings, metrics, board, stop)
            async with AsyncExitStack() as stack:
                node: Node | None = None
                with stop.assembly:
                    node = await assemble(settings, metrics, board, stack)
                if node is not None:
                    totals = await _work(node, stop, notifier, exit_when_empty=exit_when_empty)
            beside.cancel_scope.cancel()
    return totals


async def _watch_the_cluster(
    settings: Settings, metrics: Metrics, board: Board, stop: Stop
) -> None:
    """The autokicker, until the daemon drains: then another one takes over at once."""

    def report(status: Mapping[str, Any], problem: str | None) -> None:
        if status.get("state") != "off":
            board.fact(autokick=dict(status))
        board.problem("autokick", problem)

    with stop.aside:
        await autokick.run(
            settings=settings.autokick, metrics=metrics.autokick, embedded=True, report=report
        )


@contextmanager
def _served(config: Config, metrics: Metrics, board: Board, heartbeat: Heartbeat) -> Iterator[None]:
    """Health, metrics and the page, from before the models load until all is over."""
    server = HealthServer(
        port=config.http_port,
        registry=metrics.registry,
        status=board.snapshot,
        ready=board.not_ready,
        alive=heartbeat.not_alive,
    )
    server.start()
    try:
        yield
    finally:
        server.close()


async def _work(
    node: Node, stop: Stop, notifier: Notifier, *, exit_when_empty: bool
) -> Counter[Outcome]:
    """Works to the end, and hands back what is held then, however it came."""
    try:
        await _operate(node, stop, notifier, exit_when_empty=exit_when_empty)
    finally:
        node.board.enter("stopping")
        with anyio.move_on_after(stop.last_words_s, shield=True):
            await node.leases.release_all()
    totals = Counter(node.outcomes.totals)
    totals[Outcome.FAILED] += node.leases.given_up
    return totals


async def _operate(node: Node, stop: Stop, notifier: Notifier, *, exit_when_empty: bool) -> None:
    """The flow, and behind it what keeps leases alive, mends the queue and looks around."""
    leases, metrics = node.leases, node.metrics
    ttl_s = node.settings.daemon.lease_ttl_s
    async with anyio.create_task_group() as behind:
        behind.start_soon(partial(renew.run, leases=leases, metrics=metrics, ttl_s=ttl_s))
        behind.start_soon(
            partial(
                sweep.run,
                sweeper=node.sweeper,
                every_s=ttl_s,
                busy=lambda: bool(leases.held),
                after=partial(_count_dead_letters, node),
            )
        )
        behind.start_soon(
            partial(
                observe.run, board=node.board, metrics=metrics, leases=leases, scratch=node.scratch
            )
        )
        behind.start_soon(_once_ready, node, notifier)
        with stop.work:
            await _flow(node, stop, exit_when_empty=exit_when_empty)
        behind.cancel_scope.cancel()


def _count_dead_letters(node: Node) -> None:
    if node.sweeper.dead_letters is not None:
        node.metrics.failed_tasks.set(node.sweeper.dead_letters)


async def _once_ready(node: Node, notifier: Notifier) -> None:
    await node.crew.ready.wait()
    if node.board.state == "starting":
        node.board.enter("running")
        notifier.ready()


async def _flow(node: Node, stop: Stop, *, exit_when_empty: bool) -> None:
    """The way of a task: claim -> prefetch -> execute -> upload; closing a stream ends the next."""
    claims_in, claims_out = create_memory_object_stream[Claim](0)
    ready_in, ready_out = create_memory_object_stream[Prefetched](node.widths.waiting)
    done_in, done_out = create_memory_object_stream[Processed](0)
    async with anyio.create_task_group() as work:
        with ready_out, done_in, done_out:
            _start_uploads(work, node, done_out)
            _start_executors(work, node, ready_out, done_in)
            with stop.intake, ready_in, claims_out:
                async with anyio.create_task_group() as intake:
                    _start_prefetches(intake, node, claims_out, ready_in)
                    _start_claims(intake, node, claims_in, exit_when_empty=exit_when_empty)
            node.crew.dismiss()
            await _release_waiting(ready_out, node.outcomes)


def _start_claims(
    group: TaskGroup, node: Node, outbox: MemoryObjectSendStream[Claim], *, exit_when_empty: bool
) -> None:
    config = node.settings.daemon
    group.start_soon(
        partial(
            claim.run,
            outbox,
            leases=node.leases,
            outcomes=node.outcomes,
            metrics=node.metrics,
            crew=node.crew,
            room=node.room,
            at_once=node.widths.claims,
            poll_s=config.poll_s or _poll_s(config),
            exit_when_empty=exit_when_empty,
        )
    )


def _start_prefetches(
    group: TaskGroup,
    node: Node,
    inbox: MemoryObjectReceiveStream[Claim],
    outbox: MemoryObjectSendStream[Prefetched],
) -> None:
    for _ in range(node.widths.downloads):
        group.start_soon(
            partial(
                prefetch.run,
                inbox.clone(),
                outbox.clone(),
                store=node.store,
                room=node.room,
                outcomes=node.outcomes,
                full_disk_wait_s=node.settings.daemon.retry_backoff_s,
            )
        )


def _start_executors(
    group: TaskGroup,
    node: Node,
    inbox: MemoryObjectReceiveStream[Prefetched],
    outbox: MemoryObjectSendStream[Processed],
) -> None:
    config = node.settings.daemon
    for executor in node.executors:
        upkeep = Upkeep.of(config)
        group.start_soon(
            partial(
                execute.run,
                inbox.clone(),
                outbox.clone(),
                keeper=Keeper(executor, upkeep=upkeep, board=node.board, crew=node.crew),
                leases=node.leases,
                outcomes=node.outcomes,
                deadline=Deadline.of(config),
            )
        )


def _start_uploads(
    group: TaskGroup, node: Node, inbox: MemoryObjectReceiveStream[Processed]
) -> None:
    for _ in range(node.widths.uploads):
        group.start_soon(
            partial(upload.run, inbox.clone(), publisher=node.publisher, outcomes=node.outcomes)
        )


async def _release_waiting(
    waiting: MemoryObjectReceiveStream[Prefetched], outcomes: Outcomes
) -> None:
    """Hands back what was fetched but not begun when the daemon was told to stop, all at once."""
    items: list[Prefetched] = []
    with suppress(anyio.WouldBlock, anyio.EndOfStream):
        while True:
            items.append(waiting.receive_nowait())
    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(outcomes.stopped, item.claim, item.workdir)


def _poll_s(config: Config) -> float:
    """A look costs money where requests are paid for."""
    return 5.0 if config.store_url.startswith("file:") else 60.0
