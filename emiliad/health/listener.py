"""A TCP server with a thread for each connection: few at a time, and none for long."""

from __future__ import annotations

import contextlib
import errno
import socket
import socketserver
import threading
import time
from typing import Any

_AT_ONCE = 64  # connections; a page, a scraper and the probes need about five
_PATIENCE_S = 10.0  # for which a connection may last, whatever trickles over it; probes wait 1 to 5
_LOOK_S = 0.25  # between two looks for connections that are overdue
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


class Listener(socketserver.TCPServer):
    """Listens on all interfaces, IPv4 and IPv6 alike.

    A client that is slow, or says nothing, holds a thread for ten seconds; when all threads are
    taken, the oldest connection goes, so that a new one (a probe, perhaps) is always served.
    """

    allow_reuse_address = True  # a daemon that restarts takes its port back from TIME_WAIT
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type, family: socket.AddressFamily):
        self.address_family = family
        self._open: dict[socket.socket, float] = {}  # since when, the oldest first
        self._table = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def serve(self) -> None:
        """Runs until `shutdown`."""
        self.serve_forever(_LOOK_S)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()
        except OSError:
            time.sleep(_LOOK_S)  # out of descriptors: the caller would ask again at once, for ever
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._table:
            self._open[request] = time.monotonic()
            if len(self._open) > _AT_ONCE:
                self._hang_up(next(iter(self._open)))
        work = threading.Thread(
            target=self._serve, args=(request, client_address), name="http", daemon=True
        )
        work.start()

    def service_actions(self) -> None:
        overdue = time.monotonic() - _PATIENCE_S
        with self._table:
            for request in [r for r, since in self._open.items() if since < overdue]:
                self._hang_up(request)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            # What a client does to its connection is its own affair: nothing to log.
            with contextlib.suppress(OSError):
                self.finish_request(request, client_address)
        finally:
            with self._table:
                self._open.pop(request, None)
            self.shutdown_request(request)

    def _hang_up(self, request: socket.socket) -> None:
        """Wakes the connection's thread, whatever it waits for; that thread closes it."""
        del self._open[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


def listen(port: int, handler: type) -> Listener:
    """Listens on `port`, 0 for any free one. Raises OSError."""
    try:
        return Listener(("::", port), handler, socket.AF_INET6)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return Listener(("0.0.0.0", port), handler, socket.AF_INET)
