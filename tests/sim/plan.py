"""What a seed stands for: how large its world is, how it is set up, and what goes wrong in it."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

from tests.sim.faults import LATEST_S


@dataclass(frozen=True, slots=True)
class Plan:
    """A world. Times are in its seconds, as a perfect clock would count them."""

    seed: int
    nodes: int = 3
    files: int = 6
    ttl_s: float = 60.0  # 0: leases exclude nobody, which must cost nothing but time
    max_attempts: int = 3
    backoff_s: float = 5.0
    tries: int = 3  # of a request, by the processes' own code
    write_spacing_s: float = 0.0
    storm_s: float = 400.0  # for which there are faults
    work_s: tuple[float, float] = (1.0, 40.0)  # that an execution takes
    wire: float = 0.1  # share of requests that meet a fault
    deadly: float = 0.005  # share of requests at which their process is killed
    doom_s: float = 120.0  # after which, on average, a process is killed, frozen or told to stop
    freezes: bool = True
    failing: float = 0.1  # share of executions that fail
    rates: tuple[float, float] = (0.5, 2.0)  # of the processes' clocks
    wall_error_s: float = 7200.0  # by which their wall clocks may be wrong
    exclusive: bool = False  # whether faults are so mild that no work may be done twice at a time
    old_scripts: bool = True  # whether the bucket was used by them

    @property
    def bound_s(self) -> float:
        """How long after the last fault everything has come to an end.

        The last stray requests land; every lease of a dead owner expires; then each task makes all
        its attempts one after the other, each after its longest wait, on a slow clock, and each
        time all nodes are busy with all the others.
        """
        slowest = 1 / self.rates[0]
        expiry_s = 2 * 1.1 * self.ttl_s * slowest + 60.0
        wait_s = (self.backoff_s * 2.0**self.max_attempts + 120.0) * slowest
        rounds = self.max_attempts * (1 + 2 * self.files / self.nodes)
        return LATEST_S + expiry_s + self.max_attempts * wait_s + rounds * (self.work_s[1] + 60.0)


def plan_of(seed: int) -> Plan:
    """The plan of a seed. One in eight is mild, so that wasted work shows."""
    rng = random.Random(f"plan {seed}")
    plan = Plan(
        seed,
        nodes=rng.choice((2, 3, 3, 4)),
        files=rng.choice((3, 4, 6)),
        ttl_s=rng.choice((0.0, 20.0, 60.0, 60.0, 150.0)),
        max_attempts=rng.choice((2, 3)),
        tries=rng.choice((1, 2, 4)),
        write_spacing_s=rng.choice((0.0, 1.1)),
        storm_s=rng.choice((120.0, 300.0)),
        wire=rng.choice((0.0, 0.03, 0.15, 0.3)),
        deadly=rng.choice((0.0, 0.005, 0.03)),
        doom_s=rng.choice((40.0, 120.0, 1000.0)),
        failing=rng.choice((0.0, 0.1, 0.4)),
        old_scripts=rng.random() < 0.3,
    )
    return mild(plan) if rng.random() < 0.125 else plan


def mild(plan: Plan) -> Plan:
    """Processes die and clocks differ, but none stands still, and no request is lost."""
    return dataclasses.replace(
        plan,
        ttl_s=60.0,
        wire=0.0,
        freezes=False,
        rates=(0.8, 1.25),
        exclusive=True,
    )
