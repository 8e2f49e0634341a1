"""Real daemons on a real S3 server, killed, frozen and cut off: every task ends exactly once.

`make chaos` runs the long version: CHAOS_TASKS, CHAOS_OUTAGE_S and CHAOS_SEED set its size.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

from tests.chaos.havoc import Havoc, Node, Weather
from tests.emiliad.fault_proxy import FaultProxy
from tests.emiliad.rig import wait_until
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server

NODES = 4
TASKS = int(os.environ.get("CHAOS_TASKS", "40"))
OUTAGE_S = float(os.environ.get("CHAOS_OUTAGE_S", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
BAD_SHARE = 10  # every tenth file is bad
PATIENCE_S = 60.0 + 4 * TASKS + 4 * OUTAGE_S


def test_every_task_ends_exactly_once(weed_server: Server, tmp_path: Path) -> None:
    """Completed by one commit with whole outputs, or dead-lettered; and nothing else is left."""
    rng = random.Random(SEED)
    server = weed_server.with_bucket()
    weather = Weather(rng, share=0.05)
    with FaultProxy(server.endpoint, weather).running() as proxy:
        bucket = S3Bucket(tmp_path, server, proxy.endpoint)
        bad = {f"bad_audio{number:03}" for number in range(0, TASKS, BAD_SHARE)}
        good = {f"{number:03}" for number in range(TASKS) if number % BAD_SHARE}
        for name in bad | good:
            bucket.put_audio(f"{name}.mp3")
        assert bucket.emiliad("enqueue").returncode == 0
        nodes = [Node(bucket, f"node{number}") for number in range(NODES)]
        try:
            havoc = Havoc(nodes, proxy, rng, OUTAGE_S)
            _rage(havoc, bucket, bad | good)
            weather.calm = True
            wait_until(lambda: _clean(bucket, havoc), lambda: _state(bucket, nodes), PATIENCE_S)
            assert [node.end() for node in nodes] == [0] * NODES
        finally:
            for node in nodes:
                node.kill()
    _judge(bucket, nodes, bad, good)
    print(f"\n{dict(havoc.strokes)}, {len(proxy.seen)} requests, {len(proxy.applied)} applied")
    assert {"kill", "freeze", "outage"} <= havoc.strokes.keys()


def _rage(havoc: Havoc, bucket: S3Bucket, everything: set[str]) -> None:
    """Havoc until every task is settled, with an outage in the middle."""
    havoc.tend()
    deadline = time.monotonic() + PATIENCE_S
    while (settled := _settled(bucket)) != everything:
        assert time.monotonic() < deadline, _state(bucket, havoc.nodes)
        if "outage" not in havoc.strokes and len(settled) > len(everything) / 3:
            havoc.outage()
        havoc.strike()


def _settled(bucket: S3Bucket) -> set[str]:
    return _ids(bucket, "completed", "failed")


def _clean(bucket: S3Bucket, havoc: Havoc) -> bool:
    """Whether only what is to stay has stayed; the nodes are kept alive meanwhile."""
    havoc.tend()
    todo, claims, failed = (_ids(bucket, state) for state in ("todo", "in_progress", "failed"))
    return todo == claims == failed and not bucket.keys("tasks/processing_outputs/")


def _ids(bucket: S3Bucket, *states: str) -> set[str]:
    """By a listing alone: what is there may be gone before it can be read."""
    keys = [key for state in states for key in bucket.keys(f"tasks/processing_{state}/")]
    return {key.rpartition("/")[2].removesuffix(".task") for key in keys}


def _state(bucket: S3Bucket, nodes: list[Node]) -> str:
    left = {state: sorted(_ids(bucket, state)) for state in ("todo", "in_progress", "failed")}
    packs = bucket.keys("tasks/processing_outputs/")
    logs = "\n".join(node.log.read_text()[-1500:] for node in nodes if node.log.exists())
    return f"left: {left}, packs: {packs}\n{logs}"


def _judge(bucket: S3Bucket, nodes: list[Node], bad: set[str], good: set[str]) -> None:
    completed, failed = bucket.tasks("completed"), bucket.tasks("failed")
    assert completed.keys() | failed.keys() == bad | good
    assert not completed.keys() & failed.keys()
    assert bad <= failed.keys()
    for episode, record in completed.items():
        bucket.verify_outputs(episode, record)
    for letter in failed.values():
        assert letter["attempts"][-1]["reason"]
    times = Counter(episode for node in nodes for episode in node.completions())
    assert max(times.values()) == 1, times
