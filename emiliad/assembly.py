"""Puts one node's daemon together: its store, its disk, its leases, its executors."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import anyio.to_thread

from emiliad import __version__, notify
from emiliad.board import Board
from emiliad.bucket import opened
from emiliad.config import Config, Settings
from emiliad.credentials import with_credentials
from emiliad.crew import Crew
from emiliad.executor.host import Executor
from emiliad.fleet import build_executors
from emiliad.metrics import Metrics
from emiliad.outcomes import Outcomes
from emiliad.probe import honours_conditions
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.room import Room
from emiliad.scratch import Scratch
from emiliad.store import Store
from emiliad.stores import is_remote
from emiliad.widths import Widths, requests

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon that is put together and does not run yet."""

    settings: Settings
    metrics: Metrics
    board: Board
    widths: Widths
    store: Store
    scratch: Scratch
    room: Room
    leases: Leases
    publisher: Publisher
    sweeper: Sweeper
    outcomes: Outcomes
    crew: Crew
    executors: tuple[Executor, ...]


async def assemble(
    settings: Settings, metrics: Metrics, board: Board, stack: AsyncExitStack
) -> Node:
    """Looks for GPUs, opens the store and scratch space; `stack` closes them again.

    Raises ConfigError when a setting is wrong, StoreUnusable when the store is of no use.
    """
    config = settings.daemon
    _introduce(board, metrics, config)
    scratch = Scratch(config.scratch_dir)
    stack.callback(scratch.close)
    environment = _of_children(os.environ)
    executors = await anyio.to_thread.run_sync(build_executors, settings, environment)
    widths = Widths.of(config, len(executors))
    board.fact(owner=scratch.owner, widths=asdict(widths), most_leases=widths.most_leases)
    bucket = await stack.enter_async_context(
        opened(
            config,
            requests=requests(config, widths),
            observe=board.store_answered,
            transferred=metrics.transferred,
        )
    )
    store, layout = bucket.store, bucket.layout
    if bucket.remote:
        await honours_conditions(store, layout.probes)
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
    metrics.leases_held.set_function(lambda: len(leases.held))
    room = Room(
        scratch,
        limit_bytes=None if config.scratch_limit_gb is None else int(config.scratch_limit_gb * _GB),
        board=board,
        metrics=metrics,
    )
    return Node(
        settings,
        metrics,
        board,
        widths,
        store,
        scratch,
        room,
        leases,
        Publisher(store, layout, leases, outputs=outputs),
        Sweeper(store, layout, ttl_s=config.lease_ttl_s, outputs=outputs),
        Outcomes(leases, room, metrics, board),
        Crew(executor.name for executor in executors),
        executors,
    )


def _introduce(board: Board, metrics: Metrics, config: Config) -> None:
    """What is known of the daemon before it does anything; no secret is in it."""
    metrics.info.labels(__version__).set(1)
    board.fact(
        version=__version__,
        node=socket.gethostname(),
        pid=os.getpid(),
        pipeline=config.pipeline,
        store_url=_store_name(config),
        lease_ttl_s=config.lease_ttl_s,
        drain_timeout_s=config.drain_timeout_s,
    )


def _store_name(config: Config) -> str:
    """Where the queue is, without what an endpoint may hide before or behind its host."""
    if not is_remote(config.store_url):
        return config.store_url
    bucket = urlsplit(config.store_url).hostname or config.r2_bucket
    return f"s3://{bucket} at {urlsplit(config.r2_endpoint_url).hostname}"


def _of_children(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for executors: with the credentials file, without systemd's variables."""
    return {k: v for k, v in with_credentials(env).items() if k not in notify.OURS}
