"""`emiliad enqueue`, `status` and `retry`: the queue seen from a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from functools import partial

import anyio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from emiliad.bucket import opened
from emiliad.commands.progress import scan_progress
from emiliad.config import Config, Settings
from emiliad.queue import enqueue as scan
from emiliad.queue import retry as again
from emiliad.queue.overview import Overview, Reader
from emiliad.queue.ranges import LISTERS

_WATCH_S = 2.0  # seconds between two looks of `status --watch`, at least
_console = Console(stderr=True)


def enqueue(settings: Settings, *, dry_run: bool, limit: int | None) -> int:
    """Creates the missing tasks and says how many of what there are."""
    report = anyio.run(partial(_enqueue, settings.daemon, dry_run, limit))
    _console.print(_in_words(report, dry_run=dry_run), highlight=False, markup=False)
    return 0


def _in_words(report: scan.EnqueueReport, *, dry_run: bool) -> str:
    parts = {"in progress": report.claimed, "failed": report.failed}
    of_these = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    facts = [
        f"{report.created} {'to create' if dry_run else 'created'}",
        f"{report.existing} existing" + (f" ({of_these})" if of_these else ""),
        f"{report.done} done",
        *(f"{count} skipped: {why}" for why, count in sorted(report.skipped.items())),
    ]
    return ", ".join(facts + ["stopped at the limit"] * report.limited)


async def _enqueue(config: Config, dry_run: bool, limit: int | None) -> scan.EnqueueReport:
    async with opened(config) as bucket:
        with scan_progress(_console) as show:
            return await scan.enqueue(
                bucket.store,
                bucket.layout,
                dry_run=dry_run,
                limit=limit,
                on_progress=show,
                listers=_listers(config),
                scratch=config.scratch_dir,
            )


def _listers(config: Config) -> int:
    """A directory is listed by the processor, not by waiting: one lister is enough for it."""
    return 1 if config.store_url.startswith("file:") else LISTERS


def status(settings: Settings, *, as_json: bool, watch: bool) -> int:
    """Shows the queue once, or with `watch` until it is interrupted."""
    anyio.run(partial(_status, settings.daemon, as_json, watch))
    return 0


async def _status(config: Config, as_json: bool, watch: bool) -> None:
    async with opened(config) as bucket:
        reader = Reader(
            bucket.store, bucket.layout, ttl_s=config.lease_ttl_s, listers=_listers(config)
        )
        if as_json:
            await _print_json(reader, watch)
        elif watch:
            await _watch(reader)
        else:
            _console.print(_table(await reader.overview()))


async def _print_json(reader: Reader, watch: bool) -> None:
    async for overview in _looks(reader):
        print(json.dumps(asdict(overview) | {"in_progress": overview.in_progress}), flush=True)
        if not watch:
            return


async def _watch(reader: Reader) -> None:
    with Live(console=_console) as live:
        async for overview in _looks(reader):
            live.update(_table(overview))


async def _looks(reader: Reader) -> AsyncGenerator[Overview, None]:
    """One look after the other; where looking takes long, half of the time at most."""
    while True:
        begun = anyio.current_time()
        yield await reader.overview()
        await anyio.sleep(max(_WATCH_S, anyio.current_time() - begun))


def _table(overview: Overview) -> Table:
    table = Table.grid(padding=(0, 2))
    stale = f", {overview.stale} stale" if overview.stale else ""
    hours = f"{overview.audio_hours:,.2f}" + (" (estimated)" if overview.estimated else "")
    rate = f"{overview.tasks_per_hour:,.0f} tasks, {overview.audio_hours_per_hour:,.1f} h an hour"
    rows = {
        "todo": f"{overview.todo:,}",
        "in progress": f"{overview.in_progress:,} ({overview.fresh} fresh{stale})",
        "publishing": f"{overview.publishing:,}",
        "completed": f"{overview.completed:,}",
        "failed": f"{overview.failed:,}",
        "audio hours": hours,
        "rate": f"{rate}, over the last ten minutes",
        "time left": _time_left(overview),
        "nodes": f"{len(overview.nodes)}",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def _time_left(overview: Overview) -> str:
    if not overview.todo + overview.in_progress + overview.publishing:
        return "nothing is left to do"
    if overview.eta_s is None:
        return "unknown"
    minutes = round(overview.eta_s / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def retry(settings: Settings, episodes: Sequence[str] | None) -> int:
    """Requeues failed tasks. Returns 0, or 1 when one that was named could not be requeued."""
    results = anyio.run(partial(_retry, settings.daemon, episodes))
    counts: Counter[again.Retried] = Counter(result for _, result in results)
    for episode, result in results:
        if episodes is not None or result is not again.Retried.REQUEUED:
            _console.print(f"{episode}: {result.value}", highlight=False, markup=False)
    _console.print(f"{counts[again.Retried.REQUEUED]} requeued", highlight=False)
    harmless = counts[again.Retried.REQUEUED] + counts[again.Retried.COMPLETED]
    return 0 if harmless == len(results) else 1


async def _retry(config: Config, episodes: Sequence[str] | None) -> list[tuple[str, again.Retried]]:
    async with opened(config) as bucket:
        return await again.retry(bucket.store, bucket.layout, episodes)
