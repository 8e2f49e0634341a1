"""The supervisor of one executor: starts it, hands it tasks, and survives whatever it does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from emiliad.errors import ExecutorFailed
from emiliad.executor.process import Child
from emiliad.executor.talk import Answer, Loading, Talk, Working
from emiliad.wire import Done, Failed, Process, ProtocolError, Ready, Stage

DUMP_GRACE_S = 2.0  # for an overdue child to write where it hangs, before it is killed
EXIT_S = 5.0  # for a child that closed its pipe to exit by itself, which tells the exit code

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `emiliad`


class StartFailed(ExecutorFailed):
    """An executor did not get as far as having its models loaded.

    `kind` is model (a model or a setting is wrong: `final`, a retry is pointless), load, crash,
    timeout or protocol; `reason` is one sentence; `details` the tail of a traceback or of stderr.
    The latter is shown with it, for there a sentence cannot know the cause.
    """

    def __init__(self, reason: str, *, kind: str, details: str) -> None:
        shown = details if kind not in ("model", "load") else ""
        super().__init__(f"{reason}\n{shown}" if shown else reason)
        self.reason = reason
        self.kind = kind
        self.final = kind == "model"
        self.details = details


def environment(base: Mapping[str, str], *, gpu: str | None, threads: int | None) -> dict[str, str]:
    """An executor's environment: `base`, one GPU (as CUDA names it; None: as in `base`), threads.

    OpenMP, MKL and OpenBLAS follow OMP_NUM_THREADS; the pipeline's other libraries CPU_THREADS,
    which stays as it is where `base` sets it.
    """
    env = {**base, "PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
        if env.get("CPU_THREADS", "0").strip() in ("", "0"):
            env["CPU_THREADS"] = str(threads)
    return env


class Executor:
    """One subprocess with loaded models, which runs one task at a time.

    Use it as `async with`, or call `start` and `close`. After a failure that is not reusable the
    subprocess is gone, and `start` gives another one; whether to is the caller's decision.
    """

    def __init__(
        self,
        name: str,
        *,
        pipeline: str,
        env: Mapping[str, str],
        device: str = "",
        load_timeout_s: float = 900.0,
        python: str = sys.executable,
        on_line: Callable[[str], None] | None = None,
        dump_grace_s: float = DUMP_GRACE_S,
    ) -> None:
        self.name = name
        self.device = device  # what it shall run on, for people
        self._pipeline = pipeline
        self._env = env
        self._load_timeout_s = load_timeout_s
        self._python = python
        self._on_line = on_line
        self._dump_grace_s = dump_grace_s
        self._child: Child | None = None
        self._ready: Ready | None = None
        self._busy = False

    @property
    def alive(self) -> bool:
        """Whether the subprocess runs; ask before handing it a task, and `start` it if not."""
        return self._child is not None and self._child.returncode is None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def on_gpu(self) -> bool:
        """Whether it was given a GPU to run on."""
        return bool(self._env.get("CUDA_VISIBLE_DEVICES"))

    @property
    def memory_bytes(self) -> int:
        """The subprocess's resident memory; 0 when there is none."""
        return self._child.memory_bytes if self._child is not None else 0

    async def ended(self) -> None:
        """Waits for the death of the subprocess; at once if there is none."""
        if self._child is not None:
            await self._child.wait()

    @property
    def ready(self) -> Ready | None:
        """What the subprocess said of itself when its models were loaded."""
        return self._ready if self.alive else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> Ready:
        """Starts the subprocess and waits for its models. Raises StartFailed (ExecutorFailed)."""
        if self.alive:
            raise RuntimeError(f"{self.name} is running")
        await self._end()  # of a child that died while idle
        try:
            self._child = await Child.spawn(self._command(), self._child_env(), self._on_line)
        except OSError as error:
            reason = f"{self.name}: {self._python} cannot be started: {error.strerror}"
            raise StartFailed(reason, kind="crash", details="") from error
        answer = await self._supervise(self._child, None, Loading(self._load_timeout_s))
        if isinstance(answer, Ready):
            self._ready = answer
            return answer
        await self._end()
        assert isinstance(answer, Failed)
        reason = f"{self.name}: {answer.error}"
        raise StartFailed(reason, kind=answer.kind, details=answer.traceback)

    async def process(
        self,
        task_id: str,
        audio: Path,
        out_dir: Path,
        *,
        name: str,
        deadline_s: float,
        deadline_of: Callable[[float], float] | None = None,
        halvings: int = 0,
        on_stage: Callable[[Stage], None] | None = None,
    ) -> Done | Failed:
        """Runs one task; whatever the subprocess does becomes a Failed, never an exception.

        If that is not `reusable`, the subprocess is dead, reaped, and its pipes are closed; so it
        is after a cancellation. The task may take `deadline_s`, or once a stage has told the
        length of the audio, what `deadline_of` gives for it. `halvings` is how often every batch
        is halved, by a pipeline that can (`Ready.halves`). `on_stage` is called as each stage
        ends; what it raises is raised.
        """
        if self._busy:
            raise RuntimeError(f"{self.name} is busy")
        if self._child is None:
            return Failed(task_id, "crash", "the executor is not running", "", False)
        task = Process(task_id, str(audio), str(out_dir), name, halvings)
        work = Working(task, deadline_s, deadline_of, on_stage)
        self._busy = True
        try:
            answer = await self._supervise(self._child, task_id, work)
        finally:
            self._busy = False
        assert not isinstance(answer, Ready)
        return answer

    async def close(self, grace_s: float = 5.0) -> None:
        """Lets the subprocess finish for `grace_s`, then kills it; nothing of it is left."""
        if self._child is None:
            return
        try:
            self._child.hang_up()
            with anyio.move_on_after(grace_s):
                await self._child.wait()
        finally:
            await self._end()

    async def _supervise(self, child: Child, task_id: str | None, talk: Talk) -> Answer:
        """Has `talk` with the child, within its limit; ends the child if it went wrong."""
        answer: Answer | None = None
        kind, error = "crash", ""
        try:
            with anyio.move_on_after(talk.limit_s) as limit:
                answer = await talk.run(child, limit)
            if limit.cancelled_caught:
                kind = "timeout"
                error = f"the executor reached its limit of {_shown(talk.limit_s)} s {talk.where()}"
                child.dump()
                await _exit_of(child, self._dump_grace_s)
            elif answer is None:
                await _exit_of(child, EXIT_S)
                error = f"the executor {_end_of(child.returncode)} {talk.where()}"
        except ProtocolError as fault:
            kind, error = "protocol", f"the executor sent nonsense {talk.where()}: {fault}"
        except BaseException:
            await self._end()
            raise
        if answer is None:
            await self._end()
            return Failed(task_id, kind, error, child.tail, False)
        if isinstance(answer, Failed) and not answer.reusable:
            await self._end()
        return answer

    async def _end(self) -> None:
        child, self._child, self._ready = self._child, None, None
        if child is not None:
            await child.kill()

    def _command(self) -> list[str]:
        # -P: no folder that the daemon happens to be started in may shadow a library.
        module = "emiliad.executor.child"
        ours = ["--pipeline", self._pipeline, "--parent", str(os.getpid())]
        return [self._python, "-P", "-m", module, *ours]

    def _child_env(self) -> dict[str, str]:
        path = [entry for entry in self._env.get("PYTHONPATH", "").split(os.pathsep) if entry]
        return {**self._env, "PYTHONPATH": os.pathsep.join([*path, str(_PACKAGE_ROOT)])}


async def _exit_of(child: Child, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await child.wait()


def _shown(seconds: float) -> str:
    return f"{seconds:g}" if seconds < 1000 else f"{seconds:,.0f}"


def _end_of(returncode: int | None) -> str:
    if returncode is None:
        return "closed its pipe"
    if returncode >= 0:
        return f"exited with code {returncode}"
    hint = ", as the kernel does when memory runs out," if -returncode == signal.SIGKILL else ""
    try:
        return f"was killed by {signal.Signals(-returncode).name}{hint}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-returncode}"
