"""Reads the dashboard as Grafana does: its panels in order, its variables filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).with_name("emiliad.json")
_AT_LEAST = 4  # scrapes in a rate's window, as Grafana has it


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the dashboard."""

    title: str
    panels: tuple[Mapping[str, Any], ...]


def sections(dashboard: Path = DASHBOARD) -> tuple[Section, ...]:
    """The rows with their panels, those of collapsed rows too."""
    found: list[tuple[str, list[Mapping[str, Any]]]] = []
    for panel in json.loads(dashboard.read_text())["panels"]:
        if panel["type"] == "row":
            found.append((panel["title"], list(panel["panels"])))
        else:
            found[-1][1].append(panel)
    return tuple(Section(title, tuple(panels)) for title, panels in found)


def panels(dashboard: Path = DASHBOARD) -> Iterator[Mapping[str, Any]]:
    """Every panel that asks something."""
    for section in sections(dashboard):
        yield from section.panels


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen at the top of the dashboard; `step_s` follows from the time range."""

    step_s: float
    scrape_s: float
    window: str = "1h"
    namespace: str = ".*"
    instance: str = ".*"

    def fill(self, expr: str) -> str:
        """The expression that Grafana would send."""
        rate_s = max(self.step_s + self.scrape_s, _AT_LEAST * self.scrape_s)
        values = {
            "$__rate_interval": f"{max(1, round(rate_s))}s",
            "$window": self.window,
            "$namespace": self.namespace,
            "$instance": self.instance,
        }
        for name, value in values.items():
            expr = expr.replace(name, value)
        return expr
