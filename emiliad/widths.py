"""How much of everything is under way at the same time, and so how many leases a node can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from emiliad.config import Config

_LEAST_AHEAD = 2  # one to be taken at once, one that may take longer to come
_LEAST_UPLOADS = 4  # an episode's outputs are dozens of requests; a slow store must not be felt
_EXECUTORS_A_CLAIM = 4  # a claim is three or four round trips, a task at least some seconds
_MOST_UPLOAD_REQUESTS = 128  # connections: a hundred keep a fast network busy, more cost memory
_OTHER_REQUESTS = 32  # beside uploads: downloads, renewals, the sweep


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths of a node's flow.

    A task holds a lease from its claim until its outputs are published, so a node never holds more
    than `most_leases`: one for each claim that is being made or handed on, each episode ahead of
    the executors, each executor and each upload.
    """

    executors: int
    claims: int  # made at the same time
    ahead: int  # episodes that are being downloaded or wait for an executor
    downloads: int  # of them, at the same time
    uploads: int  # of episodes at the same time

    @property
    def most_leases(self) -> int:
        return self.claims + self.ahead + self.executors + self.uploads

    @property
    def waiting(self) -> int:
        """Places between downloads and executors; who downloaded an episode holds one, too."""
        return self.ahead - self.downloads

    @classmethod
    def of(cls, config: Config, executors: int) -> Self:
        """Scaled by the number of executors wherever the settings leave it open."""
        ahead = config.prefetch_depth
        ahead = max(_LEAST_AHEAD, executors) if ahead is None else max(1, ahead)
        return cls(
            executors,
            claims=-(-executors // _EXECUTORS_A_CLAIM),
            ahead=ahead,
            downloads=min(ahead, config.prefetch_concurrency or max(2, -(-executors // 2))),
            uploads=config.upload_episodes or max(_LEAST_UPLOADS, 2 * executors),
        )


def requests(config: Config, widths: Widths) -> int:
    """How many requests a store over a network is asked to bear at a time."""
    uploads = min(widths.uploads * config.upload_concurrency, _MOST_UPLOAD_REQUESTS)
    return uploads + widths.downloads + _OTHER_REQUESTS
