"""The rules that every room keeps, checked by machine."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from emiliad import __version__
from emiliad.config import all_settings

ROOT = Path(__file__).resolve().parents[2]
ML = ("torch", "numpy", "onnxruntime", "onnx", "av", "soxr", "pyannote", "faster_whisper")


def loaded_after(statement: str) -> set[str]:
    """The names of the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "emiliad.daemon",
        "emiliad.cli",
        "emiliad.commands.process",
        "emiliad.commands.queue",
        "emiliad.commands.models",
    ],
)
def test_the_daemon_never_loads_an_ml_library(module: str) -> None:
    """Models live in the executors; the daemon that outlives them stays small."""
    assert loaded_after(f"import {module}").isdisjoint(ML)


def test_the_executors_child_starts_without_the_daemons_libraries() -> None:
    """What the child loads it holds beside the models, in each of many processes."""
    loaded = loaded_after("import emiliad.executor.child")
    assert loaded.isdisjoint({*ML, "anyio", "structlog", "rich", "prometheus_client"})


def test_importing_the_pipelines_settings_costs_nothing() -> None:
    """`import pipeline.config` loads the standard library and this package alone."""
    third_party = loaded_after("import pipeline.config") - set(sys.stdlib_module_names)
    assert {name for name in third_party if not name.startswith(("_", "__"))} <= {
        "pipeline",
        "sitecustomize",
        "usercustomize",
        "distutils-precedence",
    }


def test_every_module_says_its_role_in_its_first_line() -> None:
    """A newcomer learns from the first line why a module exists."""
    silent = [
        str(path)
        for folder in ("emiliad", "pipeline", "ops")
        for path in (ROOT / folder).rglob("*.py")
        if not path.read_text().startswith('"""')
    ]
    assert silent == []


def test_modules_have_one_responsibilitys_size() -> None:
    """A module that outgrows 320 lines has found a second responsibility."""
    long = {
        str(path): lines
        for folder in ("emiliad", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 320
    }
    assert long == {}


def test_the_version_is_that_of_the_package() -> None:
    """/status and the metrics name the version that is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def test_settings_are_declared_once_and_documented() -> None:
    """No two settings share a name, and each says in words what it means."""
    names = [setting.name for setting in all_settings()]
    assert len(names) == len(set(names))
    assert all(setting.help and setting.name.isupper() for setting in all_settings())
