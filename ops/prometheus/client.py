"""Asks a Prometheus server questions over its HTTP API."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 30.0  # a query over months of data may take that long


class QueryError(Exception):
    """Prometheus refused a query, or could not be asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels and its values by time (seconds since 1970)."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The newest value."""
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server, by its address."""

    url: str

    def query(self, expr: str) -> list[Series]:
        """What `expr` is now. Raises QueryError."""
        data = self._ask("query", query=expr)
        if data["resultType"] == "scalar":
            return [Series({}, (_point(data["result"]),))]
        return [Series(row["metric"], (_point(row["value"]),)) for row in data["result"]]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """What `expr` was from `start` to `end`, every `step` seconds. Raises QueryError."""
        data = self._ask("query_range", query=expr, start=start, end=end, step=step)
        return [
            Series(row["metric"], tuple(_point(pair) for pair in row["values"]))
            for row in data["result"]
        ]

    def alerts(self, state: str = "firing") -> list[dict[str, Any]]:
        """The alerts in `state`: firing or pending. Raises QueryError."""
        return [alert for alert in self._ask("alerts")["alerts"] if alert["state"] == state]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health. Raises QueryError."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, with its health. Raises QueryError."""
        return list(self._ask("targets")["activeTargets"])

    def _ask(self, path: str, **parameters: object) -> Any:
        url = f"{self.url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryError(_reason(error)) from error
        except OSError as error:
            raise QueryError(f"{self.url} does not answer: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError):
        return f"HTTP {error.code}"


def _point(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
