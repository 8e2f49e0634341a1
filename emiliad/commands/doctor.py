"""`emiliad doctor`: whether this machine and its store can do the work, one line a check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import anyio
from rich.console import Console

from emiliad.bucket import opened
from emiliad.config import Settings
from emiliad.errors import EmiliadError
from emiliad.gpus import discover
from emiliad.probe import RACERS, honours_conditions
from emiliad.scratch import Scratch
from pipeline.models import locate, verify
from pipeline.types import ModelError

_BYTES_PER_GB = 1_000_000_000
_LITTLE_SCRATCH_GB = 5.0  # an hour of raw audio, its outputs and their pack, several at a time
_OWN_PIPELINE = "pipeline:Pipeline"
_console = Console(stderr=True, soft_wrap=True, highlight=False)


class Broken(EmiliadError):
    """A check failed; the message says what and what to do."""


def run(settings: Settings) -> int:
    """Returns 0, or 1 when something is broken."""
    broken: list[str] = []
    for name, check in _checks(settings):
        if name == "pipeline" and "models" in broken:
            continue  # it would only say the same
        try:
            finding = check()
        except (EmiliadError, ModelError, OSError) as error:
            broken.append(name)
            _console.print(f"[red]broken[/]  {name}: ", end="")
            _console.print(str(error), markup=False)
        else:
            _console.print(f"[green]ok[/]      {name}: ", end="")
            _console.print(finding, markup=False)
    return 1 if broken else 0


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "scratch", partial(_scratch, settings)
    yield "store", partial(_with_store, settings, _reachable)
    yield "conditional writes", partial(_with_store, settings, _conditional)
    yield "GPUs", partial(_gpus, settings)
    if settings.daemon.pipeline == _OWN_PIPELINE:
        yield "models", partial(_models, settings)
        yield "pipeline", partial(_pipeline, settings)


def _scratch(settings: Settings) -> str:
    folder = settings.daemon.scratch_dir
    scratch = Scratch(folder)
    try:
        free = scratch.free_bytes() / _BYTES_PER_GB
    finally:
        scratch.close()
    if free < _LITTLE_SCRATCH_GB:
        raise Broken(
            f"{folder} has {free:.1f} GB free; have {_LITTLE_SCRATCH_GB:.0f} GB or more, or set "
            "SCRATCH_DIR to another disk"
        )
    return f"{folder} has {free:.1f} GB free"


Check = Callable[[Settings], Awaitable[str]]


def _with_store(settings: Settings, check: Check) -> str:
    return anyio.run(check, settings)


async def _reachable(settings: Settings) -> str:
    async with opened(settings.daemon) as bucket:
        waiting = 0
        async for page in bucket.store.list(bucket.layout.todo):
            waiting = len(page)
            break
    return f"answers; it has {'no' if not waiting else f'{waiting} or more'} tasks to do"


async def _conditional(settings: Settings) -> str:
    async with opened(settings.daemon) as bucket:
        await honours_conditions(bucket.store, bucket.layout.probes, racers=RACERS)
    return f"honoured, by {RACERS} writers at once"


def _gpus(settings: Settings) -> str:
    if settings.pipeline.device == "cpu":
        return "not used (DEVICE=cpu)"
    gpus = discover(dict(os.environ))
    if not gpus and settings.pipeline.device == "cuda":
        raise Broken("DEVICE=cuda, but there is none: check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if sick := [f"GPU {gpu.index}: {gpu.fault}" for gpu in gpus if gpu.fault]:
        raise Broken(f"nvidia-smi says of {', of '.join(sick)}; the others can be used")
    return ", ".join(gpu.name for gpu in gpus) or "none; the CPU will be used"


def _models(settings: Settings) -> str:
    chosen = settings.pipeline.models
    locate(settings.pipeline)
    if problems := verify(chosen, settings.pipeline.models_dir):
        listed = "; ".join(map(str, problems))
        raise Broken(f"{listed}: run `MODELS={chosen} emiliad models pull`")
    return f"the set {chosen} is whole"


def _pipeline(settings: Settings) -> str:
    """Loads and runs every model, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pipeline.check"],
        capture_output=True,
        text=True,
        timeout=settings.daemon.load_timeout_s,
        check=False,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if problems := [f"{r['stage']}: {r['problem']}" for r in reports if r["problem"]]:
        raise Broken("; ".join(problems))
    if done.returncode != 0 or not reports:
        said = done.stderr.strip().splitlines()
        raise Broken(f"it ended with code {done.returncode}: {said[-1] if said else 'no message'}")
    seconds = ", ".join(f"{r['stage']} {r['seconds']:.1f} s" for r in reports)
    return f"every model runs on {reports[0]['device']} ({seconds})"
