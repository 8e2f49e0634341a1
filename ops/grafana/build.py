"""Writes the dashboard as Grafana reads it: `python -m ops.grafana.build`."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as values
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from ops.grafana.panels import Panel, Row
from ops.grafana.trouble import AUTOKICK, FAILURES, LEASES, QUEUE, STORE
from ops.grafana.work import EXECUTORS, FLOW, OVERVIEW, STAGES

TARGET = Path(__file__).with_name("emiliad.json")
UID = "emiliad"  # links to the dashboard hold it: never change it
ROWS = (OVERVIEW, EXECUTORS, FLOW, STAGES, QUEUE, STORE, LEASES, FAILURES, AUTOKICK)
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_SCREEN = 24  # columns


def main() -> None:
    TARGET.write_text(rendered())


def rendered() -> str:
    """The dashboard's JSON, the same for the same content."""
    return json.dumps(_dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _dashboard() -> dashboard.Dashboard:
    built = (
        dashboard.Dashboard("emiliad")
        .uid(UID)
        .description("What the fleet does, how fast, and what is wrong. Runbook: ops/README.md")
        .tags(["emiliad"])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(_choice("namespace", "Namespace", "label_values(emiliad_ready, namespace)"))
        .with_variable(
            _choice(
                "instance",
                "Daemon",
                'label_values(emiliad_ready{namespace=~"$namespace"}, instance)',
            )
        )
        .with_variable(_window())
    )
    ids = count(1)
    top = 0
    for row in ROWS:
        top = _add(built, row, ids, top)
    return built


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_SOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def _window() -> dashboard.CustomVariable:
    """A choice rather than Grafana's interval: it must outlast episodes, whatever the zoom."""
    spans = ("15m", "1h", "6h", "1d")
    return (
        dashboard.CustomVariable("window")
        .label("Window")
        .description("Over which throughput is averaged: longer than the episodes take.")
        .values(",".join(spans))
        .options([_option(span) for span in spans])
        .current(_option("1h"))
    )


def _option(span: str) -> model.VariableOption:
    return model.VariableOption(selected=span == "1h", text=span, value=span)


def _add(built: dashboard.Dashboard, row: Row, ids: Any, top: int) -> int:
    """Adds a row at height `top`, and returns where the next one begins."""
    head = dashboard.Row(row.title).id(next(ids)).collapsed(row.collapsed)
    head.grid_pos(model.GridPos(h=1, w=_SCREEN, x=0, y=top))
    x, y, tallest = 0, top + 1, 0
    panels = []
    for panel in row.panels:
        if x + panel.width > _SCREEN:
            x, y, tallest = 0, y + tallest, 0
        place = model.GridPos(h=panel.height, w=panel.width, x=x, y=y)
        panels.append(_panel(panel, next(ids), place))
        x, tallest = x + panel.width, max(tallest, panel.height)
    if row.collapsed:
        for made in panels:
            head.with_panel(made)
        built.with_row(head)
        return top + 1
    built.with_row(head)
    for made in panels:
        built.with_panel(made)
    return y + tallest


def _panel(panel: Panel, number: int, place: model.GridPos) -> Any:
    kinds = {"stat": _stat, "alerts": _alerts, "states": _states}
    made: Any = kinds.get(panel.kind, _series)(panel)
    made.id(number).title(panel.title).description(panel.says).datasource(_SOURCE)
    made.unit(panel.unit).grid_pos(place).no_value(panel.no_value).min(0)
    if panel.at_most is not None:
        made.max(panel.at_most)
    if panel.thresholds:
        steps = [model.Threshold(value=value, color=color) for value, color in panel.thresholds]
        made.thresholds(
            dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
        )
    for name, colour in panel.colours.items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        made.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    for letter, query in zip("ABCDEF", panel.queries, strict=False):
        asked = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        if panel.kind == "alerts":
            asked.instant().format(PromQueryFormat.TABLE)
        else:
            asked.range()
        made.with_target(asked.datasource(_SOURCE))
    return made


def _stat(panel: Panel) -> stat.Panel:
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().reduce_options(newest).graph_mode(values.BigValueGraphMode.AREA)


def _alerts(panel: Panel) -> table.Panel:
    hidden = (
        "Time",
        "Value",
        "__name__",
        "alertstate",
        "job",
        "endpoint",
        "container",
        "prometheus",
    )
    tidy = model.DataTransformerConfig(
        id_val="organize", options={"excludeByName": dict.fromkeys(hidden, True)}
    )
    return table.Panel().with_transformation(tidy)


def _states(panel: Panel) -> statetimeline.Panel:
    two = model.ValueMap(
        options={
            "0": model.ValueMappingResult(text=" ", color="transparent", index=0),
            "1": model.ValueMappingResult(text="is", color="blue", index=1),
        }
    )
    return statetimeline.Panel().mappings([two]).show_value(values.VisibilityMode.NEVER)


def _series(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(values.LegendDisplayMode.TABLE)
        .placement(values.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    tooltip = common.VizTooltipOptions().mode(values.TooltipDisplayMode.MULTI)
    made = timeseries.Panel().legend(legend).tooltip(tooltip).line_width(1)
    if panel.kind == "stack":
        made.stacking(common.StackingConfig().mode(values.StackingMode.NORMAL)).fill_opacity(40)
    if panel.kind == "bars":
        made.draw_style(values.GraphDrawStyle.BARS).fill_opacity(80)
        made.stacking(common.StackingConfig().mode(values.StackingMode.NORMAL))
    return made


if __name__ == "__main__":
    main()
