"""The GPUs are what nvidia-smi says, less what the environment leaves out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from emiliad import gpus
from emiliad.errors import ConfigError
from emiliad.gpus import Gpu, GpuError, discover

A = "GPU-aaaa1111-0000-0000-0000-000000000000"
B = "GPU-aaaa2222-0000-0000-0000-000000000000"
C = "GPU-cccc3333-0000-0000-0000-000000000000"
MIG_1 = "MIG-1111aaaa-0000-0000-0000-000000000000"
MIG_2 = "MIG-2222bbbb-0000-0000-0000-000000000000"
MIB = 1024**2

TWO = f"""\
0, {A}, 24564, [N/A], NVIDIA GeForce RTX 4090
1, {B}, 24564, [N/A], NVIDIA GeForce RTX 4090
"""
WITH_SLICES = f"""\
0, {A}, 143771, Enabled, NVIDIA H200
1, {C}, 143771, Disabled, NVIDIA H200
"""
SLICES = f"""\
GPU 0: NVIDIA H200 (UUID: {A})
  MIG 3g.71gb     Device  0: (UUID: {MIG_1})
  MIG 1g.18gb+me  Device  1: (UUID: {MIG_2})
GPU 1: NVIDIA H200 (UUID: {C})
"""

LOST = "Unable to determine the device handle for GPU 0000:8A:00.0: Unknown Error"

Install = Callable[..., None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a program of that name first on PATH, which says what it is told to."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(rows: str = "", listing: str = "", also: str = "") -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\n{also}\n"
            f'if [ "$1" = -L ]; then printf %s {shlex.quote(listing)}; '
            f"else printf %s {shlex.quote(rows)}; fi\n"
        )
        program.chmod(0o755)

    return install


def _uuids(env: dict[str, str]) -> list[str]:
    return [gpu.uuid for gpu in discover(env)]


def test_every_gpu_is_found(nvidia_smi: Install) -> None:
    """Without restrictions each GPU counts, with its UUID, name and memory."""
    nvidia_smi(TWO)
    name = "NVIDIA GeForce RTX 4090"
    assert discover({}) == (
        Gpu(A, A, 0, name, 24564 * MIB),
        Gpu(B, B, 1, name, 24564 * MIB),
    )


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [B]),
        ({"CUDA_VISIBLE_DEVICES": "1, 0"}, [B, A]),
        ({"CUDA_VISIBLE_DEVICES": "1,1"}, [B]),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, [A]),
        ({"CUDA_VISIBLE_DEVICES": B}, [B]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa2"}, [B]),
        ({"CUDA_VISIBLE_DEVICES": f"{B},0"}, [B, A]),
        ({"MAX_GPUS": "1"}, [A]),
        ({"MAX_GPUS": "5"}, [A, B]),
        ({"MAX_GPUS": "0"}, []),
        ({"MAX_GPUS": ""}, [A, B]),
        ({"MAX_GPUS": "1", "CUDA_VISIBLE_DEVICES": "1,0"}, [B]),
    ],
)
def test_the_environment_chooses(
    nvidia_smi: Install, env: dict[str, str], expected: list[str]
) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it, then MAX_GPUS cuts the list."""
    nvidia_smi(TWO)
    assert _uuids(env) == expected


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2"}, "CUDA_VISIBLE_DEVICES: '2' names no GPU here"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, "or several"),
        ({"CUDA_VISIBLE_DEVICES": "cuda:0"}, f"found: 0 ({A}), 1 ({B})"),
        ({"MAX_GPUS": "all"}, "MAX_GPUS: 'all' is not a whole number"),
        ({"MAX_GPUS": "-1"}, "MAX_GPUS: '-1' is not a whole number"),
    ],
)
def test_a_gpu_that_is_not_there_is_named(
    nvidia_smi: Install, env: dict[str, str], text: str
) -> None:
    """A variable that names no GPU is a ConfigError that says what there is."""
    nvidia_smi(TWO)
    with pytest.raises(ConfigError) as caught:
        discover(env)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [MIG_1, MIG_2, C]),
        ("0", [MIG_1, MIG_2]),
        (A, [MIG_1, MIG_2]),
        (MIG_2, [MIG_2]),
        ("MIG-2222", [MIG_2]),
        (f"{C},{MIG_1}", [C, MIG_1]),
    ],
)
def test_a_gpu_in_mig_mode_counts_as_its_slices(
    nvidia_smi: Install, visible: str | None, expected: list[str]
) -> None:
    """Each MIG device is a GPU of its own; the index or UUID of the card stands for them all."""
    nvidia_smi(WITH_SLICES, SLICES)
    assert _uuids({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_a_slice_has_its_profiles_memory(nvidia_smi: Install) -> None:
    """A MIG device's memory and name are of its profile, its index of the card."""
    nvidia_smi(WITH_SLICES, SLICES)
    assert discover({})[1] == Gpu(MIG_2, A, 0, "NVIDIA H200 MIG 1g.18gb+me", 18 * 10**9)


def test_a_gpu_in_mig_mode_without_slices_is_none(nvidia_smi: Install) -> None:
    """CUDA cannot use a card that is in MIG mode and not divided."""
    nvidia_smi(WITH_SLICES, f"GPU 0: NVIDIA H200 (UUID: {A})\n")
    assert _uuids({}) == [C]


def test_memory_that_the_driver_does_not_tell_is_nought(nvidia_smi: Install) -> None:
    """GPUs that share the CPU's memory report none of their own; they count."""
    nvidia_smi(f"0, {A}, [N/A], [N/A], NVIDIA GB10\n")
    assert discover({})[0].memory_bytes == 0


def test_without_nvidia_smi_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without the driver's tools is a machine without a GPU, not an error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert discover({}) == ()


def test_nobody_is_asked_when_no_gpu_is_wanted(nvidia_smi: Install) -> None:
    """With an empty CUDA_VISIBLE_DEVICES a broken driver does not matter."""
    nvidia_smi(also="exit 9")
    assert discover({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_a_driver_without_devices_is_no_gpu(nvidia_smi: Install) -> None:
    """nvidia-smi's "No devices were found" is an answer, though with an exit code."""
    nvidia_smi(also="echo 'No devices were found'; exit 6")
    assert discover({}) == ()


@pytest.mark.parametrize(
    ("rows", "also", "text"),
    [
        ("", "echo 'NVIDIA-SMI has failed' >&2; exit 9", "exit code 9: NVIDIA-SMI has failed"),
        ("", "exit 1", "it said nothing"),
        ("hello world\n", "", "makes no sense: 'hello world'"),
        (f"x, {A}, 24564, [N/A], RTX\n", "", "makes no sense"),
        ("0, UUID, 24564, [N/A], RTX\n", "", "makes no sense"),
        (f"0, {A}, [GPU requires reset], [N/A], RTX\n", "", "another; nvidia-smi says: [GPU requi"),
        (f"0, {A}, , [N/A], RTX\n", "", "nvidia-smi says: nothing"),
        ("", f"echo '{LOST}'", "exit code 0: Unable to determine the device handle"),
        ("", f"echo '{LOST}' >&2; echo No devices were found; exit 6", "exit code 6: Unable to"),
    ],
)
def test_nonsense_and_failure_are_errors(
    nvidia_smi: Install, rows: str, also: str, text: str
) -> None:
    """A sick driver or GPU is a GpuError with the driver's own words, never a silent CPU run."""
    nvidia_smi(rows, also=also)
    with pytest.raises(GpuError) as caught:
        discover({})
    assert text in str(caught.value)


def test_a_sick_gpu_takes_only_itself_out(nvidia_smi: Install) -> None:
    """One that the driver finds fault with is listed with the fault; the others are as they are."""
    nvidia_smi(TWO.replace("24564", "[GPU requires reset]", 1))
    assert [(gpu.uuid, gpu.fault) for gpu in discover({})] == [(A, "[GPU requires reset]"), (B, "")]


@pytest.mark.parametrize("also", [f"echo '{LOST}'", f"echo '{LOST}' >&2"])
def test_a_lost_gpu_takes_only_itself_out(nvidia_smi: Install, also: str) -> None:
    """One that fell off its bus has a complaint in place of its row; the others are found."""
    nvidia_smi(f"1, {B}, 24564, [N/A], RTX\n", also=also)
    assert _uuids({}) == [B]


def test_a_hanging_driver_is_an_error(nvidia_smi: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi is not waited for without end."""
    nvidia_smi(also="exec sleep 600")
    monkeypatch.setattr(gpus, "ANSWER_S", 0.2)
    with pytest.raises(GpuError, match=r"no answer for 0\.2 s"):
        discover({})


def test_a_program_that_cannot_run_is_an_error(nvidia_smi: Install, tmp_path: Path) -> None:
    """An nvidia-smi that is no program is said so."""
    nvidia_smi()
    (tmp_path / "nvidia-smi").write_bytes(b"\x00\x01\x02")
    with pytest.raises(GpuError, match="cannot be run"):
        discover({})
