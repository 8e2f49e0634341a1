"""Renews the leases in time; what was lost is told to whoever works on it."""

from __future__ import annotations

import random

import anyio

from emiliad.metrics import Metrics
from emiliad.parallel import for_each
from emiliad.queue.leases import Leases
from emiliad.types import Claim

_SHARE = 1 / 3  # of the TTL between two renewals: two may fail before the lease is at risk
_JITTER = 0.1  # so that a fleet started together does not renew together


async def run(*, leases: Leases, metrics: Metrics, ttl_s: float) -> None:
    """Runs until it is cancelled."""

    async def renew(claim: Claim) -> None:
        kept = await leases.renew(claim)
        metrics.lease_renewals.labels("renewed" if kept else "lost").inc()

    while True:
        await anyio.sleep(ttl_s * _SHARE * random.uniform(1 - _JITTER, 1))
        # Many at a time: one that gets no answer must not keep the others from being renewed.
        await for_each(list(leases.held.values()), renew)
