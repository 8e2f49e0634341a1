"""Whom our leaving does not help: waited for in vain, muted, and given another chance.

Pods are told apart by kind (owner, requests, selector and whatever else the scheduler heeds), not
by uid: a pod that nobody can help is often created again and again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from emiliad.autokick.model import Mute, Pod, Policy, State, Tally
from emiliad.autokick.reasons import mark

WINDOW_S = 900.0  # the first mute; each strike doubles it ...
WINDOW_MAX_S = 7200.0  # ... up to this: nobody whom we block waits longer
PROBE_S = 60.0  # the patience after the first strike: a node that was to be booted is there by now
PROOF_S = 30.0  # schedulers look again within 10 s of our leaving; after thrice that they have
WARY_S = 60.0  # a change ends a mute no sooner than this; each strike doubles it, too
_FORGET_S = 14400.0  # strikes are forgotten so long after their mute
_FORGET_TALLY_S = 3600.0

# What controllers append to names: a CronJob its minute, others five letters that spell no word.
_SERIAL = re.compile(r"-(\d{8,}|[bcdfghjklmnpqrstvwxz2456789]{5})$")

ByKind: TypeAlias = Mapping[str, list[Pod]]


def kind_of(pod: Pod) -> str:
    """What a verdict is passed on: equal for pods that a scheduler cannot tell apart."""
    owner = f"{pod.owner.kind}/{_SERIAL.sub('', pod.owner.name)}" if pod.owner else ""
    asked = sorted((name, amount) for name, amount in pod.requests.items())
    return f"{pod.namespace}|{owner}|{asked}|{sorted(pod.selector.items())}|{pod.shape}"


def by_kind(pods: Iterable[Pod]) -> ByKind:
    """Sorts pods that wait."""
    kinds: dict[str, list[Pod]] = {}
    for pod in pods:
        kinds.setdefault(kind_of(pod), []).append(pod)
    return kinds


def is_muted(state: State, kind: str, now: float) -> bool:
    """Whether pods of this kind are ignored at this moment."""
    mute = state.mutes.get(kind)
    return mute is not None and not mute.lifted and now < mute.until


def lift(state: State, blocked: ByKind, now: float) -> State:
    """Ends mutes early where room has appeared since, or nodes have changed: then try again."""
    mutes = {
        kind: replace(mute, lifted=mute.lifted or _changed(mute, blocked.get(kind, ()), state, now))
        for kind, mute in state.mutes.items()
        if now < mute.until + _FORGET_S
    }
    return replace(state, mutes=mutes)


def wary_until(mute: Mute) -> float:
    """Before this moment no change ends the mute."""
    return mute.since + min(WARY_S * 2.0 ** (mute.strikes - 1), WINDOW_MAX_S)


def _changed(mute: Mute, pods: Iterable[Pod], state: State, now: float) -> bool:
    if now < wary_until(mute):
        return False
    moved = state.moved_at is not None and state.moved_at > mute.since
    return moved or any(pod.message and mark(pod.message) not in mute.marks for pod in pods)


def count(state: State, live: ByKind, arrived: Iterable[Pod], now: float) -> State:
    """Adds up for how long each kind has waited with us gone; progress sets it back.

    Progress is a pod of the kind that found a place, one that is no longer there soon after we
    left, or fewer of them than ever in this wait. Where a pod found a place, the strikes of its
    kind are forgotten, too.
    """
    found = {state.alone[pod.uid] for pod in arrived if pod.uid in state.alone}
    helped = found | _left_soon(state, live, now)
    tallies = {
        kind: tally
        for kind, tally in state.tallies.items()
        if kind not in helped and now - tally.seen < _FORGET_TALLY_S
    }
    for kind, pods in live.items():
        tallies[kind] = _tally(tallies.get(kind), len(pods), state, now)
    mutes = {kind: mute for kind, mute in state.mutes.items() if kind not in found}
    return replace(state, tallies=tallies, mutes=mutes)


def _left_soon(state: State, live: ByKind, now: float) -> set[str]:
    """The kinds of which a pod waited when we left and is no longer there: it was helped."""
    if state.gone_since is None or now - state.gone_since >= PROOF_S:
        return set()
    waiting = {pod.uid for pods in live.values() for pod in pods}
    return {kind for uid, kind in state.alone.items() if uid not in waiting}


def _tally(tally: Tally | None, number: int, state: State, now: float) -> Tally:
    gone = state.gone_since is not None and state.looked_at is not None
    if tally is None or (gone and number < tally.fewest):
        return Tally(0.0, number, now)
    if not gone:
        return Tally(tally.spent_s, number, now)
    spent = now - tally.seen if tally.seen == state.looked_at else 0.0
    return Tally(tally.spent_s + spent, tally.fewest, now)


def strike(state: State, live: ByKind, policy: Policy, now: float) -> State:
    """Mutes the kinds that waited in vain for long enough."""
    mutes, tallies = dict(state.mutes), dict(state.tallies)
    for kind, pods in live.items():
        wait_s = verdict_in_s(state, kind, policy, now)
        if wait_s is None or wait_s > 0:
            continue
        strikes = mutes[kind].strikes + 1 if kind in mutes else 1
        window = min(WINDOW_S * 2.0 ** (strikes - 1), WINDOW_MAX_S)
        marks = frozenset(mark(pod.message) for pod in pods)
        mutes[kind] = Mute(strikes, now, now + window, marks)
        tallies.pop(kind, None)
    return replace(state, mutes=mutes, tallies=tallies)


def verdict_in_s(state: State, kind: str, policy: Policy, now: float) -> float | None:
    """Seconds until pods of a kind that wait on are muted; None while we are not gone."""
    if state.gone_since is None:
        return None
    spent = state.tallies[kind].spent_s if kind in state.tallies else 0.0
    patience = policy.hopeless_after_s
    if kind in state.mutes:
        patience = min(patience, PROBE_S)
    return max(patience - spent, min(PROOF_S, patience) - (now - state.gone_since))
