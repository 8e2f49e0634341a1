"""What kustomize makes of the manifests, as objects that tests can ask."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ops.manifests import OVERLAYS, ROOT, rendered

Object = dict[str, Any]

KUSTOMIZE = ROOT / "kustomize"
OVERLAY_NAMES = tuple(sorted(path.name for path in OVERLAYS.iterdir()))
COMPONENT_NAMES = tuple(sorted(path.name for path in (KUSTOMIZE / "components").iterdir()))
WORKLOADS = ("Deployment", "DaemonSet", "Job")
CLUSTER_SCOPED = ("ClusterRole", "ClusterRoleBinding", "Namespace", "PriorityClass")


@dataclass(frozen=True, slots=True)
class Manifests:
    """The objects of one rendering."""

    text: str
    objects: tuple[Object, ...]

    def of_kind(self, *kinds: str) -> list[Object]:
        """All objects of these kinds."""
        return [item for item in self.objects if item["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object:
        """One object; a generated hash may be left out. Raises AssertionError if it is not one."""
        found = [
            item
            for item in self.of_kind(kind)
            if item["metadata"]["name"] == name
            or (kind == "ConfigMap" and item["metadata"]["name"].rpartition("-")[0] == name)
        ]
        assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
        return found[0]

    @property
    def workloads(self) -> list[Object]:
        """Whatever makes pods."""
        return self.of_kind(*WORKLOADS)

    @property
    def daemon(self) -> Object | None:
        """The daemon's Deployment or DaemonSet, if it is among them."""
        found = [w for w in self.of_kind("Deployment", "DaemonSet") if name_of(w) == "emiliad"]
        assert len(found) <= 1
        return found[0] if found else None

    def environment(self, workload: Object, container: Object) -> dict[str, str]:
        """The variables that a container gets here; those of Secrets are not known."""
        env: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                env |= self._config(source["configMapRef"]["name"])
        for variable in container.get("env", []):
            env[variable["name"]] = variable["value"]
        return env

    def _config(self, name: str) -> dict[str, str]:
        data: dict[str, str] = self.get("ConfigMap", name)["data"]
        return data


def name_of(item: Object) -> str:
    """An object's name."""
    name: str = item["metadata"]["name"]
    return name


def pod_of(workload: Object) -> Object:
    """The specification of a workload's pods."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def containers_of(workload: Object) -> list[Object]:
    """All containers of a workload's pods, those of the beginning first."""
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def each_container(manifests: Manifests) -> Iterator[tuple[Object, Object]]:
    """Every container with its workload."""
    for workload in manifests.workloads:
        for container in containers_of(workload):
            yield workload, container


@cache
def overlay(name: str) -> Manifests:
    """An overlay as it is shipped."""
    return manifests(OVERLAYS / name)


def manifests(folder: Path) -> Manifests:
    """A folder with a kustomization. Raises CalledProcessError if kustomize refuses it."""
    text = rendered(folder)
    return Manifests(text, tuple(yaml.safe_load_all(text)))


def overlay_of_ones_own(
    folder: Path, *, resources: Iterable[Path] = (), components: Iterable[Path] = (), more: str = ""
) -> Manifests:
    """Renders a kustomization in `folder` as a user would write it; `more` is appended to it."""
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
    for title, paths in (("resources", resources), ("components", components)):
        # kustomize takes no absolute paths.
        lines += [f"{title}:", *(f"  - {os.path.relpath(path, folder)}" for path in paths)]
    lines = [line for line in lines if line != "components:" or components]
    (folder / "kustomization.yaml").write_text("\n".join([*lines, more]))
    return manifests(folder)
