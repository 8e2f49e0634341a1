"""Draws the dashboard without Grafana: `python -m ops.plot_dashboard --prometheus URL --out DIR`.

Each row of the dashboard becomes a picture, from the same JSON and the same queries.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ops.grafana.expand import Choice, Section, sections
from ops.prometheus.client import Prometheus, QueryError, Series

_POINTS = 400  # of a curve: about a pixel each
_COLUMNS, _INCHES, _ROW_INCHES = 24, 17.0, 0.42  # of the screen; its width; a grid row's height
_UNITS = (("s", 60, 1), ("min", 3600, 60), ("h", 86400, 3600))  # name, up to, seconds in one
_SPAN = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN = 12  # series in a legend; the rest is drawn without a name
_HEADROOM = 1.3  # above the highest curve, for the legend


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when a query was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--since", default="6h", help="how far back: 15m, 6h, 2d (%(default)s)")
    parser.add_argument("--window", default="1h", help="over which throughput is averaged")
    parser.add_argument("--scrape", default="30s", help="the scrape interval (%(default)s)")
    parser.add_argument("--namespace", default=".*")
    parser.add_argument("--instance", default=".*")
    given = parser.parse_args(arguments)
    since_s = seconds(given.since)
    choice = Choice(
        step_s=max(1.0, since_s / _POINTS),
        scrape_s=seconds(given.scrape),
        window=given.window,
        namespace=given.namespace,
        instance=given.instance,
    )
    try:
        pictures = draw(Prometheus(given.prometheus), choice, since_s, given.out)
    except QueryError as error:
        print(f"a query failed: {error}", file=sys.stderr)
        return 1
    print(*pictures, sep="\n")
    return 0


def seconds(span: str) -> float:
    """`15m` in seconds. Raises ValueError."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise ValueError(f"{span!r} is not a number followed by s, m, h or d")
    return int(found[1]) * _SECONDS[found[2]]


def draw(server: Prometheus, choice: Choice, since_s: float, out: Path) -> list[Path]:
    """A picture for each row of the dashboard. Raises QueryError."""
    out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"font.size": 8, "axes.titlesize": 9, "timezone": "UTC"})
    end = time.time()
    pictures = []
    for number, section in enumerate(sections()):
        name = re.sub(r"\W+", "-", section.title.lower()).strip("-")
        path = out / f"{number}-{name}.png"
        _draw_section(section, server, choice, (end - since_s, end), path)
        pictures.append(path)
    return pictures


def _draw_section(
    section: Section, server: Prometheus, choice: Choice, span: tuple[float, float], path: Path
) -> None:
    top = min(panel["gridPos"]["y"] for panel in section.panels)
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in section.panels)
    height = (bottom - top) * _ROW_INCHES + 0.5
    figure = Figure(figsize=(_INCHES, height), layout=None, facecolor="white")
    figure.text(0.01, 1 - 0.3 / height, section.title, weight="bold", size=11)
    for panel in section.panels:
        at = panel["gridPos"]
        low = (bottom - at["y"] - at["h"]) * _ROW_INCHES / height
        axes = figure.add_axes(
            (
                at["x"] / _COLUMNS + 0.035,
                low + 0.35 / height,
                at["w"] / _COLUMNS - 0.05,
                at["h"] * _ROW_INCHES / height - 0.75 / height,
            )
        )
        axes.set_title(panel["title"], loc="left")
        _draw_panel(axes, panel, server, choice, span)
    figure.savefig(path, dpi=80)


def _draw_panel(
    axes: Axes,
    panel: Mapping[str, Any],
    server: Prometheus,
    choice: Choice,
    span: tuple[float, float],
) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "table":
        rows = [row for target in panel["targets"] for row in server.query(target["expr"])]
        return _draw_table(axes, panel, rows)
    named: list[tuple[str, Series]] = []
    for target in panel["targets"]:
        found = server.query_range(choice.fill(target["expr"]), *span, choice.step_s)
        named += [(_name(target["legendFormat"], series.labels), series) for series in found]
    if panel["type"] == "stat":
        return _draw_stat(axes, panel, named, unit)
    if not named:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return None
    return _draw_series(axes, panel, sorted(named, key=lambda pair: pair[0]), unit, span)


def _draw_table(axes: Axes, panel: Mapping[str, Any], rows: list[Series]) -> None:
    lines = [f"{row.labels['alertname']}  {row.labels.get('instance', '')}" for row in rows]
    text = "\n".join(sorted(lines)) or panel["fieldConfig"]["defaults"]["noValue"]
    axes.text(0.02, 0.95, text, va="top", transform=axes.transAxes, color="firebrick")
    axes.set_axis_off()


def _draw_stat(
    axes: Axes, panel: Mapping[str, Any], named: list[tuple[str, Series]], unit: str
) -> None:
    empty = panel["fieldConfig"]["defaults"]["noValue"]
    text = " / ".join(amount(series.value, unit) for _, series in named) or empty
    axes.text(0.5, 0.55, text, ha="center", va="center", size=17, transform=axes.transAxes)
    for _, series in named:
        axes.fill_between(*_columns(series), alpha=0.2)
    axes.set_xticks([])
    axes.set_yticks([])


def _colours(panel: Mapping[str, Any]) -> dict[str, str]:
    """The colours that mean something, by the name of the series."""
    return {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
    }


def _draw_series(
    axes: Axes,
    panel: Mapping[str, Any],
    named: list[tuple[str, Series]],
    unit: str,
    span: tuple[float, float],
) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if panel["type"] == "state-timeline":
        _draw_states(axes, named, _colours(panel))
    elif custom.get("stacking", {}).get("mode") == "normal":
        _draw_stack(axes, named, _colours(panel), bars=custom.get("drawStyle") == "bars")
    else:
        for name, series in named:
            axes.plot(*_columns(series), label=_legend(name, series, unit), linewidth=1)
    if panel["type"] != "state-timeline":
        most = panel["fieldConfig"]["defaults"].get("max") or axes.get_ylim()[1]
        axes.set_ylim(bottom=0, top=most * _HEADROOM)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[:_SHOWN], labels[:_SHOWN], loc="upper left", fontsize=6, ncols=2)
    _time_axis(axes, span)


def _draw_stack(
    axes: Axes, named: list[tuple[str, Series]], colours: Mapping[str, str], *, bars: bool
) -> None:
    times = sorted({at for _, series in named for at, _ in series.points})
    days = [at / 86400 for at in times]
    curves = [dict(series.points) for _, series in named]
    heights = [[_finite(curve.get(at, 0.0)) for at in times] for curve in curves]
    labels = [name for name, _ in named]
    paints = [colours.get(name, f"C{number}") for number, name in enumerate(labels)]
    step = "mid" if bars else None
    axes.stackplot(days, heights, labels=labels, colors=paints, alpha=0.6, step=step)


def _draw_states(axes: Axes, named: list[tuple[str, Series]], colours: Mapping[str, str]) -> None:
    for height, (name, series) in enumerate(named):
        on = [value == 1 for _, value in series.points]
        axes.fill_between(
            _columns(series)[0],
            height - 0.4,
            height + 0.4,
            where=on,
            step="mid",
            color=colours.get(name, "C0"),
        )
    axes.set_yticks(range(len(named)), [name for name, _ in named])


def _time_axis(axes: Axes, span: tuple[float, float]) -> None:
    locator = AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlim(span[0] / 86400, span[1] / 86400)
    axes.grid(visible=True, alpha=0.3)


def _columns(series: Series) -> tuple[list[float], list[float]]:
    """Times in days, as matplotlib counts them since 1970, and values."""
    return [at / 86400 for at, _ in series.points], [value for _, value in series.points]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _legend(name: str, series: Series, unit: str) -> str:
    return f"{name}  {amount(series.value, unit)}"


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def amount(value: float, unit: str) -> str:
    """A value as a person reads it, in Grafana's units."""
    if not math.isfinite(value):
        return "-"
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s":
            return _duration(value)
        case "bytes":
            return _scaled(value, 1024, "iB")
        case "Bps":
            return _scaled(value, 1000, "B/s")
        case "reqps":
            return _scaled(value, 1000, "/s")
    return _scaled(value, 1000, unit.removeprefix("suffix:").removeprefix("short").strip())


def _scaled(value: float, base: int, unit: str) -> str:
    """Three figures, a prefix and the unit."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while abs(value) >= base and len(prefixes) > 1:
        value /= base
        del prefixes[0]
    unit = "B" if unit == "iB" and not prefixes[0] else unit
    return f"{value:.3g} {prefixes[0]}{unit}".strip()


def _duration(value: float) -> str:
    if 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    for unit, limit, size in _UNITS:
        if abs(value) < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 86400:.3g} d"


if __name__ == "__main__":
    sys.exit(main())
