"""Keeps one executor at work: starts it, replaces it, gives it up for a while, tries it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import anyio

from emiliad import logs
from emiliad.board import Board
from emiliad.config import Config
from emiliad.crew import Crew
from emiliad.errors import ConfigError
from emiliad.executor.host import Executor, StartFailed
from emiliad.executor.wear import Wear
from emiliad.until import until
from emiliad.wire import Done, Failed, Ready

STARTS_IN_A_ROW = 3  # that fail, after which the executor is given up
START_SPACING_S = 1.0  # before the second of them; twice that before the third
LONGEST_PAUSE_S = 3600.0  # a GPU may have been reset meanwhile; to look costs one load

# Kinds of failure that a sick machine causes as well as a bad file. A file that is bad fails
# wherever it runs; a machine that is sick fails one first attempt after another.
_SUSPICIOUS = frozenset({"crash", "timeout", "protocol", "cuda", "out_of_memory"})
_log = logs.get("executor")


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How an executor is kept; each field is the setting of that name."""

    crash_budget: int = 10
    executor_pause_s: float = 60.0
    recycle_tasks: int = 500
    recycle_growth_gb: float = 8.0
    recycle_memory_gb: float = 0.0

    @classmethod
    def of(cls, config: Config) -> Self:
        return cls(
            config.crash_budget,
            config.executor_pause_s,
            config.recycle_tasks,
            config.recycle_growth_gb,
            config.recycle_memory_gb,
        )


class Keeper:
    """One executor, and what the board and the crew are told of it.

    An executor is given up when it fails to start STARTS_IN_A_ROW times, or when CRASH_BUDGET first
    attempts in a row have failed in it, without a task done between, in a way that a sick GPU
    causes. Nothing else suffers: the others go on, and `pause_s` later it may be tried again.
    """

    def __init__(self, executor: Executor, *, upkeep: Upkeep, board: Board, crew: Crew) -> None:
        self.executor = executor
        self.crew = crew
        self.board = board
        self.up = False  # its models are loaded
        self.given_up = False  # it is to rest before it is started again
        self.pause_s = upkeep.executor_pause_s  # how long
        self._upkeep = upkeep
        self._strikes = 0
        self._wear = Wear(upkeep.recycle_tasks, upkeep.recycle_growth_gb, upkeep.recycle_memory_gb)

    @property
    def name(self) -> str:
        return self.executor.name

    def introduce(self) -> None:
        """Shows the executor before anything is known of it."""
        self.board.show(self.name, "loading", device=self.executor.device)

    async def start(self) -> bool:
        """Starts the child; whether it is up. If not, it was given up, or the crew dismissed.

        Raises ConfigError when a model or a setting is wrong, StartFailed (an ExecutorFailed) when
        no executor of the crew could ever be started.
        """
        self.board.show(self.name, "loading", pid=None)
        failure: StartFailed | None = None
        async with until(self.crew.dismissed.wait):
            failure = await self._start()
        if failure is not None:
            if failure.final:
                raise ConfigError(failure.reason) from failure
            await self._give_up(failure.reason)
            if self.crew.hopeless:
                raise failure
        return self.up

    async def _start(self) -> StartFailed | None:
        failure: StartFailed | None = None
        for attempt in range(1, STARTS_IN_A_ROW + 1):
            if failure is not None:
                self.board.restarted(self.name, "load", failure.reason)
                await anyio.sleep(START_SPACING_S * (attempt - 1))
            try:
                self._started(await self.executor.start())
            except StartFailed as error:
                failure = error
                if error.final:
                    break
                _log.warning(
                    "executor.start_failed",
                    executor=self.name,
                    reason=error.reason,
                    details=error.details,
                )
            else:
                return None
        return failure

    def _started(self, loaded: Ready) -> None:
        self.up = True
        self._wear.begin()
        self.board.show(self.name, "idle", pid=loaded.pid, reason=None)
        self.board.memory(self.name, self.executor.memory_bytes)
        self.board.problem(self.name, self._oddity(loaded))
        self.crew.up(self.name)
        _log.info(
            "executor.ready",
            executor=self.name,
            device=loaded.device,
            pid=loaded.pid,
            load_seconds=round(loaded.load_seconds, 3),
        )

    def _oddity(self, loaded: Ready) -> str | None:
        if self.executor.on_gpu and loaded.device == "cpu":
            return (
                f"{self.name} runs on the CPU although it was given {self.executor.device}: "
                "install emiliad[gpu], or set DEVICE=cpu"
            )
        return None

    async def replace(self, reason: str, why: str) -> bool:
        """Another child in this one's place, counted under `reason`; as `start`."""
        self.up = False
        self.board.restarted(self.name, reason, why)
        await self.executor.close()
        return await self.start()

    async def died(self) -> None:
        """Deals with a child that died while it had nothing to do."""
        await self._mend("crash", "it died while it had no task", struck=True)

    async def after(self, result: Done | Failed | None, *, first_attempt: bool) -> None:
        """Deals with what a task did to the child; None: it was ended, for the task was lost."""
        if not self.up:  # given up in the middle of the task
            return
        if isinstance(result, Done):
            self._strikes = 0
            self.pause_s = self._upkeep.executor_pause_s
        elif result is None:
            await self.replace("not_reusable", "another owner has taken its task")
            return
        else:
            struck = first_attempt and result.kind in _SUSPICIOUS
            usable = result.reusable and self.executor.alive
            if struck or not usable:
                await self._mend(
                    _restart_reason(result.kind), result.error, struck=struck, usable=usable
                )
                return
        await self._recycle_if_worn()

    async def _recycle_if_worn(self) -> None:
        memory = self.executor.memory_bytes
        self.board.memory(self.name, memory)
        if why := self._wear.after_task(memory):
            _log.info("executor.recycled", executor=self.name, reason=why)
            await self.replace("recycled", why)
        else:
            self.board.show(self.name, "idle")

    async def _mend(self, reason: str, why: str, *, struck: bool, usable: bool = False) -> None:
        self._strikes += struck
        if struck and 0 < self._upkeep.crash_budget <= self._strikes:
            self.board.restarted(self.name, reason, why)
            await self._give_up(f"{self._strikes} tasks in a row failed in it, the last: {why}")
        elif usable:
            await self._recycle_if_worn()
        else:
            await self.replace(reason, why)

    async def _give_up(self, why: str) -> None:
        self.up, self.given_up = False, True
        await self.executor.close()
        self.crew.down(self.name)
        self.board.show(self.name, "dead", pid=None, reason=why)
        device = f" on {self.executor.device}" if self.executor.device else ""
        self.board.problem(self.name, f"{self.name}{device} is given up: {why}")
        _log.error("executor.given_up", executor=self.name, reason=why, pause_s=self.pause_s)

    def rested(self) -> None:
        """Notes that a pause is over; the next one is twice as long, until a task is done."""
        self.given_up = False
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

    async def end(self) -> None:
        """Ends the child for good."""
        await self.executor.close()
        self.board.show(self.name, "dead", pid=None)


def _restart_reason(kind: str) -> str:
    """The metric's label for a failure of this kind."""
    return kind if kind in ("crash", "timeout", "protocol") else "not_reusable"
