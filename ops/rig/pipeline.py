"""A pipeline without models for benchmarks: each task takes RIG_SECONDS, asleep or at full load.

`PIPELINE=ops.rig.pipeline:Rig`. RIG_BUSY=1 computes instead of sleeping; RIG_SEGMENTS is the number
of segments of an episode.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OnStage = Callable[[str, float, float], None]
_SEGMENT_BYTES = 20_000  # five seconds of speech as MP3


class Rig:
    """Writes episodes of silence."""

    def __init__(self, config: object) -> None:
        self.device = "none"

    def run(
        self,
        audio: Path,
        out_dir: Path,
        *,
        name: str | None = None,
        on_stage: OnStage | None = None,
    ) -> dict[str, Any]:
        """Takes its time, then writes an episode's files."""
        seconds = float(os.environ.get("RIG_SECONDS", "1"))
        began = time.monotonic()
        if os.environ.get("RIG_BUSY") == "1":
            while time.monotonic() < began + seconds:
                sum(range(1000))
        else:
            time.sleep(seconds)
        if on_stage is not None:
            on_stage("transcribe", seconds, 100 * seconds)
        rows = [{"audio": f"{index:06d}.mp3"} for index in range(_segments())]
        for row in rows:
            (out_dir / row["audio"]).write_bytes(os.urandom(_SEGMENT_BYTES))
        (out_dir / "all_segments.json").write_text(json.dumps(rows))
        return {"segments": len(rows), "audio_seconds": 100 * seconds}


def _segments() -> int:
    return int(os.environ.get("RIG_SEGMENTS", "30"))
