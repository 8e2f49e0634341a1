"""Where and how the nets run: the choice of device, ONNX sessions, runs without copies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as reasons

from pipeline.types import DeviceError, ModelError

Device = Literal["cpu", "cuda"]

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
ERRORS_ONLY = 3  # ONNX Runtime's severity; its warnings are about graph optimisation
BYTES_PER_GB = 1024**3

# Everything that ONNX Runtime raises while it loads a model; the classes have no common base.
_LOADING_ERRORS = (
    reasons.EPFail,
    reasons.Fail,
    reasons.InvalidArgument,
    reasons.InvalidGraph,
    reasons.InvalidProtobuf,
    reasons.NoModel,
    reasons.NoSuchFile,
    reasons.NotImplemented,
    reasons.RuntimeException,
    OSError,
    RuntimeError,
    ValueError,
)


def pick_device(asked: str) -> Device:
    """The device to run on, for `asked` in auto, cpu, cuda.

    `auto` is CUDA when ONNX Runtime was built for it and torch sees a GPU, else the CPU; but a GPU
    that CUDA_VISIBLE_DEVICES names is used or missed, never passed over in silence.
    Raises ModelError when CUDA is asked for and this ONNX Runtime is built without it, DeviceError
    when torch does not see the GPU, ValueError for another word.
    """
    if asked not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {asked!r}: it is auto, cpu or cuda")
    if asked == "cpu":
        return "cpu"
    if CUDA_PROVIDER not in ort.get_available_providers():
        if asked == "auto":
            return "cpu"
        raise ModelError(
            "CUDA was asked for and cannot be used: this ONNX Runtime is built without it "
            "(install `emiliad[gpu]`)"
        )
    import torch  # here, because it takes seconds and a CPU run may not need it

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise DeviceError("CUDA was asked for and cannot be used: torch sees no GPU")
    if _names_a_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", "")):
        raise DeviceError(
            "torch does not see the GPU that CUDA_VISIBLE_DEVICES names "
            f"({os.environ['CUDA_VISIBLE_DEVICES']}): check nvidia-smi, or set DEVICE=cpu"
        )
    return "cpu"


def _names_a_gpu(visible: str) -> bool:
    first = visible.split(",")[0].strip().lower()
    return first not in ("", "none", "void", "nodevfiles") and not first.startswith("-")


def onnx_session(
    path: Path,
    *,
    device: str,
    threads: int = 0,
    cuda_mem_limit_gb: float = 0.0,
    content: bytes | None = None,
) -> ort.InferenceSession:
    """Loads the model at `path` for `device` (`auto`, `cpu` or `cuda`).

    `threads` is for the CPU, 0 means one per core; `cuda_mem_limit_gb` 0 means no limit.
    With `content`, that model is loaded, and `path` says in errors where it came from.
    Raises ModelError when the model is missing or unreadable, DeviceError (one of these) when CUDA
    is not really in use.
    """
    where = pick_device(device)
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    # An explicit number: with 0 ONNX Runtime pins its threads to cores, and the threads of two
    # executors to the same ones.
    options.intra_op_num_threads = threads or _cores()
    # Between two runs torch computes on the same cores: threads that wait in a busy loop for the
    # next run would take them (a fifth of the CPU time of the quality scores on two cores).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with _told_plainly(path):
        session = ort.InferenceSession(
            str(path) if content is None else content,
            options,
            providers=_providers(where, cuda_mem_limit_gb),
        )
    if where == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:
        raise DeviceError(f"{path} would run on the CPU: ONNX Runtime could not start CUDA for it")
    return session


@contextmanager
def _told_plainly(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise ModelError(f"no model at {path}: run `emiliad models pull`")
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"cannot read the model at {path} ({reason}): run `emiliad models pull`"
        ) from error


def _cores() -> int:
    # What this process may use; not every system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _providers(device: Device, cuda_mem_limit_gb: float) -> list[Any]:
    if device == "cpu":
        return [CPU_PROVIDER]
    import torch  # noqa: F401 - brings in the CUDA and cuDNN libraries that ONNX Runtime loads

    cuda = {
        # Grow by what is asked for: doubling would take half the card for one long file.
        "arena_extend_strategy": "kSameAsRequested",
        # cuDNN's own choice of algorithm. EXHAUSTIVE times the candidates at every new shape,
        # which costs seconds and workspace, and may choose (and so round) otherwise next time:
        # equal input would no longer give equal output.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if cuda_mem_limit_gb > 0:
        cuda["gpu_mem_limit"] = str(int(cuda_mem_limit_gb * BYTES_PER_GB))
    # The CPU remains for the few operators that compute shapes.
    return [(CUDA_PROVIDER, cuda), CPU_PROVIDER]


def run_bound(session: ort.InferenceSession, given: Any, out_shape: tuple[int, ...]) -> Any:
    """Runs a net of one input and one output on torch tensors, copying nothing on any device.

    `given` is a float32 tensor on the session's device; so is the result, of `out_shape`.
    """
    import torch

    given = given.contiguous()
    result = torch.empty(out_shape, dtype=torch.float32, device=given.device)
    place = (given.device.type, given.device.index or 0, np.float32)
    binding = session.io_binding()
    binding.bind_input(session.get_inputs()[0].name, *place, tuple(given.shape), given.data_ptr())
    binding.bind_output(session.get_outputs()[0].name, *place, out_shape, result.data_ptr())
    if given.device.type == "cuda":
        torch.cuda.current_stream().synchronize()  # ONNX Runtime computes in a stream of its own
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return result
