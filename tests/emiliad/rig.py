"""A bucket in a directory and real daemons on it, for tests that use emiliad as its users do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0  # how long a test waits for what must happen, before it gives up


@dataclass
class Bucket:
    """A directory as the embedded store, and the commands that work on it."""

    root: Path
    settings: dict[str, str] = field(default_factory=dict)

    def put_audio(self, name: str, content: bytes = b"audio", language: str = "en") -> Path:
        """Drops a raw file into the bucket, as a person would."""
        path = self.root / "bucket" / "raw_audio" / language / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "STORE_URL": (self.root / "bucket").as_uri(),
            "SCRATCH_DIR": str(self.root / "scratch"),
            "PIPELINE": "tests.emiliad.fake_pipelines:Fake",
            "DEVICE": "cpu",
            "LEASE_TTL_S": "2",
            "RETRY_BACKOFF_S": "0.1",
            "LOG_FORMAT": "json",
            "HTTP_PORT": "0",  # any that is free: many daemons run here
            **self.settings,
            **more,
        }

    def emiliad(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs one command to its end."""
        (self.root / "bucket").mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "emiliad", *arguments],
            cwd=self.root,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
            check=False,
        )

    @contextmanager
    def daemon(self, *arguments: str, **env: str) -> Iterator[Daemon]:
        """A running daemon; killed at the end of the block if it still lives."""
        log = self.root / f"daemon-{time.monotonic_ns()}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "emiliad", "run", *arguments],
                cwd=self.root,
                env=self.environment(**env),
                stderr=stderr,
                stdout=stderr,
            )
        try:
            yield Daemon(process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def tasks(self, state: str) -> dict[str, dict[str, Any]]:
        """The queue's objects in `state` (todo, in_progress, completed, failed), by episode."""
        folder = self.root / "bucket" / "tasks" / f"processing_{state}"
        return {
            path.name.removesuffix(".task"): json.loads(path.read_text())
            for path in folder.glob("*.task")
        }

    def status(self) -> dict[str, Any]:
        done = self.emiliad("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def outputs(self, episode: str, language: str = "en") -> Path:
        return self.root / "bucket" / "processed" / language / episode

    def verify_settled(self, scratch: str = "scratch") -> None:
        """What must hold when nothing is left to do: no lease, no scratch, no litter."""
        assert self.tasks("in_progress").keys() <= self.tasks("failed").keys()
        assert self.tasks("todo").keys() == self.tasks("failed").keys()
        packs = self.root / "bucket" / "tasks" / "processing_outputs"
        assert [path for path in packs.rglob("*") if path.is_file()] == []
        leftovers = (self.root / scratch).glob("owner-*/tasks/*")
        assert list(leftovers) == []
        for episode, record in self.tasks("completed").items():
            self.verify_outputs(episode, record)

    def verify_outputs(self, episode: str, record: Mapping[str, Any]) -> None:
        """The published outputs are those of the committed attempt, whole."""
        import hashlib

        folder = self.outputs(episode, record["language"] or "unknown")
        found = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        assert found == {name: facts["md5"] for name, facts in record["outputs"].items()}
        assert len(json.loads((folder / "all_segments.json").read_text())) == record["segments"]


@dataclass
class Daemon:
    """A daemon's process and what it has logged."""

    process: subprocess.Popen[bytes]
    log: Path

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The logged events of this name, in order."""
        lines = self.log.read_text().splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in parsed if event.get("event", "").startswith(name)]

    def until(self, event: str, **facts: Any) -> dict[str, Any]:
        """Waits for an event with these facts."""
        found: list[dict[str, Any]] = []

        def seen() -> bool:
            matching = (e for e in self.events(event) if facts.items() <= e.items())
            found.extend(matching)
            return bool(found)

        wait_until(seen, lambda: f"no {event} {facts}; log:\n{self.log.read_text()}")
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Waits for the daemon to end by itself and returns its exit code."""
        return self.process.wait(PATIENCE_S)

    @property
    def port(self) -> int:
        """Where it answers over HTTP."""
        return int(self.until("health.listening")["port"])

    def ask(self, path: str) -> str:
        """The body of its answer, be that good or bad news."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.ask("/status")))

    def metric(self, name: str, labels: str = "") -> float:
        """A sample's value, named as Prometheus shows it, without the prefix."""
        wanted = f"emiliad_{name}{labels} "
        lines = self.ask("/metrics").splitlines()
        (value,) = [line.removeprefix(wanted) for line in lines if line.startswith(wanted)]
        return float(value)

    def executors(self) -> list[int]:
        """The pids of the executors that it has started."""
        return [event["pid"] for event in self.events("executor.ready")]


def wait_until(
    holds: Callable[[], bool],
    complaint: Callable[[], str] = lambda: "",
    patience_s: float = PATIENCE_S,
) -> None:
    """Waits until `holds()`; fails with `complaint()` when patience runs out."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(complaint())
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system of a given size; where the system does not allow it, the test is skipped."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
