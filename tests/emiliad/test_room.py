"""The room for audio in scratch: bounded by bytes and by the disk, first come first served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from emiliad.board import Board
from emiliad.metrics import Metrics
from emiliad.room import NoRoom, Room
from emiliad.scratch import Scratch


class Disk(Scratch):
    """Scratch space on a disk of a thousand bytes, of which a test says how many are free."""

    free = 1000

    def free_bytes(self) -> int:
        return self.free

    def total_bytes(self) -> int:
        return 1000


class Rig:
    """A room and what is told of it."""

    def __init__(self, root: Path, limit: int | None) -> None:
        self.metrics = Metrics()
        self.board = Board(self.metrics)
        self.disk = Disk(root)
        self.room = Room(self.disk, limit_bytes=limit, board=self.board, metrics=self.metrics)
        self.let_in: list[str] = []

    async def enter(self, name: str, size: int) -> None:
        self.room.arrived(await self.room.enter(name, size))
        self.let_in.append(name)

    @property
    def problems(self) -> list[str]:
        return [problem["text"] for problem in self.board.snapshot()["problems"]]

    def workdir(self, name: str) -> Path:
        (found,) = self.disk.path.glob(f"tasks/{name}-*")
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, limit=300)
    yield made
    made.disk.close()


async def test_no_more_than_the_limit_is_let_in(rig: Rig) -> None:
    """Who does not fit waits until somebody has left; the directory goes with him."""
    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c"):
            group.start_soon(rig.enter, name, 120)
        await anyio.wait_all_tasks_blocked()
        assert rig.let_in == ["a", "b"]
        assert rig.room.audio_bytes == 240
        first = rig.workdir("a")
        await rig.room.leave(first)
        assert not first.exists()
    assert rig.let_in == ["a", "b", "c"]


async def test_a_giant_goes_alone_and_is_not_passed_over(rig: Rig) -> None:
    """More than the limit comes in when nobody else is there; smaller ones do not overtake it, or
    it would wait for ever."""
    async with anyio.create_task_group() as group:
        await rig.enter("a", 10)
        group.start_soon(rig.enter, "giant", 900)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(rig.enter, "b", 10)
        await anyio.wait_all_tasks_blocked()
        assert rig.let_in == ["a"]
        await rig.room.leave(rig.workdir("a"))
        await anyio.wait_all_tasks_blocked()
        assert rig.let_in == ["a", "giant"]
        await rig.room.leave(rig.workdir("giant"))
    assert rig.let_in == ["a", "giant", "b"]


async def test_a_tenth_of_the_disk_stays_free(tmp_path: Path) -> None:
    """Without a limit the disk is one; what is still to be written counts as written."""
    rig = Rig(tmp_path, limit=None)
    first = await rig.room.enter("a", 500)
    with anyio.move_on_after(0) as waited:
        await rig.room.enter("b", 401)
    assert waited.cancelled_caught
    await rig.room.enter("c", 400)
    await rig.room.leave(first)
    rig.disk.close()


async def test_what_cannot_fit_shuts_the_room_for_all(rig: Rig) -> None:
    """Whoever waits is sent away; nobody comes in for a while, and it is told; a file that fits
    again ends that."""
    rig.disk.free = 200
    with pytest.raises(NoRoom, match="250 bytes do not fit the 200 that are free"):
        await rig.room.enter("large", 250)
    async with anyio.create_task_group() as group:
        await rig.enter("a", 150)
        refused: list[str] = []

        async def wait() -> None:
            with pytest.raises(NoRoom, match="full"):
                await rig.room.enter("b", 200)
            refused.append("b")

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(rig.room.shut, "no space left", 0.2)
        await anyio.wait_all_tasks_blocked()
        assert refused == ["b"]
        assert rig.problems == ["the scratch disk is full: no space left"]
        assert rig.metrics.registry.get_sample_value("emiliad_scratch_full") == 1
        with pytest.raises(NoRoom):
            await rig.room.enter("c", 1)
        await rig.room.opened()
    assert rig.problems != []  # nothing has shown yet that it is over
    await rig.enter("d", 1)
    assert rig.problems == []
    assert rig.metrics.registry.get_sample_value("emiliad_scratch_full") == 0


async def test_a_shut_room_is_shut_once(rig: Rig) -> None:
    """Several that find the disk full wait for the same opening, and one problem is told."""
    order: list[str] = []

    async def shut(name: str, seconds: float) -> None:
        await rig.room.shut(name, seconds)
        order.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(shut, "first", 0.05)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(shut, "second", 3600.0)
    assert set(order) == {"first", "second"}
    assert rig.problems == ["the scratch disk is full: first"]


async def test_who_gives_up_waiting_takes_no_room(rig: Rig) -> None:
    """A cancelled entry leaves the queue to the next."""
    await rig.enter("a", 200)
    with anyio.move_on_after(0):
        await rig.enter("b", 200)
    await rig.enter("c", 100)
    assert rig.let_in == ["a", "c"]
