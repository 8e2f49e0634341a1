"""Raw audio in, single-speaker speech segments with transcripts out.

Importing this package loads no ML library; the first use of `Pipeline` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.types import BadAudio, ModelError

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig
    from pipeline.pipeline import Pipeline

__all__ = ["BadAudio", "ModelError", "Pipeline", "PipelineConfig"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from pipeline.pipeline import Pipeline

        return Pipeline
    if name == "PipelineConfig":
        from pipeline.config import PipelineConfig

        return PipelineConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
