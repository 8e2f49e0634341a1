"""The decision core in more than a thousand histories of a toy cluster; a seed says which.

What is promised, and judged by the truth of the cluster ("remove ours: does it fit?"):

I1a  while somebody whom we do not know to be hopeless is blocked by us, no live pod of ours exists
     after a second; I1b no terminating one after the drain and a second more.
I2   in a quiet world every place is used, just the buffer waits, replicas are bound + buffer; and
     whatever comes and goes, a free place for which nobody waits is taken.
I3   in a quiet world, through readiness flakes too, nothing is written and nothing that runs is
     removed; nothing is written without the right to.
I4   nobody whom we really block waits longer than a mute lasts; where the room that appeared can
     be noticed, we step aside within 90 s.
I5   pods that nobody can help leave at most half of the nodes' time idle at first, then less.
I6   a new node is taken within one round of the scheduler, not one load of the models.
I7   who has a place and pulls an image, or counts for nothing, holds nobody back; who has just gone
     ahead is given the time of the cool-down.
I8   nobody whom our removal would help is muted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.autokick.plan import EVENTS, hopeless, plan_of, quiet
from tests.autokick.world import run

SEEDS = 1000
_CHUNK = 100


@pytest.mark.parametrize("first", range(0, SEEDS, _CHUNK))
def test_whatever_happens_the_promises_are_kept(first: int) -> None:
    """I1 to I8 hold while others come and go, nodes fail, and the autokicker itself suffers."""
    for seed in range(first, first + _CHUNK):
        report = run(plan_of(seed))
        assert report.violation is None, str(report)


def test_in_a_quiet_world_all_is_used_and_nothing_written() -> None:
    """I2, I3, I6, I7: nodes join, readiness flakes, and someone pulls an image for days."""
    for seed in range(100):
        report = run(quiet(seed))
        assert report.violation is None, str(report)
        assert report.seen["grow"] or report.plan.kind == "DaemonSet"


def test_the_hopeless_cost_ever_less() -> None:
    """I5: for hours, whether they stay or are created again and again."""
    for seed in range(40):
        report = run(hopeless(seed))
        assert report.violation is None, str(report)


def test_a_seed_has_one_history() -> None:
    """Also in another process, with other hashes of texts."""
    seeds = range(20, 26)
    here = [run(plan_of(seed)).digest() for seed in seeds]
    assert len(set(here)) == len(seeds)
    code = "from tests.autokick.test_histories import *\nfor seed in range(20, 26): tell(seed)"
    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == here


def tell(seed: int) -> None:
    """For another process."""
    print(run(plan_of(seed)).digest())


def test_the_histories_are_rich() -> None:
    """Every event happens, every stage is reached, every action taken, and pods are muted."""
    seen: Counter[str] = Counter()
    for seed in range(150):
        seen += run(plan_of(seed)).seen
    actions = ("grow", "trim", "kick", "hold", "release")
    missing = {"frozen", "fill", "yield", "settle", "muted", *actions, *EVENTS} - seen.keys()
    assert missing == set()
