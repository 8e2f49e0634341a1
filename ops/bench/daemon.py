"""What the daemon itself costs: its memory, its event loop's lag, the executors' idle time.

`python -m ops.bench.daemon [memory] [lag] [gap]`: all three by default, as tables. Real daemons
with a pipeline without models (`ops.rig.pipeline`), on a directory and on SeaweedFS; for the idle
time through a proxy that holds each request back for 200 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.rig.fault_proxy import Fault, FaultProxy
from ops.rig.weed import Server, weed

ROOT = Path(__file__).resolve().parents[2]
_START_S = 60.0
_DELAY_S = 0.2
_TASK_S = 5.0
_AUDIO = os.urandom(500_000)
_DONE = ("emiliad_tasks_total", 'outcome="completed"')
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")

Metrics = Mapping[tuple[str, str], float]  # by name and labels


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon."""

    process: subprocess.Popen[bytes]
    port: int

    def metrics(self) -> dict[tuple[str, str], float]:
        """What it exposes now."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [match for line in lines if (match := _SAMPLE.fullmatch(line))]
        return {(m[1], m[2] or ""): float(m[3]) for m in found}

    def value(self, name: str, labels: str = "") -> float:
        return self.metrics()[f"emiliad_{name}", labels]

    def memory_mb(self, what: str = "VmRSS") -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{what}:")[2].split()[0]) / 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def until_done(self, count: int) -> None:
        """Waits until so many tasks are completed."""
        self.until(lambda: self.metrics()[_DONE] >= count, 300.0)

    def until(self, holds: Callable[[], bool], seconds: float = _START_S) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, "the daemon ended"
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.1)


@contextmanager
def running(folder: Path, env: Mapping[str, str]) -> Iterator[Daemon]:
    """A daemon whose executors are ready; stopped again at the end."""
    log = folder / "daemon.log"
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ours = {
        "PYTHONPATH": str(ROOT),
        "PIPELINE": "ops.rig.pipeline:Rig",
        "DEVICE": "cpu",
        "SCRATCH_DIR": str(folder / "scratch"),
        "HTTP_PORT": "0",
        "LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "emiliad"]
    subprocess.run([*command, "enqueue"], env={**kept, **ours, **env}, check=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "run"], env={**kept, **ours, **env}, stdout=output, stderr=output
        )
    try:
        daemon = Daemon(process, _port(process, log))
        daemon.until(lambda: daemon.value("ready") == 1)
        yield daemon
    finally:
        process.terminate()
        process.wait(30)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"health.listening"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.1)
    raise SystemExit(f"the daemon did not start:\n{log.read_text()}")


@contextmanager
def on_a_directory(folder: Path, tasks: int) -> Iterator[dict[str, str]]:
    """A queue in a directory."""
    for number in range(tasks):
        path = folder / "bucket" / "raw_audio" / "en" / f"{number:04}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_AUDIO)
    yield {"STORE_URL": (folder / "bucket").as_uri()}


@contextmanager
def on_s3(folder: Path, tasks: int, delay_s: float = 0.0) -> Iterator[dict[str, str]]:
    """A queue on a real S3 server, each request to which takes `delay_s` more."""
    (folder / "weed").mkdir()
    with weed(folder / "weed") as fresh:
        server = fresh.with_bucket()
        for number in range(tasks):
            _put(server, f"raw_audio/en/{number:04}.mp3")
        if not delay_s:
            yield server.environment()
            return
        with FaultProxy(server.endpoint, lambda _: Fault(late_s=delay_s)).running() as proxy:
            yield server.environment(proxy.endpoint)


def _put(server: Server, key: str) -> None:
    server.client().put_object(Bucket=server.bucket, Key=key, Body=_AUDIO)


def memory() -> None:
    """Resident memory at the start and after a hundred tasks."""
    print("| memory, MB | ready | after 100 tasks | peak |\n|---|---:|---:|---:|")
    for name, place in (("a directory", on_a_directory), ("S3", on_s3)):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = stack.enter_context(place(folder, 100))
            env = {**store, "RIG_SECONDS": "0.05"}
            daemon = stack.enter_context(running(folder, env))
            first = daemon.memory_mb()
            daemon.until_done(100)
            last, peak = daemon.memory_mb(), daemon.memory_mb("VmHWM")
            print(f"| {name} | {first:.0f} | {last:.0f} | {peak:.0f} |")


def lag(seconds: float = 30.0) -> None:
    """How late the loop runs its timers while as many executors as cores compute."""
    cores = len(os.sched_getaffinity(0))
    print(f"| loop lag, ms ({cores} cores) | p50 | p99 | CPU of the daemon |\n|---|---:|---:|---:|")
    for busy in (0, cores):
        for name, place in (("a directory", on_a_directory), ("S3", on_s3)):
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                store = stack.enter_context(place(folder, 100))
                env = {**store, "RIG_SECONDS": "2", "RIG_BUSY": "1" if busy else "0"}
                env["CPU_EXECUTORS"] = str(cores)
                daemon = stack.enter_context(running(folder, env))
                time.sleep(3)
                before, cpu = daemon.metrics(), daemon.cpu_s()
                time.sleep(seconds)
                after, share = daemon.metrics(), (daemon.cpu_s() - cpu) / seconds
                p50, p99 = (1000 * _quantile(before, after, q) for q in (0.5, 0.99))
                what = f"{name}, {busy or 'no'} busy executors"
                print(f"| {what} | {p50:.1f} | {p99:.1f} | {share:.1%} |")


def _quantile(before: Metrics, after: Metrics, share: float) -> float:
    """Of the lag's histogram between two looks, interpolated as Prometheus does."""
    name = "emiliad_loop_lag_seconds_bucket"
    buckets = sorted(
        (float(labels[4:-1]), after[name, labels] - before.get((name, labels), 0.0))
        for metric, labels in after
        if metric == name
    )
    wanted = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if count >= wanted and count > below:
            return lower + (upper - lower) * (wanted - below) / (count - below)
        lower, below = upper, count
    return lower


def gap(executors: tuple[int, ...] = (1, 4, 8), seconds: float = 40.0) -> None:
    """The share of the executors' time without a task, between tasks, in the steady state."""
    print(
        f"| tasks of {_TASK_S:.0f} s, requests {1000 * _DELAY_S:.0f} ms late | idle | tasks done | "
        "leases held, at most | of |\n|---|---:|---:|---:|---:|"
    )
    for count in executors:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tasks = int(count * (seconds / _TASK_S + 12))
            store = stack.enter_context(on_s3(folder, tasks, _DELAY_S))
            env = {**store, "RIG_SECONDS": str(_TASK_S), "CPU_EXECUTORS": str(count)}
            daemon = stack.enter_context(running(folder, env))
            daemon.until_done(count)
            before, held, end = daemon.metrics(), 0.0, time.monotonic() + seconds
            while time.monotonic() < end:
                held = max(held, daemon.value("leases_held"))
                time.sleep(0.5)
            after = daemon.metrics()
            idle, busy = (_grown(before, after, kind) for kind in ("idle", "busy"))
            finished = after[_DONE] - before[_DONE]
            with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/status") as answer:
                bound = json.load(answer)["most_leases"]
            share = idle / (idle + busy)
            print(f"| {count} executors | {share:.2%} | {finished:.0f} | {held:.0f} | {bound} |")


def _grown(before: Metrics, after: Metrics, kind: str) -> float:
    name = f"emiliad_executor_{kind}_seconds_total"
    return sum(after[key] - before.get(key, 0.0) for key in after if key[0] == name)


def main() -> None:
    """Prints the tables that were asked for."""
    measurements = {"memory": memory, "lag": lag, "gap": gap}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*measurements, []])
    for name in parser.parse_args().what or measurements:
        measurements[name]()
        print(flush=True)


if __name__ == "__main__":
    main()
