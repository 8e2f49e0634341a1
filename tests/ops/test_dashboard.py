"""The dashboard keeps the rules of a good one, and is what the code says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ops.grafana import build
from ops.grafana.expand import DASHBOARD, Choice, panels, sections
from tests.ops.test_rules import exported, names_in

PANELS = list(panels())
TITLES = [panel["title"] for panel in PANELS]


def expressions(panel: Any) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def test_the_committed_dashboard_is_what_the_code_says() -> None:
    """After a change: python -m ops.grafana.build."""
    assert DASHBOARD.read_text() == build.rendered()


def test_links_to_the_dashboard_stay_valid() -> None:
    """Its address is made of the uid; a number of one Grafana must not be in it."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "emiliad"
    assert "id" not in dashboard


def test_the_rows_are_those_that_an_operator_looks_for() -> None:
    """From what matters most to what concerns some."""
    assert [section.title.split()[0] for section in sections()] == [
        *("Overview", "GPUs", "Flow", "Stages", "Queue", "Object"),
        *("Leases", "Failures", "Autokicker"),
    ]


def test_panels_have_numbers_and_names_of_their_own() -> None:
    """Grafana tells panels apart by id, people by title."""
    assert len(set(TITLES)) == len(TITLES)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_panels_do_not_overlap() -> None:
    """Grafana would move them, and the screen would look otherwise than meant."""
    taken: set[tuple[int, int]] = set()
    for section in sections():
        for panel in section.panels:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert at["x"] + at["w"] <= 24
            assert not cells & taken
            taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_panel_explains_itself(panel: Any) -> None:
    """Title, description, unit, and the data source that the operator chose."""
    assert panel["title"]
    assert len(panel["description"]) > 10
    assert panel["fieldConfig"]["defaults"]["unit"]
    for holder in (panel, *panel["targets"]):
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_panel_asks_for_what_is_exported(panel: Any) -> None:
    """No metric, and no label in a selector or a legend, that the code does not expose."""
    known = exported()
    target_labels = {"namespace", "instance", "job", "alertname", "alertstate", "device", "le"}
    for target in panel["targets"]:
        names = set(names_in(target["expr"]))
        assert names <= known.keys()
        assert names or target["expr"].startswith("ALERTS{")
        labels = target_labels.union(*(known[name] for name in names))
        assert set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", target["expr"])) <= labels
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_windows_follow_the_scrape_interval_or_the_operators_choice(panel: Any) -> None:
    """A fixed window is empty where scrapes are rarer, and coarse where they are not."""
    for expr in expressions(panel):
        assert set(re.findall(r"\[([^]]+)\]", re.sub(r'"[^"]*"', "", expr))) <= {
            "$__rate_interval",
            "$window",
        }


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_the_operators_choice_of_namespace_is_heeded(panel: Any) -> None:
    """Every metric that is asked for is filtered; what it is joined with need not be."""
    for expr in expressions(panel):
        if not expr.startswith("ALERTS"):
            bare = re.sub(r"and on \(job, instance\) emiliad_\w+", "", expr)
            asked = re.findall(r"((?:emiliad|process)_\w+)(\{[^}]*\})?", bare)
            assert all('namespace=~"$namespace"' in selector for _, selector in asked), expr


def test_variables_are_filled_in_as_grafana_does() -> None:
    """The rate's window is four scrapes, or a step and a scrape if that is longer."""
    expr = 'rate(x{namespace=~"$namespace", instance=~"$instance"}[$__rate_interval])[$window]'
    near = Choice(step_s=15, scrape_s=30, namespace="a|b").fill(expr)
    assert near == 'rate(x{namespace=~"a|b", instance=~".*"}[120s])[1h]'
    assert "[630s]" in Choice(step_s=600, scrape_s=30).fill(expr)
