"""The API server over HTTP: every request bounded in time, every failure one of a few kinds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import aiohttp
import anyio
from aiohttp.abc import AbstractStreamWriter

from emiliad.kube import errors
from emiliad.kube.access import Access
from emiliad.kube.api import REQUEST_S, Json

_HEADERS_S = 15.0  # seconds until a watch must have begun to answer
_LONGEST_LINE = 32 * 2**20  # bytes; etcd holds no object above 1.5 MiB
_MERGE_PATCH = "application/merge-patch+json"
_MESSAGE = 300  # characters of an answer that go into an error's text


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Client]:
    """A client of the API server that `access` names."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=access.tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"emiliad-autokick/{_version()}", "Accept": "application/json"},
        trust_env=access.trust_env,
    ) as session:
        yield Client(access, session)


class Client:
    """An `emiliad.kube.api.Api` over HTTP."""

    def __init__(self, access: Access, session: aiohttp.ClientSession) -> None:
        self._access = access
        self._session = session

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_S,
        fence: Callable[[], bool] | None = None,
    ) -> Json:
        """See `Api`; of the methods, aiohttp itself repeats a GET or PUT once where a connection
        from its pool turns out to be dead."""
        limits = aiohttp.ClientTimeout(total=timeout_s)
        what = f"{method} {path}"
        async with (
            _translated(what),
            await self._request(method, path, _payload(body, fence), query, limits) as response,
        ):
            data = await response.read()
            _check(what, response, data)
            return _parsed(what, data)

    async def watch(
        self,
        path: str,
        query: Mapping[str, str],
        handle: Callable[[Json], None],
        *,
        opened: Callable[[], None],
        silence_s: float,
    ) -> None:
        """See `Api`."""
        limits = aiohttp.ClientTimeout(sock_connect=REQUEST_S, sock_read=silence_s)
        what = f"WATCH {path}"
        query = {**query, "watch": "true"}
        async with _translated(what):
            with anyio.fail_after(_HEADERS_S):
                response = await self._request("GET", path, None, query, limits)
            async with response:
                if response.status != 200:
                    _check(what, response, await response.read())
                opened()
                await _hand_on(what, response, handle)

    async def _request(
        self,
        method: str,
        path: str,
        body: _Fenced | None,
        query: Mapping[str, str] | None,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        response = await self._send(method, path, body, query, limits, refused=False)
        if response.status == 401:
            response.release()
            response = await self._send(method, path, body, query, limits, refused=True)
        return response

    async def _send(
        self,
        method: str,
        path: str,
        body: _Fenced | None,
        query: Mapping[str, str] | None,
        limits: aiohttp.ClientTimeout,
        *,
        refused: bool,
    ) -> aiohttp.ClientResponse:
        access = self._access
        headers = {}
        if authorization := await access.authorization(refused):
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = _MERGE_PATCH if method == "PATCH" else "application/json"
        return await self._session.request(
            method,
            access.url + path,
            params=query,
            data=body,
            headers=headers,
            timeout=limits,
            proxy=access.proxy,
            server_hostname=access.server_name,
            allow_redirects=False,
        )


class _Fenced(aiohttp.BytesPayload):
    """A body that leaves only if the fence is open at that moment."""

    def __init__(self, data: bytes, fence: Callable[[], bool] | None) -> None:
        super().__init__(data, content_type="application/json")
        self._fence = fence

    async def write_with_length(self, writer: AbstractStreamWriter, length: int | None) -> None:
        if self._fence is not None and not self._fence():
            raise ConnectionAbortedError("the right to send this has ended")
        await super().write_with_length(writer, length)


def _payload(body: Json | None, fence: Callable[[], bool] | None) -> _Fenced | None:
    return None if body is None else _Fenced(json.dumps(body).encode(), fence)


@asynccontextmanager
async def _translated(what: str) -> AsyncIterator[None]:
    """Whatever the network does becomes one of our own errors."""
    try:
        yield
    except aiohttp.SocketTimeoutError as error:
        raise errors.Silent(f"{what}: {error}") from None
    except TimeoutError:
        raise errors.Unreachable(f"{what}: no answer in time") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise errors.Unreachable(f"{what}: {type(error).__name__}: {error}") from None


def _check(what: str, response: aiohttp.ClientResponse, data: bytes) -> None:
    """Raises what an answer other than 2xx means."""
    if not 200 <= response.status <= 299:
        after = response.headers.get("Retry-After", "")
        errors.refuse(
            what, response.status, _message(data), after_s=float(after) if after.isdigit() else 1
        )


def _message(data: bytes) -> str:
    """The sentence in a Status object, or the beginning of whatever else this is."""
    try:
        found = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        found = data[:_MESSAGE].decode(errors="replace")
    return str(found)[:_MESSAGE]


def _parsed(what: str, data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise errors.Unreachable(f"{what}: the answer is no JSON object")
    return value


async def _hand_on(
    what: str, response: aiohttp.ClientResponse, handle: Callable[[Json], None]
) -> None:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                handle(_parsed(what, line))
        if len(rest) > _LONGEST_LINE:
            raise errors.Unreachable(f"{what}: a line without an end")
    if rest.strip():
        raise errors.Unreachable(f"{what}: the stream ended in the middle of a line")


def _version() -> str:
    try:
        return version("emiliad")
    except PackageNotFoundError:
        return "unknown"
