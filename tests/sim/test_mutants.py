"""Each mistake in the protocol is found: in few seeds, and only because it was made."""

from __future__ import annotations

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.plan import plan_of
from tests.sim.world import run

SEEDS = 60  # within which each mistake must show


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed that finds it has nothing to say against the protocol as it is."""
    for seed in range(SEEDS):
        plan = mutant.worlds(plan_of(seed))
        with monkeypatch.context() as patch:
            mutant.apply(patch)
            report = run(plan)
        if report.violation is not None:
            print(f"{mutant.name}: {seed + 1} seeds; {report.violation}")
            assert "crashed" not in report.violation
            assert run(plan).violation is None
            return
    pytest.fail(f"{mutant.name} lives on after {SEEDS} seeds")
