"""How far a scan is: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

_LINE_S = 5.0  # between two lines of a log


class Step(Protocol):
    """How far a scan is: `done` of `total` objects, where that is known, and a word on them."""

    @property
    def phase(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def note(self) -> str: ...


@contextmanager
def scan_progress(console: Console) -> Iterator[Callable[[Step], None]]:
    """What is to be called with each step of a scan."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}"),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield _Bar(bars)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class _Bar:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._phase = ""
        self._line = bars.add_task("asks the store", total=None)

    def __call__(self, step: Step) -> None:
        if step.phase != self._phase:
            self._phase = step.phase
            self._bars.remove_task(self._line)
            self._line = self._bars.add_task(step.phase, total=step.total)
        description = ", ".join(filter(None, (step.phase, step.note)))
        self._bars.update(self._line, completed=step.done, description=description)


@dataclass(slots=True)
class _Lines:
    """Plain lines, for logs; none for a scan that is over at once."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    phase: str = ""
    began_s: float = 0.0
    said_s: float = 0.0
    before: int = 0  # done when the phase began

    def __call__(self, step: Step) -> None:
        now = self.clock()
        if step.phase != self.phase:
            self.said_s = self.said_s or now
            self.phase, self.began_s, self.before = step.phase, now, step.done
        if now - self.said_s < _LINE_S:
            return
        self.said_s = now
        rate = (step.done - self.before) / max(now - self.began_s, 1e-9)
        of = f" of {step.total:,}" if step.total is not None else ""
        line = f"{step.phase}: {step.done:,}{of} ({rate:,.0f}/s)"
        self.console.print(
            ", ".join(filter(None, (line, step.note))), highlight=False, markup=False
        )
