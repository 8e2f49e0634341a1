"""The daemon's working space on disk: a slot of its own, in it one directory per task."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from emiliad.errors import ConfigError

_SLOTS = 1000  # daemons that share one SCRATCH_DIR; a thousandth means that something is wrong
_NAME_CHARS = 40  # of a task's id in the name of its directory: for people who look
_ID = re.compile(r"[0-9a-f]{32}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Scratch:
    """Owns `root/owner-N/`, where N is the first number that no living daemon holds.

    The lock is the kernel's (flock on the slot's file `owner`), so a daemon that was killed holds
    nothing: the next one takes its slot, clears what it left, and has the same `owner`. All
    methods block on the disk; `root` should be a local one.

    Raises ConfigError if `root` cannot be created, written or locked.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._slot, self._lock = _free_slot(root)
            self.owner = _owner(self._lock)
            self.root = root
            self.clear()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"SCRATCH_DIR: {root} cannot be used: {reason}") from error

    @property
    def path(self) -> Path:
        """The slot."""
        return self._slot

    @property
    def _tasks(self) -> Path:
        return self._slot / "tasks"

    def new(self, task_id: str) -> Path:
        """Creates an empty directory for one attempt at a task, whatever its id looks like.

        Raises OSError (the disk is full, say).
        """
        os.utime(self._lock)  # a file in use is not one for a cleaner of old temporary files
        self._tasks.mkdir(parents=True, exist_ok=True)
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", task_id)[:_NAME_CHARS]
        return Path(tempfile.mkdtemp(prefix=f"{readable}-", dir=self._tasks))

    def remove(self, path: Path) -> None:
        """Removes what `new` gave, with all that is in it; there need be nothing.

        Raises ValueError for any other path, OSError if something cannot be removed.
        """
        if path.parent != self._tasks:
            raise ValueError(f"{path} is not a task's directory in {self._tasks}")
        _remove(path)

    def clear(self) -> None:
        """Removes the directories of all tasks, such as a dead daemon leaves."""
        if self._tasks.is_symlink():
            self._tasks.unlink()
        if not self._tasks.exists():
            return
        for path in self._tasks.iterdir():
            if path.is_dir() and not path.is_symlink():
                _remove(path)

    def used_bytes(self) -> int:
        """The sizes of the tasks' files, summed."""
        return _size(self._tasks)

    def free_bytes(self) -> int:
        """What the file system has left for an ordinary user."""
        return shutil.disk_usage(self._slot).free

    def total_bytes(self) -> int:
        """The size of the file system."""
        return shutil.disk_usage(self._slot).total

    def close(self) -> None:
        """Removes what is left of the tasks and gives the slot up; a second call does nothing."""
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        try:
            self.clear()
        finally:
            os.close(lock)


def _free_slot(root: Path) -> tuple[Path, int]:
    for number in range(_SLOTS):
        slot = root / f"owner-{number}"
        slot.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(slot / "owner", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        except OSError:
            os.close(lock)
            raise
        else:
            return slot, lock
    raise ConfigError(f"SCRATCH_DIR: all {_SLOTS} slots of {root} are held by running daemons")


def _owner(lock: int) -> str:
    """The random id in the locked file; a new one if the file has none, or is of another boot.

    The boot matters since a disk's image may be copied: two living daemons never share an id.
    """
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    owner, _, of_boot = os.pread(lock, 256, 0).decode(errors="replace").strip().partition(" ")
    if _ID.fullmatch(owner) and of_boot == boot:
        return owner
    owner = secrets.token_hex(16)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{owner} {boot}".rstrip().encode() + b"\n", 0)
    return owner


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    path.chmod(0o700)  # some directory in it forbids even its owner to enter
    for folder, names, _ in os.walk(path):
        for inner in (Path(folder) / name for name in names):
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path)


def _size(folder: Path) -> int:
    total = 0
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # removed meanwhile
        return 0
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            total += _size(Path(entry.path))
            continue
        try:
            total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total
