"""What processes do that work on one directory at the same time; run with `python -m`."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from emiliad.errors import PreconditionFailed
from emiliad.stores.local import LocalStore


async def race(store: LocalStore, me: str, rounds: int) -> None:
    """Creates the same keys as everybody else, and says which it won."""
    for number in range(rounds):
        try:
            await store.put(f"race/{number}", me.encode(), if_absent=True)
        except PreconditionFailed:
            continue
        print(number, flush=True)


async def count(store: LocalStore, _me: str, rounds: int) -> None:
    """Increments a counter by compare-and-swap, and acknowledges each increment."""
    while rounds:
        found = await store.get("counter")
        try:
            await store.put("counter", b"%d" % (int(found.body) + 1), if_match=found.etag)
        except PreconditionFailed:
            continue
        print("+", flush=True)
        rounds -= 1


if __name__ == "__main__":
    work, root, me, rounds = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    anyio.run({"race": race, "count": count}[work], LocalStore(Path(root)), me, int(rounds))
