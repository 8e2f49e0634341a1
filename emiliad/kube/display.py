"""Shows what the autokicker does and why: metrics, log lines, events, a page's status."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from emiliad import logs
from emiliad.autokick.model import Action, Decision, Pod, Stage, Target, View
from emiliad.kube.events import Events
from emiliad.metrics import AUTOKICK_PROBLEMS, AUTOKICK_STATES, AutokickMetrics

_NUMBER = re.compile(r"\d+")  # two reasons that differ in numbers alone are one
_log = logs.get("autokick")
_AWAY = (Stage.YIELD, Stage.SETTLE)  # in which we hold back for others
_FROZEN_S = 3.0  # seconds that we stand still before it is worth an event: a start takes less
_FORGET_S = 60.0  # seconds after which a write that failed and was not tried again is past
_MANY = 20  # names shown at most, of thousands that may wait


class Report(Protocol):
    """Where the status goes: a board in a daemon, the HTTP server of the autokicker alone."""

    def __call__(self, status: Mapping[str, Any], problem: str | None) -> None:
        """`status` holds JSON values; `problem` is one sentence, or None if all is well."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Our pods at one moment."""

    wanted: int
    bound: int
    unbound: int
    terminating: int

    @classmethod
    def of(cls, target: Target | None, ours: tuple[Pod, ...]) -> Counts:
        """Counts the pods that have not ended."""
        live = [pod for pod in ours if not pod.finished]
        staying = [pod for pod in live if not pod.terminating]
        bound = sum(pod.node is not None for pod in staying)
        return cls(
            wanted=target.replicas if target else 0,
            bound=bound,
            unbound=len(staying) - bound,
            terminating=len(live) - len(staying),
        )

    def as_dict(self) -> dict[str, int]:
        """By the names that the metric has."""
        names = ("wanted", "bound", "unbound", "terminating")
        return {name: getattr(self, name) for name in names}


class Display:
    """One autokicker, as seen from outside. `facts` are shown as they are."""

    def __init__(
        self,
        metrics: AutokickMetrics,
        report: Report,
        *,
        facts: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._report = report
        self._facts = dict(facts)
        self._clock = clock
        self._problems: dict[str, str] = {}
        self._leader = False
        self._stage: Stage | None = None
        self._reason = ""
        self._entered_at = clock()
        self._failure, self._failed_at = "", clock()  # of the last write
        self._told: tuple[Stage, str] | None = None
        self._away_since: float | None = None
        self._decided: dict[str, Any] = {}

    def leads(self, leader: bool) -> None:
        """Whether this autokicker may write from now on."""
        self._leader = leader
        self._metrics.leader.set(leader)
        if not leader:
            self.follows("another autokicker leads, or none does")

    def follows(self, why: str) -> None:
        """There is nothing to decide here."""
        self._enter(Decision(action=Action.NONE, stage=Stage.FROZEN, reason=why))
        self._decided = {}
        nothing = Counts.of(None, ())
        for kind, count in nothing.as_dict().items():
            self._metrics.replicas.labels(kind).set(count)
        for gauge in (self._metrics.blocked_pods, self._metrics.muted_pods):
            gauge.set(0)
        self._metrics.cache_age_seconds.set(0)
        self._publish()

    def fact(self, **facts: Any) -> None:
        """Notes things that are shown as they are: JSON values."""
        if any(self._facts.get(name) != value for name, value in facts.items()):
            self._facts.update(facts)
            self._publish()

    def problem(self, kind: str, sentence: str | None) -> None:
        """Notes what is wrong, or with None that it no longer is; `kind` is the metric's label."""
        if sentence == self._problems.get(kind):
            return
        if sentence is None:
            del self._problems[kind]
        else:
            self._problems[kind] = sentence
        if sentence is not None and kind == "version":
            _log.warning(
                "autokick.other_version", why=sentence
            )  # the others are logged as they arise
        for name in AUTOKICK_PROBLEMS:
            self._metrics.problems.labels(name).set(name in self._problems)
        self._publish()

    def decided(self, decision: Decision, view: View, events: Events | None) -> None:
        """Shows a decision; what could not be written counts as frozen, whatever was decided."""
        if self._clock() - self._failed_at > _FORGET_S:
            self.problem("write", None)
        if refusal := self._problems.get("write"):
            decision = replace(decision, stage=Stage.FROZEN, reason=refusal)
        counts = Counts.of(view.target, view.ours)
        for kind, count in counts.as_dict().items():
            self._metrics.replicas.labels(kind).set(count)
        self._metrics.blocked_pods.set(len(decision.blocked))
        self._metrics.muted_pods.set(len(decision.muted))
        self._metrics.cache_age_seconds.set(view.stale_s)
        before = self._stage
        self._enter(decision)
        if events is not None:
            self._tell(events, before, view.target)
        self._decided = {
            "replicas": counts.as_dict(),
            "blocked": decision.blocked[:_MANY],
            "muted": decision.muted[:_MANY],
            "cache_age_s": round(view.stale_s, 1) if view.synced else None,
        }
        self._publish()

    def kicked(self, why: str, seconds: float) -> None:
        """Room was made, so many seconds after it was seen that somebody needs it."""
        self._metrics.kicks.labels(why).inc()
        self._metrics.kick_latency_seconds.observe(seconds)

    def wrote(self, decision: Decision, before: int) -> None:
        """A write succeeded."""
        self._failure = ""
        self.problem("write", None)
        self._metrics.actions.labels(decision.action.value).inc()
        _log.info(
            "autokick.wrote",
            action=decision.action.value,
            before=before,
            replicas=decision.replicas,
            why=decision.reason,
        )

    def failed(self, error: Exception, *, for_good: bool) -> None:
        """A write failed; `for_good` if repeating it will not help by itself."""
        self._metrics.write_errors.inc()
        self._failed_at = self._clock()
        if str(error) != self._failure:
            self._failure = str(error)
            _log.warning("autokick.write_failed", error=self._failure)
        if for_good:
            self.problem("write", f"cannot write: {error}")

    def _enter(self, decision: Decision) -> None:
        """Notes the stage and its reason; logs what is new."""
        self._count_away(decision.stage)
        told = decision.stage, _NUMBER.sub("#", decision.reason)
        entered, self._stage, self._reason = self._stage, decision.stage, decision.reason
        if entered is not decision.stage:
            self._entered_at = self._clock()
            for state in AUTOKICK_STATES:
                self._metrics.state.labels(state).set(state == decision.state)
        elif told == self._told or decision.stage is Stage.FILL:
            return  # how far filling has come is told by what is written
        self._told = told
        say = _log.warning if decision.stage is Stage.FROZEN and self._leader else _log.info
        say(
            f"autokick.{decision.state}",
            why=decision.reason,
            blocked=decision.blocked[:_MANY],
            muted=decision.muted[:_MANY],
        )

    def _tell(self, events: Events, before: Stage | None, target: Target | None) -> None:
        """What people should find on the target itself; that we yield is said once it is done."""
        if self._stage is Stage.FROZEN:
            if self._clock() - self._entered_at >= _FROZEN_S:
                events.say("Frozen", self._reason, warning=True, target=target)
        elif self._stage is Stage.FILL and before in _AWAY:
            events.say("Resumed", self._reason, warning=False, target=target)

    def _count_away(self, stage: Stage) -> None:
        now = self._clock()
        if self._away_since is not None:
            self._metrics.yielded_seconds.inc(max(0.0, now - self._away_since))
        self._away_since = now if stage in _AWAY else None

    def _publish(self) -> None:
        stage = self._stage.value if self._stage else "off"
        frozen = self._reason if self._leader and self._stage is Stage.FROZEN else None
        status = {
            **self._facts,
            "state": stage,
            "reason": self._reason,
            "leader": self._leader,
            "problems": [*self._problems.values()],
            **self._decided,
        }
        self._report(status, "; ".join(filter(None, {frozen, *self._problems.values()})) or None)
