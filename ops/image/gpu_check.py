"""Proves, without a GPU, that the GPU image holds what belongs together; ends the build if not.

What only a GPU can show, that all models run on it, is `emiliad doctor`'s to prove.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

# By their names alone, as the libraries ask for them: CTranslate2 for the first, torch and ONNX
# Runtime for the others.
LIBRARIES = ("libcublas.so.12", "libcublas.so.13", "libcudart.so.13", "libcudnn.so.9")
MODULES = ("ctranslate2", "faster_whisper", "pyannote.audio", "pipeline.pipeline", "emiliad.daemon")


def problems() -> Iterator[str]:
    """What is wrong with the packages of this interpreter, a sentence each."""
    import onnxruntime
    import torch

    with suppress(PackageNotFoundError):  # not there, as it should be
        yield f"onnxruntime {version('onnxruntime')} hides onnxruntime-gpu"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        yield "this ONNX Runtime is built without CUDA"
    if not (torch.version.cuda or "").startswith("13."):
        yield f"torch is built for CUDA {torch.version.cuda}, onnxruntime-gpu for CUDA 13"
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            yield f"{name} is not found: {error}"


def main() -> int:
    """Returns 1 and says what is wrong, or 0."""
    from pipeline._torchaudio import import_pyannote

    found = list(problems())
    import_pyannote()
    for module in MODULES:
        importlib.import_module(module)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
