"""Every metric that emiliad exposes, with its help text; nothing else may name one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from emiliad.store import OPERATIONS, RESULTS
from emiliad.types import Outcome
from pipeline.types import STAGES

# Seconds; stages last from a tenth of a second to the better part of an hour.
_STAGE_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
# Seconds; R2 answers small requests in tens of milliseconds, large bodies take minutes.
_REQUEST_BUCKETS = (0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120, 600)
OTHER_STAGE = "other"  # what a replacement pipeline's unknown stages are counted under
# Seconds; a loop that turns freely lags by a millisecond, a stalled one by many seconds.
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3, 10, 30)
# Seconds between seeing that a pod cannot be scheduled and having made room for it.
_KICK_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60)
EXECUTOR_STATES = ("loading", "idle", "busy", "dead")
RESTART_REASONS = ("crash", "timeout", "protocol", "not_reusable", "recycled", "load")
QUEUES = ("claimed", "prefetched", "upload")
AUTOKICK_STATES = ("off", "frozen", "fill", "yield", "settle")
AUTOKICK_ACTIONS = ("grow", "trim", "kick", "hold", "release")
AUTOKICK_KICKS = ("unschedulable", "scaled_up")
AUTOKICK_RESTARTS = ("ended", "gone", "silent", "refused", "failed")
AUTOKICK_PROBLEMS = ("election", "watch", "write", "version")
AUTOKICK_REPLICAS = ("wanted", "bound", "unbound", "terminating")


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
        self.scratch_free_bytes = self._gauge(
            "scratch_free_bytes", "What the scratch file system has left, in bytes"
        )
        self.scratch_full = self._gauge(
            "scratch_full", "1 since an episode did not fit the scratch disk, until one does again"
        )
        self.failed_tasks = self._gauge("failed_tasks", "Dead letters in the queue, as last seen")
        self.executor_busy_seconds = self._counter(
            "executor_busy_seconds", "Time that an executor spent on tasks, in seconds", "executor"
        )
        self.executor_idle_seconds = self._counter(
            "executor_idle_seconds",
            "Time that a ready executor had no task, in seconds",
            "executor",
        )
        self.executor_memory_bytes = self._gauge(
            "executor_memory_bytes", "Resident memory of an executor, in bytes", "executor"
        )
        self.interrupted_tasks = self._counter(
            "interrupted_tasks", "Tasks handed back although their processing had begun"
        )
        self.starving_tasks = self._counter(
            "starving_tasks", "Tasks claimed that stops have interrupted three times or more"
        )
        self.ready = self._gauge("ready", "1 while this daemon can process a task, else 0")
        self.draining = self._gauge("draining", "1 once this daemon was told to stop, else 0")
        self.loop_lag_seconds = Histogram(
            "emiliad_loop_lag_seconds",
            "How much later than asked the event loop ran a timer, in seconds",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self.loop_stalls = self._counter("loop_stalls", "Times that the event loop stood still")
        self.info = self._gauge("daemon_info", "1, with what this daemon is", "version")
        # process_resident_memory_bytes, process_start_time_seconds and such, of the daemon itself.
        ProcessCollector(registry=self.registry)
        self.autokick = AutokickMetrics(self.registry)
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


class AutokickMetrics:
    """The autokicker's metrics, which it also exposes where it runs alone."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.state = self._gauge("state", "1 for the state that the autokicker is in", "state")
        self.leader = self._gauge("leader", "1 while this autokicker may write, else 0")
        self.actions = self._counter("actions", "Writes to the target, by what they did", "action")
        self.replicas = self._gauge("replicas", "Our pods, wanted and as they are", "kind")
        self.blocked_pods = self._gauge("blocked_pods", "Pods of others that wait for what we hold")
        self.muted_pods = self._gauge("muted_pods", "Waiting pods that our leaving did not help")
        self.kicks = self._counter("kicks", "Times that we made room, by reason", "reason")
        self.kick_latency_seconds = Histogram(
            "emiliad_autokick_kick_latency_seconds",
            "Time from seeing a blocked pod to having made room, in seconds",
            buckets=_KICK_BUCKETS,
            registry=registry,
        )
        self.write_errors = self._counter("write_errors", "Writes that the API server refused")
        self.watch_restarts = self._counter(
            "watch_restarts", "Watches that had to be opened again, by reason", "reason"
        )
        self.cache_age_seconds = self._gauge(
            "cache_age_seconds", "Since the oldest watch was last heard of, in seconds"
        )
        self.yielded_seconds = self._counter(
            "yielded_seconds", "Time during which we held back for others, in seconds"
        )
        self.problems = self._gauge("problems", "1 while something is wrong, by what", "problem")
        for state in AUTOKICK_STATES:
            self.state.labels(state)
        for reason in AUTOKICK_KICKS:
            self.kicks.labels(reason)
        for reason in AUTOKICK_RESTARTS:
            self.watch_restarts.labels(reason)
        for problem in AUTOKICK_PROBLEMS:
            self.problems.labels(problem)
        for action in AUTOKICK_ACTIONS:
            self.actions.labels(action)
        for kind in AUTOKICK_REPLICAS:
            self.replicas.labels(kind)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"emiliad_autokick_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"emiliad_autokick_{name}", help, labels, registry=self.registry)
