"""What the gauges say of the queue, the leases and the disk, for people to read."""

from __future__ import annotations

from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from emiliad.metrics import Metrics


def readings(metrics: Metrics) -> dict[str, Any]:
    """The sections of /status that other parts of the daemon keep as metrics."""
    renewals = _by_label(metrics.lease_renewals)
    return {
        "queue": {
            "todo": round(_value(metrics.todo_tasks)),
            "failed": round(_value(metrics.failed_tasks)),
        },
        "leases": {
            "held": round(_value(metrics.leases_held)),
            "renewed": round(renewals.get("renewed", 0.0)),
            "lost": round(renewals.get("lost", 0.0)),
        },
        "scratch": {
            "bytes": round(_value(metrics.scratch_bytes)),
            "free_bytes": round(_value(metrics.scratch_free_bytes)),
        },
        "loop_stalls": round(_value(metrics.loop_stalls)),
    }


def _value(metric: MetricWrapperBase) -> float:
    """The value of a metric without labels."""
    return _by_label(metric).get("", 0.0)


def _by_label(metric: MetricWrapperBase) -> dict[str, float]:
    """A metric's values, by that of its label."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    return {
        "".join(sample.labels.values()): sample.value
        for sample in samples
        if not sample.name.endswith("_created")
    }
