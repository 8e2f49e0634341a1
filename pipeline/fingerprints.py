"""The sha256 of files, remembered in `models.json` so that unchanged gigabytes are read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RECORD = "models.json"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a file was when it was last read: sha256, bytes, time of change (ns since 1970)."""

    sha256: str
    size: int
    mtime_ns: int


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_listing(listing: Iterable[tuple[str, str]]) -> str:
    """The sha256 of what `sha256sum` prints for (path, sha256) pairs, sorted by path."""
    lines = (f"{sha256}  {path}\n" for path, sha256 in sorted(listing))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Fingerprints:
    """Those of the files in `folder`, by path relative to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = _read(folder / RECORD)

    def recorded(self, path: str) -> Fingerprint | None:
        """As the file was when it was last recorded, which need not be as it is now."""
        return self._known.get(path)

    def is_current(self, path: str) -> bool:
        """Whether the file still has its recorded size and time of change. Raises OSError."""
        known = self._known.get(path)
        found = (self._folder / path).stat()
        return known is not None and (known.size, known.mtime_ns) == (
            found.st_size,
            found.st_mtime_ns,
        )

    def sha256(self, path: str) -> str:
        """The file's sha256: the recorded one while it is current, else read from the file.

        The record is left alone. Raises OSError.
        """
        if self.is_current(path):
            return self._known[path].sha256
        return sha256_of(self._folder / path)

    def record(self, path: str, sha256: str) -> None:
        """Remembers the file as it is now, on disk. Raises OSError."""
        found = (self._folder / path).stat()
        self._known[path] = Fingerprint(sha256, found.st_size, found.st_mtime_ns)
        files = {name: asdict(known) for name, known in sorted(self._known.items())}
        unfinished = self._folder / f"{RECORD}.part"
        unfinished.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self._folder / RECORD)


def _read(path: Path) -> dict[str, Fingerprint]:
    # A record that cannot be read is as good as none: the files will be read again.
    known: dict[str, Fingerprint] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for name, facts in json.loads(path.read_text(encoding="utf-8"))["files"].items():
            known[name] = Fingerprint(
                str(facts["sha256"]), int(facts["size"]), int(facts["mtime_ns"])
            )
    return known
