"""Runs seeds of the simulation: `python -m tests.sim SEED --trace`, or `... FIRST END`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.plan import plan_of
from tests.sim.world import run


def main() -> int:
    """Exit code 1 if an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int, help="the seed, or the first of several")
    parser.add_argument("end", type=int, nargs="?", help="the seed behind the last")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    args = parser.parse_args()
    began = time.perf_counter()
    failed = []
    for seed in range(args.seed, args.end or args.seed + 1):
        report = run(plan_of(seed))
        if args.trace:
            print(report.history.text())
        if args.end is None or report.violation is not None:
            print(report, flush=True)
        if report.violation is not None:
            failed.append(seed)
        if (seed + 1) % 500 == 0:
            print(f"{seed + 1 - args.seed} seeds, {time.perf_counter() - began:.0f} s", flush=True)
    if failed:
        print(f"failed: {failed}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
