"""Signals that ask a daemon what it does, and leave it at its work."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emiliad.rig import Bucket, Daemon, wait_until


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with a task in hand."""
    bucket = Bucket(tmp_path)
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    env = {"FAKE_SECONDS": "60", "LOG_LEVEL": "debug", "DRAIN_TIMEOUT_S": "0"}
    with bucket.daemon(**env) as daemon:
        daemon.until("executor.began")
        yield daemon
        assert daemon.process.poll() is None
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0


def test_sighup_logs_the_status_and_where_everything_waits(daemon: Daemon) -> None:
    """A terminal that closes, or an operator who asks: the daemon answers and works on."""
    for _ in range(2):
        daemon.signal(signal.SIGHUP)
        told = daemon.until("daemon.status")
        assert told["status"]["executors"][0]["task"]["episode_id"] == "one"
        assert told["status"]["state"] == "running"
        where = "\n".join(told["waiting"])
        assert "emiliad.actors.execute" in where
        assert "emiliad.executor.host" in where  # as deep as it really waits
        assert "emiliad.actors.claim" in where


def test_sigusr1_writes_the_stack_of_every_thread(daemon: Daemon) -> None:
    """By the system's own means, so that a loop that stands still can be looked into."""
    daemon.signal(signal.SIGUSR1)
    wait_until(
        lambda: (
            "Current thread" in daemon.log.read_text() and "heartbeat.py" in daemon.log.read_text()
        )
    )


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    """Exit code 2 before anything is begun: two daemons on one machine need two ports."""
    bucket = Bucket(tmp_path)
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        done = bucket.emiliad("run", HTTP_PORT=str(port))
    assert done.returncode == 2
    assert f"HTTP_PORT {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "scratch").exists()
