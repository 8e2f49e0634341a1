"""Rehearses a working day in a minute: real daemons, a real Prometheus, pictures of the dashboard.

`python -m tests.ops DIR [SECONDS]` checks every expression of the dashboard, draws it into DIR and
exits with 1 if one has no answer.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from ops.grafana.expand import Choice, panels
from ops.plot_dashboard import draw
from ops.prometheus import local
from tests.emiliad.rig import Bucket, wait_until
from tests.ops.live import RULES, address, enqueue, leading_autokicker

_LONG = 90.0  # seconds, by default
_SETTINGS = {"CPU_EXECUTORS": "3", "FAKE_SECONDS": "0.8", "RECYCLE_TASKS": "15", "POLL_S": "1"}


def main() -> int:
    """Two nodes, a queue that grows once, files that are bad now and then."""
    out, length = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else _LONG
    if why := local.missing():
        print(why, file=sys.stderr)
        return 2
    choice = Choice(step_s=1, scrape_s=1, window="30s")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bucket = Bucket(Path(folder), _SETTINGS)
        work = int(length * 2)
        enqueue(bucket, *(f"talk-{n}" for n in range(work)), *(f"raises-{n}" for n in range(4)))
        nodes = [
            stack.enter_context(bucket.daemon(SCRATCH_DIR=f"{folder}/scratch-{n}"))
            for n in range(2)
        ]
        autokick = stack.enter_context(leading_autokicker())
        targets = {"emiliad": [address(node) for node in nodes], "emiliad-autokick": [autokick]}
        server = stack.enter_context(
            local.prometheus(Path(folder) / "prometheus", targets, rules=RULES)
        )
        began = time.time()
        wait_until(lambda: time.time() > began + length / 2, patience_s=length)
        enqueue(bucket, *(f"more-{n}" for n in range(work)), *(f"exit42-{n}" for n in range(3)))
        wait_until(lambda: time.time() > began + length, patience_s=length)
        empty = [
            f"{panel['title']}: {target['expr']}"
            for panel in panels()
            for target in panel["targets"]
            if not server.query(choice.fill(target["expr"])) and "ALERTS" not in target["expr"]
        ]
        print(*draw(server, choice, length, out), sep="\n")
    for line in empty:
        print(f"no data: {line}", file=sys.stderr)
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
