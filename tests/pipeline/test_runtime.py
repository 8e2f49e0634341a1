"""Devices and sessions: what is asked for is what runs, and a bad model file is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline import nets, runtime
from pipeline.runtime import onnx_session, pick_device, run_bound
from pipeline.types import DeviceError, ModelError

HAS_CUDA = (
    runtime.CUDA_PROVIDER in onnxruntime.get_available_providers() and torch.cuda.is_available()
)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """An identity net on disk."""
    nets.identity(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_auto_is_what_the_machine_has() -> None:
    """`auto` is CUDA where it works, else the CPU; `cpu` is always the CPU."""
    assert pick_device("auto") == ("cuda" if HAS_CUDA else "cpu")
    assert pick_device("cpu") == "cpu"


@pytest.mark.skipif(HAS_CUDA, reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_an_error() -> None:
    """CUDA asked for by name is never replaced by the CPU."""
    with pytest.raises(ModelError, match="CUDA was asked for and cannot be used: "):
        pick_device("cuda")


def test_a_runtime_without_a_gpu_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime built for CUDA on a machine without a GPU says that the GPU is missing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.CUDA_PROVIDER])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="torch sees no GPU"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("visible", "named"), [("0", True), ("GPU-1", True), ("", False), ("-1", False)]
)
def test_a_named_gpu_is_never_passed_over(
    monkeypatch: pytest.MonkeyPatch, visible: str, named: bool
) -> None:
    """`auto` does not turn to the CPU when the GPU that the process was given does not answer."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.CUDA_PROVIDER])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if named:
        with pytest.raises(DeviceError, match=f"names \\({visible}\\)"):
            pick_device("auto")
    else:
        assert pick_device("auto") == "cpu"


def test_another_word_is_no_device() -> None:
    """A device that does not exist is refused."""
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        pick_device("gpu")


@pytest.mark.skipif(HAS_CUDA, reason="this machine has CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_silent_fall_back_is_an_error(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When ONNX Runtime quietly takes the CPU instead of CUDA, the session is refused."""
    monkeypatch.setattr(runtime, "pick_device", lambda asked: "cuda")
    with pytest.raises(DeviceError, match="would run on the CPU"):
        onnx_session(net, device="cuda")


def test_a_memory_limit_reaches_cuda() -> None:
    """The limit is given to CUDA in bytes, and not at all when it is 0."""
    (_, options), cpu = runtime._providers("cuda", 1.5)
    assert options["gpu_mem_limit"] == str(3 * 2**29)
    assert cpu == runtime.CPU_PROVIDER
    (_, unlimited), _ = runtime._providers("cuda", 0.0)
    assert "gpu_mem_limit" not in unlimited


def test_threads_are_those_asked_for(net: Path) -> None:
    """The number of threads is the one given; 0 is one per core, never ONNX Runtime's pinning."""
    asked = onnx_session(net, device="cpu", threads=3).get_session_options()
    assert asked.intra_op_num_threads == 3
    default = onnx_session(net, device="cpu").get_session_options()
    assert default.intra_op_num_threads >= 1


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """A model that is not there: where it should be and what to do."""
    with pytest.raises(ModelError, match=r"no model at .*gone\.onnx: run `emiliad models pull`"):
        onnx_session(tmp_path / "gone.onnx", device="cpu")


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_damaged_model_is_named(net: Path, damage: str) -> None:
    """A model that cannot be read: which, why, and what to do, in one line."""
    nets.random_mdx(net, tiny=True)
    whole = net.read_bytes()
    net.write_bytes({"empty": b"", "text": b"<html>", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ModelError, match=r"net\.onnx \(.+\): run `emiliad models pull`$") as told:
        onnx_session(net, device="cpu")
    assert "\n" not in str(told.value)


def test_a_bound_run_is_a_run(net: Path) -> None:
    """Running on torch's memory gives what a plain run gives, for a strided input too."""
    nets.random_mdx(net, tiny=True)
    session = onnx_session(net, device="cpu", threads=2)
    spectra = torch.randn(1, 4, 256, 3072, generator=torch.Generator().manual_seed(0)).mT
    plain = session.run(None, {"input": np.ascontiguousarray(spectra.numpy())})[0]
    assert np.array_equal(run_bound(session, spectra, tuple(spectra.shape)).numpy(), plain)
