"""The units are what systemd understands and leave CUDA working; the script installs them, and ends
what it began."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from emiliad.config import all_settings

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "ops" / "systemd"
UNITS = ("emiliad.service", "emiliad@.service", "emiliad-gpu.service", "emiliad.slice")
EXPOSURE = 1.6  # of systemd-analyze security; ops/README.md says it too

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit(name: str) -> str:
    return (SYSTEMD / name).read_text()


def analyze(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that exists here in the place of the installed one."""
    for name in UNITS:
        text = unit(name).replace("/opt/emiliad/venv/bin/emiliad run", shutil.which("true") or "")
        (tmp_path / name).write_text(text)
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_to_say_about_a_unit(units: Path, name: str) -> None:
    """An unknown key is a warning and exit code 0, so any output fails."""
    done = analyze("verify", f"./{name}", cwd=units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("name", ["emiliad.service", "emiliad@.service"])
def test_the_service_is_no_more_exposed_than_documented(units: Path, name: str) -> None:
    """What hardening is left out is left out for CUDA; the rest stays."""
    done = analyze("security", "--offline=true", f"./{name}", cwd=units)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE
    assert f"exposure {EXPOSURE}" in (ROOT / "ops" / "README.md").read_text()


@pytest.mark.parametrize(
    "line",
    [
        "PrivateDevices=no",
        "DeviceAllow=char-nvidia* rw",
        "MemoryDenyWriteExecute=no",
        "ProcSubset=all",
        "SystemCallFilter=@system-service",
        "LimitMEMLOCK=infinity",
    ],
)
def test_hardening_leaves_cuda_working(line: str) -> None:
    """Each of these, set otherwise, is known to hide the GPU or to break what compiles for it."""
    assert line in unit("emiliad.service").splitlines()


def test_system_calls_that_cuda_needs_are_not_taken_away() -> None:
    """@resources holds mbind and set_mempolicy."""
    taken = [row for row in unit("emiliad.service").splitlines() if "SystemCallFilter=~" in row]
    assert all("@resources" not in row for row in taken)


def test_the_drain_fits_into_the_time_that_systemd_gives() -> None:
    """Running work has DRAIN_TIMEOUT_S, the last releases 5 s more; then comes SIGKILL."""
    drain = next(s for s in all_settings() if s.name == "DRAIN_TIMEOUT_S")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit("emiliad.service"), re.MULTILINE)
    assert stop is not None
    assert float(str(drain.default)) + 5 < int(stop[1])


def test_an_instance_is_the_service_with_settings_of_its_own() -> None:
    """The template may drift from the service in nothing else."""
    lines = (unit("emiliad.service").splitlines(), unit("emiliad@.service").splitlines())
    changed = [line for line in difflib.ndiff(*lines) if line[0] in "+-" and line[2] != "#"]
    assert changed == [
        "- Description=emiliad turns raw audio into speech-dataset segments",
        "+ Description=emiliad turns raw audio into speech-dataset segments (%i)",
        "+ EnvironmentFile=/etc/emiliad/%i.env",
    ]


@pytest.mark.parametrize("name", ["emiliad.env.example", "credentials.env.example"])
def test_the_examples_name_only_settings_that_exist(name: str) -> None:
    """A name that nobody reads would be believed to work; secrets are not for emiliad.env."""
    known = {s.name: s.secret for s in all_settings()} | {"CUDA_VISIBLE_DEVICES": False}
    named = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", unit(name), re.MULTILINE)
    assert named
    assert {key: known.get(key) for key in named} == dict.fromkeys(
        named, name.startswith("credentials")
    )


def installed(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the script below `root`."""
    return subprocess.run(
        [SYSTEMD / "install.sh", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(root), "DESTDIR": str(root), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def files(root: Path) -> Mapping[str, tuple[int, bytes]]:
    """Every file below `root` but the environment's: mode and content."""
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in root.rglob("*")
        if path.is_file() and not path.is_relative_to(root / "opt" / "emiliad" / "versions")
    }


def test_the_script_installs_and_repeats_itself_without_effect(tmp_path: Path) -> None:
    """Secrets are for root alone, and a second run writes nothing."""
    first = installed(tmp_path, "--no-venv")
    assert first.returncode == 0, first.stderr
    found = files(tmp_path)
    assert {f"etc/systemd/system/{name}" for name in UNITS} <= found.keys()
    assert found["etc/emiliad/credentials.env"][0] == 0o600
    assert found["usr/local/bin/emiliad"][0] == 0o755
    assert found["etc/emiliad/emiliad.env"] == found["etc/emiliad/emiliad.env.example"]
    second = installed(tmp_path, "--no-venv")
    assert "wrote" in first.stdout
    assert "wrote" not in second.stdout
    assert files(tmp_path) == found


def test_an_upgrade_keeps_what_the_operator_wrote(tmp_path: Path) -> None:
    """Settings and secrets are the operator's; the units are ours."""
    installed(tmp_path, "--no-venv")
    for name in ("emiliad.env", "credentials.env"):
        (tmp_path / "etc" / "emiliad" / name).write_text("R2_BUCKET=mine\n")
    (tmp_path / "etc" / "systemd" / "system" / "emiliad.service").write_text("old")
    assert installed(tmp_path, "--no-venv").returncode == 0
    found = files(tmp_path)
    assert found["etc/emiliad/emiliad.env"][1] == b"R2_BUCKET=mine\n"
    assert found["etc/emiliad/credentials.env"] == (0o600, b"R2_BUCKET=mine\n")
    assert found["etc/systemd/system/emiliad.service"][1].decode() == unit("emiliad.service")


def test_uninstalling_keeps_settings_and_models_unless_told_otherwise(tmp_path: Path) -> None:
    """Models are gigabytes and secrets are hard to come by again."""
    installed(tmp_path, "--no-venv")
    model = tmp_path / "var" / "lib" / "private" / "emiliad" / "models" / "net.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"net")
    assert installed(tmp_path, "--uninstall").returncode == 0
    assert {name.split("/")[0] for name in files(tmp_path)} == {"etc", "var"}
    assert not (tmp_path / "etc" / "systemd" / "system" / "emiliad.service").exists()
    assert installed(tmp_path, "--uninstall", "--purge").returncode == 0
    assert files(tmp_path) == {}


def test_an_unknown_option_changes_nothing(tmp_path: Path) -> None:
    """A misspelt --uninstall must not install."""
    done = installed(tmp_path, "--unistall")
    assert (done.returncode, files(tmp_path)) == (2, {})
    assert "--unistall" in done.stderr


def test_each_version_has_an_environment_of_its_own(tmp_path: Path) -> None:
    """A running daemon's executors start from the version it began with; the one before stays."""
    wheel = _wheel(tmp_path)
    root = tmp_path / "root"
    opt = root / "opt" / "emiliad"
    for old in ("oldest", "old"):
        (opt / "versions" / old).mkdir(parents=True)
    (opt / "venv").symlink_to("versions/old")

    def install() -> str:
        done = installed(
            root,
            *("--extra", "none", "--python", sys.executable, "--from", str(wheel)),
            PIP_NO_DEPS="1",
            PIP_NO_INDEX="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "installing version" in install()
    new = (opt / "venv").resolve()
    assert {path.name for path in (opt / "versions").iterdir()} == {"old", new.name}
    assert (new / "bin" / "emiliad").read_text().startswith(f"#!{new}/bin/python")
    assert "installing version" not in install()
    assert (opt / "venv").resolve() == new


def _wheel(folder: Path) -> Path:
    """The project as a wheel; bytes may be added to its end."""
    source = folder / "source"
    for name in ("emiliad", "pipeline"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import setuptools.build_meta as b; b.build_wheel({str(folder)!r})",
        ],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_command_has_the_services_settings(tmp_path: Path) -> None:
    """`emiliad status` at the prompt looks at the bucket that the service works on."""
    installed(tmp_path, "--no-venv")
    etc, program = tmp_path / "etc" / "emiliad", tmp_path / "opt/emiliad/venv/bin/emiliad"
    (etc / "emiliad.env").write_text(
        '# a comment\nR2_BUCKET="two words $HOME"\nDEVICE=cuda\nnot a setting\n$(touch x)=1\n'
    )
    (etc / "credentials.env").write_text("R2_SECRET_ACCESS_KEY='a=b`c'")
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$R2_BUCKET|$R2_SECRET_ACCESS_KEY|$DEVICE|$*"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "usr/local/bin/emiliad", "status", "--json"],
        env={"PATH": os.environ["PATH"], "EMILIAD_ROOT": str(tmp_path), "DEVICE": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "two words $HOME|a=b`c|cpu|status --json\n"
    assert not (tmp_path / "x").exists()


def test_the_scripts_are_clean() -> None:
    """shellcheck knows the traps of sh."""
    scripts = [SYSTEMD / "install.sh", SYSTEMD / "emiliad.sh", ROOT / "ops" / "venv.sh"]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
