"""The values that describe the dashboard, and the PromQL that its panels have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "lines", "stack", "bars", "states", "alerts"]
Threshold = tuple[float | None, str]  # from this value (None: the least) on, this colour

# Chosen at the top of the dashboard; a bare machine has no namespace, which `.*` matches.
CHOSEN = 'namespace=~"$namespace", instance=~"$instance"'
FLEET = 'namespace=~"$namespace"'  # the autokicker's instances are others than the daemons'
# An episode counts once, when it is complete: what is counted so needs a long window ...
WINDOW = "$window"
RATE = "$__rate_interval"  # ... and all else the shortest that the scrape interval allows.

HOURS = "suffix: h/h"
TIMES = "suffix: ×"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture; `width` is in 24ths of the screen."""

    title: str
    says: str  # for the operator: what is normal, and where to look if it is not
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8
    thresholds: tuple[Threshold, ...] = ()
    no_value: str = "-"
    at_most: float | None = None  # the axis ends here: 1 for shares
    colours: Mapping[str, str] = field(default_factory=dict)  # of series that mean good or bad

    @property
    def height(self) -> int:
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels about one thing; a collapsed row is opened by those whom it concerns."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


def rate(metric: str, window: str = RATE, by: str = "", **match: str) -> str:
    """`sum by (by) (rate(...))` of a counter of the chosen daemons."""
    more = "".join(f', {label}=~"{values}"' for label, values in match.items())
    grouping = f"sum by ({by}) " if by else "sum"
    return f"{grouping}(rate({metric}{{{CHOSEN}{more}}}[{window}]))"


def growth(metric: str, by: str = "", match: str = "", chosen: str = CHOSEN) -> str:
    """`sum by (by) (increase(...))`: how often something happened, bar for bar."""
    more = f", {match}" if match else ""
    grouping = f"sum by ({by}) " if by else "sum"
    return f"{grouping}(increase({metric}{{{chosen}{more}}}[{RATE}]))"


def quantile(q: float, histogram: str, by: str, *, window: str = RATE, chosen: str = CHOSEN) -> str:
    """A quantile of what a histogram has seen, for each `by` for which it saw anything."""
    seen = f"rate({histogram}_bucket{{{chosen}}}[{window}])"
    return f"histogram_quantile({q}, sum by ({by}, le) ({seen})) >= 0"


def led(metric: str, match: str = "") -> str:
    """What the autokicker that leads says; the others' view is old or empty."""
    chosen = f"{FLEET}, {match}" if match else FLEET
    return f"({metric}{{{chosen}}} and on (job, instance) emiliad_autokick_leader == 1)"
