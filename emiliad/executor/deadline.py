"""How long a task may take: a function of its audio's length, guessed until that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from emiliad.config import Config

_BYTES_PER_SECOND = 4_000  # audio is rarely stored below 32 kbit/s: a bound on its length


@dataclass(frozen=True, slots=True)
class Deadline:
    """TASK_TIMEOUT_BASE_S and TASK_TIMEOUT_FACTOR."""

    base_s: float
    factor: float  # seconds per second of audio

    @classmethod
    def of(cls, config: Config) -> Self:
        return cls(config.task_timeout_base_s, config.task_timeout_factor)

    def of_bytes(self, size: int) -> float:
        """Seconds for a file of which only the size is known; rather too many."""
        return self.of_audio(size / _BYTES_PER_SECOND)

    def of_audio(self, seconds: float) -> float:
        """Seconds for so many of audio."""
        return self.base_s + self.factor * seconds
