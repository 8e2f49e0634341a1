"""The client: every request bounded in time, every failure of a known kind, credentials renewed."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from emiliad.kube import access, client, errors
from emiliad.kube.api import DEPLOYMENTS, LEASES, PODS
from emiliad.kube.client import Client, connected
from ops.rig.apiserver import ApiServer
from ops.rig.http import Fault, Front
from tests.kube.rig import NAMESPACE, TARGET, access_to, furnished, kubeconfig, server_in, wanted

SCALE = DEPLOYMENTS.path(NAMESPACE, TARGET, "scale")


@asynccontextmanager
async def talking(fault: Fault | None = None) -> AsyncIterator[tuple[Client, ApiServer]]:
    """A client and a server whose every answer has this fault."""
    server = server_in(furnished())
    front = Front(server, lambda _: fault or Fault())
    async with front.serving(), connected(access_to(front.url)) as api:
        yield api, server


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=401), errors.Forbidden),
        (Fault(status=403), errors.Forbidden),
        (Fault(status=404), errors.NotFound),
        (Fault(status=409), errors.Conflict),
        (Fault(status=410), errors.Gone),
        (Fault(status=422), errors.Refused),
        (Fault(status=429), errors.Throttled),
        (Fault(status=500), errors.Unreachable),
        (Fault(status=502, text="<html>bad gateway</html>"), errors.Unreachable),
        (Fault(status=200, text="<html>who are you?</html>"), errors.Unreachable),
        (Fault(status=200, text="[]"), errors.Unreachable),
        (Fault(abort=True), errors.Unreachable),
        (Fault(hang=True), errors.Unreachable),
    ],
)
async def test_every_failure_is_of_a_known_kind(
    fault: Fault, expected: type[errors.KubeError]
) -> None:
    """Callers tell a handful of errors apart, whatever the network and the server do."""
    async with talking(fault) as (api, _):
        with pytest.raises(expected):
            await api.call("GET", PODS.path(NAMESPACE), timeout_s=0.3)
        with pytest.raises(expected):
            await api.call("PATCH", SCALE, {"spec": {"replicas": 1}}, timeout_s=0.3)


async def test_a_lost_answer_is_not_taken_for_a_refusal() -> None:
    """The write took effect; the error must not say that it did not. A PATCH is sent once."""
    async with talking(Fault(lose_answer=True)) as (api, server):
        with pytest.raises(errors.Unreachable):
            await api.call("PATCH", SCALE, {"spec": {"replicas": 3}})
        assert wanted(server.objects) == 3
        assert server.count("patch") == 1


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    """Nobody listens at that port."""
    async with connected(access_to("http://127.0.0.1:1")) as api:
        with pytest.raises(errors.Unreachable):
            await api.call("GET", PODS.path(NAMESPACE))


async def test_a_message_says_what_the_server_said() -> None:
    """People mend a Role by the sentence in the log."""
    async with talking() as (api, server):
        server.rights = []
        with pytest.raises(errors.Forbidden, match='cannot list resource "pods" in API group ""'):
            await api.call("GET", PODS.path(NAMESPACE))


async def test_a_body_does_not_leave_once_the_right_to_send_it_has_ended() -> None:
    """A process that was paused while it connected asks again before the body goes out."""
    async with talking() as (api, server):
        asked: list[bool] = []

        def fence() -> bool:
            asked.append(True)
            return False

        with pytest.raises(errors.Unreachable):
            await api.call("PATCH", SCALE, {"spec": {"replicas": 3}}, fence=fence)
        assert asked
        assert wanted(server.objects) == 0
        await api.call("PATCH", SCALE, {"spec": {"replicas": 2}}, fence=lambda: True)
        assert wanted(server.objects) == 2


async def test_an_event_of_a_megabyte_is_read() -> None:
    """etcd holds objects of up to 1.5 MiB, and a watch sends them on one line."""
    async with talking() as (api, server):
        version = str(server.objects.version)
        big = {"metadata": {"name": "big", "annotations": {"x": "y" * 1_200_000}}, "spec": {}}
        server.objects.create("pods", NAMESPACE, big)
        found: list[str] = []
        query = {"resourceVersion": version, "timeoutSeconds": "1"}
        with anyio.fail_after(20):
            await api.watch(
                PODS.path(NAMESPACE),
                query,
                lambda event: found.append(event["object"]["metadata"]["name"]),
                opened=lambda: None,
                silence_s=10,
            )
        assert found == ["big"]


# -- who we are


@asynccontextmanager
async def bouncer(accepts: Callable[[], str]) -> AsyncIterator[tuple[web.AppRunner, list[str]]]:
    """A server that lets in who has the right Authorization header, and notes them all."""
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.json_response({"items": []}, status=200 if seen[-1] == accepts() else 401)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        yield runner, seen
    finally:
        await runner.cleanup()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    cert, key = folder / "ca.crt", folder / "key.pem"
    options = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=toy"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(["openssl", *options.split(), *names], check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
async def test_a_mounted_service_account_is_used_and_its_new_token_read(tmp_path: Path) -> None:
    """In a pod: https with the cluster's own authority; the kubelet replaces the token."""
    cert, key = certificate(tmp_path)
    (tmp_path / "namespace").write_text("here\n")
    (tmp_path / "token").write_text("first\n")
    accepted = ["first"]
    async with bouncer(lambda: f"Bearer {accepted[0]}") as (runner, seen):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(cert, key)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        port = runner.addresses[0][1]
        env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
        assert access.mounted(env, tmp_path)
        found = access.in_cluster(env, tmp_path)
        assert found.namespace == "here"
        async with connected(found) as api:
            await api.call("GET", PODS.path("here"))
            accepted[0] = "second"
            (tmp_path / "token").write_text("second")
            await api.call("GET", PODS.path("here"))
        assert seen == ["Bearer first", "Bearer first", "Bearer second"]


@pytest.mark.parametrize("missing", ["ca.crt", "token", "namespace"])
def test_half_a_service_account_is_none(tmp_path: Path, missing: str) -> None:
    """The error names what is wrong, and nothing is guessed."""
    for name in ("ca.crt", "token", "namespace"):
        (tmp_path / name).write_text("x")
    (tmp_path / missing).unlink()
    with pytest.raises(errors.NoCluster, match=str(tmp_path)):
        access.in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


async def test_a_kubeconfig_is_used_outside_a_cluster(tmp_path: Path) -> None:
    """The current context says where, who and in which namespace."""
    async with bouncer(lambda: "Bearer secret-token") as (runner, seen):
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        found = await access.find({"KUBECONFIG": str(kubeconfig(tmp_path, url))})
        assert found.namespace == NAMESPACE
        async with connected(found) as api:
            await api.call("GET", LEASES.path(NAMESPACE))
        assert seen == ["Bearer secret-token"]


@pytest.mark.parametrize("text", [None, "", "apiVersion: v1", "{", "current-context: nowhere"])
async def test_a_kubeconfig_that_is_none_is_a_configuration_error(
    tmp_path: Path, text: str | None
) -> None:
    """One sentence that names the file."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.NoCluster, match=str(path)):
        await access.find({"KUBECONFIG": str(path)})


# -- watches


@pytest.mark.parametrize(
    ("fault", "expected", "got"),
    [
        (Fault(cut_after=2), errors.Unreachable, 2),
        (Fault(end_after=2), errors.Unreachable, 2),
        (Fault(silent_after=2), errors.Silent, 2),
        (Fault(silent_after=0), errors.Silent, 0),
        (Fault(status=410), errors.Gone, 0),
        (Fault(status=200, text="<html>"), errors.Unreachable, 0),
        (Fault(abort=True), errors.Unreachable, 0),
        (Fault(hang=True), errors.Unreachable, 0),
    ],
)
async def test_a_watch_that_breaks_says_how(
    fault: Fault, expected: type[errors.KubeError], got: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole events are handed on, half a line never is, and silence is noticed."""
    monkeypatch.setattr(client, "_HEADERS_S", 0.5)
    async with talking(fault) as (api, server):
        version = str(server.objects.version)
        for name in "abc":
            server.objects.create("pods", NAMESPACE, {"metadata": {"name": name}, "spec": {}})
        found: list[str] = []
        with pytest.raises(expected):
            await api.watch(
                PODS.path(NAMESPACE),
                {"resourceVersion": version},
                lambda event: found.append(event["object"]["metadata"]["name"]),
                opened=lambda: None,
                silence_s=0.5,
            )
        assert found == ["a", "b", "c"][:got]


async def test_a_cancelled_watch_closes_its_connection() -> None:
    """What nobody listens to any more must not stay open at the server."""
    server = server_in(furnished())
    front = Front(server)
    async with front.serving(), connected(access_to(front.url)) as api:
        with anyio.CancelScope() as scope, anyio.fail_after(20):
            await api.watch(
                PODS.path(NAMESPACE),
                {"resourceVersion": str(server.objects.version)},
                lambda _: None,
                opened=scope.cancel,
                silence_s=10,
            )
        assert scope.cancelled_caught
        async with asyncio.timeout(20):
            while front.watches:
                await anyio.sleep(0.01)
