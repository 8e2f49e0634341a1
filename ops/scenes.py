"""Daemons as an operator may find them, acted out on a board, to test and to picture the page."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from emiliad.board import Board
from emiliad.metrics import Metrics
from emiliad.types import Claim, Outcome, TaskRef
from pipeline.types import STAGES

# Seconds that a stage takes for an hour of audio, about as an H200 would.
_PACE = dict(zip(STAGES, (9.0, 31.0, 24.0, 1.5, 42.0, 7.0, 6.0), strict=True))
_PAST_S = 4000.0  # for which the daemon has run when the curtain rises
_NAMES = (
    "deep-sea-radio-{:03d}",
    "Morgenmagazin {:03d}",
    "昼の対談 第{:03d}回",
    "talk.of.the.town.s02e{:03d}",
    "les-nuits-de-france_{:03d}",
)
_REASONS = (
    ("bad_audio", "the file is no audio: 'moov atom not found'"),
    ("bad_audio", "the recording is silent from beginning to end"),
    ("out_of_memory", "CUDA out of memory while separating, even with one chunk at a time"),
    ("crash", "the executor died of SIGSEGV in its 212th second"),
    ("timeout", "no end after 4 200 s, the deadline for a file of this size"),
)


@dataclass
class Stage:
    """A board with a clock that can be wound; afterwards it goes on with the time of day."""

    metrics: Metrics = field(default_factory=Metrics)
    behind_s: float = 0.0

    def __post_init__(self) -> None:
        self.board = Board(
            self.metrics,
            clock=lambda: time.monotonic() - self.behind_s,
            wall=lambda: time.time() - self.behind_s,
        )
        self.board.fact(
            version="0.1.0",
            node="gpu-node-07",
            owner="gpu-node-07-4c1a9f",
            store_url="s3://podcasts",
            pipeline="pipeline:Pipeline",
            lease_ttl_s=300.0,
            most_leases=28,
        )


def empty() -> Board:
    """A daemon that has just begun: nothing is known of anything."""
    return Stage().board


def loading() -> Board:
    """The models load; the queue has been looked at."""
    stage = Stage(behind_s=34.0)
    for gpu in range(8):
        stage.board.show(f"gpu{gpu}", "loading", device=f"cuda:{gpu} NVIDIA H200")
    stage.metrics.todo_tasks.set(41_874)
    stage.behind_s = 0.0
    return stage.board


def busy(gpus: int = 8, *, seed: int = 7) -> Stage:
    """An hour into a long day: every GPU works, some episodes were not to be had."""
    stage = Stage(behind_s=_PAST_S)
    dice = random.Random(seed)
    acts = [_executor(stage, gpu, dice) for gpu in range(gpus)]
    due = [(next(act), number) for number, act in enumerate(acts)]
    heapq.heapify(due)
    while due[0][0] < _PAST_S:
        at, number = heapq.heappop(due)
        stage.behind_s = _PAST_S - at
        heapq.heappush(due, (at + next(acts[number]), number))
    stage.behind_s = 0.0
    _surroundings(stage, gpus)
    return stage


def sick() -> Board:
    """Two GPUs are given up, one starts again, and the store does not answer."""
    stage = busy()
    board = stage.board
    board.end("gpu2")
    board.restarted("gpu2", "load", "its models do not load")
    why = "CUDA error: uncorrectable ECC error encountered (five failed starts in a row)"
    board.show("gpu2", "dead", reason=why, pid=None)
    board.problem("gpu2", f"gpu2 on cuda:2 is given up: {why}")
    board.end("gpu5")
    why = "the driver no longer lists this GPU"
    board.show("gpu5", "dead", reason=why, pid=None)
    board.problem("gpu5", f"gpu5 on cuda:5 is given up: {why}")
    board.end("gpu6")
    board.restarted("gpu6", "timeout", "no end after 4 200 s: its stacks are in the log")
    board.show("gpu6", "loading", pid=None)
    stage.behind_s = 49.0
    board.store_answered("get", "ok", 0.03)
    stage.behind_s = 48.0
    board.store_answered("put", "timeout", 15.0)
    stage.behind_s = 3.0
    board.store_answered("get", "timeout", 15.0)
    board.problem("scratch", "scratch is full: 1.2 GB are left of 3.8 TB; the intake waits")
    stage.behind_s = 0.0
    return board


def autokicker() -> dict[str, Any]:
    """The status of the autokicker alone, while it makes room for others."""
    return {
        "autokick": {
            "mode": "all",
            "target": "Deployment audio/emiliad",
            "holder": "emiliad-autokicker-7d4b9-x2x8q",
            "candidate": True,
            "state": "yield",
            "reason": "training/llm-7b-worker-3 waits for 8 nvidia.com/gpu that we hold",
            "leader": True,
            "problems": [],
            "replicas": {"wanted": 0, "bound": 0, "unbound": 0, "terminating": 3},
            "blocked": ["training/llm-7b-worker-3", "training/llm-7b-worker-4"],
            "muted": [],
            "cache_age_s": 0.4,
        },
        "problem": None,
    }


def hostile() -> Board:
    """Every text that can be chosen from outside is markup, script, or worse."""
    stage = busy(2)
    board, nasty = stage.board, HOSTILE
    board.end("gpu0")
    board.end("gpu1")
    board.fact(node=nasty, owner=nasty, autokick={nasty: nasty})
    board.begin("gpu0", Claim(TaskRef(nasty, "en", f"raw_audio/en/{nasty}.mp3"), attempt=2))
    board.stage("gpu0", "standardise", 1.0, 3600.0)
    board.stage("gpu0", nasty, 1.0, 3600.0)
    board.restarted("gpu1", "crash", nasty)
    board.show("gpu1", "dead", reason=nasty, device=nasty)
    board.ended(
        Claim(TaskRef(nasty, "en", ""), attempt=1),
        Outcome.FAILED,
        {"kind": nasty, "reason": nasty},
    )
    board.problem("hostile", nasty)
    return board


HOSTILE = "\"'><script>throw 1</script><img src=x onerror='throw 2'>{{7*7}}\u202e\udc80\x07&amp;"


def _executor(stage: Stage, gpu: int, dice: random.Random) -> Iterator[float]:
    """Acts one executor's life out, episode after episode; yields the seconds to wait."""
    board, name = stage.board, f"gpu{gpu}"
    board.show(name, "loading", device=f"cuda:{gpu} NVIDIA H200")
    yield 38.0 + gpu
    board.show(name, "idle", pid=18_211 + 7 * gpu)
    while True:
        yield dice.uniform(0.2, 1.5)
        number = dice.randrange(1000)
        episode = dice.choice(_NAMES).format(number)
        task = TaskRef(episode, "en", f"raw_audio/en/{episode}.mp3")
        claim = Claim(task, attempt=1 + (dice.random() < 0.04))
        board.begin(name, claim)
        began, audio = stage.behind_s, dice.lognormvariate(7.9, 0.6)
        broken = dice.random() < 0.05
        for stage_name, pace in _PACE.items():
            seconds = pace * audio / 3600 * dice.uniform(0.85, 1.2)
            yield seconds
            if broken and dice.random() < 0.3:
                break
            board.stage(name, stage_name, seconds, audio)
            board.memory(name, round(dice.uniform(11.2e9, 14.9e9)))
        board.end(name)
        board.show(name, "idle")
        _settle(board, claim, audio, began - stage.behind_s, broken=broken, dice=dice)


def _settle(
    board: Board, claim: Claim, audio: float, seconds: float, *, broken: bool, dice: random.Random
) -> None:
    facts: dict[str, object] = {"seconds": round(seconds, 3)}
    if not broken:
        facts |= {"audio_seconds": round(audio, 3), "segments": round(audio / 8.4)}
        board.ended(claim, Outcome.COMPLETED, facts)
        return
    kind, reason = dice.choice(_REASONS)
    outcome = Outcome.FAILED if kind == "bad_audio" else Outcome.RETRIED
    board.ended(claim, outcome, {**facts, "kind": kind, "reason": reason})


def _surroundings(stage: Stage, gpus: int) -> None:
    board, metrics = stage.board, stage.metrics
    board.enter("running")
    board.fact(
        oldest_renewal_s=71.0,
        outlook={
            "complete": True,
            "todo": 41_261,
            "held": gpus + 4,
            "leased": 96,
            "backing_off": 11,
            "failed": 17,
            "publishing": 2,
            "wait_s": 4.0,
        },
    )
    board.moved("claimed", 1)
    board.moved("prefetched", 2)
    board.moved("upload", 1)
    stage.behind_s = 50.0
    board.store_answered("get", "ok", 0.03)
    stage.behind_s = 0.0
    metrics.todo_tasks.set(41_233)
    metrics.failed_tasks.set(17)
    metrics.leases_held.set(gpus + 4)
    metrics.lease_renewals.labels("renewed").inc(437)
    metrics.scratch_bytes.set(9.4e9)
    metrics.scratch_free_bytes.set(3.1e12)
