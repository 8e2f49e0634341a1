"""Which executors this machine gets: one per GPU and worker, or some on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping

from emiliad import logs
from emiliad.config import Settings
from emiliad.errors import ConfigError
from emiliad.executor.host import Executor, environment
from emiliad.gpus import Gpu, discover

_log = logs.get("executor")


def build_executors(settings: Settings, env: Mapping[str, str]) -> tuple[Executor, ...]:
    """Looks at the machine and returns executors that are not yet started; blocks for a second.

    With DEVICE=auto a machine without nvidia-smi, or on which it finds no GPU, works on the CPU.
    One whose driver fails does not: work would go on at a hundredth of the speed, and nobody would
    see why. Set DEVICE=cuda where there must be a GPU, and DEVICE=cpu where none shall be touched.

    Raises ConfigError when DEVICE=cuda is asked for and no GPU can be used or a variable names one
    that is not there, GpuError when the driver does not answer, or answers nonsense.
    """
    device = settings.pipeline.device
    gpus = () if device == "cpu" else discover(env)
    if settings.daemon.max_gpus is not None:
        gpus = gpus[: settings.daemon.max_gpus]
    if gpus:
        return _on_gpus(settings, env, gpus)
    if device == "cuda":
        raise ConfigError(
            "DEVICE=cuda, but no NVIDIA GPU can be used here: check nvidia-smi, "
            "CUDA_VISIBLE_DEVICES and MAX_GPUS, or set DEVICE=cpu"
        )
    return _on_cpu(settings, env)


def _on_gpus(
    settings: Settings, env: Mapping[str, str], gpus: tuple[Gpu, ...]
) -> tuple[Executor, ...]:
    workers = settings.daemon.workers_per_gpu
    for gpu in gpus:
        if gpu.fault:
            _log.error("gpu.sick", index=gpu.index, uuid=gpu.uuid, said=gpu.fault)
    return tuple(
        _executor(
            f"gpu{gpu.index}.{worker}",
            settings,
            environment(env, gpu=gpu.uuid, threads=None),
            device=f"{gpu.name} {gpu.uuid}",
        )
        for gpu in gpus
        for worker in range(workers)
    )


def _on_cpu(settings: Settings, env: Mapping[str, str]) -> tuple[Executor, ...]:
    count = settings.daemon.cpu_executors
    threads = settings.pipeline.cpu_threads or max(1, len(os.sched_getaffinity(0)) // count)
    shared = {**env, "CPU_THREADS": str(threads)}
    return tuple(
        _executor(f"cpu.{number}", settings, environment(shared, gpu="", threads=threads), "CPU")
        for number in range(count)
    )


def _executor(name: str, settings: Settings, env: Mapping[str, str], device: str) -> Executor:
    return Executor(
        name,
        pipeline=settings.daemon.pipeline,
        env=env,
        device=device,
        load_timeout_s=settings.daemon.load_timeout_s,
        on_line=lambda line: _log.debug("executor.said", executor=name, line=line),
    )
