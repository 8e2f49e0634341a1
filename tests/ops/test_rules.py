"""The rules name what exists, fire when they should, and each alert has its page in the runbook."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.metrics import MetricWrapperBase

from emiliad.config import all_settings
from emiliad.metrics import Metrics
from emiliad.types import Outcome
from ops.prometheus import local
from tests.ops.live import ROOT, RULES

TESTS = RULES.with_name("rules_test.yaml")
RUNBOOK = ROOT / "ops" / "README.md"
SEVERITIES = {"critical", "warning"}
needs_prometheus = pytest.mark.skipif(local.missing() is not None, reason=str(local.missing()))


def rules() -> list[Mapping[str, Any]]:
    content = yaml.safe_load(RULES.read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def alerts() -> dict[str, Mapping[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def exported() -> dict[str, set[str]]:
    """The names of all series that a daemon may expose, each with its labels."""
    metrics = Metrics()
    for metric in (*vars(metrics).values(), *vars(metrics.autokick).values()):
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*metric._labelnames)  # some appear only with their first value
    found: dict[str, set[str]] = {}
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    for family in metrics.registry.collect():
        for suffix in suffixes.get(family.type, ("",)):
            labels = {label for sample in family.samples for label in sample.labels}
            found[family.name + suffix] = labels
    return found


def names_in(expr: str) -> Iterator[str]:
    """The metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    yield from re.findall(r"(?<![\w:])(?:emiliad|process)_\w+(?![\w:])", bare)


@needs_prometheus
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    """promtool runs the rules through hours of a healthy fleet and of broken ones."""
    done = subprocess.run(
        ["promtool", "test", "rules", TESTS.name],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_made_to_fire() -> None:
    """An alert that no test sees fire may never."""
    fired = set(re.findall(r'alertname="(\w+)"[^}]*}\', value: 1', TESTS.read_text()))
    assert fired == alerts().keys()


@pytest.mark.parametrize("file", ["rules.yaml", "scrape.yaml"])
@needs_prometheus
def test_prometheus_accepts_the_files(file: str) -> None:
    """What is shipped loads as it is."""
    what = "rules" if file == "rules.yaml" else "config"
    done = subprocess.run(
        ["promtool", "check", what, RULES.with_name(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_rules_name_only_metrics_that_exist() -> None:
    """An alert on a metric that nobody exposes never fires."""
    known = exported()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert set(names_in(rule["expr"])) <= known.keys(), rule["expr"]
        assert set(re.findall(r"\w+:\w+:\w+", rule["expr"])) <= recorded


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    """severity, summary, description and the section of the runbook."""
    for name, alert in alerts().items():
        assert alert["labels"].keys() == {"severity"}
        assert alert["labels"]["severity"] in SEVERITIES
        texts = alert["annotations"]
        assert texts.keys() == {"summary", "description", "runbook"}
        assert texts["runbook"] == f"ops/README.md#{name.lower()}"
        assert len(texts["summary"]) <= 90


def sections() -> dict[str, str]:
    """The runbook's sections about alerts."""
    parts = re.split(r"^### (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    """In the order of the rules."""
    assert list(sections()) == list(alerts())


@pytest.mark.parametrize("name", sections())
def test_a_section_says_what_it_means_then_three_commands_then_what_to_do(name: str) -> None:
    """Somebody who was woken by the alert has no time to search."""
    text = sections()[name]
    meaning, commands, actions = re.fullmatch(
        r"\n((?:[^\n ][^\n]*\n)+)\n((?:    [^\n]+\n)+)\n((?:(?:- |  )[^\n]+\n)+)\n*", text
    ).groups()  # type: ignore[union-attr]
    assert meaning
    assert len(commands.strip().splitlines()) == 3
    assert actions.startswith("- ")


def test_the_runbook_names_only_settings_that_exist() -> None:
    """A setting that was renamed would be set in vain."""
    known = {setting.name for setting in all_settings()}
    systemd = {"CUDA_VISIBLE_DEVICES"}
    others = {"READY", "WATCHDOG", "STATUS", "SIGTERM", "NAMESPACE", "TERM"}
    named = set(re.findall(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b", RUNBOOK.read_text()))
    assert named - known - systemd - others - {"PAGE_RETIREMENT", "ROW_REMAPPER"} == set()


def test_the_runbook_names_only_commands_that_exist() -> None:
    """`emiliad COMMAND` in the runbook is one of the command line's."""
    commands = set(re.findall(r"^ *`?emiliad ([a-z]+)", RUNBOOK.read_text(), re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "emiliad", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert commands
    assert all(re.search(rf"\b{command}\b", done.stdout) for command in commands)


def test_the_runbook_looks_for_log_lines_that_are_written() -> None:
    """An event that was renamed would be looked for in vain."""
    sought: set[str] = set()
    for pattern in re.findall(r'"event": "([^\' ]+)', RUNBOOK.read_text()):
        stem, _, rest = pattern.strip('"').replace("\\", "").partition("(")
        sought |= {stem + end for end in rest.rstrip(')".').split("|")}
    code = "".join(path.read_text() for path in (ROOT / "emiliad").rglob("*.py"))
    assert {"task.failed", "loop.stalled"} <= sought, "the pattern finds nothing"
    written = {*re.findall(r"_log\.\w+\(\s*\"([a-z_.]+)\"", code)}
    written |= {f"task.{outcome}" for outcome in Outcome}
    assert [name for name in sought if not any(w.startswith(name) for w in written)] == []
