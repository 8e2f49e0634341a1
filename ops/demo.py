"""`make demo`: two real recordings through the real daemon, and what came of them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.types import STAGES

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
_console = Console(stderr=True)


def main() -> int:
    """Returns the exit code of whichever step failed, or 0."""
    recordings = _lay_out_recordings()
    env = {
        **os.environ,
        "STORE_URL": DEMO.as_uri(),
        "MODELS": "demo",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "debug",
        "HTTP_PORT": os.environ.get("HTTP_PORT", "0"),  # the default may be another daemon's
    }
    _console.print(f"[bold]enqueue[/] {len(recordings)} recordings under {DEMO / 'raw_audio'}")
    if code := subprocess.run([*_EMILIAD, "enqueue"], env=env, check=False).returncode:
        return code
    _console.print("[bold]run[/] the daemon until the queue is empty")
    if code := _run_daemon(env):
        return code
    for recording in recordings:
        _show(recording)
    _console.print(
        "\nSource separation was skipped: its model (UVR-MDX-NET-Inst_HQ_3) is in no package, and "
        "the demo's stand-in lets everything through. With the whole set of models: "
        "`emiliad models pull`, then MODELS=emilia."
    )
    return 0


_EMILIAD = (sys.executable, "-m", "emiliad")


def _lay_out_recordings() -> list[Path]:
    """A telephone call of two speakers, as pyannote.audio ships it, and a speech of one."""
    spec = importlib.util.find_spec("pyannote.audio")
    if spec is None or spec.origin is None:
        raise SystemExit("pyannote.audio is not installed: run `make demo`")
    sources = {
        "conversation.wav": Path(spec.origin).parent / "sample" / "sample.wav",
        "kennedy.flac": ROOT / "tests" / "data" / "jfk.flac",
    }
    folder = DEMO / "raw_audio" / "en"
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        if not (folder / name).exists():
            shutil.copyfile(source, folder / name)
    return [folder / name for name in sources]


def _run_daemon(env: Mapping[str, str]) -> int:
    with (
        _progress() as progress,
        subprocess.Popen(
            [*_EMILIAD, "run", "--exit-when-empty"], env=env, stderr=subprocess.PIPE, text=True
        ) as daemon,
    ):
        assert daemon.stderr is not None
        bars = _Bars(progress)
        for event in _events(daemon.stderr):
            bars.follow(event)
    return daemon.returncode


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The daemon's log as events; what is no event is shown as it is."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            _console.print(line.rstrip(), markup=False, highlight=False)


def _progress() -> Progress:
    return Progress(
        TextColumn("  {task.description:14}"),
        BarColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
        console=_console,
    )


class _Bars:
    """Draws a bar for each episode out of the daemon's log events."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._loading: TaskID | None = progress.add_task(
            "executor", stage="loads the models", total=None
        )
        self._episodes: dict[str, TaskID] = {}

    def follow(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "executor.ready":
                self._loaded(event)
            case "executor.began":
                self._at(event["episode_id"], 0, STAGES[0])
            case "executor.stage":
                done = STAGES.index(event["stage"]) + 1
                self._at(event["episode_id"], done, (*STAGES, "upload")[done])
            case "task.completed":
                count = event["segments"]
                what = f"{count} segment{'' if count == 1 else 's'}"
                what += f" out of {event['audio_seconds']:.1f} s"
                self._at(event["episode_id"], len(STAGES), what)
            case "task.failed" | "task.retried":
                self._at(event["episode_id"], 0, f"{event['event']}: {event['reason']}")

    def _loaded(self, event: Mapping[str, Any]) -> None:
        if self._loading is not None:
            stage = f"loaded the models on {event['device']}"
            self._progress.update(self._loading, total=1, completed=1, stage=stage)
            self._loading = None

    def _at(self, episode: str, done: int, stage: str) -> None:
        if episode not in self._episodes:
            total = len(STAGES)
            self._episodes[episode] = self._progress.add_task(episode, stage=stage, total=total)
        self._progress.update(self._episodes[episode], completed=done, stage=stage)


def _show(recording: Path) -> None:
    """Prints one episode's segments as a table."""
    folder = DEMO / "processed" / "en" / recording.stem
    rows = json.loads((folder / "all_segments.json").read_text())
    table = Table(
        "time", "speaker", "language", "DNSMOS", "text", title=str(folder), title_justify="left"
    )
    for row in rows:
        table.add_row(
            f"{row['start']:6.2f} - {row['end']:6.2f}",
            row["speaker"],
            row["language"],
            f"{row['dnsmos']:.2f}",
            row["text"],
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
