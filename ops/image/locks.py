"""Pins what the images hold, with hashes: `python -m ops.image.locks` (`make locks`).

Each file is the whole set, installed with `--no-deps`: nothing that is not in it gets in. That is
how the GPU image comes without `onnxruntime`, which faster-whisper asks for, and which would hide
`onnxruntime-gpu` by overwriting its files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Lock:
    """One set of pins: its file, what it is resolved from, what is left out of it."""

    file: str
    asked: str
    without: frozenset[str] = frozenset()


SLIM = Lock("requirements-slim.txt", ".")
GPU = Lock("requirements-gpu.txt", ".[gpu]", frozenset({"onnxruntime"}))
LOCKS = {"slim": SLIM, "gpu": GPU}

_HEAD = """\
# What the image `{name}` holds, for Linux x86-64 and Python 3.11. Made by `make locks`.
#   pip install --no-deps --require-hashes -r {file}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files. Resolving the GPU set makes pip download it: some 4 GB, kept nowhere."""
    parser = argparse.ArgumentParser(prog="python -m ops.image.locks", description=__doc__)
    parser.add_argument("name", nargs="*", choices=[[], *LOCKS], help="which; default: all")
    parser.add_argument("--report", type=Path, help="what pip resolved already (install --report)")
    arguments = parser.parse_args(argv)
    if arguments.report and len(arguments.name) != 1:
        parser.error("--report is about one set: name it")
    for name in arguments.name or LOCKS:
        lock = LOCKS[name]
        report = json.loads(arguments.report.read_text()) if arguments.report else resolved(lock)
        text = _HEAD.format(name=name, file=lock.file) + "".join(pins(report, lock))
        (ROOT / lock.file).write_text(text)
        print(f"wrote {lock.file}", file=sys.stderr)
    return 0


def resolved(lock: Lock) -> Mapping[str, Any]:
    """pip's report of what it would install for this interpreter. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--only-binary=:all:", "--constraint=constraints.txt"]
        command += [f"--report={report}", lock.asked]
        # Wheels of one's own (a torch without CUDA, say) are not what the image is built from.
        env = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        found: Mapping[str, Any] = json.loads(report.read_text())
        return found


def pins(report: Mapping[str, Any], lock: Lock) -> Iterable[str]:
    """The lines of a requirements file, by name; what `lock` leaves out is left out.

    Raises ValueError for a package that does not come from an index, such as a wheel on disk.
    """
    wanted = {canonical(item["metadata"]["name"]): item for item in report["install"]}
    for name, item in sorted(wanted.items()):
        if name == "emiliad" or name in lock.without:
            continue
        version = item["metadata"]["version"]
        if not item["download_info"]["url"].startswith("https:") or "+" in version:
            raise ValueError(f"{name} {version} comes from {item['download_info']['url']}")
        sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
        yield f"{name}=={version} \\\n    --hash=sha256:{sha256}\n"


def canonical(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
