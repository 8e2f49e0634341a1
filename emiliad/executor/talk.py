"""The two conversations with a child: until its models are loaded, and about one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import anyio

from emiliad.executor.process import Child
from emiliad.wire import PROTOCOL, Done, Failed, Process, ProtocolError, Ready, Stage

_SHOWN = 200  # characters of a message that is out of place

Answer: TypeAlias = Ready | Done | Failed


class Talk(Protocol):
    """A conversation that may take `limit_s` in all."""

    limit_s: float

    async def run(self, child: Child, limit: anyio.CancelScope) -> Answer | None:
        """The child's answer; None if it is gone. Raises ProtocolError."""

    def where(self) -> str:
        """How far it has come, to end a sentence with."""


class Loading:
    """Waits for the models."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def where(self) -> str:
        return "while loading"

    async def run(self, child: Child, limit: anyio.CancelScope) -> Ready | Failed | None:
        message = await child.receive()
        match message:
            case Ready(protocol=number) if number != PROTOCOL:
                raise ProtocolError(f"it speaks protocol {number}, not {PROTOCOL}")
            case None | Ready() | Failed(task_id=None):
                return message
            case _:
                raise ProtocolError(f"out of place: {str(message)[:_SHOWN]}")


class Working:
    """Hands over a task and follows it.

    `limit_of` gives the seconds that the whole task may take, from those of its audio, which the
    stages tell. Without it, or while they tell none, `limit_s` holds.
    """

    def __init__(
        self,
        process: Process,
        limit_s: float,
        limit_of: Callable[[float], float] | None,
        on_stage: Callable[[Stage], None] | None,
    ) -> None:
        self.limit_s = limit_s
        self._process = process
        self._limit_of = limit_of
        self._on_stage = on_stage
        self._last_stage: str | None = None
        self._audio_seconds = 0.0
        self._began = anyio.current_time()

    def where(self) -> str:
        if self._last_stage is None:
            return "before the end of the first stage"
        return f"after stage {self._last_stage!r}"

    async def run(self, child: Child, limit: anyio.CancelScope) -> Done | Failed | None:
        await child.send(self._process)
        while True:
            message = await child.receive()
            match message:
                case None:
                    return None
                case Stage():
                    self._note(message, limit)
                case Done() | Failed() if message.task_id == self._process.task_id:
                    return message
                case _:
                    raise ProtocolError(f"out of place: {str(message)[:_SHOWN]}")

    def _note(self, stage: Stage, limit: anyio.CancelScope) -> None:
        if stage.task_id != self._process.task_id:
            return  # a thread that a former task left behind
        self._last_stage = stage.name
        if self._limit_of is not None and stage.audio_seconds > self._audio_seconds:
            self._audio_seconds = stage.audio_seconds
            self.limit_s = self._limit_of(stage.audio_seconds)
            limit.deadline = self._began + self.limit_s
        if self._on_stage is not None:
            self._on_stage(stage)
