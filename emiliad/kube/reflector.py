"""A mirror of one collection: list, then watch, for ever, whatever the network does."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NoReturn, TypeVar

import anyio

from emiliad import logs
from emiliad.kube.api import Api, Json
from emiliad.kube.errors import (
    Forbidden,
    Gone,
    KubeError,
    Silent,
    Throttled,
    Unreachable,
    refuse,
)

T = TypeVar("T")
Key = tuple[str, str]  # namespace and name

# Seconds; the core believes a cache for 90. A living server sends a bookmark every minute, so that
# a stream that was silent for this long is dead, and has just been replaced when the 90 are over.
SILENCE_S = 80.0
# A mirror older than this is listed when its watch has to be opened again: the next bookmark may be
# a minute away, and before it comes the mirror would count as stale.
_OLD_S = 30.0
_WATCH_S = (240, 300)  # seconds after which a server is to end a watch; spread over a fleet
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 20.0
_STEADY_S = 5.0  # a watch that ends earlier ended too early
_LIST_S = 30.0  # seconds that a list of a large collection may take
RESTARTS = ("ended", "gone", "silent", "refused", "failed")
_log = logs.get("kube.watch")


@dataclass(frozen=True, slots=True)
class Source:
    """What is mirrored: a collection's path and the selectors that narrow it."""

    name: str
    path: str
    selectors: Mapping[str, str] = field(default_factory=dict)  # labelSelector, fieldSelector


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    version: int | None  # of the resource, where it is a number
    value: T


class Reflector(Generic[T]):
    """The objects of one collection as `convert` makes them, as fresh as the server lets us be.

    `changed` is called after each change of what this shows; `restarted` with one of RESTARTS each
    time that a watch has to be opened again. `clock` counts seconds and never goes back.
    """

    def __init__(
        self,
        api: Api,
        source: Source,
        convert: Callable[[Json], T],
        *,
        changed: Callable[[], None],
        restarted: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._source = source
        self._convert = convert
        self._changed = changed
        self._restarted = restarted
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._entries: dict[Key, _Entry[T]] = {}
        self._version: str | None = None  # to watch from; None: list first
        self._heard: float | None = None
        self._failures = 0
        self.problem: str | None = None  # what went wrong last; None while all is well
        self.forbidden = False  # whether that is a lack of rights

    @property
    def synced(self) -> bool:
        """Whether the whole collection has been seen at least once."""
        return self._heard is not None

    def age_s(self) -> float:
        """Seconds since the server last confirmed what this shows; infinite before the first."""
        return float("inf") if self._heard is None else max(0.0, self._clock() - self._heard)

    def values(self) -> list[T]:
        """All objects."""
        return [entry.value for entry in self._entries.values()]

    def get(self, namespace: str, name: str) -> T | None:
        """One object."""
        entry = self._entries.get((namespace, name))
        return None if entry is None else entry.value

    def apply(self, namespace: str, name: str, version: str, value: T) -> None:
        """Shows our own write at once; what the watch brings that is older will not undo it."""
        self._put((namespace, name), version, value)
        self._changed()

    async def run(self) -> NoReturn:
        """Mirrors until it is cancelled."""
        while True:
            began = self._clock()
            try:
                reason = await self._round()
            except KubeError as error:
                reason = self._failed(error)
            self._restarted(reason)
            if reason == "ended" and self._clock() - began > _STEADY_S:
                self._heard = self._clock()  # all that there was to say had been said by then
                self._failures = 0
                continue
            self._failures += 1
            await self._sleep(self._pause_s())

    async def _round(self) -> str:
        """One watch, after a list if there is nothing to watch from."""
        version = self._version
        if version is None or self.age_s() > _OLD_S:
            version = await self._list()
        query = {
            **self._source.selectors,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._rng.randint(*_WATCH_S)),
        }
        await self._api.watch(
            self._source.path, query, self._handle, opened=self._works, silence_s=SILENCE_S
        )
        return "ended"

    async def _list(self) -> str:
        answer = await self._api.call(
            "GET", self._source.path, query=self._source.selectors, timeout_s=_LIST_S
        )
        try:
            version = str(answer["metadata"]["resourceVersion"])
            found = {_key(item): self._entry(item) for item in answer.get("items") or []}
        except _MALFORMED as error:
            raise Unreachable(
                f"the list of {self._source.name} makes no sense: {error!r}"
            ) from None
        self._entries = {key: self._newer(key, entry) for key, entry in found.items()}
        self._confirmed(version)
        self._works()
        self._changed()
        return version

    def _handle(self, event: Json) -> None:
        """Takes one event of the watch in."""
        try:
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                self._version = None  # what else went wrong there: a list is the safe way back
                refuse(f"WATCH {self._source.path}", int(item.get("code") or 500), _said(item))
            version = str(item["metadata"]["resourceVersion"])
            if kind in ("ADDED", "MODIFIED"):
                self._put(_key(item), version, self._convert(item))
            elif kind == "DELETED":
                self._entries.pop(_key(item), None)
            elif kind != "BOOKMARK":
                raise ValueError(f"an event of type {kind}")
        except _MALFORMED as error:
            self._version = None
            raise Unreachable(
                f"an event of {self._source.name} makes no sense: {error!r}"
            ) from None
        self._confirmed(version)
        self._failures = 0
        if kind != "BOOKMARK":
            self._changed()

    def _put(self, key: Key, version: str, value: T) -> None:
        self._entries[key] = self._newer(key, _Entry(_number(version), value))

    def _newer(self, key: Key, entry: _Entry[T]) -> _Entry[T]:
        """What to show of an object: what came is older if it is from before our own write."""
        known = self._entries.get(key)
        if known is None or known.version is None or entry.version is None:
            return entry
        return entry if entry.version >= known.version else known

    def _entry(self, item: Json) -> _Entry[T]:
        return _Entry(_number(item["metadata"]["resourceVersion"]), self._convert(item))

    def _confirmed(self, version: str) -> None:
        self._version = version
        self._heard = self._clock()

    def _works(self) -> None:
        if self.problem is not None:
            self.problem, self.forbidden = None, False
            _log.info("watch.works_again", what=self._source.name)
            self._changed()

    def _failed(self, error: KubeError) -> str:
        """Notes what went wrong, and decides whether to list again."""
        reason = "failed"
        if isinstance(error, Gone):
            reason, self._version = "gone", None
        elif isinstance(error, Silent):
            reason = "silent"
        elif isinstance(error, Forbidden):
            reason = "refused"
        elif isinstance(error, Throttled):
            self._failures = max(self._failures, 3)
        if reason != "gone" and self.problem != str(error):
            self.problem, self.forbidden = str(error), reason == "refused"
            _log.warning("watch.failed", what=self._source.name, error=str(error))
            self._changed()
        return reason

    def _pause_s(self) -> float:
        full: float = min(_FIRST_PAUSE_S * 2 ** min(self._failures - 1, 16), _LONGEST_PAUSE_S)
        return full * self._rng.uniform(0.5, 1.0)


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)


def _key(item: Json) -> Key:
    return item["metadata"].get("namespace") or "", item["metadata"]["name"]


def _number(version: object) -> int | None:
    text = str(version)
    return int(text) if text.isdecimal() else None


def _said(item: Json) -> str:
    return str(item.get("message") or item.get("reason") or "no reason given")
