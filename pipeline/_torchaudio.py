"""Makes pyannote importable everywhere: without torchaudio's extension, without telemetry or a hub.

torchaudio 2.11 as published on PyPI is built for CUDA, so its C++ extension cannot load beside a
CPU build of torch, and the import of the whole package fails. pyannote needs only the parts of
torchaudio that are plain Python (Kaldi filter banks, resampling).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn


def import_pyannote() -> None:
    """Imports pyannote.audio, quietly and offline; does nothing when it is imported already.

    Sets `PYANNOTE_METRICS_ENABLED=0` (pyannote's telemetry is on by default) and, unless they are
    set, `HF_HUB_OFFLINE` and `HF_HUB_DISABLE_TELEMETRY`, for this process. Raises ImportError when
    pyannote.audio is not installed.
    """
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import_torchaudio()
    with warnings.catch_warnings():
        # Where ffmpeg's libraries are missing pyannote warns that it cannot decode files; it is
        # only ever given waveforms here.
        warnings.filterwarnings("ignore", message=r"\s*torchcodec is not installed correctly")
        import_module("pyannote.audio")


def import_torchaudio() -> None:
    """Imports torchaudio; only where its extension cannot load, as if there were none.

    Raises ImportError when torchaudio is not installed or cannot be imported for another reason.
    """
    try:
        import_module("torchaudio")
    except (OSError, RuntimeError):
        # OSError: the extension's shared library, or one that it needs, cannot be loaded.
        # RuntimeError: torchaudio's own check found torch built for another CUDA.
        _forget("torchaudio")
        sys.modules["torchaudio._extension"] = _absent_extension()
        import_module("torchaudio")


def _forget(package: str) -> None:
    """Removes the modules that a failed import of `package` left behind."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _absent_extension() -> ModuleType:
    """What `torchaudio._extension` is in a build without C++: every question answered with no."""
    module = ModuleType("torchaudio._extension", "Stands for an extension that cannot load here.")
    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        _load_lib=lambda lib: False,
        fail_if_no_align=_unavailable,
    )
    return module


def _unavailable(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{function.__name__} needs torchaudio's C++ extension")

    return refuse
