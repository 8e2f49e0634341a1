"""A toy API server: what the autokicker uses of a real one, with rights, faults and an audit log.

Its transport is `ops.rig.http`, or calls of `answer` and `follow` from the same process.
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ops.rig.objects import KINDS, ApiError, Change, Json, Objects, Predicate, merged, selector
from ops.rig.rbac import Request, Rule

_PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_DEFAULT_WATCH_S = 1800.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One line of the audit log. `code` is 0 until the answer is known."""

    at: float
    request: Request
    agent: str
    code: int
    body: Any


@dataclass(slots=True)
class ApiServer:
    """Objects behind requests. `rights` None allows everything."""

    objects: Objects = field(default_factory=Objects)
    rights: list[Rule] | None = None
    bookmark_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    audit: list[Seen] = field(default_factory=list)

    def asked(self, method: str, path: str, query: Mapping[str, str]) -> Request:
        """What a request asks for. Raises ApiError (404)."""
        found = _PATH.match(path)
        if not found:
            raise ApiError(404, "NotFound", f"the server could not find {path}")
        name = found["name"] or ""
        verb = _VERBS.get(method) or ("get" if name else "list")
        if method == "GET" and query.get("watch", "").lower() in ("true", "1"):
            verb = "watch"
        return Request(
            verb,
            found["group"] or "",
            found["resource"],
            found["sub"] or "",
            found["namespace"] or "",
            name,
            query.get("fieldSelector", ""),
        )

    def note(self, request: Request, code: int, body: Any = None, agent: str = "") -> None:
        """Writes the audit log."""
        self.audit.append(Seen(self.clock(), request, agent, code, copy.deepcopy(body)))

    def count(self, verb: str, resource: str = "", *, since: int = 0) -> int:
        """How many requests there were, by verb and resource (with a slash before the sub)."""
        return sum(
            seen.request.verb == verb and resource in ("", seen.request.what)
            for seen in self.audit[since:]
        )

    def authorise(self, request: Request) -> None:
        """Raises ApiError (403) if no rule allows the request."""
        if self.rights is not None and not any(rule.allows(request) for rule in self.rights):
            group = request.group
            raise ApiError(
                403,
                "Forbidden",
                f'cannot {request.verb} resource "{request.what}" in API group "{group}" '
                f'in the namespace "{request.namespace}"',
            )

    def answer(self, request: Request, query: Mapping[str, str], body: Json | None) -> Json:
        """What a request that is no watch gives. Raises ApiError."""
        self.authorise(request)
        if request.resource not in KINDS:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if request.verb == "list":
            return self._list(request, query)
        if request.sub == "scale":
            return self._scale(request, body or {})
        return copy.deepcopy(self._write(request, body or {}))

    def _list(self, request: Request, query: Mapping[str, str]) -> Json:
        fits = selector(query.get("labelSelector", ""), request.fields)
        version, kind = KINDS[request.resource]
        items = self.objects.all(request.resource, request.namespace or None)
        return {
            "apiVersion": version,
            "kind": f"{kind}List",
            "metadata": {"resourceVersion": str(self.objects.version)},
            "items": [item for item in items if fits(item)],
        }

    def _write(self, request: Request, body: Json) -> Json:
        objects, where = self.objects, (request.resource, request.namespace, request.name)
        version = (body.get("metadata") or {}).get("resourceVersion")
        match request.verb:
            case "get":
                return objects.get(*where)
            case "create":
                return objects.create(request.resource, request.namespace, body)
            case "patch":
                return objects.update(*where, lambda item: merged(item, body), version)
            case "update":
                return objects.update(*where, lambda old: _replaced(old, body), version)
            case _:
                return objects.delete(*where)

    def _scale(self, request: Request, body: Json) -> Json:
        where = request.resource, request.namespace, request.name
        item = self.objects.get(*where)
        if request.verb != "get":
            replicas = body["spec"]["replicas"]
            version = (body.get("metadata") or {}).get("resourceVersion")
            item = self.objects.update(
                *where, lambda found: found["spec"].update(replicas=replicas), version
            )
        names = ("name", "namespace", "uid", "resourceVersion")
        return {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {name: item["metadata"][name] for name in names},
            "spec": {"replicas": item["spec"].get("replicas", 1)},
            "status": {"replicas": item.get("status", {}).get("replicas", 0)},
        }

    async def follow(self, request: Request, query: Mapping[str, str]) -> AsyncGenerator[Json]:
        """The events of a watch, until its time is over. Raises ApiError before the first."""
        self.authorise(request)
        fits = selector(query.get("labelSelector", ""), request.fields)
        end = self.clock() + float(query.get("timeoutSeconds") or _DEFAULT_WATCH_S)
        version = int(query["resourceVersion"])
        bookmarks = query.get("allowWatchBookmarks") == "true"
        due = self.clock() + self.bookmark_s if bookmarks else float("inf")
        while True:
            try:
                changes = self.objects.since(version)
            except ApiError as error:
                yield {"type": "ERROR", "object": error.status()}
                return
            for change in changes:
                version = change.version
                if event := _event(request, change, fits):
                    yield event
            now = self.clock()
            if now >= end:
                return
            if now >= due:
                due = now + self.bookmark_s
                yield _bookmark(request.resource, version)
            if version == self.objects.version:
                await self._pause(min(end, due) - now)

    async def _pause(self, seconds: float) -> None:
        """Waits for a change, but no longer than that."""
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self.objects.wait()
        except TimeoutError:
            pass


def _replaced(old: Json, body: Json) -> Json:
    """A PUT: what the body says, with what only the server sets kept."""
    new = copy.deepcopy(body)
    new["metadata"] = {**old["metadata"], **new["metadata"]}
    if "status" in old:
        new["status"] = old["status"]
    return new


def _event(request: Request, change: Change, fits: Predicate) -> Json | None:
    """A change as one watch sees it: an object that no longer fits is delivered as DELETED."""
    if change.resource != request.resource:
        return None
    space = (change.new or change.old or {})["metadata"].get("namespace", "")
    if request.namespace and space != request.namespace:
        return None
    was = change.old is not None and fits(change.old)
    if change.new is not None and fits(change.new):
        return {"type": "MODIFIED" if was else "ADDED", "object": change.new}
    if not was or change.old is None:
        return None
    meta = {**change.old["metadata"], "resourceVersion": str(change.version)}
    return {"type": "DELETED", "object": {**change.old, "metadata": meta}}


def _bookmark(resource: str, version: int) -> Json:
    api_version, kind = KINDS[resource]
    meta = {"resourceVersion": str(version)}
    return {
        "type": "BOOKMARK",
        "object": {"apiVersion": api_version, "kind": kind, "metadata": meta},
    }
