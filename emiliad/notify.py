"""Tells systemd how the daemon fares: sd_notify(3), on its datagram socket.

One datagram of VARIABLE=value lines a message, to the socket that NOTIFY_SOCKET names: a path, or
an abstract name that begins with `@`. Without the variable nothing is sent. What cannot be sent is
dropped: the daemon works on without its supervisor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # of no concern to child processes
_STATUS_CHARS = 200
_LEAST_WATCHDOG_S = 0.1


@dataclass(frozen=True, slots=True)
class Notifier:
    """`address` is that of the socket; `watchdog_s` the seconds after which systemd expects a
    sign of life, if it does."""

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Notifier:
        """As systemd's variables say; a malformed one counts as absent."""
        name = env.get("NOTIFY_SOCKET", "")
        if not name.startswith(("/", "@")) or len(name) < 2:
            return cls()
        address = "\0" + name[1:] if name.startswith("@") else name
        return cls(address, _watchdog_s(env))

    def ready(self) -> None:
        """Start-up is over."""
        self._send("READY=1")

    def status(self, sentence: str) -> None:
        """What `systemctl status` shows."""
        self._send(f"STATUS={' '.join(sentence.split())[:_STATUS_CHARS]}")

    def alive(self) -> None:
        """The sign of life that the watchdog waits for."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Start-up takes so many seconds longer, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if self.address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a supervisor that does not read must not stop the loop
            sender.sendto(message.encode(errors="replace"), self.address)


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    """Seconds; None if no watchdog is set, or that of another process."""
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(env.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return max(seconds, _LEAST_WATCHDOG_S) if seconds > 0 else None
