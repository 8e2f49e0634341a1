"""Havoc among real daemons: kills, freezes, restarts, and a network that fails in every way."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy
from tests.emiliad.rig import Daemon, wait_until
from tests.emiliad.s3_rig import S3Bucket

TTL_S = 4.0
FREEZE_S = 1.6 * TTL_S  # beyond the 1.1 TTL after which others take over
PAUSE_S = (0.3, 1.5)  # between two strokes of havoc

FAULTS = (
    Fault("reset"),
    Fault("reset", applied=False),
    Fault(500),
    Fault(500, applied=False),
    Fault(503, applied=False),
    Fault(429, applied=False),
    Fault("cut"),
    Fault("hang"),
    Fault("hang", applied=False),
    Fault(late_s=3.0),
)


@dataclass
class Weather:
    """The network: a share of the requests fails; `calm` ends that."""

    rng: random.Random
    share: float
    calm: bool = False

    def __call__(self, _: Exchange) -> Fault | None:
        if self.calm or self.rng.random() >= self.share:
            return None
        return self.rng.choice(FAULTS)


@dataclass
class Node:
    """A daemon that is started again whenever it is gone; its scratch, and so its owner, stay."""

    bucket: S3Bucket
    name: str
    process: subprocess.Popen[bytes] | None = None
    frozen_until: float | None = None
    log: Path = field(init=False)
    started_at: int = 0  # bytes of the log before this start

    def __post_init__(self) -> None:
        self.log = self.bucket.root / f"{self.name}.log"

    def start(self) -> None:
        scratch = str(self.bucket.root / self.name)
        env = self.bucket.environment(
            SCRATCH_DIR=scratch,
            LEASE_TTL_S=str(TTL_S),
            STORE_TIMEOUT_S="2",
            FAKE_SECONDS="0.2",
            MAX_ATTEMPTS="3",
            RETRY_BACKOFF_S="0.2",
            DRAIN_TIMEOUT_S="2",
        )
        with self.log.open("a") as log:
            self.started_at = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "emiliad", "run"],
                cwd=self.bucket.root,
                env=env,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def freeze(self) -> None:
        """Stops the daemon beyond its leases, with requests and renewals in the air."""
        self.signal(signal.SIGSTOP)
        self.frozen_until = time.monotonic() + FREEZE_S

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.frozen_until = None

    def tend(self) -> None:
        """Thaws and restarts it when its time has come."""
        if self.frozen_until is not None and time.monotonic() > self.frozen_until:
            self.thaw()
        if self.process is None or self.process.poll() is not None:
            self.frozen_until = None
            self.start()

    def end(self) -> int:
        """Drains, once it is up; the exit code."""
        assert self.process is not None
        self.thaw()
        wait_until(lambda: b"executor.ready" in self.log.read_bytes()[self.started_at :])
        self.signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """Whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def completions(self) -> list[str]:
        assert self.process is not None
        events = Daemon(self.process, self.log).events("task.completed")
        return [event["episode_id"] for event in events]


@dataclass
class Havoc:
    """Strikes nodes and the network at random, until every task is settled."""

    nodes: list[Node]
    proxy: FaultProxy
    rng: random.Random
    outage_s: float
    strokes: Counter[str] = field(default_factory=Counter)

    def strike(self) -> None:
        """One stroke, and a moment of rest."""
        node = self.rng.choice(self.nodes)
        stroke = self.rng.choice(("kill", "kill", "freeze", "terminate", "rest", "rest"))
        self.strokes[stroke] += 1
        match stroke:
            case "kill":
                node.signal(signal.SIGKILL)
            case "freeze":
                node.freeze()
            case "terminate":
                node.signal(signal.SIGTERM)
        time.sleep(self.rng.uniform(*PAUSE_S))
        self.tend()

    def outage(self) -> None:
        """The store is away; the nodes must wait it out."""
        self.strokes["outage"] += 1
        self.proxy.down()
        time.sleep(self.outage_s)
        self.proxy.up()

    def tend(self) -> None:
        for node in self.nodes:
            node.tend()
