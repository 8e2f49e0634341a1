"""The objects of a toy cluster: one resource version for all, a log of changes, selectors.

Objects are plain JSON values that nobody changes in place: a write stores a new one.
"""

from __future__ import annotations

import asyncio
import copy
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace ("" if it has none), name
Predicate = Callable[[Json], bool]

KINDS = {
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "events": ("v1", "Event"),
    "deployments": ("apps/v1", "Deployment"),
    "daemonsets": ("apps/v1", "DaemonSet"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "horizontalpodautoscalers": ("autoscaling/v2", "HorizontalPodAutoscaler"),
}
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_GRACE_S = 30


class ApiError(Exception):
    """What the API server answers instead of an object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self) -> Json:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": self.code,
            "reason": self.reason,
            "message": str(self),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the log. `old` is None for a creation, `new` for a deletion."""

    version: int
    resource: str
    new: Json | None
    old: Json | None


@dataclass(slots=True)
class Objects:
    """All objects, with optimistic concurrency and graceful deletion."""

    items: dict[Key, Json] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)
    version: int = 100
    floor: int = 100  # the oldest version that can still be watched from
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Returns after the next change."""
        await self._changed.wait()

    def since(self, version: int) -> list[Change]:
        """The changes after a version. Raises ApiError (410) if it is too old."""
        if version < self.floor:
            raise ApiError(410, "Expired", f"too old resource version: {version} ({self.floor})")
        return self.log[version - self.floor :]

    def compact(self) -> None:
        """Forgets the log: every watch that is behind, or is opened from before, gets a 410."""
        self.floor, self.log = self.version, []

    def all(self, resource: str, namespace: str | None = None) -> list[Json]:
        """The objects of one resource, oldest first."""
        return [
            item
            for (kind, space, _), item in self.items.items()
            if kind == resource and namespace in (None, space)
        ]

    def get(self, resource: str, namespace: str, name: str) -> Json:
        """One object. Raises ApiError (404)."""
        try:
            return self.items[resource, namespace, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found') from None

    def create(self, resource: str, namespace: str, item: Mapping[str, Any]) -> Json:
        """Stores a new object. Raises ApiError."""
        new = copy.deepcopy(dict(item))
        meta = new.setdefault("metadata", {})
        if meta.get("resourceVersion"):
            raise ApiError(400, "BadRequest", "resourceVersion should not be set on creation")
        name = meta.get("name") or meta["generateName"] + uuid.uuid4().hex[:5]
        if (resource, namespace, name) in self.items:
            raise ApiError(409, "AlreadyExists", f'{resource} "{name}" already exists')
        new["apiVersion"], new["kind"] = KINDS[resource]
        meta.update(name=name, uid=str(uuid.uuid4()), generation=1)
        meta.setdefault("creationTimestamp", self._stamp())
        if namespace:
            meta["namespace"] = namespace
        if resource == "pods":
            new.setdefault("status", {}).setdefault("phase", "Pending")
        self._check(resource, new)
        return self._commit(resource, namespace, name, new, None)

    def update(
        self,
        resource: str,
        namespace: str,
        name: str,
        change: Callable[[Json], Json | None],
        version: str | None = None,
    ) -> Json:
        """Stores what `change` makes of an object, in place or as a new one. Raises ApiError."""
        old = self.get(resource, namespace, name)
        if version and version != old["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", f'{resource} "{name}": the object has been modified')
        new = copy.deepcopy(old)
        new = change(new) or new
        for fixed in ("uid", "creationTimestamp", "name", "namespace"):
            if fixed in old["metadata"]:
                new["metadata"][fixed] = old["metadata"][fixed]
        if new == old:
            return old
        self._check(resource, new)
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        return self._commit(resource, namespace, name, new, old)

    def delete(self, resource: str, namespace: str, name: str, *, now: bool = False) -> Json:
        """Deletes an object; a bound pod first becomes a terminating one, unless `now`."""
        old = self.get(resource, namespace, name)
        grace = old.get("spec", {}).get("terminationGracePeriodSeconds", _GRACE_S)
        if resource == "pods" and old["spec"].get("nodeName") and grace > 0 and not now:
            if old["metadata"].get("deletionTimestamp"):
                return old
            mark = {"deletionTimestamp": self._stamp(), "deletionGracePeriodSeconds": grace}
            return self.update(resource, namespace, name, lambda o: o["metadata"].update(mark))
        return self._commit(resource, namespace, name, None, old)

    def _commit(
        self, resource: str, namespace: str, name: str, new: Json | None, old: Json | None
    ) -> Json:
        self.version += 1
        key = resource, namespace, name
        if new is None:
            assert old is not None
            del self.items[key]
        else:
            new["metadata"]["resourceVersion"] = str(self.version)
            self.items[key] = new
        self.log.append(Change(self.version, resource, new, old))
        self._changed.set()
        self._changed = asyncio.Event()
        return new or old or {}

    def _stamp(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _check(self, resource: str, item: Json) -> None:
        """Of the API server's validation, what has bitten clients."""
        if resource != "leases":
            return
        for name in ("acquireTime", "renewTime"):
            value = item.get("spec", {}).get(name)
            if value is not None and not _MICRO_TIME.fullmatch(value):
                raise ApiError(400, "BadRequest", f"{name} is no MicroTime: {value!r}")
        if item.get("spec", {}).get("leaseDurationSeconds", 1) <= 0:
            raise ApiError(422, "Invalid", "leaseDurationSeconds: must be greater than 0")


def merged(base: Json, patch: Mapping[str, Any]) -> Json:
    """An RFC 7386 merge patch, applied to `base` in place."""
    for name, value in patch.items():
        if value is None:
            base.pop(name, None)
        elif isinstance(value, dict):
            inner = base.get(name)
            base[name] = merged(inner if isinstance(inner, dict) else {}, value)
        else:
            base[name] = copy.deepcopy(value)
    return base


def selector(labels: str, fields: str) -> Predicate:
    """What a label selector and a field selector let through."""
    label_terms, field_terms = [*_label_terms(labels)], [*filter(None, fields.split(","))]

    def fits(item: Json) -> bool:
        found = item["metadata"].get("labels") or {}
        return all(_label(term, found) for term in label_terms) and all(
            _field(term, item) for term in field_terms
        )

    return fits


def _label_terms(text: str) -> Iterator[str]:
    for term in re.split(r",(?![^(]*\))", text):
        if term.strip():
            yield term.strip()


def _label(term: str, labels: Mapping[str, str]) -> bool:
    if found := re.match(r"^([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)$", term):
        inside = labels.get(found[1]) in [value.strip() for value in found[3].split(",")]
        return inside == (found[2] == "in")
    if "!=" in term:
        name, value = term.split("!=")
        return labels.get(name) != value
    if "=" in term:
        name, value = re.split("==?", term)
        return labels.get(name) == value
    return term[1:] not in labels if term.startswith("!") else term in labels


def _field(term: str, item: Json) -> bool:
    negated = "!=" in term
    path, value = re.split("!=|==?", term)
    found: Any = item
    for part in path.split("."):
        found = (found or {}).get(part)
    return (str(found or "") == value) != negated
