"""What a node has seen of all nodes' claims, and what that makes of each task, by its own clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from enum import Enum

from emiliad.queue.claims import ClaimRecord, State

EXPIRY = 1.1  # TTLs that a lease must stand unchanged: its owner may be a little late
_REMEMBERED = 3.0  # TTLs for which a claim that no listing shows stays known


class Standing(Enum):
    """What a node may do about a task."""

    RIPE = "ripe"  # unclaimed, free again, or of an owner that vanished: to be taken
    HELD = "held"  # ours
    LEASED = "leased"  # another's
    BACKING_OFF = "backing off"  # free, but not yet
    FAILED = "failed"
    UNREAD = "unread"  # its claim is known by etag alone


@dataclass(slots=True)
class Sighting:
    """A claim as it was last seen; `since` is when it was first seen in this state."""

    etag: str
    since: float
    last: float
    record: ClaimRecord | None = None
    changed: bool = False  # it was seen in another state before: most such changes are renewals


class Watch:
    """Claims by episode id. A lease is judged by how long its etag has stood on `clock` alone."""

    def __init__(self, *, owner: str, ttl_s: float, clock: Callable[[], float]) -> None:
        self._owner = owner
        self._ttl_s = ttl_s
        self._clock = clock
        self._sightings: dict[str, Sighting] = {}

    def get(self, episode_id: str) -> Sighting | None:
        """The claim as it was last seen; None if there was none."""
        return self._sightings.get(episode_id)

    def see(self, episode_id: str, etag: str, record: ClaimRecord | None = None) -> None:
        """Notes that a claim has this etag now, and what it says if that was read."""
        now = self._clock()
        known = self._sightings.get(episode_id)
        if known is None or known.etag != etag:
            self._sightings[episode_id] = Sighting(etag, now, now, record, known is not None)
        else:
            known.last = now
            known.record = record or known.record

    def stands_for(self, episode_id: str) -> float:
        """Seconds for which a claim has been seen unchanged; infinite if there is none."""
        seen = self._sightings.get(episode_id)
        return self._clock() - seen.since if seen else math.inf

    def is_likely_renewed(self, episode_id: str) -> bool:
        """Whether a claim that is known by etag alone is probably a lease that goes on."""
        seen = self._sightings.get(episode_id)
        fresh = self.stands_for(episode_id) < EXPIRY * self._ttl_s
        return seen is not None and seen.changed and fresh

    def forget(self, episode_id: str) -> None:
        """Notes that a claim is gone, or in a state unknown."""
        self._sightings.pop(episode_id, None)

    def see_range(
        self, etags: Mapping[str, str], covered: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Notes a listing; claims that it covered but does not show are gone."""
        for episode_id in [known for known in self._sightings if known not in etags]:
            if covered(episode_id):
                self.forget(episode_id)
        for episode_id, etag in etags.items():
            self.see(episode_id, etag)

    def forget_old(self) -> None:
        """Drops what no listing has shown for long, so that memory stays bounded."""
        oldest = self._clock() - _REMEMBERED * self._ttl_s
        self._sightings = {id_: s for id_, s in self._sightings.items() if s.last >= oldest}

    def standing(self, episode_id: str, held: Container[str]) -> tuple[Standing, float]:
        """What may be done about a task, and in how many seconds that may change by time alone."""
        if episode_id in held:
            return Standing.HELD, 0.0
        seen = self._sightings.get(episode_id)
        if seen is None:
            return Standing.RIPE, 0.0
        if seen.record is None:
            return Standing.UNREAD, 0.0
        if seen.record.state is State.FAILED:
            return Standing.FAILED, 0.0
        wait_s = seen.since + self._patience_with(seen.record) - self._clock()
        if wait_s <= 0:
            return Standing.RIPE, 0.0
        leased = seen.record.state is State.LEASED
        return (Standing.LEASED if leased else Standing.BACKING_OFF), wait_s

    def _patience_with(self, record: ClaimRecord) -> float:
        """Seconds for which a claim must stand unchanged before anyone may take it."""
        if record.state is State.FREE:
            return record.retry_after_s
        if record.owner == self._owner:  # and yet not held: we were restarted
            return 0.0
        return EXPIRY * self._ttl_s
