"""`emiliad models`: fetches, checks and lists the models; MODELS names the set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from emiliad.config import Settings
from pipeline import fetch
from pipeline.models import list_models, verify
from pipeline.types import ModelError

_BYTES_PER_MB = 1_000_000


def run(settings: Settings, action: str) -> int:
    """Returns 0, or 1 when a model is missing, damaged or cannot be had."""
    chosen, folder = settings.pipeline.models, settings.pipeline.models_dir
    if action == "list":
        return _list(folder)
    if action == "verify":
        return _verify(chosen, folder)
    return _pull(chosen, folder, settings.daemon.hf_token)


def _list(folder: Path) -> int:
    table = Table("set", "role", "model", "size", "licence", "state", "home", box=None)
    for row in list_models(folder):
        size = f"{row.size / _BYTES_PER_MB:,.1f} MB" if row.size is not None else ""
        table.add_row(row.set, row.role, row.name, size, row.licence, row.state, row.home)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _verify(chosen: str, folder: Path) -> int:
    problems = verify(chosen, folder)
    for problem in problems:
        print(f"emiliad: {folder / chosen}: {problem}", file=sys.stderr)
    if not problems:
        print(f"the set {chosen} in {folder / chosen} is whole", file=sys.stderr)
    return 1 if problems else 0


def _pull(chosen: str, folder: Path, token: str) -> int:
    try:
        with _progress() as report:
            pulled = fetch.pull(chosen, folder, token=token or None, report=report)
    except fetch.PullError as error:
        for problem in error.problems:
            print(f"emiliad: {problem}", file=sys.stderr)
        return 1
    except ModelError as error:
        print(f"emiliad: {error}", file=sys.stderr)
        return 1
    print(
        f"the set {chosen} is in {folder / chosen}: {len(pulled.fetched)} files fetched or made, "
        f"{len(pulled.present)} were there",
        file=sys.stderr,
    )
    return 0


@contextmanager
def _progress() -> Iterator[fetch.Report]:
    """A bar for each file that is not there yet."""
    bars: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[state]}"),
        console=Console(stderr=True),
    ) as progress:

        def report(event: fetch.Progress) -> None:
            if event.state == "present":
                return
            if event.file not in bars:
                bars[event.file] = progress.add_task(event.file, state="", total=None)
            total = event.done if event.state == "done" else event.total
            progress.update(bars[event.file], completed=event.done, total=total, state=event.state)

        yield report
