"""`emiliad process`: the pipeline on local files, without a queue."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from emiliad.config import Settings
from emiliad.errors import ConfigError
from emiliad.executor.host import Executor
from emiliad.fleet import build_executors
from emiliad.queue.tasks import episode_id, hashed_id
from emiliad.wire import Done, Failed, Stage
from pipeline.types import STAGES

_NO_DEADLINE_S = 7 * 24 * 3600.0  # a person is watching


@dataclass(frozen=True, slots=True)
class _Job:
    audio: Path
    name: str


def run(settings: Settings, files: Iterable[Path], out: Path) -> int:
    """Writes `out/<name>/` for each file. Returns 0, or 1 if any file failed."""
    jobs = tuple(_named(files))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
    return anyio.run(partial(_process, settings, jobs, out))


def _named(files: Iterable[Path]) -> Iterator[_Job]:
    """Each file with a name of its own: two files of one name get the queue's hashed ids."""
    taken: set[str] = set()
    for audio in files:
        name = episode_id(str(audio))
        if name in taken:
            name = hashed_id(str(audio.absolute()))
        if name in taken:
            raise ConfigError(f"{audio}: is named twice")
        taken.add(name)
        yield _Job(audio, name)


async def _process(settings: Settings, jobs: tuple[_Job, ...], out: Path) -> int:
    executors = await anyio.to_thread.run_sync(build_executors, settings, dict(os.environ))
    send, receive = anyio.create_memory_object_stream[_Job](len(jobs))
    for job in jobs:
        send.send_nowait(job)
    send.close()
    failures: list[str] = []
    with _progress() as progress:
        async with anyio.create_task_group() as group:
            for executor in executors[: len(jobs)]:
                group.start_soon(_work, executor, receive.clone(), out, progress, failures)
            receive.close()
    for failure in failures:
        print(f"emiliad: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.fields[name]}"),
        BarColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


async def _work(
    executor: Executor,
    jobs: MemoryObjectReceiveStream[_Job],
    out: Path,
    progress: Progress,
    failures: list[str],
) -> None:
    loading = progress.add_task("", name=executor.name, stage="loads its models", total=None)
    async with jobs:
        try:
            await executor.start()
            progress.remove_task(loading)
            async for job in jobs:
                if not executor.alive:
                    await executor.start()
                failure = await _one(executor, job, out, progress)
                if failure is not None:
                    failures.append(failure)
        finally:
            with anyio.CancelScope(shield=True):
                await executor.close()


async def _one(executor: Executor, job: _Job, out: Path, progress: Progress) -> str | None:
    """Processes one file beside its place and moves it there whole; returns what went wrong."""
    bar = progress.add_task("", name=job.name, stage=STAGES[0], total=len(STAGES))

    def on_stage(stage: Stage) -> None:
        after = STAGES.index(stage.name) + 1 if stage.name in STAGES else 0
        progress.update(bar, completed=after, stage=STAGES[min(after, len(STAGES) - 1)])

    unfinished = out / f".{job.name[:100]}.{os.getpid()}.unfinished"
    try:
        result = await executor.process(
            job.name,
            job.audio.absolute(),
            unfinished,
            name=job.name,
            deadline_s=_NO_DEADLINE_S,
            on_stage=on_stage,
        )
        if isinstance(result, Failed):
            progress.update(bar, stage=f"[red]failed: {result.kind}")
            return f"{job.audio}: {result.error}"
        _put_in_place(unfinished, out / job.name)
        progress.update(bar, completed=len(STAGES), stage=_summary(result))
        return None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    unfinished.rename(place)


def _summary(result: Done) -> str:
    count, seconds = result.manifest["segments"], result.manifest["audio_seconds"]
    return f"{count} segment{'' if count == 1 else 's'} out of {seconds:.1f} s"
