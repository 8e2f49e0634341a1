"""`emiliad autokick` as users run it: real processes, real signals, an API server over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.rig.apiserver import ApiServer
from ops.rig.controllers import Cluster, pod
from ops.rig.http import Front
from ops.rig.objects import ApiError
from tests.kube.rig import (
    NAMESPACE,
    background,
    full,
    furnished,
    home,
    kubeconfig,
    until,
    wanted,
)

ROOT = Path(__file__).resolve().parents[2]
# The same command with a lease of seconds, so that a pause longer than it need not be long.
QUICKLY = """
from emiliad.kube import tenure
from emiliad.kube.tenure import Terms
from emiliad.actors import autokick
autokick.run.__kwdefaults__["terms"] = Terms(lease_s=2, deadline_s=1.2, renew_s=0.5, retry_s=0.3)
import sys
from emiliad.cli import main
sys.exit(main(["autokick"]))
"""


@dataclass(slots=True)
class Kicker:
    """One process of the command."""

    process: subprocess.Popen[str]
    log: Path

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def event(self, name: str) -> dict[str, object] | None:
        return next((line for line in self.lines() if line["event"] == name), None)

    @property
    def identity(self) -> str:
        found = self.event("election.won")
        return str(found["identity"]) if found else ""

    def get(self, path: str) -> tuple[int, str]:
        """A request to its HTTP server."""
        listening = self.event("health.listening")
        assert listening is not None
        url = f"http://127.0.0.1:{listening['port']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    async def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        with anyio.fail_after(30):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


@dataclass(slots=True)
class Town:
    """A cluster, its API server, and how to reach it."""

    cluster: Cluster
    server: ApiServer
    folder: Path
    env: dict[str, str]

    def holder(self) -> str:
        try:
            lease = self.cluster.objects.get("leases", NAMESPACE, "emiliad-autokicker")
        except ApiError:
            return ""
        return str(lease["spec"]["holderIdentity"])

    @contextmanager
    def kicker(
        self, name: str, *, quickly: bool = False, env: Mapping[str, str] | None = None
    ) -> Iterator[Kicker]:
        log = self.folder / f"{name}.log"
        command = ["-c", QUICKLY] if quickly else ["-m", "emiliad", "autokick"]
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, *command],
                env={**self.env, **(env or {})},
                stderr=stderr,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            ) as process,
        ):
            try:
                yield Kicker(process, log)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[Town]:
    cluster = furnished()
    server = ApiServer(cluster.objects)
    front = Front(server)
    async with front.serving(), background(cluster.run):
        env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig(folder, front.url)),
            "HTTP_PORT": "0",
            "LOG_FORMAT": "json",
        }
        yield Town(cluster, server, folder, env)


def status_of(kicker: Kicker) -> dict[str, Any]:
    """What its page shows of the autokicker."""
    shown: dict[str, Any] = json.loads(kicker.get("/status")[1])["autokick"]
    return shown


async def test_a_killed_leader_is_replaced_and_a_stopped_one_hands_over(tmp_path: Path) -> None:
    """kill -9: another takes over once the lease has lapsed. SIGTERM: at once, and exit code 0."""
    async with town(tmp_path) as here:
        with (
            here.kicker("one", quickly=True) as one,
            here.kicker("two", quickly=True) as two,
        ):
            await until(lambda: full(here.cluster.objects), limit_s=60)
            first, second = (one, two) if one.identity else (two, one)
            await until(lambda: second.event("health.listening"))
            await until(lambda: second.get("/readyz")[0] == 200, every_s=0.2)
            status, _ = first.get("/livez")
            assert status == 200
            # It has seen the pod that it asked for last a moment after the cluster has made it.
            counts = {"wanted": 5, "bound": 4, "unbound": 1, "terminating": 0}
            await until(lambda: status_of(first)["replicas"] == counts, every_s=0.2)
            shown = status_of(first)
            assert (shown["state"], shown["leader"]) == ("fill", True)
            assert "emiliad_autokick_leader 1.0" in first.get("/metrics")[1]
            assert "emiliad_autokick_leader 0.0" in second.get("/metrics")[1]

            await first.end(signal.SIGKILL)
            here.cluster.objects.create("pods", NAMESPACE, pod("team"))
            await until(lambda: second.identity, limit_s=60)
            await until(lambda: home(here.cluster.objects, "team"))

            before = wanted(here.cluster.objects)
            assert await second.end() == 0
            assert here.holder() == ""
            assert wanted(here.cluster.objects) == before
            assert second.event("election.handed_over")


async def test_a_leader_that_was_paused_writes_no_more(tmp_path: Path) -> None:
    """A process that stood still past its lease finds that another leads, and leaves it alone."""
    async with town(tmp_path) as here:
        with here.kicker("one", quickly=True) as one:
            await until(lambda: full(here.cluster.objects), limit_s=60)
            os.kill(one.process.pid, signal.SIGSTOP)
            with here.kicker("two", quickly=True) as two:
                await until(lambda: two.identity, limit_s=60)
                begin = len(here.server.audit)
                os.kill(one.process.pid, signal.SIGCONT)
                here.cluster.objects.create("pods", NAMESPACE, pod("team"))
                await until(lambda: one.event("election.lost"))
                await until(lambda: home(here.cluster.objects, "team"))
                assert here.holder() == two.identity
                kicks = [s for s in here.server.audit[begin:] if s.request.sub == "scale"]
                assert kicks[0].body == {"spec": {"replicas": 0}}
                assert len({json.dumps(s.body) for s in kicks}) == 1


async def test_a_dry_run_prints_and_touches_nothing(tmp_path: Path) -> None:
    """What it would do, and why, a line each on stdout; no lease, no write, no HTTP server."""
    async with town(tmp_path) as here:
        done = await anyio.to_thread.run_sync(_dry_run, here.env)
    assert done.returncode == 0
    assert "would scale emiliad/emiliad from 0 to 1: nobody waits" in done.stdout
    assert {seen.request.verb for seen in here.server.audit} == {"list", "watch"}


def _dry_run(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emiliad", "autokick", "--dry-run"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        rest, errors = process.communicate(timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, first + rest, errors)


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"KUBECONFIG": "/nowhere/config"}, "there is no /nowhere/config: set KUBECONFIG"),
        ({"AUTOKICK_MODE": "sometimes"}, "AUTOKICK_MODE"),
        ({"BUFFER": "-1"}, "BUFFER"),
        ({"OUR_SELECTOR": "a=b=c"}, "OUR_SELECTOR"),
    ],
)
async def test_a_wrong_configuration_is_named(
    env: dict[str, str], word: str, tmp_path: Path
) -> None:
    """Exit code 2 and one sentence."""
    async with town(tmp_path) as here:
        with here.kicker("one", env=env) as one:
            code = await anyio.to_thread.run_sync(one.process.wait)
        assert code == 2
        assert word in one.log.read_text().splitlines()[-1]


async def test_settings_of_old_manifests_are_accepted_and_warned_about(tmp_path: Path) -> None:
    """INTERVAL and BASELINE do nothing any more, and the log says so."""
    async with town(tmp_path) as here:
        with here.kicker("one", env={"INTERVAL": "15", "BASELINE": "0"}) as one:
            await until(lambda: one.identity, limit_s=60)
            warned = {line.get("name") for line in one.lines() if line["level"] == "warning"}
            assert {"INTERVAL", "BASELINE"} <= warned
            assert await one.end(signal.SIGINT) == 0


async def test_nothing_is_loaded_that_a_daemon_has_no_use_for() -> None:
    """The client library costs 34 MB, and only a kubeconfig needs it."""
    code = "import sys, emiliad.actors.autokick; print(*sys.modules)"
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"kubernetes_asyncio", "aiohttp"})
