"""Single requests to an S3 server, each bounded in time: the only module that knows aioboto3.

Nothing below this module repeats a request, neither botocore nor aiohttp. A conditional PUT that is
repeated after it was applied would be answered with a 412, and the winner would take itself for
the loser.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import aioboto3
import aiohttp
import anyio
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    SSLError,
)
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError

from emiliad.errors import Ambiguous, StoreError, StoreUnusable
from emiliad.store import Observe, result_of
from emiliad.stores.answers import Refusal, Request, explain
from emiliad.stores.r2 import R2

T = TypeVar("T")

_CONNECT_S = 5.0
_SILENT = 2  # limits of a small request without a byte, after which a connection counts as dead
_SLOWEST = 256 * 1024  # bytes a second that a body must make at least
# A server that has answered nothing for so long since the first try is likelier misnamed than ill.
# Shorter than the patience with a store, so that a pod whose network comes late still starts.
_HOPELESS_S = 3.0
_NEVER_CONNECTED = (
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ResponseParserError,
    SSLError,
)
_UNANSWERED = (BotoCoreError, aiohttp.ClientError, ConnectionError, TimeoutError)
# The bucket and its keys come from our settings, whatever else is set up on this machine.
_OURS_ALONE = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
    "use_dualstack_endpoint": (None, None, None, None),
    "use_fips_endpoint": (None, None, None, None),
}


class _HttpSession(AIOHTTPSession):  # type: ignore[misc]
    """aiohttp without its own retry: it repeats a PUT when a pooled connection breaks."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


def _config(connections: int, limit_s: float) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": "path", "payload_signing_enabled": False},  # bodies have an MD5
        region_name="us-east-1",  # an alias of R2's `auto`, which other servers do not know
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",  # R2 refuses the client's default ones
        response_checksum_validation="when_required",
        connect_timeout=_CONNECT_S,
        read_timeout=_SILENT * limit_s,
        max_pool_connections=connections,
        tcp_keepalive=True,
        http_session_cls=_HttpSession,
    )


class Connection:
    """A client of the bucket `where`, made at the first request, for `concurrency` at a time.

    A request is given up after `limit_s`, one with a large body after the time that it would take
    at the slowest rate that is borne. `observe` hears of each.
    """

    def __init__(self, where: R2, *, concurrency: int, limit_s: float, observe: Observe) -> None:
        self._where = where
        self._concurrency = concurrency
        self._limit_s = limit_s
        self._observe = observe
        # Requests wait here and not for a connection, so that waiting does not use up their limit.
        self._slots = anyio.Semaphore(concurrency)
        self._opening = anyio.Lock()
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._answered = False
        self._first_failure: float | None = None

    async def send(
        self,
        operation: str,
        request: Request,
        work: Callable[[Any], Awaitable[T]],
        *,
        size: int = 0,
    ) -> T:
        """The outcome of `work` with the client: one request, with a body of `size` bytes.

        Raises StoreError.
        """
        limit_s = self._limit_s + size / _SLOWEST
        async with self._slots:
            client = await self._open()
            began = time.perf_counter()
            result = "cancelled"
            try:
                with anyio.fail_after(limit_s):
                    answer = await work(client)
                self._answered = True
                result = "ok"
            except ClientError as error:
                self._answered = True
                failure = explain(_refusal(error), request, self._where)
                result = result_of(failure)
                raise failure from error
            except _UNANSWERED as error:
                failure = self._lost(error, request, limit_s)
                result = result_of(failure)
                raise failure from error
            finally:
                self._observe(operation, result, time.perf_counter() - began)
        return answer

    async def aclose(self) -> None:
        """Closes the connections."""
        async with self._opening:
            self._client = None
            await self._stack.aclose()

    async def _open(self) -> Any:
        async with self._opening:
            if self._client is None:
                session = aioboto3.Session(
                    aws_access_key_id=self._where.access_key_id,
                    aws_secret_access_key=self._where.secret_access_key,
                    botocore_session=AioSession(session_vars=_OURS_ALONE),
                )
                context = session.client(
                    "s3",
                    endpoint_url=self._where.endpoint_url,
                    config=_config(self._concurrency, self._limit_s),
                )
                self._client = await self._stack.enter_async_context(context)
                # R2 sends no 100, and aiohttp would wait for it without an end.
                self._client.meta.events.unregister("before-call.s3", add_expect_header)
            return self._client

    def _lost(self, error: Exception, request: Request, limit_s: float) -> StoreError:
        """What to make of a request that got no answer, or an unreadable one."""
        endpoint = self._where.endpoint_url
        if not isinstance(error, _NEVER_CONNECTED):
            reason = f"no answer within {limit_s:.0f} s" if _is_limit(error) else _reason(error)
            return Ambiguous(f"{endpoint} did not answer for {request.key!r}: {reason}")
        now = time.monotonic()
        self._first_failure = self._first_failure or now
        hopeless = not self._answered and now - self._first_failure >= _HOPELESS_S
        return (StoreUnusable if hopeless else Ambiguous)(
            f"{endpoint} cannot be reached: {_reason(error)}; check R2_ENDPOINT_URL, and that this "
            "machine may reach it"
        )


def _refusal(error: ClientError) -> Refusal:
    told = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return Refusal(int(status), str(told.get("Code", "")), str(told.get("Message", "")))


def _is_limit(error: BaseException) -> bool:
    return type(error) is TimeoutError


def _reason(error: BaseException) -> str:
    """The innermost cause, without the addresses and headers that the outer ones tell."""
    if isinstance(error, ResponseParserError):
        return "what answers there is no S3 server"
    inner: Any = error
    while True:
        cause = getattr(inner, "kwargs", {}).get("error") or getattr(inner, "os_error", None)
        if not isinstance(cause, BaseException):
            break
        inner = cause
    match inner:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not to be trusted ({inner.verify_message})"
        case ssl.SSLError():
            return f"it does not speak TLS as we do ({inner.reason})"
        case socket.gaierror():
            return str(inner.strerror)
        case OSError(errno=int(number)):
            return os.strerror(number)
    return type(inner).__name__
