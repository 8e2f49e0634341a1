"""The executor's main: loads a pipeline once, then runs one task at a time, told over pipes.

`python -m emiliad.executor.child --pipeline module:Class [--parent PID]` reads `Process` frames
on stdin and writes `Ready`, `Stage`, `Done` and `Failed` frames on stdout; the end of stdin means
finish and exit. Exit codes: 0 told to, 3 the pipeline could not be loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from emiliad.executor.faults import kind_of, load_kind, manifest_fault, sentence, tail
from emiliad.wire import (
    PROTOCOL,
    Decoder,
    Done,
    Failed,
    Message,
    Process,
    ProtocolError,
    Ready,
    Stage,
    encode,
)

EXIT_NOT_LOADED = 3

_FIRST_FREE_FD = 10  # leaves 0, 1, 2 and whatever a shell redirects alone
_PR_SET_PDEATHSIG = 1  # prctl(2)
_READ_BYTES = 65536  # a pipe's capacity on Linux


class Pipeline(Protocol):
    """What the executor asks of a pipeline, besides a constructor that takes a PipelineConfig."""

    def run(
        self,
        audio: Path,
        out_dir: Path,
        *,
        name: str | None = None,
        on_stage: Callable[[str, float, float], None] | None = None,
    ) -> Any: ...


def main(arguments: list[str] | None = None) -> int:
    """Runs until stdin ends; returns the exit code."""
    _die_with_parent()
    parser = argparse.ArgumentParser(prog="emiliad.executor.child", description=__doc__)
    parser.add_argument("--pipeline", required=True, metavar="MODULE:CLASS")
    parser.add_argument("--parent", type=int, metavar="PID")
    options = parser.parse_args(arguments)
    if options.parent is not None and os.getppid() != options.parent:
        return 0  # the parent died before it could be watched: nobody waits for this process
    inbox, outbox, stderr = _take_protocol()
    _prepare_signals()
    sender = _Sender(outbox)
    began = time.monotonic()
    try:
        pipeline, device = load(options.pipeline)
    except Exception as error:  # noqa: BLE001 - whatever a pipeline raises is reported to the host
        sender.send(_load_failure(error))
        return EXIT_NOT_LOADED
    seconds = time.monotonic() - began
    sender.send(Ready(PROTOCOL, os.getpid(), device, seconds, _reduces(pipeline)))
    serve(pipeline, inbox, sender, stderr)
    return 0


def _die_with_parent() -> None:
    # A child that is blocked in a kernel or a GPU call would outlive a SIGKILLed parent, and keep
    # its GPU. The signal comes when the *thread* that forked this process ends.
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _take_protocol() -> tuple[int, int, int]:
    # Libraries, and programs that they start, print to fd 1: it becomes stderr. The moved
    # descriptors are close-on-exec, so that no grandchild holds the protocol open.
    inbox, outbox, stderr = (
        fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for number in (0, 1, 2)
    )
    _put_standard_streams(stderr)
    return inbox, outbox, stderr


def _put_standard_streams(stderr: int) -> None:
    """Makes fd 0 empty, and 1 and 2 lead to the host's log, whatever they were before."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    os.set_inheritable(0, True)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)


def _prepare_signals() -> None:
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # the host asks: where are you?
    if os.getpgrp() != os.getpid():
        os.setsid()  # the host has done so already
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whoever stops the daemon by signalling all of its processes (a container without an init,
    # systemd's KillMode=control-group) must not take the task that it drains: this process ends
    # with its stdin, by SIGKILL, or with its parent. A handler, for programs would inherit SIG_IGN,
    # and no library could end those that it starts.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.siginterrupt(signal.SIGTERM, False)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def load(reference: str) -> tuple[Pipeline, str]:
    """Builds the pipeline `module:Class` from the environment; returns it and its device's name.

    Raises SettingsError for a reference to nothing, and whatever the import and the constructor do.
    """
    from pipeline.config import PipelineConfig

    config = PipelineConfig.from_env()
    pipeline: Pipeline = _resolve(reference)(config)
    return pipeline, str(getattr(pipeline, "device", config.device))


def _resolve(reference: str) -> Any:
    from pipeline.settings import SettingsError

    module, _, name = reference.partition(":")
    if not (module and name):
        raise SettingsError([f"PIPELINE: {reference!r} is not of the form module:Class"])
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another one
        raise SettingsError(
            [f"PIPELINE: there is no module {error.name!r} on PYTHONPATH"]
        ) from error
    except AttributeError as error:
        if hasattr(sys.modules.get(module), name):
            raise
        raise SettingsError([f"PIPELINE: {module!r} has no {name!r}"]) from error


def serve(pipeline: Pipeline, inbox: int, sender: _Sender, stderr: int) -> None:
    """Runs the tasks that arrive on the descriptor `inbox`, one after another, until it ends."""
    out_of_memory_before = False
    for task in _tasks(inbox):
        answer = attempt(pipeline, task, sender)
        if isinstance(answer, Failed) and answer.kind == "out_of_memory":
            # By now the exception is gone, and with it what its frames held on the device.
            freed = _free_memory() and not out_of_memory_before
            answer = Failed(task.task_id, answer.kind, answer.error, answer.traceback, freed)
            out_of_memory_before = True
        else:
            out_of_memory_before = False
        # A task may have closed them; the next file to be opened would get what is printed.
        _put_standard_streams(stderr)
        sender.send(answer)


def _tasks(inbox: int) -> Iterator[Process]:
    decoder = Decoder()
    while data := os.read(inbox, _READ_BYTES):
        for message in decoder.feed(data):
            if not isinstance(message, Process):
                raise ProtocolError(f"an executor takes tasks only, not {message!r}")
            yield message


def attempt(pipeline: Pipeline, task: Process, sender: _Sender) -> Done | Failed:
    """Runs the pipeline on one task; its exceptions become a Failed, SystemExit passes through."""
    out_dir = Path(task.out_dir)
    on_stage = sender.stages_of(task.task_id)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with _reduced(pipeline, task.halvings):
            manifest = pipeline.run(Path(task.audio), out_dir, name=task.name, on_stage=on_stage)
    except Exception as error:  # noqa: BLE001 - whatever a pipeline raises is reported to the host
        kind = kind_of(error)
        return Failed(task.task_id, kind, sentence(error, kind), tail(error), kind != "cuda")
    fault = manifest_fault(manifest)
    if fault is None:
        done = Done(task.task_id, manifest)
        try:
            encode(done)
        except ProtocolError as error:
            fault = f"the pipeline's manifest cannot be sent: {error}"
        else:
            return done
    return Failed(task.task_id, "garbage", fault, "", True)


def _load_failure(error: Exception) -> Failed:
    kind = load_kind(error)
    return Failed(None, kind, sentence(error, kind), tail(error), False)


def _free_memory() -> bool:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    try:
        torch.cuda.empty_cache()
    except RuntimeError:  # the device is beyond help: the host starts another process
        return False
    return True


def _reduces(pipeline: Pipeline) -> bool:
    return callable(getattr(pipeline, "reduced", None))


def _reduced(pipeline: Any, halvings: int) -> AbstractContextManager[object]:
    """The pipeline with smaller batches, if it can; `reduced` is no part of what it must have."""
    if not halvings or not _reduces(pipeline):
        return nullcontext()
    context: AbstractContextManager[object] = pipeline.reduced(halvings)
    return context


class _Sender:
    """Writes whole frames, from whatever thread a pipeline reports a stage."""

    def __init__(self, outbox: int) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        frame = memoryview(encode(message))
        with self._lock:
            while frame:
                frame = frame[os.write(self._outbox, frame) :]

    def stages_of(self, task_id: str) -> Callable[[str, float, float], None]:
        def on_stage(stage: str, seconds: float, audio_seconds: float) -> None:
            self.send(Stage(task_id, str(stage), float(seconds), float(audio_seconds)))

        return on_stage


if __name__ == "__main__":
    sys.exit(main())
