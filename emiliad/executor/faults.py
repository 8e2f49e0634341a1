"""What went wrong in a pipeline: the kind of an exception, and what to say of it."""

from __future__ import annotations

import errno
import math
import traceback

TRACEBACK_LINES = 30
TRACEBACK_CHARS = 8_000  # a message may be a whole model's state; a frame must hold the tail
SENTENCE_CHARS = 400  # of an exception's first line; enough for a path and a reason

# Texts by which PyTorch, CTranslate2 and ONNX Runtime say that memory ran out.
_OUT_OF_MEMORY = (
    "out of memory",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "failed to allocate memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
)
# Errors after which the CUDA context of a process is of no more use.
_CUDA = (
    "cuda error",  # PyTorch
    "cuda failed with error",  # CTranslate2
    "cuda failure",  # ONNX Runtime
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "cublas_status_",
    "cudnn_status_",
)


def kind_of(error: BaseException) -> str:
    """The kind of a failure, from the exception and those that it names as its cause."""
    if "BadAudio" in {cls.__name__ for cls in type(error).__mro__}:
        return "bad_audio"
    cause: BaseException | None = error
    while cause is not None:
        kind = _kind_of_one(cause)
        if kind is not None:
            return kind
        cause = cause.__cause__
    return "error"


def _kind_of_one(error: BaseException) -> str | None:
    code = error.errno if isinstance(error, OSError) else None
    text = f"{type(error).__name__}: {error}".lower()
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if isinstance(error, MemoryError) or code == errno.ENOMEM or "outofmemory" in text:
        return "out_of_memory"
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    if any(sign in text for sign in _CUDA):
        return "cuda"
    return None


def manifest_fault(manifest: object) -> str | None:
    """What is wrong with a pipeline's manifest, as a sentence; None if it will do."""
    if not isinstance(manifest, dict):
        return f"the pipeline returned {type(manifest).__name__}, not a manifest (a dict)"
    for key, types in (("segments", (int,)), ("audio_seconds", (float, int))):
        if key not in manifest:
            return f"the pipeline's manifest has no {key!r}"
        value = manifest[key]
        # The chained comparison is false for NaN, too.
        if type(value) is bool or not isinstance(value, types) or not 0 <= value < math.inf:
            shown = f"{repr(value)[:60]} ({type(value).__name__})"
            return f"the pipeline's manifest has {key!r}: {shown}"
    return None


def load_kind(error: BaseException) -> str:
    """`model` if no other try can help, for a model or a setting is wrong; else `load`."""
    names = {cls.__name__ for cls in type(error).__mro__}
    final = names & {"ModelError", "SettingsError"} and "DeviceError" not in names
    return "model" if final else "load"


def sentence(error: BaseException, kind: str) -> str:
    """The first line of what an exception says, with its class unless its words are for people."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:SENTENCE_CHARS] if lines else ""
    if kind in ("bad_audio", "model") and text:
        return text
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def tail(error: BaseException) -> str:
    """The end of the traceback, where the error is."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines[-TRACEBACK_LINES:])[-TRACEBACK_CHARS:]
