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
    found = {state.waiting[pod.uid] for pod in arrived if pod.uid in state.waiting}
    helped = found | _left_soon(state, live, now)
    tallies = {
        kind: _later(tally, state, now)
        for kind, tally in state.tallies.items()
        if kind not in helped and now - tally.seen < _FORGET_TALLY_S
    }
    for kind, pods in live.items():
        tallies[kind] = _tally(tallies.get(kind), len(pods), state, now)
    mutes = {kind: mute for kind, mute in state.mutes.items() if kind not in found}
    return replace(state, tallies=tallies, mutes=mutes)


def _later(tally: Tally, state: State, now: float) -> Tally:
    """With the time since the last look, if such pods waited then and we were gone."""
    if state.gone_since is None or state.looked_at is None or tally.seen != state.looked_at:
        return tally
    return replace(tally, spent_s=tally.spent_s + now - state.looked_at)


def _tally(tally: Tally | None, number: int, state: State, now: float) -> Tally:
    """With those who wait now.

    If some of a gang are no longer there they may have found a place. If then others come in their
    stead they have not, and what was forgiven counts after all.
    """
    if tally is None:
        return Tally(0.0, number, now)
    tally = replace(tally, seen=now)
    if tally.dropped and number > tally.fewest:
        spent_s = tally.spent_s + tally.forgiven_s
        tally = replace(tally, spent_s=spent_s, forgiven_s=0.0, dropped=False, replaced=True)
    if state.gone_since is None:
        return replace(tally, fewest=number)
    if number >= tally.fewest or tally.replaced:
        return tally
    forgiven_s = tally.forgiven_s + tally.spent_s
    return replace(tally, spent_s=0.0, forgiven_s=forgiven_s, dropped=True, fewest=number)


def _left_soon(state: State, live: ByKind, now: float) -> set[str]:
    """The kinds of which a pod waited when we left and is no longer there: it was helped."""
    if state.gone_since is None or now - state.gone_since >= PROOF_S:
        return set()
    waiting = {pod.uid for pods in live.values() for pod in pods}
    return {kind for uid, kind in state.waiting.items() if uid not in waiting}


def strike(state: State, live: ByKind, policy: Policy, now: float) -> State:
    """Mutes the kinds that waited in vain for long enough."""
    for kind, pods in live.items():
        wait_s = verdict_in_s(state, kind, policy, now)
        if wait_s is not None and wait_s <= 0:
            state = _mute(state, kind, pods, now)
    return state


def clear(state: State, live: ByKind, helpless: Iterable[Pod], now: float) -> State:
    """Mutes at once the kinds for which we left and whose words have since cleared us.

    The scheduler names the first reason only, so while we are there it may say that a node is full
    where the true reason, such as a volume elsewhere, comes to light when we are not. Once we are
    back it says 'full' again; without a verdict we would leave again and again.
    """
    for kind, pods in by_kind(pod for pod in helpless if pod.uid in state.waiting).items():
        if kind not in live:
            state = _mute(state, kind, pods, now)
    return state


def _mute(state: State, kind: str, pods: Iterable[Pod], now: float) -> State:
    strikes = state.mutes[kind].strikes + 1 if kind in state.mutes else 1
    window = min(WINDOW_S * 2.0 ** (strikes - 1), WINDOW_MAX_S)
    mute = Mute(strikes, now, now + window, frozenset(mark(pod.message) for pod in pods))
    tallies = {name: tally for name, tally in state.tallies.items() if name != kind}
    return replace(state, mutes={**state.mutes, kind: mute}, tallies=tallies)


def verdict_in_s(state: State, kind: str, policy: Policy, now: float) -> float | None:
    """Seconds until pods of a kind that wait on are muted; None while we are not gone."""
    if state.gone_since is None:
        return None
    spent = state.tallies[kind].spent_s if kind in state.tallies else 0.0
    patience = policy.hopeless_after_s
    if kind in state.mutes:
        patience = min(patience, PROBE_S)
    return max(patience - spent, min(PROOF_S, patience) - (now - state.gone_since))
