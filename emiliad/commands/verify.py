"""`emiliad verify`: whether the outputs of completed tasks are there."""

from __future__ import annotations

import json
from functools import partial
from typing import Protocol

import anyio
from rich.console import Console

from emiliad.bucket import opened
from emiliad.commands.progress import scan_progress
from emiliad.config import Config, Settings
from emiliad.queue.verify import Broken, Report, verify

_console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


class _Out(Protocol):
    """What hears of a check, while it runs and at its end."""

    def broken(self, found: Broken) -> None: ...
    def end(self, report: Report) -> None: ...


def run(settings: Settings, *, requeue: bool, as_json: bool) -> int:
    """Returns 0, or 1 if something is broken and was not requeued."""
    out = _Json() if as_json else _Text()
    report = anyio.run(partial(_verify, settings.daemon, requeue, out))
    out.end(report)
    return 0 if report.sound else 1


async def _verify(config: Config, requeue: bool, out: _Out) -> Report:
    async with opened(config) as bucket:
        with scan_progress(_console) as show:
            return await verify(
                bucket.store,
                bucket.layout,
                requeue=requeue,
                on_broken=out.broken,
                on_progress=show,
            )


class _Text:
    """A line for each broken task, and one with the counts."""

    def broken(self, found: Broken) -> None:
        redone = f" ({found.redone.value})" if found.redone is not None else ""
        _console.print(f"{found.episode_id}: {found.reason}{redone}")

    def end(self, report: Report) -> None:
        counts = {
            "whole": report.whole,
            "being published": report.publishing,
            "broken": report.broken,
        }
        facts = [f"{count:,} {what}" for what, count in counts.items()]
        requeued = f", {report.requeued:,} of them requeued" if report.requeued else ""
        _console.print(", ".join(facts) + requeued)


class _Json:
    """One object, written as it grows: there may be many broken tasks."""

    def __init__(self) -> None:
        self._begun = False

    def broken(self, found: Broken) -> None:
        row = {
            "episode_id": found.episode_id,
            "reason": found.reason,
            "requeued": found.requeued,
            "note": found.redone.value if found.redone is not None else None,
        }
        print(",\n " if self._begun else '{"broken": [\n ', json.dumps(row), sep="", end="")
        self._begun = True

    def end(self, report: Report) -> None:
        counts = {
            "records": report.records,
            "whole": report.whole,
            "publishing": report.publishing,
            "requeued": report.requeued,
            "sound": report.sound,
        }
        opening = "" if self._begun else '{"broken": ['
        print(opening, "],\n ", json.dumps(counts)[1:], sep="", flush=True)
