"""The autokicker against an API server over HTTP: rights as rendered, faults, histories."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from prometheus_client import CollectorRegistry

from emiliad.actors import autokick
from emiliad.config import AutokickConfig
from emiliad.kube import access, reflector
from emiliad.kube.client import connected
from emiliad.kube.tenure import Tenure, Terms, uptime
from emiliad.metrics import AutokickMetrics
from ops.rig.apiserver import ApiServer
from ops.rig.controllers import Cluster, daemonset, node, pod, remove
from ops.rig.http import GOOD, Fault, Front
from ops.rig.objects import Objects
from ops.rig.rbac import Request, Rule, rules
from pipeline.settings import read
from tests.deploy.cluster import containers_of, name_of, overlay
from tests.kube.rig import (
    NAMESPACE,
    QUICK,
    Seen,
    Watched,
    access_to,
    background,
    bound,
    full,
    furnished,
    governed,
    home,
    kubeconfig,
    pods,
    until,
    wanted,
)

SHORT = Terms(lease_s=3, deadline_s=2.0, renew_s=1.0, retry_s=0.5)
SHOWN = ["autokicker-standalone", "h100", "h100-cluster", "daemonset"]


def refused(server: ApiServer) -> list[str]:
    """What was asked for without the right to it."""
    return [f"{s.request.verb} {s.request.what}" for s in server.audit if s.code == 403]


# -- rights


def rendered(name: str) -> tuple[list[Rule], AutokickConfig, str]:
    """What an overlay grants its autokicker and tells it, and the namespace it all lies in."""
    shown = overlay(name)
    (workload,) = [w for w in shown.workloads if name_of(w) == "emiliad-autokicker"]
    namespace = workload["metadata"].get("namespace", NAMESPACE)
    env = shown.environment(workload, containers_of(workload)[0])
    return rules(shown.objects, namespace=namespace), read(AutokickConfig, env), namespace


@pytest.mark.parametrize("name", SHOWN)
async def test_the_rendered_role_is_enough(name: str, tmp_path: Path) -> None:
    """A whole life - start, fill, yield, hand-over - with the settings of an overlay: no 403."""
    rights, settings, namespace = rendered(name)
    assert namespace == NAMESPACE
    cluster = furnished()
    if settings.target_kind == "DaemonSet":
        cluster.objects.delete("deployments", NAMESPACE, settings.target)
        cluster.objects.create("daemonsets", NAMESPACE, daemonset(settings.target))
    server = ApiServer(cluster.objects, rights=rights)
    front, seen = Front(server), Seen()
    async with front.serving(), background(cluster.run):
        run = partial(
            autokick.run,
            settings=settings,
            metrics=AutokickMetrics(CollectorRegistry()),
            embedded=False,
            report=seen.take,
            env={"KUBECONFIG": str(kubeconfig(tmp_path, front.url))},
            terms=SHORT,
        )
        async with background(run):
            await until(lambda: bound(cluster.objects) == 4)
            await until(lambda: seen.status["leader"] and seen.status["state"] == "fill")
            cluster.objects.create("pods", NAMESPACE, pod("team"))
            await until(lambda: home(cluster.objects, "team"))
            await until(lambda: server.count("create", "events"))
            await until(lambda: server.count("update", "leases") > 1)
            assert seen.problem is None
    assert refused(server) == []
    assert cluster.objects.all("leases")[0]["spec"]["holderIdentity"] == ""


# -- faults


@dataclass(slots=True)
class Weather:
    """Bad luck for every request, drawn from a seed; `calm` ends it."""

    rng: random.Random
    calm: bool = False

    def choose(self, request: Request) -> Fault:
        if self.calm:
            return GOOD
        drawn = self.rng.random()
        if request.verb == "watch":
            return self._watch(drawn)
        if drawn < 0.25:
            return self.rng.choice([Fault(abort=True), Fault(lose_answer=True)])
        if drawn < 0.30:
            return Fault(status=429)
        if drawn < 0.35:
            return Fault(status=502, text="<html>bad gateway</html>")
        return Fault(delay_s=self.rng.choice([0.0, 0.0, 0.05]))

    def _watch(self, drawn: float) -> Fault:
        events = self.rng.randint(0, 10)
        if drawn < 0.25:
            return Fault(abort=True)
        if drawn < 0.50:
            return Fault(cut_after=events)
        if drawn < 0.60:
            return Fault(end_after=events)
        return Fault(silent_after=events) if drawn < 0.75 else GOOD


@dataclass(slots=True)
class Scene:
    cluster: Cluster
    server: ApiServer
    front: Front
    watched: Watched

    @property
    def objects(self) -> Objects:
        return self.cluster.objects

    def staying(self) -> int:
        """Our pods that were not told to go."""
        return sum(not p["metadata"].get("deletionTimestamp") for p in pods(self.objects))


@asynccontextmanager
async def leading(
    weather: Weather, *, drain_s: float = 0.1, start_s: float = 0.0
) -> AsyncIterator[Scene]:
    """A governor with quick rules on a cluster of four nodes, over HTTP."""
    cluster = furnished(drain_s=drain_s, start_s=start_s)
    server = ApiServer(cluster.objects, bookmark_s=0.2)
    front = Front(server, weather.choose)
    async with front.serving(), connected(access_to(front.url)) as api:
        watched = governed(api, policy=QUICK, clock=uptime)
        tenure = Tenure(float("inf"), uptime)
        async with background(cluster.run, partial(watched.governor.run, tenure)):
            yield Scene(cluster, server, front, watched)


@pytest.mark.parametrize("seed", range(3))
async def test_the_rules_hold_over_a_bad_network(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of all requests break off, watches are cut, go silent and expire; I1 to I8."""
    monkeypatch.setattr(reflector, "SILENCE_S", 0.6)
    weather = Weather(random.Random(seed))
    async with leading(weather, start_s=0.5) as scene:
        objects = scene.objects
        await until(lambda: full(objects))  # every place taken, one pod waits
        objects.create("nodes", "", node("new"))
        await until(lambda: full(objects))  # a new node is filled
        objects.create("pods", NAMESPACE, pod("team"))
        await until(lambda: scene.staying() == 0)  # while it waits there is none of us
        objects.compact()
        await until(lambda: home(objects, "team"))
        await until(lambda: bound(objects) == 4)  # though it may still be pulling its image
        objects.create("pods", NAMESPACE, pod("giant", gpus=16))
        await until(lambda: wanted(objects) == 0)
        muted = ("emiliad/giant",)  # nobody can help it
        await until(lambda: scene.watched.seen.status.get("muted") == muted)
        await until(lambda: bound(objects) == 4)
        for name in ("team", "giant"):
            remove(objects, NAMESPACE, name)
        await until(lambda: full(objects))
        weather.calm = True
        await until(lambda: scene.watched.seen.problem is None)


async def test_a_quiet_cluster_sees_no_write_and_no_list() -> None:
    """Everything is known by watching; nothing is repeated to be sure."""
    async with leading(Weather(random.Random(0), calm=True)) as scene:
        await until(lambda: full(scene.objects))
        await anyio.sleep(0.5)  # the last status changes arrive
        begin = len(scene.server.audit)
        await anyio.sleep(3)
        assert scene.server.audit[begin:] == []
        assert scene.front.watches == 4  # target, autoscalers, our pods, those of others


# -- inside a daemon


async def test_an_embedded_autokicker_never_takes_its_daemon_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong is reported and tried again; here the mounted account is gone."""
    monkeypatch.setattr(autokick, "_FIRST_PAUSE_S", 0.05)
    seen = Seen()
    reports: list[str | None] = []

    def take(status: object, problem: str | None) -> None:
        seen.take(status, problem)  # type: ignore[arg-type]
        reports.append(problem)

    run = partial(
        autokick.run,
        settings=AutokickConfig(mode="all"),
        metrics=AutokickMetrics(CollectorRegistry()),
        embedded=True,
        report=take,
        env={},
    )
    async with background(run):
        await until(lambda: len(reports) >= 3)
    assert all("no service account" in (problem or "") for problem in reports)
    assert seen.status["state"] == "frozen"


@pytest.mark.parametrize(
    ("setting", "in_pod", "expected"),
    [
        ("", False, "off"),
        ("", True, "all"),
        ("off", True, "off"),
        ("needed", True, "needed"),
        ("all", False, "all"),
    ],
)
def test_a_daemon_watches_by_itself_only_in_a_cluster(
    setting: str, in_pod: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop with a kubeconfig never scales a cluster by running a daemon."""
    monkeypatch.setattr(access.mounted, "__defaults__", (tmp_path,))
    env = {"KUBECONFIG": "/home/me/.kube/config"}
    if in_pod:
        (tmp_path / "token").write_text("x")
        env["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    assert autokick.mode(AutokickConfig(mode=setting), env) == expected


async def test_off_means_that_nothing_is_asked() -> None:
    """AUTOKICK_MODE=off: the state says so, and no API server is needed."""
    metrics, seen = AutokickMetrics(CollectorRegistry()), Seen()
    await autokick.run(
        settings=AutokickConfig(mode="off"),
        metrics=metrics,
        embedded=True,
        report=seen.take,
        env={},
    )
    assert seen.status["state"] == "off"
    assert metrics.registry.get_sample_value("emiliad_autokick_state", {"state": "off"}) == 1


async def test_two_versions_are_told_apart(tmp_path: Path) -> None:
    """A holder of another version is respected, and its presence shown."""
    cluster = furnished()
    server = ApiServer(cluster.objects)
    front, seen = Front(server), Seen()
    metrics = AutokickMetrics(CollectorRegistry())
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 600, "leaseTransitions": 0}
    notes = {"emiliad.io/version": "9.9"}
    cluster.objects.create(
        "leases",
        NAMESPACE,
        {"metadata": {"name": "emiliad-autokicker", "annotations": notes}, "spec": spec},
    )
    async with front.serving(), background(cluster.run):
        run = partial(
            autokick.run,
            settings=replace(AutokickConfig(), buffer=1),
            metrics=metrics,
            embedded=False,
            report=seen.take,
            env={"KUBECONFIG": str(kubeconfig(tmp_path, front.url))},
        )
        async with background(run):
            await until(lambda: "version 9.9" in (seen.problem or ""))
            assert seen.status["holder"] == "other"
            assert not seen.status["leader"]
            await until(lambda: cluster.objects.all("events"))
    (event,) = cluster.objects.all("events")
    assert event["reason"] == "OtherVersion"
    assert (
        metrics.registry.get_sample_value("emiliad_autokick_problems", {"problem": "version"}) == 1
    )
    assert server.count("patch") == 0


async def test_without_the_right_to_the_lease_nobody_leads(tmp_path: Path) -> None:
    """No election, no writes; the reason is shown, as an event as well."""
    cluster = furnished()
    rights = [rule for rule in rendered("h100")[0] if "leases" not in rule.resources]
    server, seen = ApiServer(cluster.objects, rights=rights), Seen()
    front = Front(server)
    async with front.serving(), background(cluster.run):
        run = partial(
            autokick.run,
            settings=AutokickConfig(),
            metrics=AutokickMetrics(CollectorRegistry()),
            embedded=False,
            report=seen.take,
            env={"KUBECONFIG": str(kubeconfig(tmp_path, front.url))},
        )
        async with background(run):
            await until(lambda: 'cannot list resource "leases"' in (seen.problem or ""))
            await until(lambda: cluster.objects.all("events"))
            assert not seen.status["candidate"]
    assert server.count("patch") == 0
