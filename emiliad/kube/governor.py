"""Carries out what the core decides, for as long as this autokicker may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio

from emiliad.autokick.core import decide
from emiliad.autokick.model import Action, Decision, Policy, Stage, State, Target, View
from emiliad.kube.api import Api
from emiliad.kube.display import Display
from emiliad.kube.errors import Forbidden, KubeError, NotFound, Refused
from emiliad.kube.events import Events
from emiliad.kube.feud import Feud
from emiliad.kube.mirror import Mirror, Scope
from emiliad.kube.tenure import Tenure, uptime
from emiliad.kube.writer import Writer

_LOOK_S = 5.0  # seconds after which ages are looked at and shown even if nothing happens
_AGAIN_S = 0.01  # seconds between two decisions, so that a busy cluster costs little
_FOR_GOOD = (Forbidden, NotFound, Refused)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one autokicker works on. `restore` is the scale to leave behind, None: as it is."""

    scope: Scope
    policy: Policy
    restore: int | None = None


class Governor:
    """Watches the cluster and keeps the target as the core wants it."""

    def __init__(
        self,
        api: Api,
        plan: Plan,
        display: Display,
        *,
        restarted: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = uptime,
    ) -> None:
        self._api = api
        self._plan = plan
        self._display = display
        self._restarted = restarted
        self._clock = clock

    async def run(self, tenure: Tenure) -> None:
        """Governs until it is cancelled."""
        term = _Term(self, tenure)
        async with anyio.create_task_group() as group:
            group.start_soon(term.mirror.run)
            group.start_soon(term.events.run)
            try:
                await term.govern()
            except anyio.get_cancelled_exc_class():
                await term.restore()
                raise

    async def look(self, would: Callable[[str], None]) -> None:
        """Governs nothing, and says what it would do, until it is cancelled."""
        term = _Term(self, Tenure(0.0, self._clock))
        async with anyio.create_task_group() as group:
            group.start_soon(term.mirror.run)
            await term.look(would)


class _Term:
    """One time of leading: what is remembered ends with it."""

    def __init__(self, governor: Governor, tenure: Tenure) -> None:
        scope = governor._plan.scope
        self._plan = governor._plan
        self._display = governor._display
        self._clock = governor._clock
        self._change = anyio.Event()
        self.mirror = Mirror(
            governor._api, scope, changed=self._changed, restarted=governor._restarted
        )
        self.events = Events(
            governor._api, namespace=scope.namespace, kind=scope.kind, name=scope.name
        )
        self._writer = Writer(governor._api, tenure, clock=self._clock)
        self._tenure = tenure
        self._feud = Feud()
        self._state = State()
        self._kick_since: float | None = None
        self._kicked_already = False  # the kick that is due is not the first for whom we left

    async def govern(self) -> None:
        """Decides and writes, for ever."""
        while True:
            change = self._change
            view, decision = self._decide()
            self._display.decided(decision, view, self.events)
            wait_s = _LOOK_S if decision.next_look_s is None else min(decision.next_look_s, _LOOK_S)
            if decision.action is not Action.NONE and view.target is not None:
                due_s = self._writer.due_in_s()
                if due_s <= 0:
                    await self._write(decision, view.target)
                    continue
                wait_s = min(wait_s, due_s)
            await self._pause(change, wait_s)

    async def look(self, would: Callable[[str], None]) -> None:
        """Decides, for ever, and only says so."""
        said = ""
        while True:
            change = self._change
            view, decision = self._decide()
            self._display.decided(decision, view, None)
            sentence = _would(decision, view)
            if sentence != said and (view.synced or self.mirror.problems):
                would(said := sentence)
            wait_s = _LOOK_S if decision.next_look_s is None else min(decision.next_look_s, _LOOK_S)
            await self._pause(change, wait_s)

    async def restore(self) -> None:
        """Leaves the scale behind that the settings ask for, if this autokicker may still write."""
        target, replicas = self.mirror.target, self._plan.restore
        if replicas is None or target is None or self._tenure.left_s() <= 0:
            return
        action = Action.GROW if replicas > target.replicas else Action.TRIM
        reason = "RESTORE_ON_EXIT is set"
        await self._write(
            Decision(action=action, stage=Stage.FROZEN, reason=reason, replicas=replicas), target
        )

    def _decide(self) -> tuple[View, Decision]:
        view, now = self.mirror.view(), self._clock()
        if view.target is not None and view.fought_by is None:
            view = replace(view, fought_by=self._feud.opponent(view.target.replicas, now))
        self._display.problem("watch", "; ".join(self.mirror.problems) or None)
        before = self._state.stage
        decision, self._state = decide(view, self._state, self._plan.policy, now)
        if decision.action not in (Action.KICK, Action.HOLD):
            self._kick_since = None
        elif self._kick_since is None:
            self._kick_since = now
            self._kicked_already = before is Stage.YIELD and self._plan.policy.mode == "all"
        return view, decision

    async def _write(self, decision: Decision, target: Target) -> None:
        if decision.replicas is not None:
            self._feud.wished(decision.replicas)
        try:
            version, written = await self._writer.write(decision, target)
        except KubeError as error:
            self._display.failed(error, for_good=isinstance(error, _FOR_GOOD))
            return
        self.mirror.wrote(version, written)
        self._display.wrote(decision, target.replicas)
        if self._kick_since is not None:
            why = "scaled_up" if self._kicked_already else "unschedulable"
            self._display.kicked(why, self._clock() - self._kick_since)
            self.events.say("Yielded", decision.reason, warning=False, target=written)
            self._kick_since = None

    async def _pause(self, change: anyio.Event, wait_s: float) -> None:
        """Waits for a change; changes that come together are one."""
        await anyio.sleep(_AGAIN_S)
        with anyio.move_on_after(max(0.0, wait_s - _AGAIN_S)):
            await change.wait()

    def _changed(self) -> None:
        self._change.set()
        self._change = anyio.Event()


def _would(decision: Decision, view: View) -> str:
    """One line for people: what would be written now, and why."""
    name = f"{view.target.namespace}/{view.target.name}" if view.target else "the target"
    match decision.action:
        case Action.NONE:
            doing = "nothing to write"
        case Action.HOLD:
            doing = f"would keep every pod of {name} off its node"
        case Action.RELEASE:
            doing = f"would let the pods of {name} come back"
        case _:
            before = view.target.replicas if view.target else "?"
            doing = f"would scale {name} from {before} to {decision.replicas}"
    return f"{decision.state}: {doing}: {decision.reason}"
