"""What the HTTP server answers, to well-behaved clients and to others."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import anyio
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from emiliad.board import Board
from emiliad.errors import ConfigError
from emiliad.health import listener
from emiliad.health.heartbeat import Heartbeat
from emiliad.health.server import _Handler
from emiliad.metrics import Metrics
from ops import scenes
from tests.emiliad.rig import wait_until
from tests.health.asking import ask, serving

PATHS = ("/", "/livez", "/healthz", "/readyz", "/metrics", "/status")


def test_a_healthy_daemon_answers_every_page() -> None:
    """Each page has its type, is never stored by anybody, and stays inside its own frame."""
    types = {
        "/": "text/html",
        "/livez": "text/plain",
        "/healthz": "text/plain",
        "/readyz": "text/plain",
        "/metrics": "text/plain; version=0.0.4",
        "/status": "application/json",
    }
    with serving() as server:
        for path in PATHS:
            answer = ask(server, path)
            assert answer.status == 200, path
            assert answer.headers["content-type"].startswith(types[path])
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["server"].strip() == "emiliad"


def test_head_says_what_get_would_without_the_body() -> None:
    """HEAD answers with the status, type and length of a GET, and no byte of the body."""
    with serving() as server:
        for path in PATHS:
            got, head = ask(server, path), ask(server, path, "HEAD")
            assert (head.status, head.body) == (200, b"")
            assert head.headers["content-type"] == got.headers["content-type"]
            assert int(head.headers["content-length"]) > 0
        with closing(socket.create_connection(("127.0.0.1", server.port))) as raw:
            raw.sendall(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert _all_of(raw).endswith(b"\r\n\r\n")


def test_a_query_changes_nothing() -> None:
    """Probes and proxies add queries; the page is the same."""
    with serving() as server:
        assert ask(server, "/livez?verbose=1").status == 200


@pytest.mark.parametrize("path", ["/nothing", "/livez/", "/status.json", "/../etc/passwd"])
def test_an_unknown_path_is_not_found(path: str) -> None:
    """A 404 says which pages there are."""
    with serving() as server:
        answer = ask(server, path)
        assert answer.status == 404
        assert "/readyz" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_nothing_can_be_changed_over_http(method: str) -> None:
    """Any other method is a 405 that names those allowed, and its body does no harm."""
    with serving() as server:
        answer = ask(server, "/status", method, body=b"x" * 50_000)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"


def test_a_body_that_nobody_wants_does_not_break_the_answer() -> None:
    """A client that still sends when it is refused is heard out: a reset could overtake the
    answer on its way."""
    with serving() as server, closing(socket.create_connection(("127.0.0.1", server.port))) as raw:
        raw.sendall(b"POST /status HTTP/1.1\r\nContent-Length: 50000\r\n\r\n")
        assert b" 405 " in _all_of(raw)
        for _ in range(3):
            raw.sendall(b"x" * 1000)
            time.sleep(0.05)  # for a reset to arrive, if there were one


def test_liveness_and_readiness_give_their_reasons() -> None:
    """A 503 says in a sentence why; the page of metrics has no part in it."""
    with serving(alive=lambda: "it stands", ready=lambda: "it \udc80 loads") as server:
        assert (ask(server, "/livez").status, ask(server, "/livez").text) == (503, "it stands\n")
        assert ask(server, "/healthz").status == 503
        assert (ask(server, "/readyz").status, ask(server, "/readyz").text) == (
            503,
            "it \\udc80 loads\n",
        )
        assert ask(server, "/metrics").status == 200


def test_a_degraded_daemon_is_ready_and_says_what_is_wrong() -> None:
    """What does not keep tasks from being processed is named by readiness, but fails no probe."""
    board = Board(Metrics())
    board.problem("scratch", "the scratch disk is full: no space is left")
    with serving(status=board.snapshot) as server:
        answer = ask(server, "/readyz")
        assert (answer.status, answer.text) == (
            200,
            "ok, but degraded: the scratch disk is full: no space is left\n",
        )
        board.problem("scratch", None)
        assert ask(server, "/readyz").text == "ok\n"


def test_status_is_json_whatever_the_daemon_holds() -> None:
    """NaN, infinity, broken Unicode and odd types do not break a reader of /status."""
    odd: dict[Any, Any] = {
        "nan": math.nan,
        "list": [math.inf, 1.5],
        "text": "\udc80\x00",
        3: {"path": object},
    }
    with serving(status=lambda: dict(odd), alive=lambda: "no beat") as server:
        told = json.loads(ask(server, "/status").body, parse_constant=pytest.fail)
    assert (told["nan"], told["list"], told["text"]) == (None, [None, 1.5], "\udc80\x00")
    assert told["3"] == {"path": str(object)}
    assert (told["not_alive"], told["not_ready"]) == ("no beat", None)


def test_a_page_that_fails_does_not_take_the_others_with_it() -> None:
    """A bug in the status is a 500 with its reason; probes and metrics go on."""

    def broken() -> dict[str, object]:
        raise KeyError("gpu9")

    with serving(status=broken) as server:
        answer = ask(server, "/status")
        assert answer.status == 500
        assert "gpu9" in answer.text
        assert ask(server, "/livez").status == 200
        assert ask(server, "/metrics").status == 200


def test_metrics_come_in_the_format_that_was_asked_for() -> None:
    """Prometheus asks for OpenMetrics by its Accept header; a senseless one gets plain text."""
    with serving() as server:
        asked = ask(
            server, "/metrics", Accept="application/openmetrics-text;version=1.0.0,*/*;q=.1"
        )
        assert asked.headers["content-type"].startswith("application/openmetrics-text")
        families = text_string_to_metric_families(asked.text)  # type: ignore[no-untyped-call]
        assert {"emiliad_tasks", "emiliad_loop_lag_seconds"} <= {one.name for one in families}
        for nonsense in (
            "application/openmetrics-text;version=x.y",
            "text/plain;version=;;",
            "\xff",
        ):
            plain = ask(server, "/metrics", Accept=nonsense)
            assert (plain.status, b"# EOF" in plain.body) == (200, False)


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian's prometheus)")
def test_promtool_has_nothing_to_say_against_the_metrics() -> None:
    """Names, units and help texts follow Prometheus's own rules."""
    with serving(registry=scenes.busy(1).metrics.registry) as server:
        body = ask(server, "/metrics").body
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_both_internet_protocols_are_served() -> None:
    """Pods of an IPv6 cluster are probed by their IPv6 address."""
    with serving() as server:
        assert ask(server, "/livez", host="127.0.0.1").status == 200
        if not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")
        assert ask(server, "/livez", host="::1").status == 200


def test_a_port_in_use_is_one_sentence() -> None:
    """The message names the setting, the port and the way out."""
    program = (
        "import socket, sys; s = socket.socket(); s.bind(('', 0)); s.listen();"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        with pytest.raises(ConfigError) as caught, serving(port=port):
            pass
        other.communicate()
    assert str(caught.value).startswith(f"HTTP_PORT {port} is in use by another process")
    assert "\n" not in str(caught.value)


def test_a_closed_server_gives_its_port_back() -> None:
    """A daemon that restarts listens on the same port at once, connections before or not."""
    with serving() as server:
        port = server.port
        ask(server, "/livez")
    with serving(port=port) as again:
        assert ask(again, "/livez").status == 200
        again.close()
        with pytest.raises(ConnectionRefusedError):
            ask(again, "/livez")
        again.close()


def test_a_server_that_never_started_can_be_closed() -> None:
    """What failed to start is closed like everything else."""
    with pytest.raises(ConfigError), serving() as first, serving(port=first.port) as second:
        second.close()


def test_the_port_is_named_once_it_is_known() -> None:
    """HTTP_PORT=0 asks for any free port; the server says which it got."""
    with serving() as server:
        assert server.port > 0


@contextmanager
def _loop(heartbeat: Heartbeat, until: threading.Event) -> Iterator[None]:
    """An event loop in a thread, which beats and then stands still until `until`."""

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(heartbeat.run)
            await anyio.sleep(0.2)
            until.wait(60)
            await anyio.sleep(0.3)
            group.cancel_scope.cancel()

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    try:
        yield
    finally:
        until.set()
        thread.join()


def test_a_loop_that_stands_still_is_told_from_one_that_turns() -> None:
    """/livez says 503 with the age, /metrics and /status still answer; when it turns, 200 again."""
    metrics, until = Metrics(), threading.Event()
    board = Board(metrics)
    heartbeat = Heartbeat(stalls=metrics.loop_stalls, stalled_after_s=0.5, dead_after_s=1.0)
    with (
        serving(
            registry=metrics.registry, status=board.snapshot, alive=heartbeat.not_alive
        ) as server,
        _loop(heartbeat, until),
    ):
        assert ask(server, "/livez").status == 200
        wait_until(lambda: ask(server, "/livez").status == 503)
        assert "the event loop has stood still for" in ask(server, "/livez").text
        assert "emiliad_loop_stalls_total 1.0" in ask(server, "/metrics").text
        assert "stood still" in json.loads(ask(server, "/status").body)["not_alive"]
        until.set()
        wait_until(lambda: ask(server, "/livez").status == 200)


def test_silent_clients_do_not_keep_a_probe_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of connections that say nothing, or half a request, hold few threads, and a probe
    that comes after them is answered, even if no time limit ever ended one of them."""
    monkeypatch.setattr(listener, "_PATIENCE_S", 1e9)
    monkeypatch.setattr(_Handler, "timeout", None)
    with serving() as server, ExitStack() as stack:
        for number in range(300):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if number % 2:
                client.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert ask(server, "/livez").status == 200
        wait_until(lambda: _http_threads() <= listener._AT_ONCE + 1)


def test_a_trickle_of_bytes_does_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then is cut off when its time is over."""
    monkeypatch.setattr(listener, "_PATIENCE_S", 0.5)
    with serving() as server, closing(socket.create_connection(("127.0.0.1", server.port))) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\n")

        def cut_off() -> bool:
            try:
                slow.sendall(b"X: y\r\n")
            except OSError:
                return True
            return False

        wait_until(cut_off)
        wait_until(lambda: _http_threads() == 0)


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large answer that nobody takes does not hold its thread for ever."""
    monkeypatch.setattr(listener, "_PATIENCE_S", 0.5)
    large = {"text": "x" * 30_000_000}
    with (
        serving(status=lambda: large) as server,
        closing(socket.create_connection(("127.0.0.1", server.port))) as slow,
    ):
        slow.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        wait_until(lambda: _http_threads() == 1)
        wait_until(lambda: _http_threads() == 0)
        assert ask(server, "/livez").status == 200


def test_many_at_once_are_all_answered() -> None:
    """Forty clients at the same time each get the whole status."""
    board = scenes.busy(2).board
    answers: list[int] = []

    def one() -> None:
        for _ in range(3):
            answers.append(len(json.loads(ask(server, "/status").body)["executors"]))

    with serving(status=board.snapshot) as server:
        clients = [threading.Thread(target=one) for _ in range(40)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert answers == [2] * 120


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"\r\n",
        b"",
    ],
)
def test_garbage_is_refused_or_dropped(garbage: bytes) -> None:
    """TLS on the plain port, a request too long or malformed: an error, or a closed connection."""
    with serving() as server:
        with closing(socket.create_connection(("127.0.0.1", server.port))) as raw:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            said = _all_of(raw)
        assert b"200" not in said.partition(b"\r\n")[0]
        assert ask(server, "/livez").status == 200


def _all_of(raw: socket.socket) -> bytes:
    raw.settimeout(30)
    said = b""
    try:
        while piece := raw.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def _http_threads() -> int:
    time.sleep(0.02)
    return sum(thread.name == "http" for thread in threading.enumerate())
