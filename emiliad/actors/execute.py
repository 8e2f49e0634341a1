"""Runs prefetched tasks through one executor, and starts another child when one is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from emiliad import logs
from emiliad.errors import ConfigError
from emiliad.executor.host import Executor, StartFailed
from emiliad.metrics import Metrics
from emiliad.outcomes import Outcomes
from emiliad.queue.leases import Leases
from emiliad.types import Failure, Prefetched, Processed
from emiliad.wire import Done, Failed, Stage

_STARTS_IN_A_ROW = 3  # failed starts after which the executor is given up
OUT = "out"  # the folder of outputs in a task's working directory
_FINAL = frozenset({"bad_audio"})  # kinds of failure that no other attempt can mend
_log = logs.get("execute")


async def run(
    inbox: MemoryObjectReceiveStream[Prefetched],
    outbox: MemoryObjectSendStream[Processed],
    *,
    executor: Executor,
    leases: Leases,
    outcomes: Outcomes,
    metrics: Metrics,
    deadline_s: Callable[[int], float],
    ready: anyio.Event,
) -> None:
    """Ends when `inbox` does. `deadline_s` gives the seconds a file of so many bytes may take.

    Raises ConfigError when a model or a setting is wrong, ExecutorFailed when the executor cannot
    be started for another reason.
    """
    worker = _Worker(executor, leases, outcomes, metrics, deadline_s)
    async with inbox, outbox:
        try:
            await worker.start()
            ready.set()
            async for item in inbox:
                await worker.process(item, outbox)
        finally:
            with anyio.CancelScope(shield=True):
                await executor.close()
            worker.show("dead")


@dataclass(slots=True)
class _Worker:
    executor: Executor
    leases: Leases
    outcomes: Outcomes
    metrics: Metrics
    deadline_s: Callable[[int], float]
    state: str = ""

    def show(self, state: str) -> None:
        """Moves this executor to another value of the metric's label."""
        if self.state:
            self.metrics.executors.labels(self.state).dec()
        self.metrics.executors.labels(state).inc()
        self.state = state

    async def start(self) -> None:
        self.show("loading")
        for attempt in range(1, _STARTS_IN_A_ROW + 1):
            try:
                loaded = await self.executor.start()
            except StartFailed as error:
                if error.final:
                    raise ConfigError(error.reason) from error
                if attempt == _STARTS_IN_A_ROW:
                    raise
                _log.warning(
                    "executor.start_failed",
                    executor=self.executor.name,
                    reason=error.reason,
                    details=error.details,
                )
                await anyio.sleep(attempt)
            else:
                _log.info(
                    "executor.ready",
                    executor=self.executor.name,
                    device=loaded.device,
                    pid=loaded.pid,
                    load_seconds=round(loaded.load_seconds, 3),
                )
                break
        self.show("idle")

    async def process(self, item: Prefetched, outbox: MemoryObjectSendStream[Processed]) -> None:
        seconds: dict[str, float] = {}
        try:
            if not self.executor.alive:  # it died while it had nothing to do
                await self._restart("crash")
            self.show("busy")
            result = await self._execute(item, seconds)
            await self._settle(item, result, seconds, outbox)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.outcomes.released(item.claim, item.workdir, why="the daemon stops")
            raise
        await self._mend(result)

    async def _execute(self, item: Prefetched, seconds: dict[str, float]) -> Done | Failed | None:
        """The executor's answer, or None when the lease was lost meanwhile."""

        def on_stage(stage: Stage) -> None:
            seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.seconds
            self.metrics.stage_ended(stage.name, stage.seconds, stage.audio_seconds)
            _log.debug("executor.stage", episode_id=episode_id, stage=stage.name)

        episode_id = item.claim.task.episode_id
        _log.debug("executor.began", episode_id=episode_id, executor=self.executor.name)
        result: Done | Failed | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when, self.leases.lost(item.claim), group.cancel_scope)
            result = await self.executor.process(
                episode_id,
                item.audio,
                item.workdir / OUT,
                name=episode_id,
                deadline_s=self.deadline_s(item.audio.stat().st_size),
                on_stage=on_stage,
            )
            group.cancel_scope.cancel()
        return result

    async def _settle(
        self,
        item: Prefetched,
        result: Done | Failed | None,
        seconds: dict[str, float],
        outbox: MemoryObjectSendStream[Processed],
    ) -> None:
        match result:
            case None:
                self.outcomes.lost(item.claim, item.workdir)
            case Done():
                out_dir = item.workdir / OUT
                done = Processed(item.claim, item.workdir, out_dir, result.manifest, seconds)
                await outbox.send(done)
            case Failed():
                await self.outcomes.failed(item.claim, _failure(result), item.workdir)

    async def _mend(self, result: Done | Failed | None) -> None:
        """Starts another child when this one is dead or not to be trusted."""
        reusable = isinstance(result, Done) or (result is not None and result.reusable)
        if self.executor.alive and reusable:
            self.show("idle")
            return
        await self._restart(result.kind if isinstance(result, Failed) else "lost")

    async def _restart(self, why: str) -> None:
        self.metrics.executor_restarts.labels(_restart_reason(why)).inc()
        await self.executor.close()
        await self.start()


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _failure(result: Failed) -> Failure:
    return Failure(result.kind, result.error, result.traceback, retriable=result.kind not in _FINAL)


def _restart_reason(kind: str) -> str:
    return kind if kind in ("crash", "timeout", "protocol") else "not_reusable"
