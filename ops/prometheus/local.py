"""Runs a Prometheus server on this machine for a while, for tests and rehearsals."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ops.prometheus.client import Prometheus, QueryError

_START_S = 60.0  # until it must answer; it takes a second on an idle machine
_STOP_S = 10.0


def missing() -> str | None:
    """Why none can be run here; None if one can."""
    absent = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"not installed: {' and '.join(absent)} (Debian: prometheus)" if absent else None


@contextmanager
def prometheus(
    folder: Path,
    targets: Mapping[str, Sequence[str]],
    *,
    rules: Path | None = None,
    every: str = "1s",
) -> Iterator[Prometheus]:
    """Scrapes `targets` (addresses by job) and evaluates `rules` `every` so often, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.json"  # JSON is YAML
    config.write_text(json.dumps(_config(targets, rules, every)))
    port = _free_port()
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        _wait(server, process, folder / "prometheus.log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _config(
    targets: Mapping[str, Sequence[str]], rules: Path | None, every: str
) -> dict[str, object]:
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
            for job, addresses in targets.items()
        ],
    }


def _wait(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            server.query("1")
        except QueryError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"prometheus does not start: {log.read_text()}") from None
            time.sleep(0.1)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
