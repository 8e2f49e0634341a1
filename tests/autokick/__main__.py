"""Plays histories of the autokicker by their seeds: `python -m tests.autokick FIRST NUMBER`."""

from __future__ import annotations

import sys

from tests.autokick.plan import hopeless, plan_of, quiet
from tests.autokick.world import run


def main(first: int, number: int) -> int:
    """Prints the histories in which a promise was broken; 1 if there is one."""
    broken = 0
    for seed in range(first, first + number):
        for worlds in (plan_of, quiet, hopeless):
            report = run(worlds(seed))
            if report.violation is not None:
                broken += 1
                print(f"{worlds.__name__}: {report}")
    print(f"{number} seeds from {first}: {broken} histories broke a promise")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
