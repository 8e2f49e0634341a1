"""What is made from something else is what it is made from; what is written by hand is clean."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from ops.manifests import EXAMPLES, ROOT, made
from tests.deploy.cluster import KUSTOMIZE, OVERLAY_NAMES, manifests, name_of, overlay

DOCS = ROOT / "docs" / "kubernetes.md"
# `kubectl apply` writes an object into an annotation of itself, which may be so large.
APPLICABLE_BYTES = 262_144


def run(program: str, *arguments: str | Path) -> tuple[int, str]:
    """Runs a program of this environment; its exit code and all that it says."""
    command = [Path(sys.executable).with_name(program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_what_is_made_has_not_drifted() -> None:
    """Examples, the rules' copy and env.example are what `make examples` writes."""
    drifted = [
        str(path.relative_to(ROOT))
        for path, text in made()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert drifted == [], "run `make examples`"


def test_every_overlay_has_its_example() -> None:
    """One file for each overlay, and no file of one that is gone."""
    assert set(EXAMPLES.values()) == set(OVERLAY_NAMES)
    there = {path.stem for path in (ROOT / "ops" / "examples").iterdir()}
    assert there == set(EXAMPLES)


def test_yaml_is_clean() -> None:
    """yamllint finds nothing in what is written by hand."""
    assert run("yamllint", "--strict", "kustomize", "ops") == (0, "")


def test_scripts_are_clean() -> None:
    """shellcheck finds nothing."""
    scripts = [ROOT / ".ci" / "run", *(ROOT / "ops").rglob("*.sh")]
    assert run("shellcheck", *scripts) == (0, "")


def test_prometheus_and_its_operator_get_the_same_rules() -> None:
    """The PrometheusRule holds the groups of ops/prometheus, which promtool has tested.

    kustomize breaks folded lines anew; white space means nothing in an expression.
    """
    (rule,) = overlay("h100-cluster").of_kind("PrometheusRule")
    groups = yaml.safe_load((ROOT / "ops" / "prometheus" / "rules.yaml").read_text())["groups"]
    assert unfolded(rule["spec"]) == unfolded({"groups": groups})
    for one in (one for group in groups for one in group["rules"]):
        assert one["expr"]
        assert one.get("alert") or one.get("record")


def unfolded(value: Any) -> Any:
    """A value of YAML with each run of white space in its texts as one space."""
    if isinstance(value, dict):
        return {name: unfolded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [unfolded(inner) for inner in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def test_the_rules_find_what_the_monitors_scrape() -> None:
    """A PodMonitor's name is the job that rules and dashboards ask for."""
    monitors = {name_of(item) for item in overlay("h100-cluster").of_kind("PodMonitor")}
    assert monitors == {"emiliad", "emiliad-autokick"}
    (rule,) = overlay("h100-cluster").of_kind("PrometheusRule")
    jobs = set(re.findall(r'job=~"([^"]+)"', json.dumps(rule).replace('\\"', '"')))
    for job in jobs:
        assert any(re.fullmatch(job, f"emiliad/{name}") for name in monitors)


def test_the_dashboard_reaches_grafana() -> None:
    """Grafana's sidecar finds the dashboard of ops/grafana by its label, as it was written."""
    config = overlay("h100-cluster").get("ConfigMap", "emiliad-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    written = (ROOT / "ops" / "grafana" / "emiliad.json").read_text()
    assert config["data"] == {"emiliad.json": written}


@pytest.mark.parametrize("shown", OVERLAY_NAMES)
def test_every_object_can_be_applied(shown: str) -> None:
    """No object is larger than what `kubectl apply` can remember of it."""
    large = [
        name_of(item) for item in overlay(shown).objects if len(json.dumps(item)) > APPLICABLE_BYTES
    ]
    assert large == []


def documented_overlays() -> list[str]:
    """The kustomizations that the documentation shows."""
    blocks: list[str] = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return [block for block in blocks if "kind: Kustomization" in block]


@pytest.mark.parametrize("number", range(len(documented_overlays())))
def test_what_the_documentation_shows_works(number: int, tmp_path: Path) -> None:
    """A kustomization that is shown renders as it stands, in a folder beside kustomize/."""
    shutil.copytree(KUSTOMIZE, tmp_path / "kustomize")
    shutil.copytree(ROOT / "ops" / "grafana", tmp_path / "ops" / "grafana")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(documented_overlays()[number])
    shown = manifests(mine)
    assert shown.daemon is not None
    assert "REGISTRY" not in shown.text
    assert "reg.example" in shown.text


def test_what_the_documentation_names_exists() -> None:
    """Files, overlays and components that the page names are there, and each of them is named."""
    text = DOCS.read_text()
    for path in re.findall(r"`((?:kustomize|ops|docs|overlays|components|base)/[\w./-]+)`", text):
        root = KUSTOMIZE if path.split("/")[0] in ("overlays", "components", "base") else ROOT
        assert (root / path).exists(), path
    for name in (*OVERLAY_NAMES, *(p.name for p in (KUSTOMIZE / "components").iterdir())):
        assert f"`{name}`" in text, name
