"""`emiliad bench`: what each stage costs on this machine, on real speech."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import wave
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console
from rich.table import Table

from emiliad.config import Settings
from emiliad.errors import ConfigError, EmiliadError
from emiliad.executor.host import Executor
from emiliad.fleet import build_executors
from emiliad.wire import Failed, Stage

_BYTES_PER_MB = 1_000_000
_DEADLINE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One stage of the second run, when all that is lazy has been loaded."""

    stage: str
    seconds: float
    x_real_time: float
    resident_mb: float | None  # of the executor, as the stage ends
    peak_mb: float | None  # of the executor, ever


def run(settings: Settings, audio: Path | None, seconds: float, *, as_json: bool) -> int:
    """Runs `audio` (default: a real conversation, repeated) twice and prints the second run."""
    with tempfile.TemporaryDirectory(prefix="emiliad-bench-") as folder:
        speech = audio.absolute() if audio else _conversation(Path(folder), seconds)
        measured = anyio.run(partial(_measure, settings, speech, Path(folder)))
    if as_json:
        json.dump([asdict(row) for row in measured], sys.stdout, indent=2)
        print()
    else:
        _show(measured)
    return 0


def _conversation(folder: Path, seconds: float) -> Path:
    """The telephone call that pyannote.audio ships, repeated to the length."""
    spec = importlib.util.find_spec("pyannote.audio")
    if spec is None or spec.origin is None:
        raise ConfigError("pyannote.audio, whose sample is the default, is missing: name a file")
    with wave.open(str(Path(spec.origin).parent / "sample" / "sample.wav")) as sample:
        parameters, call = sample.getparams(), sample.readframes(sample.getnframes())
    wanted = int(seconds * parameters.framerate) * parameters.sampwidth * parameters.nchannels
    repeated = folder / "conversation.wav"
    with wave.open(str(repeated), "wb") as out:
        out.setparams(parameters)
        out.writeframes((call * (wanted // len(call) + 1))[:wanted])
    return repeated


async def _measure(settings: Settings, audio: Path, folder: Path) -> list[Measured]:
    env = dict(os.environ)
    executor, *_ = await anyio.to_thread.run_sync(build_executors, settings, env)
    async with executor:
        await _once(executor, audio, folder / "warm-up")
        return await _once(executor, audio, folder / "counted")


async def _once(executor: Executor, audio: Path, out: Path) -> list[Measured]:
    rows: list[Measured] = []

    def on_stage(stage: Stage) -> None:
        resident, peak = _memory_mb(executor.pid)
        speed = stage.audio_seconds / max(stage.seconds, 1e-9)
        rows.append(Measured(stage.name, stage.seconds, speed, resident, peak))

    result = await executor.process(
        "bench", audio, out, name="bench", deadline_s=_DEADLINE_S, on_stage=on_stage
    )
    if isinstance(result, Failed):
        raise EmiliadError(f"{audio}: {result.error}")
    total, length = sum(row.seconds for row in rows), float(result.manifest["audio_seconds"])
    return [*rows, Measured("all", total, length / max(total, 1e-9), *_memory_mb(executor.pid))]


def _memory_mb(pid: int | None) -> tuple[float | None, float | None]:
    """Resident and peak memory of a process, where the system tells."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None, None
    megabytes = {
        name: int(amount.split()[0]) * 1024 / _BYTES_PER_MB
        for name, _, amount in (line.partition(":") for line in lines)
        if name in ("VmRSS", "VmHWM")
    }
    return megabytes.get("VmRSS"), megabytes.get("VmHWM")


def _show(measured: list[Measured]) -> None:
    table = Table("stage", box=None)
    for column in ("seconds", "x real time", "memory MB", "peak MB"):
        table.add_column(column, justify="right")
    for row in measured:
        table.add_row(
            row.stage,
            f"{row.seconds:.2f}",
            f"{row.x_real_time:.1f}",
            *("" if mb is None else f"{mb:,.0f}" for mb in (row.resident_mb, row.peak_mb)),
        )
    Console().print(table)
