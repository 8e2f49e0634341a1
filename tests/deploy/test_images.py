"""The images: pinned, small in what they may do, the same in Dockerfile, pins and manifests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from emiliad.config import all_settings
from ops.image.locks import GPU, LOCKS, SLIM, Lock, canonical, pins
from ops.manifests import GROUPS, ROOT
from tests.deploy.cluster import (
    KUSTOMIZE,
    OVERLAY_NAMES,
    containers_of,
    each_container,
    overlay,
    overlay_of_ones_own,
    pod_of,
)

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "python_version": "3.11"}
DIGEST = "sha256:" + "0123456789abcdef" * 4
every_lock = pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)


def stages() -> dict[str, str]:
    """The instructions of each stage of the Dockerfile, by its name, comments and breaks gone."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    parts = re.split(r"^FROM \S+ AS (\S+)$", text.replace("\\\n", " "), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def image_environment() -> dict[str, str]:
    """What the base stage, and so every image, sets."""
    line = next(line for line in stages()["base"].splitlines() if line.startswith("ENV "))
    return dict(pair.split("=", 1) for pair in shlex.split(line)[1:])


def pinned(lock: Lock) -> dict[str, str]:
    """The versions in a file of pins, each with its hash."""
    found = re.findall(
        r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$",
        (ROOT / lock.file).read_text(),
        flags=re.MULTILINE,
    )
    lines = [line for line in (ROOT / lock.file).read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 2 * len(found)
    return dict(found)


def applying(requirements: list[str]) -> Iterator[Requirement]:
    """Those of a list that hold on Linux, without any extra."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({**LINUX, "extra": ""}):
            yield requirement


def asked_for(lock: Lock) -> list[str]:
    """What the project itself wants in that image."""
    extras = PROJECT["optional-dependencies"]
    wanted = list(PROJECT["dependencies"])
    return wanted + (extras["pipeline"] + extras["gpu"] if lock is GPU else [])


def test_the_dockerfile_is_clean() -> None:
    """hadolint finds nothing."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_everything_is_pinned() -> None:
    """The base by digest, packages by hash, and what pip builds with by version."""
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.M
    )
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) <= {"${PYTHON_IMAGE}", "base", "build"}
    installs = re.findall(r"pip install (.*?)(?:&&|$)", DOCKERFILE.replace("\\\n", " "), re.M)
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install or "==" in install


@pytest.mark.parametrize("target", ["slim", "gpu"])
def test_an_image_runs_as_nobody_in_particular(target: str) -> None:
    """tini is PID 1, the user has a number that manifests can check, weights are not inside."""
    own = stages()[target]
    assert re.findall(r"^USER (\S+)$", own, re.M) == ["10001:10001"]
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "emiliad"]' in stages()["base"]
    assert "/livez" in next(
        line for line in stages()["base"].splitlines() if line.startswith("HEALTHCHECK ")
    )
    for label in ("title", "description", "version", "revision", "created", "licenses"):
        assert f"org.opencontainers.image.{label}=" in own
    assert not re.search(r"^(RUN|COPY|ADD) .*(models pull|\.onnx|huggingface)", DOCKERFILE, re.M)


def test_the_gpu_image_is_what_a_plain_build_makes() -> None:
    """The last stage is the default target; it names no GPUs, which a pod could not take back."""
    assert list(stages())[-1] == "gpu"
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE


def test_a_new_version_of_the_project_is_a_small_layer() -> None:
    """In both images the packages are laid down before the project's own wheel."""
    for target in ("slim", "gpu"):
        own = stages()[target]
        assert own.index("COPY --from=") < own.index("/wheels/*.whl")
    for packages in ("slim-packages", "gpu-packages"):
        assert "COPY emiliad" not in stages()[packages]


def test_nothing_but_the_sources_reaches_the_builder() -> None:
    """A .env, a model or a .git beside the sources never becomes part of a build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        word
        for line in stages().values()
        for found in re.findall(r"^COPY (?!--from)(.*) \S+$", line, re.M)
        for word in found.split()
    } | set(re.findall(r"type=bind,source=([^,]+)", DOCKERFILE))
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


@every_lock
def test_an_image_holds_what_the_project_asks_for(lock: Lock) -> None:
    """Each dependency is pinned, to a version that pyproject.toml allows."""
    versions = pinned(lock)
    for requirement in applying(asked_for(lock)):
        if not requirement.name.startswith("emiliad"):
            assert requirement.specifier.contains(versions[canonical(requirement.name)])


@every_lock
def test_the_pins_are_a_closed_set(lock: Lock) -> None:
    """What a pinned package needs is pinned too, for nothing else will be installed."""
    versions = pinned(lock)
    missing = set()
    for name in versions:
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # CUDA's, which a machine without a GPU does not have
            continue
        missing |= {
            canonical(requirement.name)
            for requirement in applying(needs)
            if canonical(requirement.name) not in versions
        }
    assert missing == set(lock.without)


def test_the_gpu_image_has_one_onnx_runtime_and_both_cudas() -> None:
    """torch and ONNX Runtime for CUDA 13, cuBLAS of CUDA 12 for CTranslate2, no second runtime."""
    versions = pinned(GPU)
    assert "onnxruntime" not in versions
    assert versions["onnxruntime-gpu"] >= "1.31"
    assert versions["nvidia-cublas"].startswith("13.")
    assert "nvidia-cudnn-cu13" in versions
    assert versions["nvidia-cublas-cu12"].startswith("12.")
    assert "torch" not in pinned(SLIM)


def test_the_images_hold_what_the_tests_ran_with() -> None:
    """A package that is pinned in several files has one version in all of them."""
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    tested = {canonical(name): version for name, version in tested.items()}
    for lock in LOCKS.values():
        versions = pinned(lock)
        differs = {
            name: (version, tested[name])
            for name, version in versions.items()
            if tested.get(name, version) != version
        }
        assert differs == {}


def test_pins_come_from_an_index_alone() -> None:
    """A wheel from a disk, such as a torch without CUDA, cannot get into the pins unseen."""

    def report(url: str) -> dict[str, Any]:
        archive = {"hashes": {"sha256": "0" * 64}}
        return {
            "install": [
                {
                    "metadata": {"name": name, "version": "1.0"},
                    "download_info": {"url": url, "archive_info": archive},
                }
                for name in ("Torch_Audio", "onnxruntime", "emiliad")
            ]
        }

    line = f"torch-audio==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    assert list(pins(report("https://index/a.whl"), GPU)) == [line]
    with pytest.raises(ValueError, match="comes from file:"):
        list(pins(report("file:///opt/a.whl"), GPU))


@pytest.mark.parametrize("shown", OVERLAY_NAMES)
def test_manifests_and_images_agree(shown: str) -> None:
    """What the image says of places holds in the pod too, whoever reads it there."""
    said = image_environment()
    for workload, container in each_container(overlay(shown)):
        env = overlay(shown).environment(workload, container)
        assert {n: env[n] for n in env.keys() & said.keys()} == {
            n: said[n] for n in env.keys() & said.keys()
        }
        if container["image"].startswith("emiliad:"):
            assert said.keys() - env.keys() <= {
                "PATH",
                "PYTHONUNBUFFERED",
                "PYTHONDONTWRITEBYTECODE",
            }


@pytest.mark.parametrize("shown", OVERLAY_NAMES)
def test_images_carry_this_version_and_can_be_pinned(shown: str, tmp_path: Path) -> None:
    """A user's overlay turns every image into REGISTRY/NAME:TAG@DIGEST, none is overlooked."""
    for _, container in each_container(overlay(shown)):
        assert container["image"] in {
            f"{name}:{PROJECT['version']}" for name in ("emiliad", "emiliad-slim")
        }
    pinned_images = "images:\n" + "".join(
        f"  - {{name: {name}, newName: reg.example/{name}, newTag: 9.9.9, digest: '{DIGEST}'}}\n"
        for name in ("emiliad", "emiliad-slim")
    )
    mine = overlay_of_ones_own(
        tmp_path, resources=[KUSTOMIZE / "overlays" / shown], more=pinned_images
    )
    for workload in mine.workloads:
        assert pod_of(workload)
        for container in containers_of(workload):
            assert re.fullmatch(
                rf"reg\.example/emiliad(-slim)?(:9\.9\.9)?@{DIGEST}", container["image"]
            )


def test_the_example_environment_is_docker_s_kind() -> None:
    """Every setting is in it, under its group, as lines that docker takes as they are."""
    lines = (ROOT / "ops" / "env.example").read_text().splitlines()
    named = [
        line.lstrip("#").partition("=")[0] for line in lines if re.match(r"#?[A-Z_0-9]+=", line)
    ]
    assert named == [setting.name for setting in all_settings()]
    assert set(GROUPS) <= set(named)
    live = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(live.values()) == {""}
    assert {setting.name for setting in all_settings() if setting.secret} <= set(live)
