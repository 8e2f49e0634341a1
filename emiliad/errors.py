"""The errors that emiliad raises on purpose; each message says what, where and what to do."""

from __future__ import annotations


class EmiliadError(Exception):
    """The base of them all: shown to people as one sentence, without a traceback."""


class ConfigError(EmiliadError):
    """A missing or malformed setting or argument: exit code 2."""


class StoreError(EmiliadError):
    """The object store refused or failed a request."""


class InvalidKey(StoreError):
    """This store cannot hold an object of this name; the message says why."""


class NotFound(StoreError):
    """No object has this key."""


class PreconditionFailed(StoreError):
    """A conditional write found another state than it asked for; nothing was written."""


class Throttled(StoreError):
    """The store asks for fewer requests; nothing was written."""


class Ambiguous(StoreError):
    """The answer was lost: the request may have been applied, or may be applied later."""


class StoreUnusable(StoreError):
    """Wrong endpoint, keys, bucket or rights, or a full disk: no retry will help."""


class DiskFull(StoreUnusable):
    """No space is left under the store; nothing half-written stays behind."""


class ScratchUnusable(EmiliadError):
    """The scratch directory went away, or its disk broke, while the daemon ran."""


class BadTask(EmiliadError):
    """A todo object is no task; the message says what is wrong with it."""


class ExecutorFailed(EmiliadError):
    """The executors cannot work on this machine: models missing, or a crash at each start."""
