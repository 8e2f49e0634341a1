"""Runs seeds of the simulation: `python -m tests.sim SEED --trace`, or `... FIRST END`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

from tests.sim.plan import plan_of
from tests.sim.world import Report, run


def main() -> int:
    """Exit code 1 if an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int, help="the seed, or the first of several")
    parser.add_argument("end", type=int, nargs="?", help="the seed behind the last")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    args = parser.parse_args()
    if args.end is not None:
        return _many(range(args.seed, args.end))
    report = run(plan_of(args.seed))
    if args.trace:
        print(report.history.text())
    print(report)
    return int(report.violation is not None)


def _many(seeds: range) -> int:
    """All cores at work; what breaks is told at once."""
    began, broken = time.monotonic(), 0
    with multiprocessing.Pool() as pool:
        for done, complaint in enumerate(pool.imap_unordered(_complaint, seeds, chunksize=8), 1):
            if complaint:
                broken += 1
                print(complaint, flush=True)
            if done % 1000 == 0 or done == len(seeds):
                passed = f"{done} seeds in {time.monotonic() - began:.0f} s"
                print(f"{passed}, {broken} of them broken", flush=True)
    return int(broken > 0)


def _complaint(seed: int) -> str:
    report: Report = run(plan_of(seed))
    return str(report) if report.violation is not None else ""


if __name__ == "__main__":
    sys.exit(main())
