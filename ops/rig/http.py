"""The toy API server over HTTP, with every way in which a network and a server can misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiohttp import web

from ops.rig.apiserver import ApiServer
from ops.rig.objects import ApiError, Json
from ops.rig.rbac import Request


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request; the default is that nothing does."""

    delay_s: float = 0.0  # before anything is done
    abort: bool = False  # the connection breaks, nothing is done
    lose_answer: bool = False  # the request is carried out, then the connection breaks
    status: int = 0  # this status instead of an answer
    text: str = ""  # ... with this body; default: a Status object
    hang: bool = False  # neither done nor answered, for ever
    cut_after: int | None = None  # a watch: after so many events the connection breaks in a line
    end_after: int | None = None  # ... the stream ends in good order, but in the middle of a line
    silent_after: int | None = None  # ... nothing comes any more, the connection stays


GOOD = Fault()
Choose = Callable[[Request], Fault]


class Front:
    """Serves an `ApiServer` on a free port of this machine; `choose` picks each request's fault."""

    def __init__(self, server: ApiServer, choose: Choose = lambda _: GOOD) -> None:
        self.server = server
        self.choose = choose
        self.url = ""
        self.watches = 0  # open at this moment

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[Front]:
        """Listens while the context lasts; open watches are cut at its end."""
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        agent = http.headers.get("User-Agent", "")
        try:
            request = self.server.asked(http.method, http.path, http.query)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        body = await http.json() if http.can_read_body else None
        fault = self.choose(request)
        await asyncio.sleep(fault.delay_s)
        if fault.hang:
            await asyncio.Event().wait()
        if fault.abort:
            return _broken(http)
        if fault.status:
            self.server.note(request, fault.status, body, agent)
            return _instead(fault)
        try:
            if request.verb == "watch":
                self.server.authorise(request)
                self.server.note(request, 200, None, agent)
                return await self._watch(http, request, fault)
            if http.method == "PATCH" and http.content_type != "application/merge-patch+json":
                raise ApiError(415, "UnsupportedMediaType", "merge patches only")
            answer = self.server.answer(request, http.query, body)
        except ApiError as error:
            self.server.note(request, error.code, body, agent)
            return web.json_response(error.status(), status=error.code)
        self.server.note(request, 200, body, agent)
        if fault.lose_answer:
            return _broken(http)
        return web.json_response(answer, status=201 if request.verb == "create" else 200)

    async def _watch(self, http: web.Request, request: Request, fault: Fault) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(http)
        self.watches += 1
        sent = 0
        try:
            with suppress(ConnectionError):
                async for event in self.server.follow(request, http.query):
                    line = json.dumps(event).encode() + b"\n"
                    if sent == fault.silent_after:
                        await asyncio.Event().wait()
                    if sent in (fault.cut_after, fault.end_after):
                        await response.write(line[: len(line) // 2])
                        return _broken(http) if sent == fault.cut_after else response
                    await response.write(line)
                    sent += 1
        finally:
            self.watches -= 1
        return response


def _instead(fault: Fault) -> web.Response:
    if fault.text:
        return web.Response(status=fault.status, text=fault.text, content_type="text/html")
    body: Json = ApiError(fault.status, "Injected", "an injected fault").status()
    headers = {"Retry-After": "1"} if fault.status == 429 else {}
    return web.json_response(body, status=fault.status, headers=headers)


def _broken(http: web.Request) -> web.Response:
    """Resets the connection; the response goes nowhere."""
    if http.transport is not None:
        http.transport.abort()
    return web.Response()
