"""How long to keep asking a store that does not answer: the policy of all retries."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from emiliad.errors import Ambiguous, Throttled

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]

SAME_KEY_SPACING_S = 1.1  # R2 takes one write a second to a key and refuses others with 429


@dataclass(frozen=True, slots=True)
class Patience:
    """Exponential back-off with jitter: a fleet that lost its store does not return in step."""

    tries: int = 5
    first_s: float = 0.5
    longest_s: float = 15.0
    sleep: Sleep = anyio.sleep
    rng: random.Random = field(default_factory=random.Random)

    async def pause(self, failures: int, *, least_s: float = 0.0) -> None:
        """Waits after the given number of failures in a row."""
        full = min(self.first_s * 2 ** (failures - 1), self.longest_s)
        await self.sleep(max(least_s, full * self.rng.uniform(0.5, 1.0)))

    async def repeat(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to an idempotent request, however often it takes up to `tries`."""
        failures = 0
        while True:
            try:
                return await request()
            except (Ambiguous, Throttled) as error:
                failures += 1
                if failures >= self.tries:
                    raise
                await self.pause(failures, least_s=least_wait(error))


def least_wait(error: Ambiguous | Throttled) -> float:
    """Seconds before the same key may be written again."""
    return SAME_KEY_SPACING_S if isinstance(error, Throttled) else 0.0
