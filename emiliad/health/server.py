"""/livez /readyz /healthz /metrics /status and the page, from a thread of their own.

The event loop has no part in answering, so that one that stands still can be told from one that
turns. A daemon wires it up like this, with a `Board` and a `Metrics` at hand:

    heartbeat = Heartbeat(lag=metrics.loop_lag_seconds, stalls=metrics.loop_stalls)
    server = HealthServer(
        port=config.http_port,
        registry=metrics.registry,
        status=board.snapshot,
        ready=board.not_ready,
        alive=heartbeat.not_alive,
    )
    server.start()                      # before the models load: probes ask from the start
    stack.callback(server.close)        # last of all: a drain can be watched to its end
    ...
    group.start_soon(heartbeat.run)

Anything else that has a registry and can tell its status uses it in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from emiliad import logs
from emiliad.errors import ConfigError
from emiliad.health.listener import Listener, listen
from emiliad.health.page import page

Reason: TypeAlias = Callable[[], str | None]  # why not; None if all is well

_TIMEOUT_S = 5.0  # for which a client may keep silent
_LEFTOVERS = 1 << 16  # bytes of a body nobody asked for that are read away, so that closing the
# connection does not reset it before the client has read the answer
_SECURITY = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NOTHING_ELSE = "default-src 'none'; frame-ancestors 'none'"
_TEXT = "text/plain; charset=utf-8"
_log = logs.get("health")


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = _TEXT
    headers: dict[str, str] = field(default_factory=dict)


class HealthServer:
    """Answers over HTTP on all interfaces; every callable is called from the server's threads."""

    def __init__(
        self,
        *,
        port: int,
        registry: CollectorRegistry,
        status: Callable[[], dict[str, Any]],
        ready: Reason,
        alive: Reason,
    ) -> None:
        self._port = port
        self._registry = registry
        self._status = status
        self._ready = ready
        self._alive = alive
        self._listener: Listener | None = None
        self._routes: dict[str, Callable[[str], _Reply]] = {
            "/": lambda _: self._page(),
            "/livez": lambda _: _verdict(self._alive()),
            "/healthz": lambda _: _verdict(self._alive()),
            "/readyz": lambda _: self._readiness(),
            "/metrics": self._metrics,
            "/status": lambda _: self._as_json(),
        }

    def start(self) -> None:
        """Listens and answers from now on. Raises ConfigError if the port cannot be had."""
        page()  # a package without its page fails here and not when somebody looks
        try:
            self._listener = listen(self._port, self._handler())
        except OSError as error:
            raise ConfigError(_why_not(self._port, error)) from error
        threading.Thread(target=self._listener.serve, name="health", daemon=True).start()
        _log.info("health.listening", port=self.port)

    @property
    def port(self) -> int:
        """The port in use: that of the setting, or the one that was free."""
        return self._port if self._listener is None else self._listener.port

    def close(self) -> None:
        """Answers no more; does nothing if it does not listen."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.shutdown()
            listener.server_close()

    def answer(self, path: str, accept: str) -> _Reply:
        """The reply to a GET."""
        route = self._routes.get(path)
        if route is None:
            known = " ".join(self._routes)
            return _text(HTTPStatus.NOT_FOUND, f"not found; there are: {known}")
        try:
            return route(accept)
        except Exception as error:  # noqa: BLE001 - one page that fails must not hide the others
            _log.exception("health.failed", path=path)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path} failed: {error!r}")

    def _readiness(self) -> _Reply:
        """Ready as long as a task can be processed; what is wrong all the same is named."""
        reason = self._ready()
        problems = [] if reason else [each["text"] for each in self._status().get("problems", ())]
        if problems:
            return _text(HTTPStatus.OK, f"ok, but degraded: {'; '.join(problems)}")
        return _verdict(reason)

    def _page(self) -> _Reply:
        policy = {"Content-Security-Policy": page().policy}
        return _Reply(page().html, content_type="text/html; charset=utf-8", headers=policy)

    def _metrics(self, accept: str) -> _Reply:
        encode, content_type = _encoder(accept)
        return _Reply(encode(self._registry), content_type=content_type)

    def _as_json(self) -> _Reply:
        # A status is told even while the loop stands still; it must say so, for it is stale.
        status = {**self._status(), "not_alive": self._alive(), "not_ready": self._ready()}
        body = json.dumps(_finite(status), default=str, allow_nan=False)
        return _Reply(body.encode(), content_type="application/json")

    def _handler(self) -> type[_Handler]:
        """The handler's class, with this server to ask; the standard library wants a class."""
        return type("Handler", (_Handler,), {"health": self})


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    health: HealthServer
    protocol_version = "HTTP/1.1"
    server_version = "emiliad"
    sys_version = ""
    timeout = _TIMEOUT_S
    wbufsize = -1  # one packet for headers and body, where they fit

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self._send(self.health.answer(path, self.headers.get("Accept", "")))

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is wrong with a request, found by the base class, in plain text."""
        status = HTTPStatus(code)
        headers = {}
        if status is HTTPStatus.NOT_IMPLEMENTED:  # so it calls a method without a do_<method>
            status, headers = HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"}
        self._send(_Reply(f"{status.phrase}\n".encode(), status, headers=headers))
        self._read_away()

    def _send(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        headers = {
            "Content-Type": reply.content_type,
            "Content-Length": str(len(reply.body)),
            "Connection": "close",
            "Content-Security-Policy": _NOTHING_ELSE,
            **_SECURITY,
            **reply.headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _read_away(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read(_LEFTOVERS)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: probes come every few seconds."""


def _verdict(reason: str | None) -> _Reply:
    if reason is None:
        return _text(HTTPStatus.OK, "ok")
    return _text(HTTPStatus.SERVICE_UNAVAILABLE, reason)


def _text(status: HTTPStatus, sentence: str) -> _Reply:
    return _Reply(f"{sentence}\n".encode(errors="backslashreplace"), status)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accept)
    except (ValueError, TypeError):  # a version that is no version
        return choose_encoder("")


def _finite(value: Any) -> Any:
    """The value without NaN and infinity, which JSON cannot hold."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _why_not(port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            why = "is in use by another process: end that one, or choose another port (0: any)"
        case errno.EACCES:
            why = "is not open to this user: choose one from 1024 on"
        case _:
            why = f"cannot be listened on: {error.strerror}"
    return f"HTTP_PORT {port} {why}"
