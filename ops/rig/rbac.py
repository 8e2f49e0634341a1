"""Who may do what: the rules of rendered Roles, enforced as an API server does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, in the terms of a Role."""

    verb: str
    group: str
    resource: str
    sub: str
    namespace: str  # empty: all of them, or none
    name: str
    fields: str  # the field selector

    @property
    def what(self) -> str:
        return f"{self.resource}/{self.sub}" if self.sub else self.resource


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a Role; `namespace` is None for a ClusterRole's."""

    groups: frozenset[str]
    resources: frozenset[str]
    verbs: frozenset[str]
    names: frozenset[str]
    namespace: str | None

    def allows(self, request: Request) -> bool:
        """A list or watch of a named resource needs the name as field selector."""
        if self.namespace is not None and self.namespace != request.namespace:
            return False
        if request.group not in self.groups or request.what not in self.resources:
            return False
        if request.verb not in self.verbs:
            return False
        return not self.names or _name(request) in self.names


def _name(request: Request) -> str:
    if request.verb in ("list", "watch") and not request.name:
        found = re.search(r"(?:^|,)metadata\.name==?([^,]+)", request.fields)
        return found[1] if found else ""
    return request.name


def rules(documents: Iterable[Mapping[str, Any]], *, namespace: str) -> list[Rule]:
    """The rules of all Roles and ClusterRoles; `namespace` is that of Roles which name none."""
    found = []
    for document in documents:
        kind = document.get("kind")
        if kind not in ("Role", "ClusterRole"):
            continue
        where = document["metadata"].get("namespace", namespace) if kind == "Role" else None
        for rule in document["rules"]:
            found.append(
                Rule(
                    frozenset(rule["apiGroups"]),
                    frozenset(rule["resources"]),
                    frozenset(rule["verbs"]),
                    frozenset(rule.get("resourceNames") or ()),
                    where,
                )
            )
    return found
