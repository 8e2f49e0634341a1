"""`python -m pipeline FILE OUT`: runs the pipeline on one file, in this process."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline.settings import SettingsError
from pipeline.types import BadAudio, ModelError


def main() -> int:
    """Prints the manifest; returns 0, or 1 for a bad file, or 2 for a bad configuration."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path, help="the folder that receives the episode's outputs")
    arguments = parser.parse_args()
    from pipeline.config import PipelineConfig
    from pipeline.pipeline import Pipeline

    try:
        pipeline = Pipeline(PipelineConfig.from_env())
    except (SettingsError, ModelError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        manifest = pipeline.run(arguments.file, arguments.out, on_stage=_show)
    except (BadAudio, OSError) as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(manifest, indent=2, ensure_ascii=False))
    return 0


def _show(stage: str, seconds: float, audio_seconds: float) -> None:
    print(
        f"{stage:12} {seconds:8.2f} s  {audio_seconds / max(seconds, 1e-9):8.1f} x real time",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
