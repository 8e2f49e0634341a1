"""Renews the leases in time; what was lost is told to whoever works on it."""

from __future__ import annotations

import random

import anyio

from emiliad.metrics import Metrics
from emiliad.queue.leases import Leases

_SHARE = 1 / 3  # of the TTL between two renewals: two may fail before the lease is at risk
_JITTER = 0.1  # so that a fleet started together does not renew together


async def run(*, leases: Leases, metrics: Metrics, ttl_s: float) -> None:
    """Runs until it is cancelled."""
    while True:
        await anyio.sleep(ttl_s * _SHARE * random.uniform(1 - _JITTER, 1))
        for claim in list(leases.held.values()):
            kept = await leases.renew(claim)
            metrics.lease_renewals.labels("renewed" if kept else "lost").inc()
