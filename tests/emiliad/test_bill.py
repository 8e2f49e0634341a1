"""What a real daemon on a real S3 server asks of it, by its own metrics: what R2 would bill."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from emiliad import daemon
from emiliad.config import Settings
from emiliad.metrics import Metrics
from emiliad.store import RESULTS
from emiliad.types import Outcome
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server

TASKS = 40
CLASS_A = (
    "put",
    "list",
    "upload",
    "create_multipart",
    "upload_part",
    "complete_multipart",
)
CLASS_B = ("get", "head", "download")


def requests(registry: CollectorRegistry, *operations: str) -> float:
    """Requests of these kinds, however they ended: R2 bills refused ones as well."""
    return sum(
        registry.get_sample_value(
            "emiliad_store_requests_total", {"operation": operation, "result": result}
        )
        or 0.0
        for operation in operations
        for result in RESULTS
    )


async def test_a_daemons_metrics_show_five_class_a_requests_for_a_task(
    weed_bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most, beside published objects and renewals; its start, its sweep and the looks that find
    the queue empty included."""
    bucket = S3Bucket(tmp_path, weed_bucket)
    for number in range(TASKS):
        bucket.put_audio(f"{number:02}.mp3")
    assert bucket.emiliad("enqueue").returncode == 0
    env = bucket.environment(LEASE_TTL_S="300", HTTP_PORT="0")
    for name, value in env.items():  # the executor's, too
        monkeypatch.setenv(name, value)
    metrics = Metrics()
    monkeypatch.setattr(daemon, "Metrics", lambda: metrics)

    totals = await daemon.run(Settings.from_env(env), exit_when_empty=True)

    assert totals[Outcome.COMPLETED] == TASKS
    bucket.verify_settled()
    published = len(bucket.keys("processed/"))
    renewals = sum(
        metrics.registry.get_sample_value("emiliad_lease_renewals_total", {"result": result}) or 0
        for result in ("renewed", "lost")
    )
    class_a = requests(metrics.registry, *CLASS_A)
    own = (class_a - published - renewals) / TASKS
    assert 4.0 <= own <= 5.0  # claim, pack, commit, and the listing that proves the outputs
    assert requests(metrics.registry, *CLASS_B) / TASKS <= 6.0
    assert requests(metrics.registry, "delete") / TASKS == pytest.approx(4.0, abs=0.1)
    print(f"{own:.2f} class A a task")
