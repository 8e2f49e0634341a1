"""How fast a queue is filled, scanned, claimed from and worked on, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from rich.table import Table

from emiliad.bucket import opened
from emiliad.config import Settings
from emiliad.parallel import for_each
from emiliad.queue.leases import Leases

FOLDERS = ("de", "en", "fr", "zh")
WORK_S = 30.0  # for which the daemon is watched


@contextmanager
def existing(url: str | None, room: Path) -> Iterator[None]:
    """A store that there is, or a directory in `room`, for all commands in the block."""
    os.environ["STORE_URL"] = url or (room / "bucket").as_uri()
    yield


@contextmanager
def seaweedfs(room: Path) -> Iterator[None]:
    """An S3 server: that of the tests, which are there where measurements are made."""
    from tests.emiliad.weed import weed

    (room / "server").mkdir()
    with weed(room / "server") as server:
        os.environ |= server.with_bucket().environment()
        yield


def speed(objects: int, claims: int) -> Table:
    """What each step takes, on an empty store."""
    seconds = _seconds(anyio.run, _fill, objects)
    title = f"{objects:,} raw files, put in {seconds:.1f} s"
    table = Table("step", "seconds", "a second", "peak memory", title=title)
    scans = ("enqueue", "enqueue again")
    for name in scans:
        seconds, mib, _ = _measured("-m", "emiliad", "enqueue")
        table.add_row(name, f"{seconds:.1f}", f"{objects / seconds:,.0f}", f"{mib:.0f} MiB")
    arguments = ("-m", "ops.bench.queue", "--claimer", "--claims", str(claims))
    _, mib, said = _measured(*arguments)
    first, rest = map(float, said.split())
    table.add_row("first claim, from the start of the process", f"{first:.2f}", "", "")
    table.add_row(
        f"{claims:,} more claims", f"{rest:.1f}", f"{claims / rest:,.0f}", f"{mib:.0f} MiB"
    )
    done, mib = _worked()
    table.add_row(
        f"{done:,} tasks by the daemon, all of them the queue's own work",
        f"{WORK_S:.1f}",
        f"{done / WORK_S:,.0f}",
        f"{mib:.0f} MiB",
    )
    return table


def _seconds(run: Callable[..., object], *arguments: object) -> float:
    start = time.monotonic()
    run(*arguments)
    return time.monotonic() - start


def _worked() -> tuple[int, float]:
    """Tasks that a daemon completes when they take no time themselves, and its peak MiB."""
    pretends = {"PIPELINE": "tests.emiliad.fake_pipelines:Fake", "FAKE_SECONDS": "0"}
    env = {**os.environ, **pretends, "DEVICE": "cpu", "LOG_LEVEL": "warning", "HTTP_PORT": "0"}
    before = anyio.run(_completed)
    with subprocess.Popen([sys.executable, "-m", "emiliad", "run"], env=env) as daemon:
        while anyio.run(_completed) == before:
            time.sleep(0.2)
        before = anyio.run(_completed)
        time.sleep(WORK_S)
        done = anyio.run(_completed) - before
        mib = _peak_mib(daemon.pid)
        daemon.send_signal(signal.SIGTERM)
    return done, mib


async def _completed() -> int:
    async with opened(Settings.from_env({**os.environ}).daemon) as bucket:
        return sum([len(page) async for page in bucket.store.list(bucket.layout.completed)])


def _measured(*arguments: str) -> tuple[float, float, str]:
    """Seconds, peak MiB and the output, of a few bytes, of a Python process."""
    start, mib = time.monotonic(), 0.0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            mib = _peak_mib(run.pid) or mib
            time.sleep(0.05)
        assert run.stdout is not None
        said = run.stdout.read()
    if run.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {run.returncode}")
    return time.monotonic() - start, mib, said


def _peak_mib(pid: int) -> float:
    """The most memory that a process has had; 0 if it is no more.

    What `wait4` says of a child is at least what its parent has.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


async def _fill(objects: int) -> None:
    """Puts raw files, spread over folders as people do it."""
    async with opened(Settings.from_env({**os.environ}).daemon) as bucket:

        async def put(number: int) -> None:
            folder = f"{FOLDERS[number % len(FOLDERS)]}/show {number % 97:02}"
            await bucket.store.put(f"{bucket.layout.raw}{folder}/ep_{number:07}.mp3", b"audio")

        await for_each(range(objects), put, at_once=64)


async def claim(claims: int) -> None:
    """Prints the seconds to the first claim, and those that the others took."""
    start = time.time() - _age_s()
    async with opened(Settings.from_env({**os.environ}).daemon) as bucket:
        leases = Leases(bucket.store, bucket.layout, owner="bench")
        assert await leases.next() is not None
        first = time.time()
        for _ in range(claims):
            assert await leases.next() is not None
        print(first - start, time.time() - first)


def _age_s() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
