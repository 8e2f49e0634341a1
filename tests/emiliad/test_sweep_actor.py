"""How often a node sweeps: at each interval, but rarely while it has work of its own."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest

from emiliad.actors import sweep
from emiliad.actors.sweep import RARELY

INTERVALS = 10 * RARELY


class Sweeper:
    """Mends something in the sweeps of these numbers."""

    def __init__(self, *mends: int) -> None:
        self.mends = mends
        self.sweeps = 0

    async def sweep_once(self) -> Mapping[str, int]:
        self.sweeps += 1
        return {"finished": 1} if self.sweeps in self.mends else {}


async def sweeps(sweeper: Sweeper, *, busy: bool) -> int:
    """Those of so many intervals."""
    passed = 0
    with anyio.CancelScope() as scope:

        def asked() -> bool:
            nonlocal passed
            passed += 1
            if passed > INTERVALS:
                scope.cancel()
            return busy

        await sweep.run(sweeper=sweeper, every_s=0.0001, busy=asked)
    return sweeper.sweeps


@pytest.mark.parametrize(
    ("busy", "mends", "expected"),
    [
        (False, (), INTERVALS),
        (True, (), 2 + (INTERVALS - 3) // RARELY),
        (True, (3,), 4 + (INTERVALS - 5 - RARELY) // RARELY),
    ],
    ids=["idle", "busy", "busy with something to mend"],
)
async def test_a_busy_node_sweeps_rarely(
    *, busy: bool, mends: tuple[int, ...], expected: int
) -> None:
    """But soon again after its first sweep, and after each that had something to do."""
    assert await sweeps(Sweeper(*mends), busy=busy) == pytest.approx(expected, abs=1)
