"""What each signal asks of the daemon.

SIGTERM, SIGINT  once: drain; twice: stop now; more: nothing
SIGHUP           log the status, and where every task of the event loop waits
SIGUSR1          write the stack of every thread to stderr, even if the loop stands still
"""

from __future__ import annotations

import asyncio
import faulthandler
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CoroutineType, FrameType
from typing import Any, NoReturn

import anyio
from anyio import create_memory_object_stream
from anyio.streams.memory import MemoryObjectReceiveStream

from emiliad import logs
from emiliad.stop import Stop

_STOPS = (signal.SIGTERM, signal.SIGINT)
_log = logs.get("daemon")


def before_the_loop() -> None:
    """What holds while the daemon holds nothing yet: SIGTERM and SIGINT end it at once, with 0."""
    for number in _STOPS:
        signal.signal(number, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


async def obey(stop: Stop, status: Callable[[], dict[str, Any]]) -> None:
    """Runs until it is cancelled; from then on the signals are ignored, for the process ends."""
    with _heard(*_STOPS, signal.SIGHUP) as signals:
        async for number in signals:
            if number is signal.SIGHUP:
                _log.info("daemon.status", status=status(), waiting=_where_tasks_wait())
            elif stop.draining:
                _log.warning("daemon.stop_now", signal=number.name)
                stop.now()
            else:
                _log.info("daemon.drain", signal=number.name, seconds=stop.drain_timeout_s)
                stop.drain()


@contextmanager
def _heard(*numbers: signal.Signals) -> Iterator[MemoryObjectReceiveStream[signal.Signals]]:
    """The signals as they come.

    Not anyio's receiver: when that closes, the default action is in force for a moment, and a
    third SIGTERM would kill a daemon that is about to hand its leases back.
    """
    loop = asyncio.get_running_loop()
    noted, heard = create_memory_object_stream[signal.Signals](math.inf)

    def put(number: signal.Signals) -> None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            noted.send_nowait(number)

    def note(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(put, signal.Signals(number))

    for number in numbers:
        signal.signal(number, note)
    try:
        with noted, heard:
            yield heard
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _where_tasks_wait() -> list[str]:
    """Each task of the event loop, and the line that each of its coroutines waits in."""
    return sorted(
        f"{task.get_name()}: {' > '.join(_awaited(task.get_coro()))}"
        for task in asyncio.all_tasks()
    )


def _awaited(coroutine: Any) -> Iterator[str]:
    while isinstance(coroutine, CoroutineType):
        frame = coroutine.cr_frame
        if frame is not None:
            code = frame.f_code
            module = frame.f_globals.get("__name__", "")
            yield f"{module}.{code.co_qualname}:{frame.f_lineno}"
        coroutine = coroutine.cr_await
