"""Elects one autokicker by a Lease: whoever holds it works, and stops before it can lapse.

Time is a monotonic clock of our own; what a record says about time is shown and never compared. A
record has lapsed when it was seen unchanged for as long as it says that it lasts. A holder counts
from before the request that renewed it, so it always stops first.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

import anyio

from emiliad import logs
from emiliad.kube.api import LEASES, Api, Json
from emiliad.kube.errors import Conflict, KubeError
from emiliad.kube.lease import EMBEDDED, VERSION, WANTED_BY, Record, lease, record_from, wanted
from emiliad.kube.reflector import Reflector, Source
from emiliad.kube.tenure import Candidate, Tenure, uptime

_FIRST_RETRY_S = 0.25  # seconds; doubles up to the terms' retry
_REQUEST_S = 3.0  # seconds; leaves time for another attempt before the deadline
_LAST_WORDS_S = 3.0  # seconds that handing the lease over may take
_log = logs.get("kube.election")


class Election:
    """One candidate for the lease of an autokicker."""

    def __init__(
        self,
        api: Api,
        candidate: Candidate,
        *,
        leads: Callable[[bool], None] = lambda _: None,
        seen: Callable[[Record | None], None] = lambda _: None,
        clock: Callable[[], float] = uptime,
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._me = candidate
        self._leads = leads
        self._tell = seen
        self._clock = clock
        self._rng = rng or random.Random()
        self._path = LEASES.path(candidate.namespace)
        self._item = LEASES.path(candidate.namespace, candidate.name)
        self._reflector = Reflector(
            api,
            Source("lease", self._path, {"fieldSelector": f"metadata.name={candidate.name}"}),
            record_from,
            changed=self._observe,
            rng=self._rng,
        )
        self._seen: Record | None = None
        self._seen_at = clock()
        self._vanished_s = 0.0  # for which the holder of a deleted lease is still to be feared
        self._change = anyio.Event()
        self._tenure: Tenure | None = None
        self._scope: anyio.CancelScope | None = None
        self._acquired = datetime.now(UTC)
        self._error: str | None = None

    @property
    def holder(self) -> str:
        """Who holds the lease, as last seen."""
        return self._seen.holder if self._seen else ""

    @property
    def synced(self) -> bool:
        """Whether the lease has been seen: whether this candidate takes part."""
        return self._reflector.synced

    @property
    def problem(self) -> str | None:
        """Why this candidate cannot take part; None if it can."""
        return self._reflector.problem or self._error

    async def run(self, work: Callable[[Tenure], Awaitable[None]]) -> NoReturn:
        """Runs `work` whenever the lease is held, and cancels it before the lease can lapse.

        Cancelled itself, it ends the work first and hands the lease over then. An error of the
        work hands the lease over and is raised.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._reflector.run)
            while True:
                await self._lead(await self._win(), work)
        raise AssertionError("unreachable")

    # -- as a follower

    async def _win(self) -> Tenure:
        pause_s = _FIRST_RETRY_S
        while True:
            change = self._change
            wait_s = self._wait_s()
            if wait_s > 0:
                if self._should_ask() and not await self._done(self._ask):
                    wait_s = min(wait_s, self._me.terms.retry_s)
                with anyio.move_on_after(wait_s):
                    await change.wait()
                continue
            if await self._done(self._take):
                assert self._tenure is not None
                return self._tenure
            await anyio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._me.terms.retry_s)

    def _wait_s(self) -> float:
        """Seconds until this candidate may try; infinite while only a change can help."""
        if not self._reflector.synced:
            return float("inf")
        record = self._seen or Record()
        if record.holder == self._me.identity:
            return 0.0  # an attempt of ours whose answer was lost
        wait_s = max(self._lasts_s(record), self._vanished_s)
        if self._me.embedded and (not record.embedded or record.wanted_by):
            wait_s = 2.0 * self._me.terms.lease_s  # a standalone one goes first
        return self._seen_at + wait_s - self._clock()

    def _lasts_s(self, record: Record) -> float:
        """Seconds for which the holder of a record is to be believed in."""
        if not record.holder:
            return 0.0
        return record.duration_s or float(self._me.terms.lease_s)

    def _should_ask(self) -> bool:
        record = self._seen
        if self._me.embedded or record is None or not record.holder:
            return False
        return record.embedded and record.wanted_by != self._me.identity

    async def _ask(self) -> None:
        """Asks an embedded holder to leave; its term goes on until it does."""
        assert self._seen is not None
        body = wanted(self._seen, self._me.identity)
        self._show(await self._api.call("PUT", self._item, body, timeout_s=_REQUEST_S))

    async def _take(self) -> None:
        before = self._seen or Record()
        started, self._acquired = self._clock(), datetime.now(UTC)
        notes = {k: v for k, v in before.notes.items() if k not in (EMBEDDED, WANTED_BY)}
        notes[VERSION] = self._me.version
        if self._me.embedded:
            notes[EMBEDDED] = "true"
        changes = bool(before.version) and before.holder != self._me.identity
        await self._write(
            replace(
                before,
                holder=self._me.identity,
                duration_s=self._me.terms.lease_s,
                transitions=before.transitions + changes,
                notes=notes,
            )
        )
        self._tenure = Tenure(started + self._me.terms.deadline_s, self._clock)
        _log.info("election.won", identity=self._me.identity, before=before.holder)

    # -- as the holder

    async def _lead(self, tenure: Tenure, work: Callable[[Tenure], Awaitable[None]]) -> None:
        try:
            async with anyio.create_task_group() as group:
                self._scope = group.cancel_scope
                self._extend(tenure, tenure.left_s())
                self._leads(True)
                group.start_soon(self._keep, tenure)
                await work(tenure)
                group.cancel_scope.cancel()
        finally:
            self._tenure = self._scope = None
            tenure.end()
            self._leads(False)
            await self._hand_over(tenure)

    def _extend(self, tenure: Tenure, left_s: float) -> None:
        """The work is cancelled by the loop itself when the tenure ends."""
        tenure.extend(self._clock() + left_s)
        if self._scope is not None:
            self._scope.deadline = anyio.current_time() + left_s

    async def _keep(self, tenure: Tenure) -> None:
        """Renews the lease until it is lost; the deadline stands whatever happens in here."""
        terms = self._me.terms
        pause_s, failures = terms.renew_s, 0
        while True:
            await anyio.sleep(pause_s)
            started = self._clock()
            if await self._done(self._renew):
                self._extend(tenure, started + terms.deadline_s - self._clock())
                pause_s, failures = max(0.0, started + terms.renew_s - self._clock()), 0
            else:
                pause_s, failures = min(_FIRST_RETRY_S * 2**failures, terms.retry_s), failures + 1

    async def _renew(self) -> None:
        assert self._seen is not None
        await self._write(self._seen)

    async def _hand_over(self, tenure: Tenure) -> None:
        """Frees the lease for the next one at once, if no write of ours can still be on its way."""
        with anyio.move_on_after(_LAST_WORDS_S, shield=True):
            while self.holder == self._me.identity and not tenure.unsettled:
                if await self._done(self._free):
                    _log.info("election.handed_over", identity=self._me.identity)
                    return
                await anyio.sleep(_FIRST_RETRY_S)
        _log.warning("election.lost", identity=self._me.identity, holder=self.holder)

    async def _free(self) -> None:
        assert self._seen is not None
        await self._write(replace(self._seen, holder="", duration_s=1))

    # -- the lease itself

    def _observe(self) -> None:
        """Takes a change of the lease in; runs in the loop turn in which it arrives."""
        found = self._reflector.values()
        record = found[0] if found else None
        if _life(record) != _life(self._seen):
            self._seen_at = self._clock()
        if record is None and self._seen is not None and self._seen.holder != self._me.identity:
            # Whoever held a lease that was deleted may not know it yet.
            self._vanished_s = self._lasts_s(self._seen)
        elif record is not None:
            self._vanished_s = 0.0
        self._seen = record
        self._tell(record)
        self._change.set()
        self._change = anyio.Event()
        if self._tenure is not None and self._must_leave(record):
            self._tenure.end()
            if self._scope is not None:
                self._scope.cancel()

    def _must_leave(self, record: Record | None) -> bool:
        if record is None or record.holder != self._me.identity:
            return True
        return self._me.embedded and bool(record.wanted_by)

    async def _done(self, attempt: Callable[[], Awaitable[None]]) -> bool:
        """Whether an attempt to write the lease succeeded."""
        try:
            await attempt()
        except Conflict:
            await self._done(self._refresh)
            return False
        except KubeError as error:
            if self._error != str(error):
                self._error = str(error)
                _log.warning("election.failed", error=str(error))
            return False
        self._error = None
        return True

    async def _refresh(self) -> None:
        self._show(await self._api.call("GET", self._item, timeout_s=_REQUEST_S))

    async def _write(self, record: Record) -> None:
        """Writes a record over the one that was read, or creates it. Raises KubeError."""
        body = lease(
            self._me.namespace,
            self._me.name,
            record,
            acquired=self._acquired,
            renewed=datetime.now(UTC),
        )
        method, path = ("PUT", self._item) if record.version else ("POST", self._path)
        self._show(await self._api.call(method, path, body, timeout_s=_REQUEST_S))

    def _show(self, item: Json) -> None:
        record = record_from(item)
        self._reflector.apply(self._me.namespace, self._me.name, record.version, record)


def _life(record: Record | None) -> tuple[str, str, int] | None:
    """What changes when a holder renews; a note on the lease does not prolong it."""
    return None if record is None else (record.holder, record.renewed, record.transitions)
