"""An executor runs tasks in a real subprocess, and its host survives all that it does."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from emiliad.errors import ExecutorFailed
from emiliad.executor import child, faults
from emiliad.executor.host import Executor, StartFailed, environment
from emiliad.wire import Done, Failed, Process, Stage
from tests.emiliad.fake_pipelines import STAGES, BadAudio, ModelError

ROOT = Path(__file__).parents[2]
FAKE = "tests.emiliad.fake_pipelines:Fake"
FRUGAL = "tests.emiliad.fake_pipelines:Frugal"
PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine


def _make(on_line: Callable[[str], None] | None = None, **changes: Any) -> Executor:
    variables = {key: str(value) for key, value in changes.pop("env", {}).items()}
    base = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    env = environment(base, gpu=None, threads=1)
    settings = {"pipeline": FAKE, "env": env, "load_timeout_s": 60.0, "dump_grace_s": 1.0}
    return Executor("cpu.0", on_line=on_line, **{**settings, **changes})


class _Desk:
    """A started executor, and a folder in which each task gets its own audio."""

    def __init__(self, executor: Executor, folder: Path) -> None:
        self.executor = executor
        self.folder = folder
        self.stages: list[Stage] = []
        self.count = 0

    @property
    def pid(self) -> int:
        assert self.executor.pid is not None
        return self.executor.pid

    async def work(self, words: str, deadline_s: float = 60.0, **how: Any) -> Done | Failed:
        self.count += 1
        audio = self.folder / f"{words}.wav"
        audio.write_bytes(b"\0" * 64_000)
        return await self.executor.process(
            f"task {self.count}",
            audio,
            self.folder / f"out {self.count}",
            name=words,
            deadline_s=deadline_s,
            on_stage=self.stages.append,
            **how,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Any]:
    """Opens an executor on the fake pipeline."""

    @asynccontextmanager
    async def opened(**changes: Any) -> AsyncIterator[_Desk]:
        async with _make(**changes) as executor:
            yield _Desk(executor, tmp_path)

    return opened


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test: no child of this process, living or dead, and no descriptor more."""
    before = _children(), _descriptors()
    yield
    assert (_children(), _descriptors()) == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _children() -> set[int]:
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends meanwhile
            found |= {int(pid) for pid in (thread / "children").read_text().split()}
    return found


def _runs(pid: int) -> bool:
    """Whether a process exists and is not only waiting to be reaped (by init, if orphaned)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def _gone(pid: int) -> bool:
    with anyio.move_on_after(PATIENCE_S):
        while _runs(pid):
            await anyio.sleep(0.01)
        return True
    return False


# --- what it is for


async def test_a_task_gives_its_manifest_its_stages_and_its_files(desk: Any) -> None:
    """`process` returns the pipeline's manifest, reports each stage, and the outputs are there."""
    async with desk() as at:
        answer = await at.work("interview")
        assert isinstance(answer, Done)
        assert [stage.name for stage in at.stages] == list(STAGES)
        assert {stage.task_id for stage in at.stages} == {answer.task_id}
        rows = json.loads((at.folder / "out 1" / "all_segments.json").read_text())
        assert len(rows) == answer.manifest["segments"]
        assert answer.manifest["audio_seconds"] == 2.0
        assert all((at.folder / "out 1" / row["audio"]).is_file() for row in rows)


async def test_the_models_are_loaded_once(desk: Any) -> None:
    """Task after task runs in the same process."""
    async with desk() as at:
        pid = at.pid
        assert at.executor.ready is not None
        assert (at.executor.ready.pid, at.executor.ready.device) == (pid, "fake")
        for _ in range(3):
            assert isinstance(await at.work("interview"), Done)
        assert at.pid == pid


async def test_an_executor_does_one_task_at_a_time(desk: Any) -> None:
    """A second task while one runs is the caller's mistake, and harms nothing."""
    async with desk() as at, anyio.create_task_group() as group:
        group.start_soon(at.work, "hang")
        while not at.stages:
            await anyio.sleep(0.01)
        with pytest.raises(RuntimeError, match="busy"):
            await at.work("interview")
        with pytest.raises(RuntimeError, match="running"):
            await at.executor.start()
        assert at.executor.alive
        group.cancel_scope.cancel()


# --- failures that the child reports


@pytest.mark.parametrize(
    ("word", "kind", "sentence", "reusable"),
    [
        ("raises", "error", "RuntimeError: the fake pipeline was told to fail", True),
        ("bad_audio", "bad_audio", "the audio is 0.2 s long; at least 1 s is needed", True),
        ("oom", "out_of_memory", "MemoryError", True),
        ("cuda", "cuda", "RuntimeError: CUDA error: an illegal memory", False),
        ("disk_full", "disk_full", "OSError: [Errno 28] No space left on device", True),
        ("garbage", "garbage", "returned NoneType, not a manifest", True),
        ("wrong_manifest", "garbage", "manifest has 'segments': 'many' (str)", True),
        ("nan_manifest", "garbage", "manifest has 'audio_seconds': nan (float)", True),
        ("unsendable", "garbage", "cannot be sent: not expressible in JSON", True),
    ],
)
async def test_a_failure_has_a_kind_and_a_sentence(
    desk: Any, word: str, kind: str, sentence: str, reusable: bool
) -> None:
    """What a pipeline raises or returns becomes a Failed; the executor works on if it can."""
    async with desk() as at:
        answer = await at.work(word)
        assert isinstance(answer, Failed)
        assert (answer.task_id, answer.kind, answer.reusable) == ("task 1", kind, reusable)
        assert sentence in answer.error
        assert "\n" not in answer.error
        assert at.executor.alive == reusable
        if kind != "garbage":
            assert "fake_pipelines.py" in answer.traceback
        if reusable:
            assert isinstance(await at.work("interview"), Done)


async def test_memory_that_does_not_come_back_costs_the_executor(desk: Any) -> None:
    """Out of memory twice in a row ends the process; with a success between, it does not."""
    async with desk() as at:
        for word, reusable in (("oom", True), ("fine", True), ("oom", True), ("oom", False)):
            answer = await at.work(word)
            assert getattr(answer, "reusable", True) == reusable, word
        assert not at.executor.alive


async def test_a_task_may_be_done_in_smaller_batches(desk: Any) -> None:
    """`halvings` reaches a pipeline that can, for that one task."""
    async with desk(pipeline=FRUGAL) as at:
        assert at.executor.ready.halves
        for halvings in (0, 1):
            answer = await at.work("oom_until_afresh", halvings=halvings)
            assert isinstance(answer, Failed)
            assert answer.kind == "out_of_memory"
            if not at.executor.alive:
                await at.executor.start()
        assert isinstance(await at.work("oom_until_afresh", halvings=2), Done)
        assert isinstance(await at.work("oom_until_afresh"), Failed)


async def test_a_pipeline_need_not_know_smaller_batches(desk: Any) -> None:
    """One without `reduced` says so, and does a task that asks for it as any other."""
    async with desk() as at:
        assert not at.executor.ready.halves
        assert isinstance(await at.work("interview", halvings=1), Done)


# --- the death of the child


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("segfault", "the executor was killed by SIGSEGV after stage 'standardise'"),
        ("exit42", "the executor exited with code 42 after stage 'standardise'"),
        ("forks", "the executor exited with code 42 after stage 'standardise'"),
    ],
)
async def test_a_crash_is_a_failure_that_says_how_and_where(desk: Any, word: str, end: str) -> None:
    """A dying process gives a Failed of kind crash; `start` then gives another process."""
    async with desk() as at:
        first = at.pid
        answer = await at.work(word)
        assert isinstance(answer, Failed)
        assert (answer.kind, answer.error, answer.reusable) == ("crash", end, False)
        assert not at.executor.alive
        await at.executor.start()
        assert at.pid != first
        assert isinstance(await at.work("interview"), Done)


async def test_a_segfault_leaves_its_stack(desk: Any) -> None:
    """The last lines of stderr, with the place of the fault, come with the failure."""
    async with desk() as at:
        answer = await at.work("segfault")
        assert isinstance(answer, Failed)
        assert "Segmentation fault" in answer.traceback
        assert "_segfaults" in answer.traceback


async def test_kill_minus_nine_in_mid_task_is_a_crash(desk: Any) -> None:
    """An executor that the kernel or a person kills gives a Failed, at once."""
    async with desk() as at, anyio.create_task_group() as group:

        async def kill() -> None:
            while not at.stages:
                await anyio.sleep(0.01)
            os.kill(at.pid, signal.SIGKILL)

        group.start_soon(kill)
        answer = await at.work("hang")
        assert isinstance(answer, Failed)
        assert answer.kind == "crash"
        assert "killed by SIGKILL" in answer.error


async def test_a_death_between_tasks_shows(desk: Any) -> None:
    """`alive` tells of an executor that died while idle; a task for it is a failure at once."""
    async with desk() as at:
        os.kill(at.pid, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_S):
            while at.executor.alive:
                await anyio.sleep(0.01)
        assert at.executor.ready is None
        answer = await at.work("interview")
        assert isinstance(answer, Failed)
        assert (answer.kind, answer.reusable) == ("crash", False)
        await at.executor.start()
        assert isinstance(await at.work("interview"), Done)


# --- deadlines, nonsense, cancellation


@pytest.mark.parametrize("word", ["hang", "hang_gil", "hang_c"])
async def test_an_overdue_task_says_where_it_hangs(desk: Any, word: str) -> None:
    """At the deadline the child writes its stack, even when C code holds the GIL, and is killed."""
    async with desk() as at:
        answer = await at.work(word, deadline_s=1.5)
        assert isinstance(answer, Failed)
        assert answer.kind == "timeout"
        assert answer.error == "the executor reached its limit of 1.5 s after stage 'standardise'"
        assert "Current thread" in answer.traceback
        assert "in _hangs" in answer.traceback.splitlines()[-1]  # the end is what is kept
        assert not answer.reusable
        assert not at.executor.alive


async def test_the_deadline_follows_from_the_audio_once_its_length_is_known(desk: Any) -> None:
    """The first stage tells the seconds of audio; from then on the limit is theirs, since began."""
    async with desk() as at:
        answer = await at.work("hang", deadline_s=3600.0, deadline_of=lambda seconds: 1.5 * seconds)
        assert isinstance(answer, Failed)
        assert answer.error == "the executor reached its limit of 1.5 s after stage 'standardise'"


async def test_the_deadline_may_be_put_off(desk: Any) -> None:
    """A guess from the file's size that was too short holds only until the length is known."""
    async with desk(env={"FAKE_SLOW_SECONDS": 3.0}) as at:
        answer = await at.work("slow", deadline_s=2.0, deadline_of=lambda seconds: 600.0 * seconds)
        assert isinstance(answer, Done)


async def test_nonsense_on_the_pipe_ends_the_executor(desk: Any) -> None:
    """Bytes that are no frame give a Failed of kind protocol."""
    async with desk() as at:
        answer = await at.work("babbles")
        assert isinstance(answer, Failed)
        assert (answer.kind, answer.reusable) == ("protocol", False)
        assert "the executor sent nonsense after stage 'standardise'" in answer.error
        assert not at.executor.alive


async def test_what_a_pipeline_starts_dies_with_it(desk: Any) -> None:
    """Programs that a killed executor had started are killed, too."""
    lines: list[str] = []
    async with desk(on_line=lines.append) as at:
        answer = await at.work("grandchild", deadline_s=2.0)
        assert isinstance(answer, Failed)
        (started,) = [line for line in lines if line.startswith("grandchild ")]
        assert await _gone(int(started.split()[1]))


async def test_a_cancelled_task_leaves_nothing(desk: Any) -> None:
    """Cancellation kills and reaps the child and closes its pipes before it goes on."""
    async with desk() as at:
        pid, held = at.pid, _descriptors()
        with anyio.move_on_after(0.3) as scope:
            await at.work("hang_gil")
        assert scope.cancelled_caught
        assert not at.executor.alive
        assert pid not in _children()
        assert _descriptors() < held


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    """Cancellation while the models load kills and reaps the child."""
    executor = _make(env={"FAKE_LOAD": "hang"})
    with anyio.move_on_after(0.5) as scope:
        await executor.start()
    assert scope.cancelled_caught
    assert executor.pid is None


async def test_what_on_stage_raises_is_the_callers(desk: Any, tmp_path: Path) -> None:
    """An exception of the caller's own callback passes, and the child is ended first."""

    def refuse(stage: Stage) -> None:
        raise LookupError(stage.name)

    async with desk() as at:
        with pytest.raises(LookupError, match="standardise"):
            await at.executor.process(
                "a", tmp_path / "a.wav", tmp_path, name="a", deadline_s=9, on_stage=refuse
            )
        assert not at.executor.alive


# --- closing


async def test_the_end_of_stdin_lets_a_running_task_finish(desk: Any) -> None:
    """`close` in mid-task waits for the task's result."""
    answers: list[Done | Failed] = []
    async with desk(env={"FAKE_SLOW_SECONDS": 0.6}) as at, anyio.create_task_group() as group:

        async def work() -> None:
            answers.append(await at.work("slow"))

        group.start_soon(work)
        while not at.stages:
            await anyio.sleep(0.01)
        await at.executor.close(grace_s=PATIENCE_S)
    assert isinstance(answers[0], Done)


async def test_close_kills_what_does_not_exit(desk: Any) -> None:
    """A thread left behind keeps the interpreter from exiting; the grace ends that."""
    async with desk() as at:
        assert isinstance(await at.work("leaks"), Done)
        pid = at.pid
        await at.executor.close(grace_s=0.3)
        assert not _runs(pid)
        await at.executor.close()


async def test_close_under_a_running_task_makes_it_a_failure(desk: Any) -> None:
    """A task whose executor is closed for good by another task of the daemon fails, not hangs."""
    async with desk() as at, anyio.create_task_group() as group:

        async def close() -> None:
            while not at.stages:
                await anyio.sleep(0.01)
            await at.executor.close(grace_s=0.1)

        group.start_soon(close)
        answer = await at.work("hang")
        assert isinstance(answer, Failed)
        assert answer.kind == "crash"


# --- starting


@pytest.mark.parametrize(
    ("fault", "kind", "texts"),
    [
        ("model", "model", ["cpu.0: the model demo/vad is missing: run `emiliad models pull`"]),
        ("device", "load", ["cpu.0: DeviceError: torch sees no GPU"]),
        ("raises", "load", ["cpu.0: RuntimeError: the fake pipeline was told not to load"]),
        ("exit", "crash", ["cpu.0: the executor exited with code 42 while loading"]),
        ("segfault", "crash", ["was killed by SIGSEGV while loading", "Segmentation fault"]),
        ("hang", "timeout", ["reached its limit of 3 s while loading", "in _hangs"]),
    ],
)
async def test_a_failed_start_says_why(fault: str, kind: str, texts: list[str]) -> None:
    """A pipeline that cannot be built raises ExecutorFailed with the reason, and leaves nothing."""
    timeout_s = 3.0 if fault == "hang" else 60.0
    executor = _make(env={"FAKE_LOAD": fault}, load_timeout_s=timeout_s)
    with pytest.raises(ExecutorFailed) as caught:
        await executor.start()
    assert isinstance(caught.value, StartFailed)
    assert (caught.value.kind, caught.value.final) == (kind, kind == "model")
    assert all(text in str(caught.value) for text in texts), str(caught.value)
    if kind in ("model", "load"):
        assert "\n" not in str(caught.value)
        assert "in __init__" in caught.value.details
    assert not executor.alive


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pipeline": "no_such_module:Fake"}, "there is no module 'no_such_module'"),
        ({"pipeline": "tests.emiliad.fake_pipelines:Nobody"}, "has no 'Nobody'"),
        ({"pipeline": "fake"}, "PIPELINE: 'fake' is not of the form module:Class"),
        ({"env": {"MODELS": "nonsense"}}, "MODELS: 'nonsense' is not one of"),
        ({"python": "/no/such/python"}, "/no/such/python cannot be started: No such file"),
        ({"python": "/bin/echo"}, "the executor sent nonsense while loading"),
    ],
)
async def test_a_wrong_reference_or_setting_is_named(changes: dict[str, Any], text: str) -> None:
    """What the user wrote wrongly is in the error."""
    executor = _make(**changes)
    with pytest.raises(StartFailed) as caught:
        await executor.start()
    assert text in str(caught.value)


async def test_a_task_without_a_start_fails(tmp_path: Path) -> None:
    """An executor that was never started, or whose start failed, returns a Failed."""
    answer = await _make().process("a", tmp_path, tmp_path, name="a", deadline_s=1)
    assert answer == Failed("a", "crash", "the executor is not running", "", False)


# --- its place among processes


async def test_prints_never_reach_the_protocol(desk: Any) -> None:
    """What the pipeline and its programs print goes to the log, while loading and in a task."""
    lines: list[str] = []
    async with desk(on_line=lines.append, env={"FAKE_LOAD": "noise"}) as at:
        assert isinstance(await at.work("prints"), Done)
    for text in ("by the pipeline", "to descriptor 1", "by a grandchild"):
        assert len([line for line in lines if text in line]) == 2, lines


async def test_what_a_pipeline_starts_does_not_hold_the_protocol(desk: Any) -> None:
    """Programs inherit descriptors 0 to 2 and no pipe of the protocol."""
    lines: list[str] = []
    async with desk(on_line=lines.append) as at:
        assert isinstance(await at.work("descriptors"), Done)
    opened = {line for line in lines if line.isdecimal()}
    assert {"0", "1", "2"} <= opened
    assert not {number for number in opened if int(number) >= 10}


async def test_stderr_is_always_drained(desk: Any) -> None:
    """A child that writes megabytes to stderr is not held up; the last 50 lines are kept."""
    lines: list[str] = []
    async with desk(on_line=lines.append) as at:
        assert isinstance(await at.work("shouts"), Done)
        answer = await at.work("exit42")
        assert isinstance(answer, Failed)
        kept = answer.traceback.splitlines()
        assert len(kept) == 50
        assert kept[-1].startswith("line 19999 ")
    assert len(lines) == 20_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_that_stop_a_daemon_do_not_reach_it(
    desk: Any, number: signal.Signals
) -> None:
    """The child leads its own session, and goes on with its task whoever signals it to stop."""
    async with desk(env={"FAKE_SLOW_SECONDS": 0.5}) as at, anyio.create_task_group() as group:
        assert os.getsid(at.pid) == os.getpgid(at.pid) == at.pid

        async def interrupt() -> None:
            while not at.stages:
                await anyio.sleep(0.01)
            os.killpg(at.pid, number)

        group.start_soon(interrupt)
        assert isinstance(await at.work("slow"), Done)


async def test_what_a_pipeline_starts_can_be_ended(desk: Any) -> None:
    """Programs and forks do not inherit the child's deafness to SIGTERM."""
    lines: list[str] = []
    async with desk(on_line=lines.append) as at:
        assert isinstance(await at.work("ends_a_program"), Done)
    assert "it ended with -15" in lines
    assert "and the fork with 15" in lines


async def test_closed_streams_are_open_for_the_next_task(desk: Any) -> None:
    """A task that closes descriptors 1 and 2 costs the next one's prints nothing."""
    lines: list[str] = []
    async with desk(on_line=lines.append) as at:
        assert isinstance(await at.work("closes"), Done)
        assert isinstance(await at.work("prints"), Done)
    assert "written to descriptor 1" in lines
    assert "printed by a grandchild" in lines


async def test_the_memory_of_a_child_is_known(desk: Any) -> None:
    """Its resident bytes, and 0 where there is no child."""
    async with desk() as at:
        before = at.executor.memory_bytes
        assert before > 1_000_000
        assert isinstance(await at.work("hoards"), Done)
        assert at.executor.memory_bytes > before + 50_000_000
        os.kill(at.pid, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_S):
            await at.executor.ended()
        assert at.executor.memory_bytes == 0
    assert at.executor.memory_bytes == 0
    await at.executor.ended()


_HOST = """
import os, sys, anyio
from pathlib import Path
from emiliad.executor.host import Executor

async def main():
    async with Executor("a", pipeline=sys.argv[1], env=os.environ) as executor:
        folder = Path(sys.argv[2])
        def say(stage):
            print(executor.pid, flush=True)
        await executor.process("a", folder / "a.wav", folder, name=sys.argv[3],
                               deadline_s=3600, on_stage=say)
anyio.run(main)
"""


@pytest.mark.parametrize("word", ["hang", "hang_gil", "hang_c"])
async def test_a_child_does_not_outlive_a_killed_host(tmp_path: Path, word: str) -> None:
    """`kill -9` of the daemon ends the executor, even while C code blocks it."""
    host = subprocess.Popen(
        [sys.executable, "-c", _HOST, FAKE, str(tmp_path), word],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        assert _runs(pid)
        host.kill()
    assert await _gone(pid)


async def test_the_fork_happens_in_the_main_thread(
    monkeypatch: pytest.MonkeyPatch, desk: Any
) -> None:
    """The child is bound to the life of the thread that forked it: the one that never ends."""
    threads: list[threading.Thread] = []

    class Spy(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            threads.append(threading.current_thread())
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Spy)
    async with desk() as at:
        assert isinstance(await at.work("interview"), Done)
    assert threads == [threading.main_thread()]


def test_a_child_whose_parent_died_early_does_not_start(tmp_path: Path) -> None:
    """With another parent than it was told of, the child exits without loading anything."""
    command = [sys.executable, "-m", "emiliad.executor.child", "--pipeline", FAKE, "--parent", "1"]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "FAKE_LOAD": "exit"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_a_child_that_cannot_load_exits_with_3() -> None:
    """The exit code tells a failed load from a crash, for people who run the child by hand."""
    ended = subprocess.run(
        [sys.executable, "-m", "emiliad.executor.child", "--pipeline", FAKE],
        cwd=ROOT,
        env={**os.environ, "FAKE_LOAD": "model"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == child.EXIT_NOT_LOADED == 3
    assert b'"kind": "model"' in ended.stdout


def test_the_child_loads_nothing_of_the_daemon() -> None:
    """Importing the child's module loads no event loop, no logging library, no store."""
    unwanted = {"anyio", "structlog", "asyncio", "aioboto3", "kubernetes_asyncio", "numpy", "torch"}
    script = "import emiliad.executor.child, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert unwanted.isdisjoint(loaded.stdout.split())


async def test_the_folder_of_the_daemon_shadows_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desk: Any
) -> None:
    """A file named like a library in the working directory is not imported by the child."""
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    async with desk() as at:
        assert isinstance(await at.work("interview"), Done)


async def test_thirty_processes_leave_nothing(tmp_path: Path) -> None:
    """After thirty starts, crashes and cancellations: no zombie, no descriptor more."""
    before = _children(), _descriptors()
    for number in range(10):
        for word in ("interview", "exit42", "hang"):
            async with _make() as executor:
                at = _Desk(executor, tmp_path)
                with anyio.move_on_after(0.2 if word == "hang" else PATIENCE_S):
                    await at.work(f"{word} {number}")
    assert (_children(), _descriptors()) == before


# --- the child's judgements


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadAudio("x"), "bad_audio"),
        (_caused(BadAudio("no audio stream"), OSError("x")), "bad_audio"),
        (type("OutOfMemoryError", (RuntimeError,), {})("x"), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("CUDA failed with error out of memory"), "out_of_memory"),
        (RuntimeError("Failed to allocate memory for requested buffer"), "out_of_memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (_caused(RuntimeError("separation failed"), MemoryError()), "out_of_memory"),
        (RuntimeError("CUDA error: device-side assert triggered"), "cuda"),
        (RuntimeError("CUDA failure 700: an illegal memory access"), "cuda"),
        (RuntimeError("unspecified launch failure"), "cuda"),
        (_caused(RuntimeError("asr failed"), RuntimeError("CUDA failed with error 4")), "cuda"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (_caused(RuntimeError("export failed"), OSError(errno.ENOSPC, "x")), "disk_full"),
        (OSError(errno.EACCES, "Permission denied"), "error"),
        (KeyError("segments"), "error"),
    ],
)
def test_kinds(error: Exception, kind: str) -> None:
    """The kind follows from the class, the error number and the texts of the ML libraries."""
    assert faults.kind_of(error) == kind


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        ({"segments": 0, "audio_seconds": 0}, None),
        ({"segments": 3, "audio_seconds": 9.5, "more": [1]}, None),
        ([], "returned list"),
        ({"segments": 1}, "no 'audio_seconds'"),
        ({"segments": True, "audio_seconds": 1.0}, "True (bool)"),
        ({"segments": 1.0, "audio_seconds": 1.0}, "1.0 (float)"),
        ({"segments": -1, "audio_seconds": 1.0}, "-1 (int)"),
        ({"segments": 1, "audio_seconds": float("inf")}, "inf (float)"),
    ],
)
def test_manifests(manifest: object, fault: str | None) -> None:
    """A manifest is a dict with a whole number of segments and finite seconds of audio."""
    found = faults.manifest_fault(manifest)
    assert found is None if fault is None else found is not None and fault in found


def test_an_episode_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    """The child makes the folder of the outputs: a pipeline finds it there."""

    class Minimal:
        def run(self, audio: Path, out_dir: Path, **options: Any) -> dict[str, Any]:
            (out_dir / "all_segments.json").write_text("[]")
            return {"segments": 0, "audio_seconds": 0.0}

    with (tmp_path / "frames").open("wb") as frames:
        task = Process("a", "a.wav", str(tmp_path / "deep" / "out"), "a")
        answer = child.attempt(Minimal(), task, child._Sender(frames.fileno()))
    assert isinstance(answer, Done)
    assert (tmp_path / "deep" / "out" / "all_segments.json").exists()


def test_a_long_traceback_is_cut_to_its_end() -> None:
    """A failure carries the last lines of the traceback, however long the message is."""
    failure = child._load_failure(ModelError("first\n" + "x" * 100_000 + "\nlast"))
    assert failure.error == "first"
    assert len(failure.traceback) == faults.TRACEBACK_CHARS
    assert failure.traceback.endswith("last")


# --- the environment


def test_an_executor_sees_its_gpu_and_its_threads() -> None:
    """CUDA_VISIBLE_DEVICES and the thread counts are the executor's; the rest is the base's."""
    env = environment({"A": "b", "CUDA_VISIBLE_DEVICES": "0,1"}, gpu="GPU-1", threads=2)
    assert env == {
        "A": "b",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "CPU_THREADS": "2",
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
    }


def test_what_is_not_asked_for_stays() -> None:
    """Without a GPU or a number of threads, the base decides; CPU_THREADS is the user's."""
    assert environment({"CUDA_VISIBLE_DEVICES": "1"}, gpu=None, threads=None) == {
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTHONUNBUFFERED": "1",
    }
    assert environment({"CPU_THREADS": "8"}, gpu=None, threads=2)["CPU_THREADS"] == "8"
