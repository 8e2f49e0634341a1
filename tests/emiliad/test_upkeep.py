"""An executor is kept at work, given up when it cannot work, and shown as what it is."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from emiliad.board import Board
from emiliad.crew import Crew
from emiliad.errors import ConfigError, ExecutorFailed
from emiliad.executor.deadline import Deadline
from emiliad.executor.host import Executor, environment
from emiliad.executor.keeper import Keeper, Upkeep
from emiliad.executor.stacks import readable
from emiliad.executor.wear import Wear
from emiliad.metrics import Metrics
from emiliad.until import until
from emiliad.wire import Done, Failed

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
DONE = Done("a", {})


def _failed(kind: str, *, reusable: bool = True) -> Failed:
    return Failed("a", kind, f"it had {kind}", "", reusable)


class Desk:
    """Keepers of one crew, and what the board and the metrics say of them."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.board = Board(self.metrics)
        self.crew = Crew(names)

    def keeper(self, name: str, **upkeep: Any) -> Keeper:
        base = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_SICK": str(self.folder)}
        executor = Executor(
            name,
            pipeline="tests.emiliad.fake_pipelines:Fake",
            env=environment(base, gpu=name, threads=1),
            device="NVIDIA H200 GPU-1",
        )
        return Keeper(executor, upkeep=Upkeep(**upkeep), board=self.board, crew=self.crew)

    def row(self, name: str = "a") -> dict[str, Any]:
        rows: dict[str, dict[str, Any]]
        rows = {row["name"]: row for row in self.board.snapshot()["executors"]}
        return rows[name]

    def restarts(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "emiliad_executor_restarts_total", {"reason": reason}
        )
        assert value is not None
        return value


@asynccontextmanager
async def at_work(keeper: Keeper) -> AsyncIterator[Keeper]:
    keeper.introduce()
    try:
        assert await keeper.start()
        yield keeper
    finally:
        await keeper.end()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between failed starts."""
    monkeypatch.setattr("emiliad.executor.keeper.START_SPACING_S", 0.0)


# --- what is shown


async def test_the_board_follows_an_executor(tmp_path: Path) -> None:
    """It is shown with its device from the start, then with its process, and at last as dead."""
    desk = Desk(tmp_path, "a")
    keeper = desk.keeper("a")
    keeper.introduce()
    assert (desk.row()["state"], desk.row()["device"]) == ("loading", "NVIDIA H200 GPU-1")
    assert not desk.board.snapshot()["ready"]
    async with at_work(keeper):
        assert (desk.row()["state"], desk.row()["pid"]) == ("idle", keeper.executor.pid)
        assert desk.row()["memory_bytes"] > 1_000_000
        assert desk.board.snapshot()["ready"]
    assert (desk.row()["state"], desk.row()["pid"]) == ("dead", None)


async def test_an_executor_that_is_given_up_is_a_problem_until_it_is_up(
    tmp_path: Path, quick: None
) -> None:
    """Readiness, the board and its problems name it with the reason; success takes all back."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a")) as keeper:
        (tmp_path / "a").write_text("raises")
        assert not await keeper.replace("crash", "it was killed")
        why = "a: RuntimeError: the fake pipeline was told not to load"
        assert (desk.row()["state"], desk.row()["reason"]) == ("dead", why)
        (problem,) = desk.board.snapshot()["problems"]
        assert problem["text"] == f"a on NVIDIA H200 GPU-1 is given up: {why}"
        assert desk.board.not_ready() == f"every executor is given up: {why}"
        assert (desk.restarts("crash"), desk.restarts("load")) == (1, 2)
        (tmp_path / "a").unlink()
        assert await keeper.start()
        assert desk.board.snapshot()["problems"] == []
        assert (desk.row()["reason"], desk.board.not_ready()) == (None, None)


# --- giving up


async def test_first_attempts_in_a_row_count_against_an_executor(tmp_path: Path) -> None:
    """The third failure that a sick GPU might have caused ends it, though it is still alive."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a", crash_budget=3)) as keeper:
        for kind in ("cuda", "out_of_memory"):
            await keeper.after(_failed(kind), first_attempt=True)
            assert keeper.up
        await keeper.after(_failed("out_of_memory"), first_attempt=True)
        assert keeper.given_up
        assert not keeper.executor.alive
        assert desk.row()["reason"] == (
            "3 tasks in a row failed in it, the last: it had out_of_memory"
        )


@pytest.mark.parametrize(
    ("between", "first_attempt"),
    [
        (DONE, True),
        (_failed("error"), True),
        (_failed("bad_audio"), True),
        (_failed("cuda"), False),
    ],
)
async def test_what_does_not_count_against_an_executor(
    tmp_path: Path, between: Done | Failed, first_attempt: bool
) -> None:
    """Failures of bad files and of later attempts do not; and a task done wipes the slate clean."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a", crash_budget=2)) as keeper:
        await keeper.after(_failed("cuda"), first_attempt=True)
        for _ in range(3):
            await keeper.after(between, first_attempt=first_attempt)
            assert keeper.up
        await keeper.after(_failed("cuda"), first_attempt=True)
        assert keeper.given_up == (between is not DONE)


async def test_one_that_was_given_up_is_on_probation(tmp_path: Path) -> None:
    """Its next such failure ends it again, and the pauses grow, until it has done a task."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a", crash_budget=2, executor_pause_s=5.0)) as keeper:
        pauses = []
        for failures in (2, 1):
            for _ in range(failures):
                assert keeper.up
                await keeper.after(_failed("timeout"), first_attempt=True)
            assert keeper.given_up
            pauses.append(keeper.pause_s)
            keeper.rested()
            assert await keeper.start()
        assert pauses == [5.0, 10.0]
        await keeper.after(DONE, first_attempt=True)
        assert keeper.pause_s == 5.0
        await keeper.after(_failed("timeout"), first_attempt=True)
        assert keeper.up


async def test_pauses_end_growing_at_an_hour(tmp_path: Path) -> None:
    """A GPU that was reset is found within the hour."""
    keeper = Desk(tmp_path, "a").keeper("a", executor_pause_s=1000.0)
    for _ in range(5):
        keeper.rested()
    assert keeper.pause_s == 3600.0


async def test_a_budget_of_nought_is_none(tmp_path: Path) -> None:
    """CRASH_BUDGET=0: only a child that cannot be started is given up."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a", crash_budget=0)) as keeper:
        for _ in range(20):
            await keeper.after(_failed("out_of_memory"), first_attempt=True)
        assert keeper.up


async def test_when_none_ever_worked_the_last_failure_is_raised(
    tmp_path: Path, quick: None
) -> None:
    """The first that fails waits for the others; the last one's reason ends the daemon."""
    desk = Desk(tmp_path, "a", "b")
    for name in ("a", "b"):
        (tmp_path / name).write_text("device")
    assert not await desk.keeper("a").start()
    with pytest.raises(ExecutorFailed, match="b: DeviceError: torch sees no GPU"):
        await desk.keeper("b").start()


async def test_a_wrong_model_is_raised_at_once(tmp_path: Path) -> None:
    """What no other start can mend is a ConfigError, whatever the others do."""
    desk = Desk(tmp_path, "a", "b")
    (tmp_path / "a").write_text("model")
    with pytest.raises(ConfigError, match="a: the model demo/vad is missing"):
        await desk.keeper("a").start()
    assert desk.restarts("load") == 0


async def test_dismissal_ends_a_start(tmp_path: Path) -> None:
    """Who is loading when there are no more tasks does not load to the end."""
    desk = Desk(tmp_path, "a")
    (tmp_path / "a").write_text("hang")
    keeper = desk.keeper("a")
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(keeper.start)
            while keeper.executor.pid is None:
                await anyio.sleep(0.01)
            desk.crew.dismiss()
    assert keeper.executor.pid is None
    assert not keeper.given_up


# --- wear


async def test_recycling_is_not_a_crash(tmp_path: Path) -> None:
    """It is counted as recycled, says why, and the board is ready again."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a", recycle_tasks=2)) as keeper:
        first = keeper.executor.pid
        await keeper.after(DONE, first_attempt=True)
        assert keeper.executor.pid == first
        await keeper.after(_failed("error"), first_attempt=True)
        assert keeper.executor.pid != first
        assert (desk.restarts("recycled"), desk.restarts("crash")) == (1, 0)
        assert desk.row()["state"] == "idle"


def test_growth_counts_from_the_first_task() -> None:
    """What a process has after its first task is what it needs; more than the limit beyond is
    a leak."""
    wear = Wear(0, 2.0, 0.0)
    sizes = [9.0, 10.0, 10.9, 11.1]
    assert [wear.after_task(int(size * 1e9)) for size in sizes] == [
        None, None, None, "its memory has grown by 2.10 GB in 4 tasks",
    ]  # fmt: skip
    wear.begin()
    assert wear.after_task(int(50e9)) is None


def test_other_limits() -> None:
    """A number of tasks, an amount of memory; 0 is no limit, and 0 bytes are not a size."""
    assert [Wear(2, 0.0, 0.0).after_task(10**12)] == [None]
    tasks = Wear(2, 0.0, 0.0)
    assert [tasks.after_task(0), tasks.after_task(0)] == [None, "it has done 2 tasks"]
    assert Wear(0, 0.0, 3.0).after_task(int(3.5e9)) == "it takes 3.50 GB of memory"
    assert Wear(0, 0.0, 3.0).after_task(int(2.5e9)) is None


# --- the crew


async def test_claiming_waits_while_nobody_can_work() -> None:
    """`some` returns when a member is up, `none` when the last is given up."""
    crew = Crew(["a", "b"])
    with anyio.fail_after(PATIENCE_S):
        async with until(crew.some):
            crew.up("a")
            await anyio.sleep_forever()
        crew.up("b")
        crew.down("a")
        await crew.some()
        async with until(crew.none):
            crew.down("b")
            await anyio.sleep_forever()
    assert not crew.hopeless  # they have worked


def test_a_crew_is_hopeless_when_all_failed_before_any_worked() -> None:
    """Not while one is still loading."""
    crew = Crew(["a", "b"])
    crew.down("a")
    assert not crew.hopeless
    crew.down("b")
    assert crew.hopeless


async def test_until_lets_its_body_end_by_itself() -> None:
    """What would have cancelled it is cancelled instead."""
    ended = False
    with anyio.fail_after(PATIENCE_S):
        async with until(anyio.sleep_forever, anyio.Event().wait):
            await anyio.sleep(0)
            ended = True
    assert ended


# --- limits and stacks


def test_deadlines() -> None:
    """The base and a factor of the audio's seconds; of a file at least as many as it can hold."""
    deadline = Deadline(600.0, 10.0)
    assert deadline.of_audio(3600.0) == 36_600.0
    assert deadline.of_bytes(4_000 * 3600) == 36_600.0
    assert deadline.of_bytes(0) == 600.0


CRASH = """\
downloading
Fatal Python error: Segmentation fault

Thread 0x0000aaaa (most recent call first):
  File "threading.py", line 327 in wait
  File "threading.py", line 1002 in _bootstrap

Current thread 0x0000bbbb (most recent call first):
  File "net.py", line 9 in infer
  File "child.py", line 3 in main

Thread 0x0000cccc (most recent call first):
  File "selectors.py", line 415 in select

Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)"""


def test_the_stack_that_matters_comes_last() -> None:
    """Each stack ends with its innermost call, and the thread that crashed is the last."""
    lines = [line for line in CRASH.splitlines() if line]
    assert readable(lines).splitlines() == [
        "downloading",
        "Fatal Python error: Segmentation fault",
        "Thread 0x0000aaaa (most recent call last):",
        '  File "threading.py", line 1002 in _bootstrap',
        '  File "threading.py", line 327 in wait',
        "Thread 0x0000cccc (most recent call last):",
        '  File "selectors.py", line 415 in select',
        "Current thread 0x0000bbbb (most recent call last):",
        '  File "child.py", line 3 in main',
        '  File "net.py", line 9 in infer',
    ]


def test_without_stacks_the_last_lines_are_kept() -> None:
    """Fifty of them, and an ordinary traceback stays as it is."""
    lines = [f"line {number}" for number in range(60)]
    assert readable(lines) == "\n".join(lines[10:])
    traceback = ["Traceback (most recent call last):", '  File "a.py", line 1', "ValueError: x"]
    assert readable(traceback) == "\n".join(traceback)


# --- through a daemon's eyes


async def test_a_death_while_idle_is_noticed(tmp_path: Path) -> None:
    """`ended` returns when the kernel or a person kills a child that has no task."""
    desk = Desk(tmp_path, "a")
    async with at_work(desk.keeper("a")) as keeper:
        assert keeper.executor.pid is not None
        first = keeper.executor.pid
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_S):
            await keeper.executor.ended()
        await keeper.died()
        assert keeper.up
        assert keeper.executor.pid != first
        assert desk.restarts("crash") == 1
