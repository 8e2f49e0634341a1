"""Measures the queue: how fast it is filled, found and claimed from, and what requests cost.

    python -m ops.bench.queue [--seaweedfs | --store URL] [--objects N] [--claims M]
    python -m ops.bench.queue --costs
    python -m ops.bench.queue --listing
    python -m ops.bench.queue --verify

The first fills a store with N raw files, runs `emiliad enqueue` on it twice, claims M tasks in a
process of its own, and lets a daemon whose pipeline only pretends work for half a minute. The store
is a directory that is removed again, an S3 server that is started for it, or what URL and the
settings in the environment name. The second counts requests over runs of the queue's own code on a
store in memory. The third compares ways to list, with a round trip of 50 ms, and the fourth checks
completed tasks of the old scripts, a tenth as many as there are objects.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
from rich.console import Console
from rich.table import Table

from emiliad.queue.enqueue import enqueue
from emiliad.queue.ranges import walk
from emiliad.queue.verify import verify
from emiliad.store import PAGE
from ops.bench.costs import LAYOUT, MONTH_S, TTL_S, Bill, Idle, dollars, idle, whole_run
from ops.bench.speed import FOLDERS, claim, existing, seaweedfs, speed
from ops.bench.stores import CountingStore, SortedStore

NODES = 500
LOOK_S = 45.0  # between two looks of an idle node, on average
SWEEP_S = 0.9 * TTL_S  # between two sweeps, on average
EXTRA_PAGES = 1.4  # requests for a page when sixteen listers share the work
ROUND_TRIP_S = 0.05
_console = Console(width=110)


def main() -> None:
    """Prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", metavar="URL", help="default: a new directory")
    parser.add_argument("--seaweedfs", action="store_true", help="start an S3 server for it")
    parser.add_argument("--objects", type=int, default=100_000, metavar="N")
    parser.add_argument("--claims", type=int, default=2_000, metavar="M")
    parser.add_argument("--costs", action="store_true", help="count requests")
    parser.add_argument("--listing", action="store_true", help="compare ways to list")
    parser.add_argument("--verify", action="store_true", help="check completed tasks")
    parser.add_argument("--claimer", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.costs:
        anyio.run(_costs)
    elif asked.listing:
        anyio.run(_listing, asked.objects)
    elif asked.verify:
        anyio.run(_verify, asked.objects // 10)
    elif asked.claimer:
        anyio.run(claim, asked.claims)
    else:
        with tempfile.TemporaryDirectory() as name:
            room = Path(name)
            where = seaweedfs(room) if asked.seaweedfs else existing(asked.store, room)
            with where:
                os.environ["SCRATCH_DIR"] = str(room / "scratch")
                _console.print(speed(asked.objects, asked.claims))


async def _listing(objects: int) -> None:
    names = [
        f"{LAYOUT.raw}{FOLDERS[number % 4]}/show {number % 97:02}/ep_{number:07}.mp3"
        for number in range(objects)
    ]
    store = SortedStore(ROUND_TRIP_S)
    store.fill(names, b"audio")
    table = Table("listers", "seconds", "keys a second", title=f"{objects:,} keys, 50 ms a request")
    for listers in (1, 4, 16):
        start = time.monotonic()
        await walk(store, LAYOUT.raw, lambda _: None, listers=listers)
        seconds = time.monotonic() - start
        table.add_row(str(listers), f"{seconds:.1f}", f"{objects / seconds:,.0f}")
    _console.print(table)
    for listers in (1, 16):
        start = time.monotonic()
        report = await enqueue(store, LAYOUT, dry_run=True, listers=listers)
        seconds = time.monotonic() - start
        _console.print(f"dry run, {listers} listers: {report.created:,} files in {seconds:.1f} s")


async def _verify(records: int) -> None:
    plain = SortedStore(ROUND_TRIP_S)
    for number in range(records):
        name = f"ep_{number:07}"
        done = {"episode_id": name, "language": "en", "audio_key": f"{LAYOUT.raw}en/{name}.mp3"}
        plain.objects[LAYOUT.completed_key(name)] = json.dumps(done).encode()
        plain.objects[f"{LAYOUT.processed}en/{name}/all_segments.json"] = b"[{}]"
    plain.fill(
        [f"{LAYOUT.processed}en/ep_{n:07}/ep_{n:07}_000000.mp3" for n in range(records)], b"x"
    )
    store = CountingStore(plain)
    start = time.monotonic()
    report = await verify(store, LAYOUT)
    seconds = time.monotonic() - start
    _console.print(
        f"{report.whole:,} records in {seconds:.1f} s, {records / seconds:,.0f} a second; for each "
        f"{store.class_a / records:.2f} class A and {store.class_b / records:.2f} class B requests"
    )


async def _costs() -> None:
    small = await whole_run(tasks=100, nodes=4)
    large = await whole_run(tasks=4_000, nodes=20, waiting=16_000)
    _console.print(_per_task((small, "100 tasks, 4 nodes"), (large, "4,000 of 20,000, 20 nodes")))
    _console.print(
        _per_month(large, {failed: await idle(failed=failed) for failed in (0, 100, 2_500)})
    )


PARTS = {  # of a task: what is counted for it
    "claim, renewals": ("put processing_in_progress",),
    "pack": ("upload processing_outputs",),
    "commit": ("put processing_completed",),
    "published objects": ("upload processed",),
    "listing of the outputs": ("list processed",),
    "listing of todos and claims": ("list processing_todo", "list processing_in_progress"),
    "reads of todos": ("get processing_todo",),
    "reads of claims": ("get processing_in_progress", "head processing_in_progress"),
    "looks for a commit": ("head processing_completed", "get processing_completed"),
    "sweep": ("list processing_failed", "list processing_outputs"),
}


def _per_task(*runs: tuple[Bill, str]) -> Table:
    """What is not in the parts is the producer's share, which is counted in a scan's own row."""
    table = Table("of one task", *(name for _, name in runs), title="requests of a task")
    for part, names in PARTS.items():
        counts = (sum(bill.counts[name] for name in names) / bill.tasks for bill, _ in runs)
        table.add_row(part, *(f"{count:.2f}" for count in counts))
    table.add_section()
    rows = {
        "class A": [bill.class_a / bill.tasks for bill, _ in runs],
        "of it published objects": [bill.published / bill.tasks for bill, _ in runs],
        "of it renewals": [bill.renewals / bill.tasks for bill, _ in runs],
        "the queue's own class A": [bill.own_class_a for bill, _ in runs],
        "class B": [bill.class_b / bill.tasks for bill, _ in runs],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    costs = (dollars(bill.own_class_a, bill.class_b / bill.tasks) * 1e6 for bill, _ in runs)
    table.add_row("dollars for a million of these", *(f"{cost:.2f}" for cost in costs))
    return table


def _per_month(bill: Bill, idles: Mapping[int, Idle]) -> Table:
    table = Table("what", "class A", "class B", "dollars", title="at $4.50 and $0.36 a million")

    def add(name: str, class_a: float, class_b: float) -> None:
        table.add_row(
            name, f"{class_a:,.0f}", f"{class_b:,.0f}", f"{dollars(class_a, class_b):,.2f}"
        )

    million = 1_000_000
    add(
        "1 M tasks, the queue's own",
        bill.own_class_a * million,
        bill.class_b / bill.tasks * million,
    )
    add("their todos, put by a scan of 1 M files", bill.todo_a * million, bill.todo_b * million)
    add("a scan that finds 1 M completed", 2 * million / PAGE * EXTRA_PAGES, 1)
    add("1 M published objects", million, 0)
    add("1 M renewals", million, 0)
    for failed, cost in idles.items():
        looks, sweeps = NODES * MONTH_S / LOOK_S, NODES * MONTH_S / SWEEP_S
        name = f"{NODES} nodes, a month of looking at an empty queue"
        add(
            name + (f" with {failed:,} dead letters" if failed else ""),
            cost.look_a * looks + cost.sweep_a * sweeps,
            cost.look_b * looks + cost.sweep_b * sweeps,
        )
    return table


if __name__ == "__main__":
    main()
