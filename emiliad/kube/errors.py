"""What can go wrong with a request to the API server, in the few kinds that callers tell apart."""

from __future__ import annotations

from typing import NoReturn

from emiliad.errors import ConfigError, EmiliadError


class KubeError(EmiliadError):
    """A request failed; the base of them all."""


class Forbidden(KubeError):
    """Not allowed (401 or 403): repeating helps only once somebody changes the rights."""


class NotFound(KubeError):
    """No such object (404)."""


class Conflict(KubeError):
    """The object has changed or exists already (409); nothing was written."""


class Gone(KubeError):
    """The resource version is too old to watch from (410): list again."""


class Refused(KubeError):
    """The API server finds the request wrong (another 4xx); nothing was written."""


class Throttled(KubeError):
    """Too many requests (429); nothing was written."""

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s  # seconds that the server asks to wait


class Unreachable(KubeError):
    """No usable answer: connection, timeout, 5xx, or not JSON. A write may have been applied."""


class Silent(Unreachable):
    """A watch brought nothing for longer than a living server stays silent."""


class NoCluster(ConfigError):
    """Neither a mounted service account nor a kubeconfig says where the API server is."""


def refuse(what: str, status: int, message: str, *, after_s: float = 1.0) -> NoReturn:
    """Raises the error that a status stands for, be it of an answer or of a watch's event."""
    text = f"{what}: {status}: {message}"
    match status:
        case 401 | 403:
            raise Forbidden(text)
        case 404:
            raise NotFound(text)
        case 409:
            raise Conflict(text)
        case 410:
            raise Gone(text)
        case 429:
            raise Throttled(text, after_s=after_s)
        case _ if 400 <= status <= 499:
            raise Refused(text)
        case _:
            raise Unreachable(text)
