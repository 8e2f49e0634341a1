"""Real daemons under a real Prometheus, for tests and for people (`python -m tests.ops`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.registry import Collector

from emiliad.health.server import HealthServer
from emiliad.metrics import AUTOKICK_STATES, AutokickMetrics
from ops.prometheus.client import Prometheus, Series
from tests.emiliad.rig import Bucket, Daemon, wait_until

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "ops" / "prometheus" / "rules.yaml"
_DURATION = r"(\d+)(s|m|h|d)"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def address(daemon: Daemon) -> str:
    """Where a daemon answers, once it does."""
    return f"127.0.0.1:{daemon.until('health.listening')['port']}"


@contextmanager
def leading_autokicker() -> Iterator[str]:
    """What an autokicker that leads exposes, without a cluster to act on; yields its address."""
    registry = CollectorRegistry()
    metrics = AutokickMetrics(registry)
    ProcessCollector(registry=registry)
    for state in AUTOKICK_STATES:
        metrics.state.labels(state).set(state == "fill")
    metrics.leader.set(1)
    metrics.replicas.labels("bound").set(2)
    metrics.watch_restarts.labels("ended").inc()
    metrics.kicks.labels("unschedulable").inc()
    registry.register(_Kicking(metrics))
    server = HealthServer(
        port=0, registry=registry, status=dict, ready=lambda: None, alive=lambda: None
    )
    server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        server.close()


class _Kicking(Collector):
    """Kicks once for each scrape."""

    def __init__(self, metrics: AutokickMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self._metrics.kick_latency_seconds.observe(0.05)
        return []


def enqueue(bucket: Bucket, *names: str) -> None:
    """One task for each name; the fake pipeline reads from it what to do."""
    for name in names:
        bucket.put_audio(f"{name}.mp3", b"x" * 64_000)
    done = bucket.emiliad("enqueue")
    assert done.returncode == 0, done.stderr


def until_seen(server: Prometheus, expr: str, at_least: float) -> list[Series]:
    """Waits until a series of `expr` reaches a value, as Prometheus sees it."""
    found: list[Series] = []

    def reached() -> bool:
        found[:] = server.query(expr)
        return any(series.value >= at_least for series in found)

    wait_until(reached, lambda: f"{expr} is {[series.value for series in found]}")
    return found


def faster(rules: Path, factor: int, to: Path) -> Path:
    """The rules with every duration that many times shorter: hours pass in seconds."""
    content = yaml.safe_load(rules.read_text())
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _shorter(rule["expr"], factor)
            if "for" in rule:
                rule["for"] = _scaled(re.fullmatch(_DURATION, rule["for"]), factor)
    to.write_text(yaml.safe_dump(content))
    return to


def _shorter(expr: str, factor: int) -> str:
    expr = re.sub(rf"\[{_DURATION}\]", lambda found: f"[{_scaled(found, factor)}]", expr)
    return re.sub(rf"offset {_DURATION}", lambda found: f"offset {_scaled(found, factor)}", expr)


def _scaled(found: re.Match[str] | None, factor: int) -> str:
    assert found is not None
    return f"{int(found[1]) * _SECONDS[found[2]] * 1000 // factor}ms"
