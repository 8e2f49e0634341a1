"""Kubernetes' selectors: from text, from objects, and what they match."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from emiliad.errors import ConfigError

_COMMA = re.compile(r",(?![^(]*\))")  # not one between parentheses
_SET = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s=!]+)\s*(?P<op>==?|!=)\s*(?P<value>[^\s=!]*)$")
_PRESENT = re.compile(r"^(?P<not>!\s*)?(?P<key>[^\s=!(),]+)$")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on labels: In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """An operator that is not known matches, for then the scheduler knows better."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return self._compares(value)
        return True

    def _compares(self, value: str | None) -> bool:
        try:
            have, than = int(value or ""), int(self.values[0])
        except (ValueError, IndexError):
            return False
        return have > than if self.operator == "Gt" else have < than


Selector: TypeAlias = tuple[Requirement, ...]  # all must match; an empty one matches nothing


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether the labels are meant; an empty selector means nobody, lest it mean everybody."""
    return bool(selector) and all(requirement.matches(labels) for requirement in selector)


def requirement_from(obj: Mapping[str, Any]) -> Requirement:
    """One matchExpressions or matchFields entry."""
    values = obj.get("values")
    texts = tuple(map(str, values)) if isinstance(values, list) else ()
    return Requirement(str(obj.get("key", "")), str(obj.get("operator", "")), texts)


def selector_from(obj: Mapping[str, Any] | None) -> Selector:
    """A LabelSelector object: matchLabels and matchExpressions."""
    obj = obj if isinstance(obj, Mapping) else {}
    labels = obj.get("matchLabels") or {}
    equal = (Requirement(key, "In", (str(value),)) for key, value in sorted(labels.items()))
    return (*equal, *(requirement_from(entry) for entry in obj.get("matchExpressions") or ()))


def parse_selector(text: str) -> Selector:
    """As kubectl takes it: `app=x,tier in (a,b),!old`. Raises ConfigError."""
    return tuple(_parse(part.strip(), text) for part in _COMMA.split(text) if part.strip())


def selector_text(selector: Selector) -> str:
    """As a `labelSelector` parameter of a request takes it."""
    return ",".join(map(_written, selector))


def _parse(part: str, text: str) -> Requirement:
    if found := _SET.match(part):
        values = tuple(value.strip() for value in found["values"].split(","))
        return Requirement(found["key"], "In" if found["op"] == "in" else "NotIn", values)
    if found := _EQUAL.match(part):
        operator = "NotIn" if found["op"] == "!=" else "In"
        return Requirement(found["key"], operator, (found["value"],))
    if found := _PRESENT.match(part):
        return Requirement(found["key"], "DoesNotExist" if found["not"] else "Exists")
    raise ConfigError(f"OUR_SELECTOR={text!r}: {part!r} is no label selector; write app=emiliad")


def _written(requirement: Requirement) -> str:
    key, values = requirement.key, requirement.values
    match requirement.operator:
        case "In" if len(values) == 1:
            return f"{key}={values[0]}"
        case "NotIn" if len(values) == 1:
            return f"{key}!={values[0]}"
        case "In" | "NotIn":
            return f"{key} {requirement.operator.lower()} ({','.join(values)})"
        case "DoesNotExist":
            return f"!{key}"
    return key
