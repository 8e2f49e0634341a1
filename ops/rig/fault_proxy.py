"""A proxy in front of an S3 server that loses, delays, breaks and invents answers, as told.

It understands HTTP, so that a fault hits a request as a whole: not applied, applied with the answer
lost, applied long after the client has given up. The Host header stays the client's, for it is
signed. Runs in a thread of its own; `rule` is called there with each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")
_START_S = 10.0
_ERRORS = {
    404: "NoSuchUpload",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request; `number` counts from 1 over all connections."""

    number: int
    method: str
    path: str  # decoded, with the bucket
    query: str
    headers: dict[str, str]  # lower-case names
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong with a request.

    `answer`: "" the server's own, "reset" the connection, "hang" for ever, "cut" the server's own
    up to the middle of its body, or an HTTP status with S3's error. `applied`: whether the server
    gets the request at all. `late_s`: seconds until it does, be the client gone or not.
    `drip_s`: seconds between two pieces of the answer's body.
    """

    answer: str | int = ""
    applied: bool = True
    late_s: float = 0.0
    drip_s: float = 0.0


Rule = Callable[[Exchange], Fault | None]


class FaultProxy:
    """Use `running`. `applied` lists what the server was given, as (method, path)."""

    def __init__(self, upstream: str, rule: Rule) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port or 80)
        self.rule = rule
        self.seen: list[Exchange] = []
        self.applied: list[tuple[str, str]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        """What the client is to take for the server."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[FaultProxy]:
        """Serves for the length of a block."""
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            self.up()
            yield self
        finally:
            self.down()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def up(self) -> None:
        """Listens; after an outage, at the same port as before."""
        self._do(self._listen())

    def down(self) -> None:
        """An outage: every connection is reset, and new ones are refused."""
        self._do(self._close())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            _reset(writer)
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; False if the connection is of no more use."""
        exchange = await self._read(reader)
        fault = self.rule(exchange) or Fault()
        if fault.answer == "hang" and not fault.applied:
            await asyncio.sleep(3600)
        if not fault.applied:
            return await _answer(writer, fault.answer)
        if fault.late_s:
            await asyncio.shield(asyncio.sleep(fault.late_s))
        self.applied.append((exchange.method, exchange.path))
        upstream, to_upstream = await asyncio.open_connection(*self._upstream)
        try:
            to_upstream.write(exchange.raw)
            await to_upstream.drain()
            head = await upstream.readuntil(b"\r\n\r\n")
            if fault.answer in ("", "cut"):
                return await _relay(exchange, head, upstream, writer, fault)
            await upstream.read()
        finally:
            to_upstream.close()
        if fault.answer == "hang":
            await asyncio.sleep(3600)
        return await _answer(writer, fault.answer)

    async def _read(self, reader: asyncio.StreamReader) -> Exchange:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        raw = head[:-2] + b"Connection: close\r\n\r\n" + body
        number = len(self.seen) + 1
        exchange = Exchange(number, method, unquote(parts.path), parts.query, headers, raw)
        self.seen.append(exchange)
        return exchange


async def _relay(
    exchange: Exchange,
    head: bytes,
    upstream: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    fault: Fault,
) -> bool:
    """Passes the server's answer on, or half of it."""
    first, *lines = head.split(b"\r\n")[:-2]
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    sizes = [line.split(b":")[1] for line in kept if line.lower().startswith(b"content-length")]
    framed = bool(sizes) or any(b"chunked" in line.lower() for line in kept)
    framed |= exchange.method == "HEAD" or b" 204 " in first
    writer.write(b"\r\n".join([first, *kept, *([] if framed else [b"Connection: close"])]))
    writer.write(b"\r\n\r\n")
    left = int(sizes[0]) // 2 if fault.answer == "cut" and sizes else None
    while chunk := await upstream.read(min(65536, left) if left is not None else 65536):
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(fault.drip_s)
        if left is not None:
            left -= len(chunk)
            if left <= 0:
                break
    return framed and fault.answer != "cut"


async def _answer(writer: asyncio.StreamWriter, answer: str | int) -> bool:
    """Answers for the server: with an error, or by breaking the connection."""
    if not isinstance(answer, int):
        return False
    code = _ERRORS.get(answer, "Error")
    body = f"<Error><Code>{code}</Code><Message>a fault of the proxy</Message></Error>".encode()
    writer.write(
        b"HTTP/1.1 %d %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s"
        % (answer, code.encode(), len(body), body)
    )
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST instead of FIN: data on its way may be lost, as when a host vanishes."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
