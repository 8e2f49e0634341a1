"""As few less as will do: how many of our pods must go for those who wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from emiliad.autokick.model import Cut, Pod, Requests

AGAIN_S = 15.0  # room that we made is taken within this, or it was the wrong room
_ROUNDING = 1e-9


def pods_to_remove(waiting: Sequence[Pod], ours: Requests) -> int:
    """The pods of ours whose room holds them all, each undivided; at least one."""
    bins: list[float] = []
    for share in sorted((_share(pod, ours) for pod in waiting), reverse=True):
        place = next((i for i, used in enumerate(bins) if used + share <= 1 + _ROUNDING), None)
        if place is not None:
            bins[place] += share
        else:
            whole = max(ceil(share - _ROUNDING), 1)
            bins += [1.0] * (whole - 1) + [share - (whole - 1)]
    return len(bins)


def _share(pod: Pod, ours: Requests) -> float:
    """How much of one of our pods' room it needs, by the resource that it needs most of."""
    return max(
        (amount / ours[name] for name, amount in pod.requests.items() if ours.get(name, 0.0) > 0),
        default=1.0,
    )


def first_cut(waiting: Sequence[Pod], ours: Requests, bound: int, floor: int) -> Cut:
    """Where to go down to when somebody begins to wait."""
    ceiling = max(bound - pods_to_remove(waiting, ours), floor)
    return Cut(ceiling, frozenset(pod.uid for pod in waiting))


def next_cut(
    cut: Cut,
    waiting: Sequence[Pod],
    ours: Requests,
    *,
    bound: int,
    clear: bool,
    floor: int,
    now: float,
) -> Cut:
    """Lower for those who came later; and again, twice as deep, if it did not help in time.

    Only the controller chooses which of our pods go, so the room may be in the wrong place. A pod
    of ours that ends meanwhile stays away: its successor would compete. `clear`: nothing of ours
    terminates, is unbound, or is more than the ceiling.
    """
    cut = replace(cut, ceiling=max(min(cut.ceiling, bound), floor))
    new = [pod for pod in waiting if pod.uid not in cut.answered]
    if new:
        ceiling = max(cut.ceiling - pods_to_remove(new, ours), floor)
        return Cut(ceiling, cut.answered | {pod.uid for pod in new}, cut.rounds)
    if not clear:
        return replace(cut, clear_since=None)
    since = now if cut.clear_since is None else cut.clear_since
    if now - since < AGAIN_S or cut.ceiling <= floor:
        return replace(cut, clear_since=since)
    rounds = cut.rounds + 1
    ceiling = max(cut.ceiling - pods_to_remove(waiting, ours) * 2**rounds, floor)
    return Cut(ceiling, cut.answered, rounds)
