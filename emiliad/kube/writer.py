"""Writes what was decided on to the target: its scale, or a DaemonSet's node selector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anyio

from emiliad.autokick.model import Action, Decision, Target
from emiliad.autokick.pods import HOLD_KEY, HOLD_VALUE, target_from
from emiliad.kube.api import DAEMONSETS, DEPLOYMENTS, Api
from emiliad.kube.errors import Conflict, Forbidden, KubeError, NotFound, Refused, Throttled
from emiliad.kube.tenure import Tenure, uptime

_WRITE_S = 3.0  # seconds that a write may take
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0
_NOT_APPLIED = (Conflict, Forbidden, NotFound, Refused, Throttled)  # errors that leave no doubt


class Writer:
    """Writes to one target, one request at a time; the caller awaits each before the next.

    How often one may write is the core's affair; here only failures make the next one wait.
    """

    def __init__(self, api: Api, tenure: Tenure, *, clock: Callable[[], float] = uptime) -> None:
        self._api = api
        self._tenure = tenure
        self._clock = clock
        self._next = clock()  # when the next write may begin
        self._failures = 0

    def due_in_s(self) -> float:
        """Seconds until the next write may be tried, 0 if now."""
        return max(0.0, self._next - self._clock())

    async def write(self, decision: Decision, target: Target) -> tuple[str, Target]:
        """Writes once; returns the target as it is now, and its resource version.

        Raises KubeError, after which `due_in_s` grows. A cancellation waits for the answer, as
        long as the right to write lasts: what is still under way must not outlive it.
        """
        try:
            with anyio.CancelScope(shield=True):
                written = await self._send(decision, target)
        except KubeError as error:
            self._tenure.unsettled = not isinstance(error, _NOT_APPLIED)
            self._failures += 1
            pause_s = min(_FIRST_RETRY_S * 2 ** (self._failures - 1), _LONGEST_RETRY_S)
            self._next = self._clock() + pause_s
            raise
        self._tenure.unsettled = False
        self._failures = 0
        return written

    async def _send(self, decision: Decision, target: Target) -> tuple[str, Target]:
        left_s = min(_WRITE_S, self._tenure.left_s())
        if left_s <= 0:
            raise Conflict("the right to write has ended")
        if decision.replicas is not None:
            return await self._scale(target, decision.replicas, left_s)
        return await self._hold(target, decision.action is Action.HOLD, left_s)

    async def _scale(self, target: Target, replicas: int, left_s: float) -> tuple[str, Target]:
        answer = await self._api.call(
            "PATCH",
            DEPLOYMENTS.path(target.namespace, target.name, "scale"),
            {"spec": {"replicas": replicas}},
            timeout_s=left_s,
            fence=self._may,
        )
        return _version(answer), replace(target, replicas=replicas)

    async def _hold(self, target: Target, hold: bool, left_s: float) -> tuple[str, Target]:
        selector = {HOLD_KEY: HOLD_VALUE if hold else None}
        answer = await self._api.call(
            "PATCH",
            DAEMONSETS.path(target.namespace, target.name),
            {"spec": {"template": {"spec": {"nodeSelector": selector}}}},
            timeout_s=left_s,
            fence=self._may,
        )
        return _version(answer), target_from(answer)

    def _may(self) -> bool:
        return self._tenure.left_s() > 0


def _version(answer: dict[str, object]) -> str:
    meta = answer.get("metadata")
    return str(meta.get("resourceVersion", "")) if isinstance(meta, dict) else ""
