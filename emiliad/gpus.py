"""Finds the GPUs that this daemon may use, by asking nvidia-smi; loads no CUDA library."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emiliad import logs
from emiliad.errors import ConfigError, EmiliadError

ANSWER_S = 60.0  # nvidia-smi takes seconds without the persistence daemon, for ever if a GPU hangs

_FIELDS = "index,uuid,memory.total,mig.mode.current,name"
_MIB = 1024**2
_GPU_LINE = re.compile(r"GPU (\d+): ")
_MIG_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)\s]+)\)")
_MIG_MEMORY = re.compile(r"(\d+)gb")  # of a profile's name, as in 3g.20gb
# Of a GPU that fell off its bus, in place of its row and often beside "No devices were found".
_LOST = "unable to determine the device handle"
_SAID_CHARS = 200  # of the driver's words

_log = logs.get("gpus")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class GpuError(EmiliadError):
    """The GPUs cannot be listed: the driver does not answer, or answers what makes no sense."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a slice of one (MIG)."""

    uuid: str  # what CUDA_VISIBLE_DEVICES takes
    card: str  # the UUID of the whole GPU
    index: int  # of the whole GPU, as nvidia-smi counts
    name: str
    memory_bytes: int  # 0 where the driver does not tell
    fault: str = ""  # what the driver says in place of its memory


def discover(env: Mapping[str, str], run: Run = subprocess.run) -> tuple[Gpu, ...]:
    """The GPUs for the executors: all, less what CUDA_VISIBLE_DEVICES and MAX_GPUS leave out.

    A GPU in MIG mode counts as its slices. Without nvidia-smi there are none. A sick GPU beside a
    good one takes only itself out: one that fell off its bus is logged and left out, one that the
    driver names but finds fault with is among the others, for a reset may mend it. Blocks for as
    long as ANSWER_S.

    Raises GpuError when the driver does not answer, when what it answers makes no sense, or when
    every GPU is sick; ConfigError if a variable names what is not there.
    """
    limit = _limit(env)
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if limit == 0 or (visible is not None and not _entries(visible)):
        return ()
    gpus = _all_gpus(run)
    if visible is not None:
        gpus = _chosen(gpus, _entries(visible))
    gpus = gpus[:limit]
    if gpus and all(gpu.fault for gpu in gpus):
        first = gpus[0]
        raise GpuError(
            f"GPU {first.index} ({first.uuid}) is not usable, nor is another; "
            f"nvidia-smi says: {first.fault}"
        )
    return tuple(gpus)


def _limit(env: Mapping[str, str]) -> int | None:
    text = env.get("MAX_GPUS", "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"MAX_GPUS: {text!r} is not a whole number")
    return int(text)


def _entries(visible: str) -> list[str]:
    """The entries that CUDA would honour: it stops at the first that is negative or "none"."""
    entries: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if not entry or entry.startswith("-") or entry.lower() in ("none", "void", "nodevfiles"):
            break
        if entry not in entries:
            entries.append(entry)
    return entries


def _chosen(gpus: list[Gpu], entries: list[str]) -> list[Gpu]:
    chosen: list[Gpu] = []
    for entry in entries:
        named = _named(gpus, entry)
        if not named:
            found = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES: {entry!r} names no GPU here, or several; found: {found}"
            )
        chosen += [gpu for gpu in named if gpu not in chosen]
    return chosen


def _named(gpus: list[Gpu], entry: str) -> list[Gpu]:
    """What an index or the beginning of a UUID stands for; a card in MIG mode for its slices."""
    if entry.isdecimal():
        return [gpu for gpu in gpus if gpu.index == int(entry)]
    slices = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    if len(slices) == 1:
        return slices
    of_card = [gpu for gpu in gpus if gpu.card.startswith(entry)]
    return of_card if len({gpu.card for gpu in of_card}) == 1 else []


def _all_gpus(run: Run) -> list[Gpu]:
    answer = _ask(run, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
    rows = [_row(line) for line in answer if _LOST not in line.lower()]
    if not any(in_mig_mode for _, in_mig_mode in rows):
        return [gpu for gpu, _ in rows]
    slices = _mig_slices(_ask(run, "-L"), {gpu.index: gpu for gpu, _ in rows})
    return [
        gpu
        for whole, in_mig_mode in rows
        for gpu in (slices.get(whole.index, []) if in_mig_mode else [whole])
    ]


def _ask(run: Run, *arguments: str) -> list[str]:
    """The lines that nvidia-smi prints; none if it is not installed, or finds no GPU."""
    try:
        answer = run(
            ["nvidia-smi", *arguments],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired as error:
        raise GpuError(f"nvidia-smi gave no answer for {ANSWER_S:g} s: a GPU hangs") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GpuError(f"nvidia-smi cannot be run: {error}") from error
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    said = [*lines, *(line for line in answer.stderr.splitlines() if line.strip())]
    lost = [line.strip()[:_SAID_CHARS] for line in said if _LOST in line.lower()]
    if lost and any(_is_about_a_gpu(line) for line in lines):
        _log.error("gpu.lost", said=lost)
        return lines
    if not lost and "no devices were found" in "\n".join(said).lower():
        return []
    if lost or answer.returncode != 0:
        first = [*lost, *said, "it said nothing"][0]
        raise GpuError(
            f"nvidia-smi failed with exit code {answer.returncode}: {first[:_SAID_CHARS]} "
            "(an empty CUDA_VISIBLE_DEVICES makes emiliad run without a GPU)"
        )
    return lines


def _is_about_a_gpu(line: str) -> bool:
    return ", GPU-" in line or _GPU_LINE.match(line) is not None


def _row(line: str) -> tuple[Gpu, bool]:
    """A GPU, and whether it is in MIG mode."""
    parts = [part.strip() for part in line.split(",", maxsplit=4)]
    if len(parts) != 5 or not parts[0].isdecimal() or not parts[1].startswith("GPU-"):
        raise GpuError(f"nvidia-smi answered what makes no sense: {line.strip()[:_SAID_CHARS]!r}")
    index, uuid, memory, mig, name = parts
    if memory.strip("[]") in ("N/A", "Not Supported"):  # memory shared with the CPU
        memory = "0"
    fault = "" if memory.isdecimal() else memory[:_SAID_CHARS] or "nothing"
    size = 0 if fault else int(memory) * _MIB
    return Gpu(uuid, uuid, int(index), name, size, fault), mig == "Enabled"


def _mig_slices(listing: list[str], wholes: Mapping[int, Gpu]) -> dict[int, list[Gpu]]:
    """The MIG devices of each GPU, from `nvidia-smi -L`; only that prints their UUIDs."""
    slices: dict[int, list[Gpu]] = {}
    index = -1
    for line in listing:
        if begins := _GPU_LINE.match(line):
            index = int(begins[1])
        elif (found := _MIG_LINE.match(line)) and index in wholes:
            whole = wholes[index]
            memory = _MIG_MEMORY.search(found[1])
            size = int(memory[1]) * 10**9 if memory else 0
            gpu = Gpu(found[2], whole.uuid, index, f"{whole.name} MIG {found[1]}", size)
            slices.setdefault(index, []).append(gpu)
    return slices
