"""Notices that somebody else keeps scaling what we scale, whoever that is; pure."""

from __future__ import annotations

from collections import deque

_MANY, _WITHIN_S = 6, 60.0  # so many foreign changes in so many seconds are no coincidence
_TRUCE_S = 120.0  # seconds without a foreign change until we believe that it is over
_OURS = 4  # of our latest wishes; an answer may be lost, and the wish come true later


class Feud:
    """Counts changes of the target's scale that are not ours."""

    def __init__(self) -> None:
        self._wishes: deque[int] = deque(maxlen=_OURS)
        self._foreign: deque[float] = deque(maxlen=_MANY)
        self._replicas: int | None = None
        self._since: float | None = None

    def wished(self, replicas: int) -> None:
        """We are about to write this."""
        self._wishes.append(replicas)

    def opponent(self, replicas: int, now: float) -> str | None:
        """Takes in what is seen; returns who fights us, None if nobody does."""
        if replicas != self._replicas:
            if self._replicas is not None and replicas not in self._wishes:
                self._foreign.append(now)
            self._replicas = replicas
        if len(self._foreign) == _MANY and now - self._foreign[0] < _WITHIN_S:
            self._since = self._foreign[-1]
        if self._since is None:
            return None
        if now - max(self._since, self._foreign[-1]) > _TRUCE_S:
            self._since = None
            self._foreign.clear()
            return None
        return f"somebody who scales it again and again ({_MANY} times within a minute)"
