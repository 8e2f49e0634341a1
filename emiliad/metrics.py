"""Every metric that emiliad exposes, with its help text; nothing else may name one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from emiliad.store import OPERATIONS, RESULTS
from emiliad.types import Outcome
from pipeline.types import STAGES

# Seconds; stages last from a tenth of a second to the better part of an hour.
_STAGE_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
# Seconds; R2 answers small requests in tens of milliseconds, large bodies take minutes.
_REQUEST_BUCKETS = (0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120, 600)
OTHER_STAGE = "other"  # what a replacement pipeline's unknown stages are counted under
EXECUTOR_STATES = ("loading", "idle", "busy", "dead")
RESTART_REASONS = ("crash", "timeout", "protocol", "not_reusable")
QUEUES = ("prefetched", "upload")


class Metrics:
    """The daemon's metrics in a registry of their own; label values are bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = self._counter("tasks", "Attempts that ended, by outcome", "outcome")
        self.audio_seconds = self._counter("audio_seconds", "Audio of completed tasks, in seconds")
        self.segments = self._counter("segments", "Segments of completed tasks")
        self.stage_seconds = Histogram(
            "emiliad_stage_seconds",
            "Time that a stage took for an episode, in seconds",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.stage_audio_seconds = self._counter(
            "stage_audio_seconds", "Audio that went through a stage, in seconds", "stage"
        )
        self.queue_depth = self._gauge("queue_depth", "Episodes waiting inside the daemon", "queue")
        self.executors = self._gauge("executors", "Executors, by what they do", "state")
        self.executor_restarts = self._counter(
            "executor_restarts", "Executors that had to be started again", "reason"
        )
        self.leases_held = self._gauge("leases_held", "Leases that this daemon holds")
        self.lease_renewals = self._counter("lease_renewals", "Renewals of leases", "result")
        self.todo_tasks = self._gauge("todo_tasks", "Tasks left to do, as last seen")
        self.store_requests = self._counter(
            "store_requests", "Requests to the object store", "operation", "result"
        )
        self.store_request_seconds = Histogram(
            "emiliad_store_request_seconds",
            "Time that a request to the object store took, in seconds",
            ["operation"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.transfer_bytes = self._counter(
            "transfer_bytes", "Bytes of bodies to (out) and from (in) the object store", "direction"
        )
        self.scratch_bytes = self._gauge("scratch_bytes", "Scratch space in use, in bytes")
        self._start_at_zero()

    def stage_ended(self, stage: str, seconds: float, audio_seconds: float) -> None:
        """Counts one stage of one episode."""
        label = stage if stage in STAGES else OTHER_STAGE
        self.stage_seconds.labels(label).observe(seconds)
        self.stage_audio_seconds.labels(label).inc(audio_seconds)

    def store_answered(self, operation: str, result: str, seconds: float) -> None:
        """Counts one request to the store."""
        self.store_requests.labels(operation, result).inc()
        self.store_request_seconds.labels(operation).observe(seconds)

    def transferred(self, direction: str, size: int) -> None:
        """Counts the bytes of one body."""
        self.transfer_bytes.labels(direction).inc(size)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"emiliad_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"emiliad_{name}", help, labels, registry=self.registry)

    def _start_at_zero(self) -> None:
        """A rate over a series that appears late misses its first increase."""
        for outcome in Outcome:
            self.tasks.labels(outcome.value)
        for stage in (*STAGES, OTHER_STAGE):
            self.stage_seconds.labels(stage)
            self.stage_audio_seconds.labels(stage)
        for queue in QUEUES:
            self.queue_depth.labels(queue)
        for state in EXECUTOR_STATES:
            self.executors.labels(state)
        for reason in RESTART_REASONS:
            self.executor_restarts.labels(reason)
        for operation in OPERATIONS:
            self.store_request_seconds.labels(operation)
            for result in RESULTS:
                self.store_requests.labels(operation, result)
        for direction in ("in", "out"):
            self.transfer_bytes.labels(direction)
        for result in ("renewed", "lost"):
            self.lease_renewals.labels(result)
