"""A health server for tests, and what a client makes of its answers."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from emiliad.health.server import HealthServer
from emiliad.metrics import Metrics


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@contextmanager
def serving(
    *,
    port: int = 0,
    registry: CollectorRegistry | None = None,
    status: Callable[[], dict[str, Any]] = dict,
    ready: Callable[[], str | None] = lambda: None,
    alive: Callable[[], str | None] = lambda: None,
) -> Iterator[HealthServer]:
    """A server that answers during the block."""
    server = HealthServer(
        port=port,
        registry=registry or Metrics().registry,
        status=status,
        ready=ready,
        alive=alive,
    )
    server.start()
    try:
        yield server
    finally:
        server.close()


def ask(
    server: HealthServer,
    path: str,
    method: str = "GET",
    *,
    host: str = "127.0.0.1",
    body: bytes | None = None,
    **headers: str,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(host, server.port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()
