"""The real recordings as samples, and the truth about who speaks in them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.types import Turn


def heard_at(rate: int, path: Path) -> NDArray[np.float32]:
    """The recording as mono float32 [n] at `rate` Hz."""
    to_mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
    with av.open(str(path)) as container:
        frames = [f for given in container.decode(audio=0) for f in to_mono.resample(given)]
    frames += to_mono.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def spans_of_truth(path: Path) -> tuple[Turn, ...]:
    """The speakers' turns in the .rttm file beside the recording."""
    lines = (line.split() for line in path.with_suffix(".rttm").read_text().splitlines())
    return tuple(
        Turn(float(line[3]), float(line[3]) + float(line[4]), line[7]) for line in lines if line
    )
