"""Runs prefetched tasks through one executor, which its keeper keeps at work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from emiliad import logs
from emiliad.executor.deadline import Deadline
from emiliad.executor.keeper import Keeper
from emiliad.outcomes import Outcomes
from emiliad.queue.leases import Leases
from emiliad.types import Failure, Prefetched, Processed
from emiliad.until import until
from emiliad.wire import Done, Failed, Stage

OUT = "out"  # the folder of outputs in a task's working directory
_FINAL = frozenset({"bad_audio"})  # kinds of failure that no other attempt can mend
_BROKEN = frozenset({"crash", "timeout", "protocol"})  # the child's end, not its answer
_log = logs.get("execute")


async def run(
    inbox: MemoryObjectReceiveStream[Prefetched],
    outbox: MemoryObjectSendStream[Processed],
    *,
    keeper: Keeper,
    leases: Leases,
    outcomes: Outcomes,
    deadline: Deadline,
) -> None:
    """Ends when `inbox` does, or the crew is dismissed; a task in hand is finished first.

    Raises ConfigError when a model or a setting is wrong, ExecutorFailed when no executor of the
    crew could ever be started.
    """
    hands = _Hands(keeper, leases, outcomes, deadline)
    keeper.introduce()
    async with inbox, outbox:
        try:
            while not keeper.crew.dismissed.is_set():
                if keeper.given_up:
                    await hands.rest(inbox)
                elif keeper.up:
                    await hands.take(inbox, outbox)
                else:
                    await keeper.start()
        finally:
            with anyio.CancelScope(shield=True):
                await keeper.end()


@dataclass(frozen=True, slots=True)
class _Result:
    """How the last try of a task ended; `answer` is None when the lease was lost meanwhile."""

    answer: Done | Failed | None
    out_dir: Path
    seconds: dict[str, float]  # by stage

    @property
    def out_of_memory(self) -> bool:
        return isinstance(self.answer, Failed) and self.answer.kind == "out_of_memory"


@dataclass(frozen=True, slots=True)
class _Hands:
    keeper: Keeper
    leases: Leases
    outcomes: Outcomes
    deadline: Deadline

    async def take(
        self,
        inbox: MemoryObjectReceiveStream[Prefetched],
        outbox: MemoryObjectSendStream[Processed],
    ) -> None:
        """Waits for the next task and does it, or for the child's death while there is none."""
        item = await self._next(inbox)
        if item is not None:
            await self._process(item, outbox)
        elif not self.keeper.executor.alive:
            await self.keeper.died()

    async def _next(self, inbox: MemoryObjectReceiveStream[Prefetched]) -> Prefetched | None:
        """The next task; None when the child died, the crew was dismissed, or there is none."""
        crew = self.keeper.crew
        item: Prefetched | None = None
        try:
            async with until(self.keeper.executor.ended, crew.dismissed.wait):
                try:
                    item = await inbox.receive()
                except anyio.EndOfStream:
                    crew.dismiss()
        except anyio.get_cancelled_exc_class():
            if item is not None:
                await self.outcomes.stopped(item.claim, item.workdir)
            raise
        return item

    async def rest(self, inbox: MemoryObjectReceiveStream[Prefetched]) -> None:
        """Waits until the executor may be tried again; if no other works, hands back its tasks."""
        with anyio.move_on_after(self.keeper.pause_s):
            async with until(self.keeper.crew.dismissed.wait):
                while True:
                    await self.keeper.crew.none()
                    await self._hand_back(inbox)
        self.keeper.rested()

    async def _hand_back(self, inbox: MemoryObjectReceiveStream[Prefetched]) -> None:
        item: Prefetched | None = None
        try:
            async with until(self.keeper.crew.some):
                try:
                    item = await inbox.receive()
                except anyio.EndOfStream:
                    self.keeper.crew.dismiss()
        finally:
            if item is not None:
                why = "no executor can work"
                await self.outcomes.released(item.claim, item.workdir, why=why)

    async def _process(self, item: Prefetched, outbox: MemoryObjectSendStream[Processed]) -> None:
        self.outcomes.begun(item.claim)
        try:
            result = await self._patiently(item)
            await self._settle(item, result, outbox)
        except anyio.get_cancelled_exc_class():
            await self.outcomes.stopped(item.claim, item.workdir)
            raise
        finally:
            self.keeper.board.end(self.keeper.name)
        await self.keeper.after(result.answer, first_attempt=item.claim.attempt == 1)

    async def _patiently(self, item: Prefetched) -> _Result:
        """Tries the task again when memory runs out: in smaller batches, then in a fresh child."""
        result = await self._execute(item, OUT)
        ready = self.keeper.executor.ready
        if result.out_of_memory and ready is not None and ready.halves:
            result = await self._execute(item, f"{OUT}-halved", halvings=1)
        if result.out_of_memory and await self.keeper.replace("not_reusable", "memory ran out"):
            result = await self._execute(item, f"{OUT}-afresh", halvings=2)
        return result

    async def _execute(self, item: Prefetched, folder: str, halvings: int = 0) -> _Result:
        name, board, executor = self.keeper.name, self.keeper.board, self.keeper.executor
        episode_id = item.claim.task.episode_id
        result = _Result(None, item.workdir / folder, {})

        def on_stage(stage: Stage) -> None:
            result.seconds[stage.name] = result.seconds.get(stage.name, 0.0) + stage.seconds
            board.stage(name, stage.name, stage.seconds, stage.audio_seconds)
            _log.debug("executor.stage", episode_id=episode_id, stage=stage.name)

        board.begin(name, item.claim)
        _log.debug("executor.began", episode_id=episode_id, executor=name, halvings=halvings)
        answer: Done | Failed | None = None
        async with until(self.leases.lost(item.claim).wait):
            answer = await executor.process(
                episode_id,
                item.audio,
                result.out_dir,
                name=episode_id,
                deadline_s=self.deadline.of_bytes(item.audio.stat().st_size),
                deadline_of=self.deadline.of_audio,
                halvings=halvings,
                on_stage=on_stage,
            )
        if isinstance(answer, Failed):
            self._report(item, answer)
        return _Result(answer, result.out_dir, result.seconds)

    def _report(self, item: Prefetched, failed: Failed) -> None:
        """What a dead letter has no room for: the stacks of an overdue child, its last words."""
        report = _log.warning if failed.kind in _BROKEN else _log.debug
        report(
            "executor.failed",
            executor=self.keeper.name,
            episode_id=item.claim.task.episode_id,
            kind=failed.kind,
            reason=failed.error,
            details=failed.traceback,
        )

    async def _settle(
        self, item: Prefetched, result: _Result, outbox: MemoryObjectSendStream[Processed]
    ) -> None:
        match result.answer:
            case None:
                await self.outcomes.lost(item.claim, item.workdir)
            case Done(manifest=manifest):
                await outbox.send(
                    Processed(item.claim, item.workdir, result.out_dir, manifest, result.seconds)
                )
            case Failed() as failed:
                await self.outcomes.failed(item.claim, _failure(failed), item.workdir)


def _failure(failed: Failed) -> Failure:
    retriable = failed.kind not in _FINAL
    return Failure(failed.kind, failed.error, failed.traceback, retriable=retriable)
