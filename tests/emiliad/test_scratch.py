"""Scratch space: one slot per daemon, one directory per task, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emiliad import scratch as module
from emiliad.errors import ConfigError
from emiliad.scratch import Scratch

ROOT = Path(__file__).parents[2]
_NOBODY = 65534
Open = Callable[[Path], Scratch]


@pytest.fixture
def open_scratch() -> Iterator[Open]:
    """Opens scratch spaces, and closes them after the test."""
    opened: list[Scratch] = []

    def open_one(root: Path) -> Scratch:
        opened.append(Scratch(root))
        return opened[-1]

    yield open_one
    for scratch in opened:
        scratch.close()


_DAEMON = """
import sys
from pathlib import Path
from emiliad.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.new("left behind") / "audio.wav").write_bytes(b"x" * 100)
print(scratch.path, scratch.owner, flush=True)
sys.stdin.read()
"""


def _daemon(root: Path) -> tuple[subprocess.Popen[str], Path, str]:
    """Another process with a scratch space in `root`; returns it, its slot and its owner id."""
    process = subprocess.Popen(
        [sys.executable, "-c", _DAEMON, str(root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    path, owner = process.stdout.readline().split()
    return process, Path(path), owner


def test_the_directory_is_made(open_scratch: Open, tmp_path: Path) -> None:
    """SCRATCH_DIR is created with its parents, and its file system's free space is known."""
    scratch = open_scratch(tmp_path / "a" / "b")
    assert scratch.path == tmp_path / "a" / "b" / "owner-0"
    assert scratch.root == tmp_path / "a" / "b"
    assert 0 < scratch.free_bytes() <= shutil.disk_usage(tmp_path).total


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        ".",
        "..",
        "../../etc",
        "a/b",
        "\n",
        "ü" * 200,
        "😀",
        "a" * 255,
        "-rf",
        "con",
        "\0",
        "\udcff",
    ],
)
def test_any_id_gets_a_directory_inside(open_scratch: Open, tmp_path: Path, task_id: str) -> None:
    """Whatever a task is called, its directory is new, empty, and below the slot's own."""
    scratch = open_scratch(tmp_path)
    first, second = scratch.new(task_id), scratch.new(task_id)
    assert first != second
    for path in (first, second):
        assert path.resolve().parent == (tmp_path / "owner-0" / "tasks").resolve()
        assert list(path.iterdir()) == []
        path.name.encode("ascii")
    scratch.remove(first)
    assert not first.exists()
    assert second.exists()


def test_the_directory_names_its_task(open_scratch: Open, tmp_path: Path) -> None:
    """A person who looks into scratch space sees what is worked on."""
    assert open_scratch(tmp_path).new("My talk (1)").name.startswith("My_talk_1_-")


def test_removing_takes_everything(open_scratch: Open, tmp_path: Path) -> None:
    """Nested folders and links go; what links point to stays; a second call does nothing."""
    scratch = open_scratch(tmp_path / "scratch")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    path = scratch.new("a")
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "file").write_text("x")
    (path / "link").symlink_to(outside)
    scratch.remove(path)
    assert not path.exists()
    assert (outside / "precious").exists()
    scratch.remove(path)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """Makes this process one whom permissions bind, even if root runs the tests."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, _NOBODY, -1)
        os.seteuid(_NOBODY)
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


def test_permissions_do_not_keep_a_task(open_scratch: Open, ordinary_user: Path) -> None:
    """A folder that a pipeline made unreadable goes; what a link in it points to stays as it is."""
    scratch = open_scratch(ordinary_user / "scratch")
    outside = ordinary_user / "outside"
    outside.mkdir(mode=0o755)
    path = scratch.new("a")
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "file").write_text("x")
    (path / "deep" / "link").symlink_to(outside)
    (path / "deep" / "er").chmod(0)
    (path / "deep").chmod(0o500)
    scratch.remove(path)
    assert not path.exists()
    assert outside.stat().st_mode & 0o777 == 0o755


def test_someone_elses_directory_is_a_configuration_error(ordinary_user: Path) -> None:
    """A SCRATCH_DIR that this user may not write is named with the reason."""
    ordinary_user.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be used: Permission denied"):
        Scratch(ordinary_user / "scratch")


@pytest.mark.parametrize("path", ["/", "/etc", "{root}", "{root}/owner-0", "{root}/owner-0/tasks"])
def test_only_tasks_are_removed(open_scratch: Open, tmp_path: Path, path: str) -> None:
    """`remove` refuses any path that `new` did not give."""
    scratch = open_scratch(tmp_path)
    with pytest.raises(ValueError, match="not a task's directory"):
        scratch.remove(Path(path.format(root=tmp_path)))


def test_used_bytes_are_the_files_sizes(open_scratch: Open, tmp_path: Path) -> None:
    """What the tasks' files hold is summed, through all levels, without following links."""
    scratch = open_scratch(tmp_path)
    assert scratch.used_bytes() == 0
    path = scratch.new("a")
    (path / "out").mkdir()
    (path / "audio.wav").write_bytes(b"x" * 1000)
    (path / "out" / "0.mp3").write_bytes(b"x" * 234)
    (path / "link").symlink_to("audio.wav")
    assert scratch.used_bytes() == 1234 + len("audio.wav")
    scratch.remove(path)
    assert scratch.used_bytes() == 0


def test_two_daemons_have_a_slot_and_a_name_each(open_scratch: Open, tmp_path: Path) -> None:
    """Daemons that share SCRATCH_DIR never touch each other's directories."""
    first = open_scratch(tmp_path)
    mine = first.new("mine")
    process, path, owner = _daemon(tmp_path)
    with process:
        assert path == tmp_path / "owner-1"
        assert owner != first.owner
        assert mine.exists()
        first.clear()
        assert len(list((path / "tasks").iterdir())) == 1
        process.kill()


def test_a_killed_daemon_is_succeeded(open_scratch: Open, tmp_path: Path) -> None:
    """After `kill -9` the next daemon has the same slot and owner id, and finds it empty."""
    process, path, owner = _daemon(tmp_path)
    with process:
        assert len(list((path / "tasks").iterdir())) == 1
        process.kill()
    next_one = open_scratch(tmp_path)
    assert (next_one.path, next_one.owner) == (path, owner)
    assert next_one.used_bytes() == 0
    assert list((path / "tasks").iterdir()) == []


def test_a_closed_slot_is_free_and_empty(open_scratch: Open, tmp_path: Path) -> None:
    """`close` removes the tasks' directories and lets the next daemon be the same owner."""
    first = open_scratch(tmp_path)
    first.new("a")
    first.close()
    assert list((tmp_path / "owner-0" / "tasks").iterdir()) == []
    first.close()
    assert open_scratch(tmp_path).owner == first.owner


def test_clearing_touches_only_directories_of_tasks(open_scratch: Open, tmp_path: Path) -> None:
    """Files and links among the tasks, and all that lies beside them, are not ours to remove."""
    precious = tmp_path / "precious"
    precious.mkdir()
    scratch = open_scratch(tmp_path / "scratch")
    scratch.new("a")
    tasks = scratch.path / "tasks"
    (tasks / "file").write_text("x")
    (tasks / "link").symlink_to(precious)
    (scratch.root / "notes").mkdir()
    scratch.clear()
    assert {path.name for path in tasks.iterdir()} == {"file", "link"}
    assert precious.exists()
    assert (scratch.root / "notes").exists()


def test_a_link_in_place_of_the_tasks_is_not_followed(open_scratch: Open, tmp_path: Path) -> None:
    """Somebody's link where our folder should be does not lead `clear` astray."""
    precious = tmp_path / "precious"
    (precious / "folder").mkdir(parents=True)
    (tmp_path / "scratch" / "owner-0").mkdir(parents=True)
    (tmp_path / "scratch" / "owner-0" / "tasks").symlink_to(precious)
    open_scratch(tmp_path / "scratch").new("a")
    assert [path.name for path in precious.iterdir()] == ["folder"]


def test_a_new_task_finds_its_place_again(open_scratch: Open, tmp_path: Path) -> None:
    """A cleaner of temporary files that removed the folder of tasks does no harm."""
    scratch = open_scratch(tmp_path)
    shutil.rmtree(scratch.new("a").parent)
    assert scratch.used_bytes() == 0
    assert scratch.new("a").is_dir()


@pytest.mark.parametrize("content", ["", "nonsense", "\x00" * 40, "f" * 31])
def test_a_damaged_owner_file_is_replaced(open_scratch: Open, tmp_path: Path, content: str) -> None:
    """An owner file without an id in it gets a new one, which then stays."""
    (tmp_path / "owner-0").mkdir()
    (tmp_path / "owner-0" / "owner").write_text(content)
    first = open_scratch(tmp_path)
    assert len(first.owner) == 32
    first.close()
    assert open_scratch(tmp_path).owner == first.owner


def test_a_copied_disk_is_another_owner(
    open_scratch: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id holds for one boot of one machine, so that a copied disk's daemon has its own."""
    first = open_scratch(tmp_path)
    first.close()
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "boot_id")
    second = open_scratch(tmp_path)
    assert second.owner != first.owner
    second.close()
    assert open_scratch(tmp_path).owner == second.owner


def test_a_file_in_the_way_is_a_configuration_error(tmp_path: Path) -> None:
    """A SCRATCH_DIR that cannot be a directory is named, with the reason, in one sentence."""
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"SCRATCH_DIR: .*file.* cannot be used: "):
            Scratch(root)


def test_an_unwritable_directory_is_a_configuration_error() -> None:
    """A read-only place (/proc is one even for root) is a ConfigError."""
    with pytest.raises(ConfigError, match="SCRATCH_DIR: /proc/self/emiliad cannot be used"):
        Scratch(Path("/proc/self/emiliad"))


def test_a_full_house_is_a_configuration_error(
    open_scratch: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When every slot is held, the message says so; no descriptor is left open."""
    monkeypatch.setattr(module, "_SLOTS", 2)
    open_scratch(tmp_path)
    open_scratch(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigError, match="all 2 slots"):
        Scratch(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
