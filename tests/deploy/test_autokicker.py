"""What the autokicker is given, and what it may do: as little as will do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.cluster import (
    KUSTOMIZE,
    OVERLAY_NAMES,
    Manifests,
    Object,
    containers_of,
    manifests,
    name_of,
    overlay,
    overlay_of_ones_own,
    pod_of,
)

WITH_AUTOKICKER = [name for name in OVERLAY_NAMES if overlay(name).of_kind("Role")]
every_autokicker = pytest.mark.parametrize("shown", WITH_AUTOKICKER)

Grant = tuple[str, str, str, str]  # API group, resource, verb, name ("": all of them)

ALWAYS: set[Grant] = {
    ("", "pods", "list", ""),
    ("", "pods", "watch", ""),
    ("", "events", "create", ""),
    ("autoscaling", "horizontalpodautoscalers", "list", ""),
    ("autoscaling", "horizontalpodautoscalers", "watch", ""),
    ("coordination.k8s.io", "leases", "create", ""),
}


def on(group: str, resource: str, verbs: str, name: str) -> set[Grant]:
    """Verbs on one named object."""
    return {(group, resource, verb, name) for verb in verbs.split()}


def expected(target: str, kind: str) -> set[Grant]:
    """All that the Role of an autokicker of this target grants."""
    lease = on("coordination.k8s.io", "leases", "get list watch update", f"{target}-autokicker")
    if kind == "DaemonSet":
        return ALWAYS | lease | on("apps", "daemonsets", "get list watch patch", target)
    read = on("apps", "deployments", "get list watch", target)
    return ALWAYS | lease | read | on("apps", "deployments/scale", "patch", target)


def granted(role: Object) -> set[Grant]:
    """What a Role or ClusterRole grants, spelt out."""
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def settings(shown: Manifests) -> dict[str, Any]:
    """The autokicker's own settings."""
    data: dict[str, Any] = shown.get("ConfigMap", "emiliad-autokicker-config")["data"]
    return data


@every_autokicker
def test_the_role_grants_what_is_needed_and_no_more(shown: str) -> None:
    """One target, one Lease, Events: writes are granted by name, and nothing else is granted."""
    config = settings(overlay(shown))
    role = overlay(shown).get("Role", "emiliad-autokicker")
    assert granted(role) == expected(config["TARGET_DEPLOYMENT"], config["TARGET_KIND"])


def test_an_administrator_adds_no_right_to_write() -> None:
    """Across the cluster pods and nodes may be read."""
    role = overlay("h100-cluster").get("ClusterRole", "emiliad-autokicker")
    assert {verb for _, _, verb, _ in granted(role)} == {"list", "watch"}
    assert {resource for _, resource, _, _ in granted(role)} == {"pods", "nodes"}
    assert settings(overlay("h100-cluster"))["AUTOKICK_NAMESPACES"] == "*"


@every_autokicker
def test_the_autokicker_stands_alone(shown: str) -> None:
    """It outlives the pods it sends away: small image, no GPU, no Secret, no low priority."""
    pod = pod_of(overlay(shown).get("Deployment", "emiliad-autokicker"))
    (container,) = pod["containers"]
    assert container["image"].startswith("emiliad-slim:")
    assert container["args"] == ["autokick"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert [source for source in container["envFrom"] if "secretRef" in source] == []
    assert "priorityClassName" not in pod
    assert pod["automountServiceAccountToken"] is True


@every_autokicker
def test_the_autokicker_acts_on_the_target_that_is_there(shown: str) -> None:
    """TARGET_KIND and TARGET_DEPLOYMENT name the daemon of the same overlay, if it has one."""
    daemon, config = overlay(shown).daemon, settings(overlay(shown))
    if daemon:
        assert (daemon["kind"], name_of(daemon)) == (
            config["TARGET_KIND"],
            config["TARGET_DEPLOYMENT"],
        )


@every_autokicker
def test_the_autokicker_is_not_taken_for_others(shown: str) -> None:
    """Its own pods carry the label by which the code knows them."""
    autokicker = overlay(shown).get("Deployment", "emiliad-autokicker")
    labels = autokicker["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "autokick"


def test_another_target_takes_the_role_with_it(tmp_path: Path) -> None:
    """In the standalone overlay the target's name stands once; Role and Lease follow it."""
    source = KUSTOMIZE / "overlays" / "autokicker-standalone" / "kustomization.yaml"
    text = source.read_text()
    assert text.count("TARGET_DEPLOYMENT=emiliad") == 1
    folder = tmp_path / "kustomize" / "overlays" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "kustomize" / "base").symlink_to(KUSTOMIZE / "base")
    (folder / "kustomization.yaml").write_text(
        text.replace("TARGET_DEPLOYMENT=emiliad", "TARGET_DEPLOYMENT=my-big-app").replace(
            "../../base", str(Path("..", "..", "base"))
        )
    )
    role = manifests(folder).get("Role", "emiliad-autokicker")
    assert granted(role) == expected("my-big-app", "Deployment")


def test_watching_daemons_share_the_autokickers_settings(tmp_path: Path) -> None:
    """Whoever holds the Lease, embedded or standalone, decides by the same settings."""
    shown = overlay_of_ones_own(
        tmp_path,
        resources=[KUSTOMIZE / "base"],
        components=[
            KUSTOMIZE / "components" / name for name in ("autokicker-cluster", "autokicker")
        ],
        more="namespace: team",
    )
    daemon, alone = shown.daemon, shown.get("Deployment", "emiliad-autokicker")
    assert daemon is not None
    embedded = shown.environment(daemon, containers_of(daemon)[-1])
    assert shown.environment(alone, containers_of(alone)[0]).items() <= embedded.items()
    for binding in shown.of_kind("RoleBinding", "ClusterRoleBinding"):
        assert [s["name"] for s in binding["subjects"]] == ["emiliad-autokicker", "emiliad"]


def test_the_low_priority_is_the_daemons_alone() -> None:
    """Ours never preempt, come after everybody's default of 0, and cause no new node."""
    shown = overlay("h100-cluster")
    (priority,) = shown.of_kind("PriorityClass")
    assert priority["preemptionPolicy"] == "Never"
    assert priority["globalDefault"] is False
    assert priority["value"] < -10  # below which the Cluster Autoscaler adds no node
    daemon = shown.daemon
    assert daemon is not None
    assert pod_of(daemon)["priorityClassName"] == name_of(priority)
