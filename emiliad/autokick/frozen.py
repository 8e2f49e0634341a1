"""Why nothing may be written now: a guess would be worse than standing still."""

from __future__ import annotations

from emiliad.autokick.model import Policy, Target, View

SWITCH = "emiliad.io/autokick"  # the target's annotation that turns us off, with the value off


def why_frozen(view: View, policy: Policy) -> str | None:
    """The first reason, in one sentence; None if we may act."""
    if policy.mode == "off":
        return "AUTOKICK_MODE is off"
    if not view.leader:
        return "another autokicker leads, or none does yet"
    if not view.synced:
        return "not everything that counts was listed yet"
    if view.stale_s > policy.stale_s:
        return f"the API server was last heard of {view.stale_s:.0f} s ago"
    if view.target is None:
        return f"there is no such {policy.kind}"
    return _by_target(view.target, policy) or _by_others(view) or _by_place(policy)


def _by_target(target: Target, policy: Policy) -> str | None:
    what = f"{target.kind} {target.namespace}/{target.name}"
    if target.kind != policy.kind:
        return f"{what} is no {policy.kind}"
    if target.terminating:
        return f"{what} is being deleted"
    if target.paused:
        return f"{what} is paused"
    if target.annotations.get(SWITCH) == "off":
        return f"{what} has the annotation {SWITCH}=off"
    if not (target.selector if policy.our_selector is None else policy.our_selector):
        return f"{what} has no selector that would tell our pods from others"
    return None


def _by_others(view: View) -> str | None:
    if view.fought_by is None:
        return None
    return f"{view.fought_by} scales the same target: remove it, or turn the autokicker off"


def _by_place(policy: Policy) -> str | None:
    """Who would remove itself could not come back."""
    if policy.standalone or policy.partial:
        return None
    return (
        "this autokicker runs in one of the pods that it would remove, and nobody would bring them "
        "back: run `emiliad autokick` beside them"
        + ("" if policy.holds else ", or set AUTOKICK_MODE=needed, which leaves one")
    )
