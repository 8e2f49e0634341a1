"""The queue's own code in a thousand worlds of faults, in virtual time; a seed says which."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim import loop
from tests.sim.plan import plan_of
from tests.sim.world import run

SEEDS = 1000  # `make simulate` runs ten thousand
_CHUNK = 50


@pytest.mark.parametrize("first", range(0, SEEDS, _CHUNK))
def test_the_queue_keeps_its_promises(first: int) -> None:
    """Nothing lost, committed twice, mixed or left over, and everything ends in time."""
    for seed in range(first, first + _CHUNK):
        report = run(plan_of(seed))
        assert report.violation is None, str(report)


def test_a_seed_has_one_history() -> None:
    """Also in another process, with other hashes of texts."""
    seeds = range(7, 13)
    here = [run(plan_of(seed)).history.digest() for seed in seeds]
    assert len(set(here)) == len(seeds)
    assert [run(plan_of(seed)).history.digest() for seed in seeds] == here
    code = "from tests.sim.test_simulation import *\nfor seed in range(7, 13): tell(seed)"
    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == here


def tell(seed: int) -> None:
    """For another process."""
    print(run(plan_of(seed)).history.digest())


def test_the_worlds_are_rough() -> None:
    """Each kind of fault happens, and each way in which an attempt can end."""
    outcomes: Counter[str] = Counter()
    histories = ""
    for seed in range(60):
        report = run(plan_of(seed))
        outcomes += report.outcomes
        histories += report.history.text()
    assert {"completed", "failed", "retried", "released", "lost", "cut off"} <= outcomes.keys()
    for event in (
        "request lost",
        "answer lost",
        "5xx without effect",
        "5xx after the effect",
        "lands late",
        "late: PreconditionFailed",
        "lands twice",
        "429",
        "process killed before it",
        "process killed after it",
        "freezes",
        "is told to stop",
        "is killed",
    ):
        assert event in histories, event


def test_virtual_time_passes_at_once() -> None:
    """A month takes no longer than a moment, and timers go off in order."""

    async def wait() -> list[str]:
        rung: list[str] = []

        async def alarm(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            rung.append(name)

        await asyncio.gather(alarm("month", 2.6e6), alarm("second", 1.0), alarm("day", 86400.0))
        assert asyncio.get_running_loop().time() == pytest.approx(2.6e6)
        return rung

    assert loop.run(wait()) == ["second", "day", "month"]


def test_a_deadlock_is_an_error() -> None:
    """Nothing would ever happen again; a real loop would wait for ever."""
    with pytest.raises(loop.Deadlock):
        loop.run(asyncio.Event().wait())
