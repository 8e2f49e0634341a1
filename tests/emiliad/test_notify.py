"""systemd's side of the daemon, on a real socket: ready, alive, stopping; and credentials."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from emiliad.config import Settings
from emiliad.credentials import with_credentials
from emiliad.errors import ConfigError
from emiliad.notify import Notifier
from tests.emiliad.rig import PATIENCE_S, Bucket


class Supervisor:
    """What systemd would hear, a message a datagram."""

    def __init__(self, socket_: socket.socket) -> None:
        self._socket = socket_
        self.heard: list[str] = []

    def waiting(self) -> int:
        """Takes the messages that are there, and says how many they were."""
        self._socket.setblocking(False)
        messages = 0
        with suppress(BlockingIOError):
            while self._socket.recv(4096):
                messages += 1
        return messages

    def until(self, message: str) -> None:
        """Listens up to the next message that begins so."""
        heard = ""
        while not heard.startswith(message):
            heard = self._socket.recv(4096).decode()
            self.heard.append(heard)

    def rest(self) -> None:
        """Listens to what has been said by now."""
        self._socket.setblocking(False)
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return

    def values(self, name: str) -> list[str]:
        return [m.partition("=")[2] for m in self.heard if m.startswith(f"{name}=")]


@contextmanager
def supervisor(address: str) -> Iterator[Supervisor]:
    """Listens at an address as NOTIFY_SOCKET has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as socket_:
        socket_.bind("\0" + address[1:] if address.startswith("@") else address)
        socket_.settimeout(PATIENCE_S)
        yield Supervisor(socket_)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_hears_when_the_daemon_is_ready_alive_and_stopping(
    tmp_path: Path, abstract: bool
) -> None:
    """EXTEND_TIMEOUT_USEC while it loads, READY once, signs of life, what it does, STOPPING."""
    address = f"@emiliad-{os.getpid()}" if abstract else str(tmp_path / "notify")
    bucket = Bucket(tmp_path)
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "600000", "FAKE_SECONDS": "0.6"}
    with supervisor(address) as systemd, bucket.daemon(LOG_LEVEL="debug", **env) as daemon:
        systemd.until("EXTEND_TIMEOUT_USEC=")
        assert systemd.values("READY") == []
        systemd.until("READY=1")
        assert daemon.executors()
        systemd.until("STATUS=running: 1 of 1 executors busy")
        systemd.until("STATUS=running: 0 of 1 executors busy, 1 completed")
        for _ in range(3):  # with nothing to do, too
            systemd.until("WATCHDOG=1")
        daemon.signal(signal.SIGTERM)
        systemd.until("STOPPING=1")
        assert daemon.ends() == 0
        systemd.rest()
        assert systemd.values("READY") == ["1"]
        assert int(systemd.values("EXTEND_TIMEOUT_USEC")[0]) >= 10_000_000


def test_a_daemon_that_drains_stays_alive_to_the_watchdog(tmp_path: Path) -> None:
    """A drain may take longer than the watchdog's time."""
    address = str(tmp_path / "notify")
    bucket = Bucket(tmp_path)
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "600000", "FAKE_SECONDS": "60"}
    patient = bucket.daemon(LOG_LEVEL="debug", DRAIN_TIMEOUT_S="600", **env)
    with supervisor(address) as systemd, patient as daemon:
        daemon.until("executor.began")
        daemon.signal(signal.SIGTERM)
        systemd.until("STOPPING=1")
        systemd.until("STATUS=draining: 1 of 1 executors busy")
        for _ in range(3):
            systemd.until("WATCHDOG=1")
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0


def test_executors_know_nothing_of_systemd(tmp_path: Path) -> None:
    """A child that spoke for the daemon would be refused, or believed."""
    address = str(tmp_path / "notify")
    bucket = Bucket(tmp_path)
    with supervisor(address):
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "9000000"}
        with bucket.daemon(**env) as daemon:
            pid = daemon.until("executor.ready")["pid"]
            inherited = Path(f"/proc/{pid}/environ").read_bytes()
            daemon.signal(signal.SIGTERM)
            assert daemon.ends() == 0
    assert b"WATCHDOG" not in inherited
    assert b"NOTIFY" not in inherited


def test_nobody_listening_is_no_trouble(tmp_path: Path) -> None:
    """A socket that is gone, or is none; variables that make no sense."""
    for env in (
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "/"},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": str(tmp_path / "nowhere")},
        {"NOTIFY_SOCKET": "/" + "x" * 500},
    ):
        notifier = Notifier.from_env(env)
        notifier.ready()
        notifier.status("two\nlines READY=1")
    watched = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000"}
    assert Notifier.from_env(watched).watchdog_s == 3.0
    assert Notifier.from_env({**watched, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_env({**watched, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 3.0
    for nonsense in ("", "soon", "0", "-5"):
        assert Notifier.from_env({**watched, "WATCHDOG_USEC": nonsense}).watchdog_s is None


def test_a_supervisor_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """When its buffer is full, what is said is lost."""
    address = str(tmp_path / "notify")
    with supervisor(address) as manager:
        notifier = Notifier.from_env({"NOTIFY_SOCKET": address})
        for _ in range(10_000):
            notifier.alive()
        assert 0 < manager.waiting() < 10_000


CREDENTIALS = """
# R2, as `systemd-creds` keeps it
R2_ACCESS_KEY_ID=of the file
  R2_SECRET_ACCESS_KEY = "top secret"
export PREFETCH_DEPTH='7'

; another comment
R2_BUCKET=a=b
"""


def test_credentials_count_where_the_environment_says_nothing(tmp_path: Path) -> None:
    """An empty variable counts as not set; a set one wins over the file."""
    (tmp_path / "emiliad.env").write_text(CREDENTIALS)
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "R2_BUCKET": "", "R2_ACCESS_KEY_ID": "ours"}
    settings = Settings.from_env(with_credentials(env)).daemon
    assert settings.r2_access_key_id == "ours"
    assert settings.r2_secret_access_key == "top secret"
    assert settings.prefetch_depth == 7
    assert settings.r2_bucket == "a=b"


def test_without_a_credentials_file_nothing_changes(tmp_path: Path) -> None:
    """Other services' credentials are none of ours."""
    for env in ({"A": "b"}, {"A": "b", "CREDENTIALS_DIRECTORY": str(tmp_path)}):
        assert with_credentials(env) == env


@pytest.mark.parametrize("line", ["R2_SECRET_ACCESS_KEY", "two words=x", "=x", "1X=y"])
def test_a_broken_credentials_file_is_told_without_its_secrets(tmp_path: Path, line: str) -> None:
    """The message names the file and the line's number, never what stands there."""
    (tmp_path / "emiliad.env").write_text(f"A=hush\n{line}\n")
    with pytest.raises(ConfigError, match=r"emiliad.env, line 2: is not KEY=VALUE") as caught:
        with_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "hush" not in str(caught.value)
    assert line not in str(caught.value)


def test_a_credentials_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A directory in its place, or bytes that are no text."""
    (tmp_path / "emiliad.env").write_bytes(b"A=\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        with_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "emiliad.env").unlink()
    (tmp_path / "emiliad.env").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        with_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_a_daemon_and_its_executors_run_on_credentials(tmp_path: Path) -> None:
    """Settings that stand in the file alone reach the daemon, its executors, and no log."""
    bucket = Bucket(tmp_path)
    bucket.put_audio("one.mp3")
    bucket.emiliad("enqueue")
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "emiliad.env").write_text("FAKE_LOAD=model\nHF_TOKEN=hf_hush\nCPU_EXECUTORS=2\n")
    env = {"CREDENTIALS_DIRECTORY": str(folder), "LOG_LEVEL": "debug"}
    with bucket.daemon(**env) as daemon:
        assert daemon.ends() == 2  # as the executors' model is missing
        assert "the model demo/vad is missing" in daemon.log.read_text()
        assert "hf_hush" not in daemon.log.read_text()
