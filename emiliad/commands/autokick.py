"""`emiliad autokick`: the autokicker alone, for when no daemon pod may be left running."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
from prometheus_client import CollectorRegistry, ProcessCollector

from emiliad import logs
from emiliad.actors import autokick
from emiliad.config import Settings
from emiliad.health.heartbeat import Heartbeat
from emiliad.health.server import HealthServer
from emiliad.metrics import AutokickMetrics

_log = logs.get("autokick")


def run(settings: Settings, *, dry_run: bool) -> int:
    """Runs until SIGTERM or SIGINT; a dry run prints on stdout what it would do, and why.

    Raises ConfigError or NoCluster where it cannot work.
    """
    if dry_run:
        anyio.run(_look, settings)
    else:
        anyio.run(_serve, settings)
    return 0


async def _look(settings: Settings) -> None:
    work = partial(
        autokick.run,
        settings=settings.autokick,
        metrics=AutokickMetrics(CollectorRegistry()),
        embedded=False,
        would=partial(print, flush=True),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(_until_told, group.cancel_scope)
        await work()


async def _serve(settings: Settings) -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # memory and restarts are watched, as a daemon's are
    status = _Status()
    heartbeat = Heartbeat()
    server = HealthServer(
        port=settings.daemon.http_port,
        registry=registry,
        status=status.snapshot,
        ready=status.not_ready,
        alive=heartbeat.not_alive,
    )
    with ExitStack() as stack:
        server.start()
        stack.callback(server.close)
        async with anyio.create_task_group() as group:
            group.start_soon(_until_told, group.cancel_scope)
            group.start_soon(heartbeat.run)
            await autokick.run(
                settings=settings.autokick,
                metrics=AutokickMetrics(registry),
                embedded=False,
                report=status.take,
            )
            # AUTOKICK_MODE=off: there is nothing to do but to answer probes.
            await anyio.sleep_forever()


class _Status:
    """What the pages show; taken from the event loop, read from the server's threads."""

    def __init__(self) -> None:
        self._now: tuple[Mapping[str, Any], str | None] = {"state": "starting"}, None

    def take(self, status: Mapping[str, Any], problem: str | None) -> None:
        """Replaces what is shown."""
        self._now = status, problem

    def snapshot(self) -> dict[str, Any]:
        """The autokicker's status, with what is wrong."""
        status, problem = self._now
        return {"autokick": dict(status), "problem": problem}

    def not_ready(self) -> str | None:
        """Ready is who has seen the lease, as the one that writes or as one that waits."""
        status, problem = self._now
        if status.get("candidate") or status.get("state") == "off":
            return None
        return problem or "the cluster was not seen yet"


async def _until_told(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("autokick.stop", signal=number.name)
            scope.cancel()
            return
