"""Each mistake in the decision core is found: in few seeds, and only because it was made."""

from __future__ import annotations

import pytest

from tests.autokick.mutants import MUTANTS, Mutant
from tests.autokick.world import run

SEEDS = 40  # within which each mistake must show


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed that finds it has nothing to say against the core as it is."""
    for seed in range(SEEDS):
        plan = mutant.worlds(seed)
        with monkeypatch.context() as patch:
            mutant.apply(patch)
            report = run(plan)
        if report.violation is not None and mutant.breaks in report.violation:
            print(f"{mutant.name}: {seed + 1} seeds; {report.violation}")
            assert run(plan).violation is None
            return
    pytest.fail(f"{mutant.name} lives on after {SEEDS} seeds")
