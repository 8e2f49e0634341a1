"""The only conditional write: it says WON or LOST only when that is certain."""

from __future__ import annotations

from enum import Enum
from hashlib import md5

from emiliad.errors import Ambiguous, NotFound, PreconditionFailed, Throttled
from emiliad.patience import Patience, least_wait
from emiliad.store import Store


class Absent(Enum):
    """The state of a key without an object."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


class Verdict(Enum):
    """How a conditional write ended."""

    WON = "won"  # it was applied
    LOST = "lost"  # it was not, and never will be; or it was, and is overwritten by now
    UNKNOWN = "unknown"  # it may have been applied, or may be applied later


def etag_of(body: bytes) -> str:
    """The etag that a small body has in every store."""
    return md5(body, usedforsecurity=False).hexdigest()


async def cas(
    store: Store,
    key: str,
    body: bytes,
    expected: str | Absent,
    *,
    patience: Patience,
    contended: bool = False,
) -> Verdict:
    """Writes `body` if `key` is in the `expected` state (an etag, or ABSENT).

    `body` must be unique to this write (a nonce in it), for that is how a write whose answer was
    lost is recognised. `contended`: others may write this key, so a store that takes one write a
    second and refuses this one is proof that somebody else was first.
    """
    if_match = None if isinstance(expected, Absent) else expected
    doubtful = False  # a try without an answer may have been applied, and may yet be
    for tried in range(1, patience.tries + 1):
        try:
            await store.put(key, body, if_absent=expected is ABSENT, if_match=if_match)
        except PreconditionFailed:
            return await _look(store, key, body, expected, patience) if doubtful else Verdict.LOST
        except (Throttled, Ambiguous) as error:
            throttled = isinstance(error, Throttled)
            if throttled and contended and not doubtful:
                return Verdict.LOST
            doubtful |= not throttled
            if tried < patience.tries:
                await patience.pause(tried, least_s=least_wait(error))
        else:
            return Verdict.WON
    return await _look(store, key, body, expected, patience)


async def _look(
    store: Store, key: str, body: bytes, expected: str | Absent, patience: Patience
) -> Verdict:
    """Reads the key back. To find the old state proves nothing: the write may still arrive."""
    try:
        found = await patience.repeat(lambda: store.get(key))
    except NotFound:
        return Verdict.UNKNOWN if expected is ABSENT else Verdict.LOST
    except (Throttled, Ambiguous):
        return Verdict.UNKNOWN
    if found.body == body:
        return Verdict.WON
    return Verdict.UNKNOWN if found.etag == expected else Verdict.LOST
