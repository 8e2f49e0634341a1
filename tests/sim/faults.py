"""What goes wrong between a process and the store, and what happens to the process itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from hashlib import md5
from pathlib import Path
from typing import Any, TypeVar

from emiliad.errors import Ambiguous, NotFound, PreconditionFailed, Throttled
from emiliad.store import Object, ObjectInfo, Page, Store

T = TypeVar("T")

TIMEOUT_S = 15.0  # after which a client takes a request for lost
LATEST_S = 300.0  # by which a request may land after it was sent
_SLOW = 0.02  # share of requests that take up to the longest time instead of the usual one
_USUAL_S = 0.5
_LONGEST_S = 10.0


class Fate(StrEnum):
    """What becomes of a request."""

    FINE = "fine"
    LOST = "request lost"
    UNANSWERED = "answer lost"
    REFUSED = "5xx without effect"
    BROKEN = "5xx after the effect"
    LATE = "lands late"  # given up by its sender long before
    ECHO = "lands twice"
    THROTTLED = "429"
    KILLED_BEFORE = "process killed before it"
    KILLED_AFTER = "process killed after it"


_WRITES_ONLY = frozenset({Fate.LATE, Fate.ECHO})


@dataclass(frozen=True, slots=True)
class Weather:
    """How often each fate but FINE strikes, as shares of all requests."""

    odds: tuple[tuple[Fate, float], ...] = ()

    def draw(self, rng: random.Random, *, write: bool) -> Fate:
        """The fate of the next request."""
        dice = rng.random()
        for fate, share in self.odds:
            dice -= share
            if dice < 0:
                return fate if write or fate not in _WRITES_ONLY else Fate.LOST
        return Fate.FINE


def storm(level: float, deadly: float) -> Weather:
    """All faults of the wire, `level` of all requests together, and `deadly` of them kill."""
    faults = [fate for fate in Fate if fate is not Fate.FINE and not fate.name.startswith("KILLED")]
    odds = [(fate, level / len(faults)) for fate in faults]
    return Weather((*odds, (Fate.KILLED_BEFORE, deadly / 2), (Fate.KILLED_AFTER, deadly / 2)))


class History:
    """All that happened, in order; two runs are the same if their digests are."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str, str, str]] = []

    def note(self, who: str, what: str, how: str = "") -> None:
        """Adds an event that happens now."""
        self.lines.append((asyncio.get_running_loop().time(), who, what, how))

    def text(self) -> str:
        """One line for each event."""
        return "\n".join(f"{t:10.3f} {who:12} {what} {how}" for t, who, what, how in self.lines)

    def digest(self) -> str:
        """A hash of all of it."""
        return md5(self.text().encode(), usedforsecurity=False).hexdigest()


class Process:
    """One operating system process: may be frozen, and killed once. Its clock runs at its own rate.

    While it is frozen none of its code runs, because all its code waits for nothing but `rest`.
    """

    def __init__(
        self, name: str, history: History, *, rate: float = 1.0, offset_s: float = 0.0
    ) -> None:
        self.name = name
        self.history = history
        self.dead = asyncio.Event()
        self._rate = rate
        self._offset_s = offset_s
        self._frozen_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.crash: BaseException | None = None
        history.note(name, "starts", f"at clock rate {rate:.2f}")

    def clock(self) -> float:
        """Its monotonic clock, in its own seconds."""
        return self._now() * self._rate + self._offset_s

    async def sleep(self, seconds: float) -> None:
        """Sleeps by its own clock."""
        await self.rest(seconds / self._rate)

    async def rest(self, seconds: float) -> None:
        """Waits in the world's seconds, and longer if it is frozen. The dead wait for ever."""
        await asyncio.sleep(seconds)
        while self._frozen_until > self._now():
            await asyncio.sleep(self._frozen_until - self._now())
        if self.dead.is_set():
            await asyncio.Event().wait()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` in it; an error there is the end of the process."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._done)
        self._tasks.append(task)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash = self.crash or error
            self.kill(f"crashed: {error!r}")

    @property
    def frozen(self) -> bool:
        return self._frozen_until > self._now()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after that."""
        self.history.note(self.name, "freezes", f"for {seconds:.0f} s")
        self._frozen_until = self._now() + seconds

    def cancel(self) -> None:
        """Tells what runs in it to stop; what it does then still counts."""
        for task in self._tasks:
            task.cancel()

    def kill(self, how: str = "is killed") -> None:
        """SIGKILL: nothing that it does afterwards has an effect."""
        if not self.dead.is_set():
            self.history.note(self.name, how)
            self.dead.set()
            self.cancel()

    async def gone(self) -> None:
        """Waits until its code has stopped running."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class Network:
    """Everything between the processes and the store; `weather` may change at any time."""

    def __init__(self, store: Store, rng: random.Random, history: History) -> None:
        self.store = store
        self.rng = rng
        self.history = history
        self.weather = Weather()
        self.under_way: set[asyncio.Task[None]] = set()  # requests that land when they like

    def land_later(self, name: str, what: str, request: Callable[[], Awaitable[object]]) -> None:
        """Delivers a request some time within the next five minutes, most of them soon."""
        delay_s = LATEST_S ** self.rng.random()

        async def land() -> None:
            await asyncio.sleep(delay_s)
            how = await _outcome(request)
            self.history.note(name, what, f"late: {how[1]}")

        task = asyncio.get_running_loop().create_task(land())
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)


async def _outcome(request: Callable[[], Awaitable[T]]) -> tuple[T | BaseException, str]:
    """The answer of the store or its refusal, and that in a word."""
    try:
        answer = await request()
    except (NotFound, PreconditionFailed) as error:
        return error, type(error).__name__
    return answer, "done"


class Wire:
    """The store as one process reaches it. `patience` of its owner decides on what to repeat."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def get(self, key: str) -> Object:
        return await self._send(f"GET {key}", lambda: self._store.get(key))

    async def head(self, key: str) -> ObjectInfo:
        return await self._send(f"HEAD {key}", lambda: self._store.head(key))

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        condition = " if absent" if if_absent else f" if {if_match[:6]}" if if_match else ""
        what = f"PUT {key} {_etag(body)[:6]}{condition}"

        def request() -> Awaitable[str]:
            return self._store.put(key, body, if_absent=if_absent, if_match=if_match)

        return await self._send(what, request, write=True)

    async def delete(self, key: str) -> None:
        await self._send(f"DELETE {key}", lambda: self._store.delete(key), write=True)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        async def pages() -> list[Page]:
            return [page async for page in self._store.list(prefix, start_after=start_after)]

        for page in await self._send(f"LIST {prefix}", pages):
            yield page

    async def upload(self, key: str, path: Path) -> str:
        body = path.read_bytes()
        what = f"PUT {key} {_etag(body)[:6]}"
        return await self._send(what, lambda: self._store.put(key, body), write=True)

    async def download(self, key: str, path: Path) -> ObjectInfo:
        found = await self.get(key)
        path.write_bytes(found.body)
        return ObjectInfo(key, len(found.body), found.etag)

    async def aclose(self) -> None:
        """Nothing is open."""

    @property
    def _store(self) -> Store:
        return self._network.store

    async def _send(
        self, what: str, request: Callable[[], Awaitable[T]], *, write: bool = False
    ) -> T:
        network, process = self._network, self._process
        fate = network.weather.draw(network.rng, write=write)
        if fate is Fate.KILLED_BEFORE:
            process.kill()
        await process.rest(self._latency_s())
        if fate in (Fate.LATE, Fate.ECHO):
            network.land_later(process.name, what, request)
        answer, how = await self._meet(fate, request)
        network.history.note(process.name, what, how if fate is Fate.FINE else f"{fate}: {how}")
        if fate is Fate.KILLED_AFTER:
            process.kill()
        hangs = isinstance(answer, Ambiguous) and fate not in (Fate.REFUSED, Fate.BROKEN)
        await process.rest(TIMEOUT_S if hangs else self._latency_s())
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def _meet(
        self, fate: Fate, request: Callable[[], Awaitable[T]]
    ) -> tuple[T | BaseException, str]:
        """Lets the request reach the store if it does, and says what the process hears of it."""
        if fate is Fate.THROTTLED:
            return Throttled(fate), "not done"
        if fate in (Fate.LOST, Fate.REFUSED, Fate.LATE):
            return Ambiguous(fate), "not done"
        answer, how = await _outcome(request)
        if fate in (Fate.UNANSWERED, Fate.BROKEN):
            return Ambiguous(fate), how
        return answer, how

    def _latency_s(self) -> float:
        rng = self._network.rng
        return rng.uniform(0.0, _LONGEST_S if rng.random() < _SLOW else _USUAL_S)


def _etag(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()
