"""Says on the target, as Kubernetes events, what was done and for whom; never in anyone's way."""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

import anyio

from emiliad import logs
from emiliad.autokick.model import Target
from emiliad.kube.api import DEPLOYMENTS, EVENTS, Api, Json
from emiliad.kube.errors import Forbidden, KubeError

_COMPONENT = "emiliad-autokick"
_WAITING = 16  # events kept while the API server is slow; the oldest go first
_BURST, _REFILL_S = 10, 30.0  # so many at once, then one in so many seconds
_SAME_S = 600.0  # seconds during which the same words are not said again
_LONGEST = 1024  # characters that the API server takes as a message
_NUMBER = re.compile(r"\d+")  # messages that differ in numbers alone are the same
_log = logs.get("kube.events")


class Events:
    """Events about one target; `say` returns at once, `run` sends."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        kind: str,
        name: str,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._api = api
        self._namespace, self._kind, self._name = namespace, kind, name
        self._clock = clock
        self._waiting: deque[Json] = deque(maxlen=_WAITING)
        self._wake = anyio.Event()
        self._tokens, self._counted_at = float(_BURST), clock()
        self._said: dict[tuple[str, str], float] = {}
        self._silenced = False

    def say(self, reason: str, message: str, *, warning: bool, target: Target | None) -> None:
        """Notes an event to be sent, unless it was said lately or too much is said already."""
        now = self._clock()
        self._said = {what: at for what, at in self._said.items() if now - at < _SAME_S}
        words = reason, _NUMBER.sub("#", message)
        if words in self._said or not self._token(now):
            return
        self._said[words] = now
        self._waiting.append(self._event(reason, message, warning, target))
        self._wake.set()

    async def run(self) -> NoReturn:
        """Sends what is noted, once each, until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._waiting:
                await self._send(self._waiting.popleft())

    async def _send(self, event: Json) -> None:
        try:
            await self._api.call("POST", EVENTS.path(self._namespace), event)
        except Forbidden as error:
            if not self._silenced:
                _log.warning("events.forbidden", error=str(error))
            self._silenced = True
        except KubeError as error:
            _log.info("events.lost", error=str(error), message=event["message"])

    def _token(self, now: float) -> bool:
        earned = (now - self._counted_at) / _REFILL_S
        self._tokens, self._counted_at = min(float(_BURST), self._tokens + earned), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _event(self, reason: str, message: str, warning: bool, target: Target | None) -> Json:
        now = datetime.now(UTC)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {
            "apiVersion": DEPLOYMENTS.api_version,
            "kind": self._kind,
            "namespace": self._namespace,
            "name": self._name,
        }
        if target is not None and target.uid:
            about["uid"] = target.uid
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"generateName": f"{self._name}.", "namespace": self._namespace},
            "involvedObject": about,
            "reason": reason,
            "message": message[:_LONGEST],
            "type": "Warning" if warning else "Normal",
            "source": {"component": _COMPONENT},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
            "reportingComponent": _COMPONENT,
            "reportingInstance": socket.gethostname()[:128],
        }
