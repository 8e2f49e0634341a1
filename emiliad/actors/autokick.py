"""Keeps us out of the way of others in a shared cluster; in a daemon, or as a command alone."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio

from emiliad import logs
from emiliad.autokick.model import Policy
from emiliad.config import AutokickConfig
from emiliad.errors import ConfigError
from emiliad.kube.access import Access, find, in_cluster, mounted
from emiliad.kube.display import Display, Report
from emiliad.kube.election import Election
from emiliad.kube.events import Events
from emiliad.kube.governor import Governor, Plan
from emiliad.kube.lease import VERSION, Record
from emiliad.kube.mirror import ALL, Scope
from emiliad.kube.tenure import STANDARD, Candidate, Terms
from emiliad.metrics import AutokickMetrics

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = (
    1.0,
    60.0,
)  # before an embedded autokicker that failed tries again
_ELECTION_LOOK_S = 1.0  # seconds between two looks at whether the election can take place
_log = logs.get("autokick")


def mode(settings: AutokickConfig, env: Mapping[str, str]) -> str:
    """What an embedded autokicker does: off, all or needed; by itself only where it may ask."""
    return settings.mode or ("all" if mounted(env) else "off")


async def run(
    *,
    settings: AutokickConfig,
    metrics: AutokickMetrics,
    embedded: bool,
    report: Report = lambda status, problem: None,
    would: Callable[[str], None] | None = None,
    env: Mapping[str, str] = os.environ,
    terms: Terms = STANDARD,
) -> None:
    """Watches and scales until it is cancelled; then hands the lease over.

    Embedded it never raises: it belongs to a daemon that has work to do, and tries again. `would`
    makes it a dry run, which takes no lease and writes nothing, but says what it would do.
    Raises ConfigError or NoCluster where it cannot work at all.
    """
    settings = replace(settings, mode=mode(settings, env) if embedded else settings.mode or "all")
    if settings.mode == "off":
        metrics.state.labels("off").set(1)
        report({"state": "off", "mode": "off"}, None)
        return
    _warn(settings, embedded=embedded)
    if not embedded:
        await _once(settings, metrics, await find(env), report, terms, would=would)
        return
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            access = in_cluster(env)
            await _once(settings, metrics, access, report, terms, embedded=True)
        except Exception as error:  # noqa: BLE001 - the daemon's work must go on
            _log.exception("autokick.failed")
            report({"state": "frozen", "reason": str(error)}, f"the autokicker failed: {error}")
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _once(
    settings: AutokickConfig,
    metrics: AutokickMetrics,
    access: Access,
    report: Report,
    terms: Terms,
    *,
    would: Callable[[str], None] | None = None,
    embedded: bool = False,
) -> None:
    from emiliad.kube.client import connected  # what a daemon without an autokicker never loads

    kicker = _Kicker(settings, metrics, access, report, embedded=embedded)
    async with connected(access) as api:
        governor = Governor(
            api,
            kicker.plan(),
            kicker.display,
            restarted=lambda reason: metrics.watch_restarts.labels(reason).inc(),
        )
        if would is not None:
            await governor.look(would)
            return
        events = Events(
            api, namespace=kicker.namespace, kind=settings.target_kind, name=settings.target
        )
        election = Election(
            api,
            kicker.candidate(terms),
            leads=kicker.display.leads,
            seen=partial(kicker.lease_seen, events),
        )
        kicker.display.leads(False)
        async with anyio.create_task_group() as group:
            group.start_soon(events.run)
            group.start_soon(kicker.watch_election, election, events)
            await election.run(governor.run)


@dataclass(slots=True, init=False)
class _Kicker:
    """What one autokicker is called, works on and shows."""

    settings: AutokickConfig
    namespace: str
    embedded: bool
    version: str
    identity: str
    display: Display

    def __init__(
        self,
        settings: AutokickConfig,
        metrics: AutokickMetrics,
        access: Access,
        report: Report,
        *,
        embedded: bool,
    ) -> None:
        self.settings, self.embedded = settings, embedded
        self.namespace = settings.namespace or access.namespace
        if not self.namespace:
            raise ConfigError("NAMESPACE: is not set, and nothing here says which one we are in")
        self.version = _version()
        kind = "embedded" if embedded else "standalone"
        self.identity = f"{socket.gethostname()}_{kind}_{uuid.uuid4().hex[:8]}"
        self.display = Display(metrics, report, facts=self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "mode": self.settings.mode,
            "version": self.version,
            "identity": self.identity,
            "target": f"{self.settings.target_kind} {self.namespace}/{self.settings.target}",
            "holder": "",
        }

    def plan(self) -> Plan:
        settings = replace(self.settings, namespace=self.namespace)
        policy = Policy.from_config(settings, standalone=not self.embedded)
        names = tuple(settings.namespaces.replace(",", " ").split()) or (self.namespace,)
        scope = Scope(
            namespace=self.namespace,
            kind=settings.target_kind,
            name=settings.target,
            namespaces=(ALL,) if ALL in names else names,
            selector=policy.our_selector,
        )
        # A daemon that ends is no reason to scale the others.
        restore = settings.restore_on_exit and not self.embedded
        return Plan(scope, policy, restore=(settings.baseline or 0) if restore else None)

    def candidate(self, terms: Terms) -> Candidate:
        return Candidate(
            namespace=self.namespace,
            name=f"{self.settings.target}-autokicker",  # as the Role names it
            identity=self.identity,
            embedded=self.embedded,
            version=self.version,
            terms=terms,
        )

    def lease_seen(self, events: Events, record: Record | None) -> None:
        """Shows who leads; an autokicker of another version may decide otherwise than we would."""
        self.display.fact(holder=record.holder if record else "")
        theirs = record.notes.get(VERSION, "") if record and record.holder else self.version
        if theirs == self.version:
            self.display.problem("version", None)
            return
        sentence = (
            f"the lease is held by an autokicker of version {theirs or 'unknown'}, "
            f"and this is {self.version}"
        )
        self.display.problem("version", sentence)
        events.say("OtherVersion", sentence, warning=True, target=None)

    async def watch_election(self, election: Election, events: Events) -> None:
        """Shows what keeps this candidate from taking part."""
        while True:
            self.display.problem("election", election.problem)
            if election.problem and not election.synced:
                events.say("Frozen", election.problem, warning=True, target=None)
            self.display.fact(candidate=election.synced)
            await anyio.sleep(_ELECTION_LOOK_S)


def _warn(settings: AutokickConfig, *, embedded: bool) -> None:
    """Says which settings from old manifests do nothing here."""
    if settings.interval_s is not None:
        _log.warning("autokick.setting_ignored", name="INTERVAL", why="changes are watched")
    if settings.baseline is not None and not settings.restore_on_exit:
        _log.warning("autokick.setting_ignored", name="BASELINE", why="RESTORE_ON_EXIT is not set")
    if settings.restore_on_exit and embedded:
        _log.warning("autokick.setting_ignored", name="RESTORE_ON_EXIT", why="this is a daemon")
    if settings.restore_on_exit and settings.target_kind == "DaemonSet":
        _log.warning("autokick.setting_ignored", name="RESTORE_ON_EXIT", why="for a DaemonSet")


def _version() -> str:
    try:
        return version("emiliad")
    except PackageNotFoundError:
        return "unknown"
