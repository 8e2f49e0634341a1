"""The embedded store on a real file system: races, kills, odd names, full disks."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

import anyio
import pytest

from emiliad.errors import (
    ConfigError,
    DiskFull,
    InvalidKey,
    NotFound,
    PreconditionFailed,
    StoreError,
    StoreUnusable,
)
from emiliad.stores import files, open_store
from emiliad.stores.local import LocalStore
from tests.emiliad.rig import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root")


async def listed(store: LocalStore, prefix: str = "", after: str = "") -> list[str]:
    return [i.key async for page in store.list(prefix, start_after=after) for i in page]


def temporary_files(store_root: Path) -> list[Path]:
    return list((store_root / ".emiliad" / "tmp").iterdir())


@dataclass
class Workers:
    """Processes that work on one directory; what each says goes to a file."""

    processes: list[subprocess.Popen[bytes]]
    said: list[Path]

    def lines(self, me: int) -> list[str]:
        """What a process has said since it began to work."""
        return self.said[me].read_text().splitlines()[1:]

    def said_something(self) -> bool:
        return any(self.lines(me) for me in range(len(self.said)))

    def wait(self) -> None:
        for process in self.processes:
            assert process.wait(60) == 0

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@contextmanager
def workers(work: str, root: Path, many: int, rounds: int) -> Iterator[Workers]:
    """Starts them together; kills those that still run at the end of the block."""
    said = [root / f"said-{me}-{time.monotonic_ns()}" for me in range(many)]
    processes = []
    for me, path in enumerate(said):
        arguments = ["-m", "tests.emiliad.store_workers", work, str(root), str(me), str(rounds)]
        with path.open("w") as out:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=out
                )
            )
    team = Workers(processes, said)
    try:
        wait_until(lambda: all(path.read_text() for path in said))
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        yield team
    finally:
        team.kill()


async def test_two_hundred_races_of_fifty_have_one_winner_each(tmp_path: Path) -> None:
    """Fifty claimants with stores of their own create one key at the same time."""
    stores = [LocalStore(tmp_path, durable=False) for _ in range(50)]
    for number in range(200):
        winners: list[int] = []

        async def claim(me: int, key: str = f"{number}", won: list[int] = winners) -> None:
            try:
                await stores[me].put(key, b"%d" % me, if_absent=True)
            except PreconditionFailed:
                return
            won.append(me)

        async with anyio.create_task_group() as group:
            for me in range(50):
                group.start_soon(claim, me)
        (winner,) = winners
        assert (await stores[0].get(f"{number}")).body == b"%d" % winner


def test_processes_race_for_a_key_and_one_wins(tmp_path: Path) -> None:
    """Six processes, two hundred keys: each is won once, and holds its winner's name."""
    with workers("race", tmp_path, many=6, rounds=200) as team:
        team.wait()
        won = sorted((int(number), str(me)) for me in range(6) for number in team.lines(me))
    assert [number for number, _ in won] == list(range(200))
    found = [(tmp_path / "race" / str(number)).read_text() for number in range(200)]
    assert found == [me for _, me in won]


def test_killed_processes_lose_no_acknowledged_write(tmp_path: Path) -> None:
    """SIGKILL at any time: every acknowledged increment is there, no file torn, no lock held."""
    (tmp_path / "counter").write_text("0")
    acknowledged = killed = 0
    for _ in range(6):
        with workers("count", tmp_path, many=4, rounds=10_000) as team:
            wait_until(team.said_something)
            time.sleep(random.uniform(0, 0.05))
            team.kill()
            acknowledged += sum(len(team.lines(me)) for me in range(4))
            killed += 4
    counted = int((tmp_path / "counter").read_text())
    assert acknowledged <= counted <= acknowledged + killed
    with workers("count", tmp_path, many=2, rounds=5) as team:
        team.wait()
    assert int((tmp_path / "counter").read_text()) == counted + 10


async def test_a_reader_never_sees_half_an_object(store: LocalStore) -> None:
    """While one writes again and again, each read is one of the whole bodies."""
    bodies = {bytes([letter]) * 200_000 for letter in b"abc"}
    await store.put("key", next(iter(bodies)))
    done = anyio.Event()

    async def write() -> None:
        for _ in range(10):
            for body in bodies:
                await store.put("key", body)
        done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        while not done.is_set():
            assert (await store.get("key")).body in bodies


async def test_keys_are_paths_that_people_can_read(store: LocalStore, tmp_path: Path) -> None:
    """What the store holds lies under its root as one would expect, and nothing else does."""
    await store.put("raw_audio/en/one.mp3", b"audio")
    assert (tmp_path / "root/raw_audio/en/one.mp3").read_bytes() == b"audio"
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == [".emiliad", "raw_audio"]
    assert temporary_files(tmp_path / "root") == []


async def test_files_that_people_put_there_are_objects(store: LocalStore, tmp_path: Path) -> None:
    """With the etag of their content; large ones are listed by size and time, without a read."""
    folder = tmp_path / "root/raw_audio/en"
    folder.mkdir(parents=True)
    (folder / "small.mp3").write_bytes(b"small")
    (folder / "large.mp3").write_bytes(b"l" * (files.HASHED_BYTES + 1))
    ((large, small),) = [page async for page in store.list("raw_audio/")]
    assert small.etag == md5(b"small").hexdigest()
    assert "-" in large.etag
    assert large.size == files.HASHED_BYTES + 1
    etag = (await store.head(large.key)).etag
    assert etag == (await store.get(large.key)).etag
    with pytest.raises(PreconditionFailed):
        await store.put(large.key, b"", if_match=large.etag)
    await store.put(large.key, b"new", if_match=etag)


async def test_a_directory_sorts_as_its_name_with_a_slash(
    store: LocalStore, tmp_path: Path
) -> None:
    """Key order is that of whole keys, as object stores have it."""
    keys = ["a-b", "a.b", "a/b", "a/b-c", "a/b.c", "a/c/d", "a0", "b", "\U0001f399", "\uffee"]
    for key in keys:
        (tmp_path / "root" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / key).write_bytes(b"")
    assert await listed(store) == sorted(keys)
    for after in [*sorted(keys), "a", "a/", "a/b/", "a/c", "a/c/", "a/zz"]:
        assert await listed(store, after=after) == [key for key in sorted(keys) if key > after]


async def test_links_are_followed_but_not_in_circles(store: LocalStore, tmp_path: Path) -> None:
    """Audio may lie elsewhere; a link to a folder above ends the walk, a dead one is nothing."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "one.mp3").write_bytes(b"audio")
    raw = tmp_path / "root/raw_audio"
    raw.mkdir(parents=True)
    (raw / "en").symlink_to(elsewhere)
    (raw / "up").symlink_to(tmp_path / "root")
    (raw / "gone.mp3").symlink_to(tmp_path / "nowhere")
    os.mkfifo(raw / "pipe.mp3")
    assert await listed(store) == ["raw_audio/en/one.mp3"]
    assert (await store.get("raw_audio/en/one.mp3")).body == b"audio"
    for nothing in ("raw_audio/pipe.mp3", "raw_audio/gone.mp3", "raw_audio/en", "raw_audio/en/x/y"):
        with pytest.raises(NotFound):
            await store.get(nothing)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "a//b",
        "a/",
        "../outside",
        "a/../../outside",
        "a/./b",
        "a\0b",
        ".emiliad",
        ".emiliad/locks/00",
        "a/" + "x" * 256,
        "a/" + "é" * 128,
        "bad\udcff",
        "/".join(["deep"] * 2000),
    ],
)
async def test_a_key_that_is_no_path_under_the_root_is_refused(
    store: LocalStore, tmp_path: Path, key: str
) -> None:
    """One sentence says which key and why; nothing is written."""
    for request in (store.put(key, b"x"), store.get(key), store.head(key), store.delete(key)):
        with pytest.raises(InvalidKey, match=r": .") as told:
            await request
        assert "\n" not in str(told.value)
    assert await listed(store, key) == []
    assert [path for path in tmp_path.rglob("*") if path.name in ("outside", "x")] == []


async def test_a_key_cannot_be_file_and_folder(store: LocalStore) -> None:
    """R2 can hold `a` and `a/b`; a file system cannot, and says so."""
    await store.put("a/b", b"x")
    for if_absent in (False, True):
        with pytest.raises(InvalidKey, match="folder"):
            await store.put("a", b"x", if_absent=if_absent)
        with pytest.raises(InvalidKey, match="file"):
            await store.put("a/b/c", b"x", if_absent=if_absent)
    await store.delete("a")
    await store.delete("a/b/c")
    assert await listed(store) == ["a/b"]


async def test_the_longest_names_fit(store: LocalStore) -> None:
    """255 bytes are a name."""
    await store.put("a/" + "x" * 255, b"x")
    assert await listed(store) == ["a/" + "x" * 255]


async def test_names_that_are_no_utf8_are_listed_and_refused(
    store: LocalStore, tmp_path: Path
) -> None:
    """Whoever scans can count them; nobody can be made to use them."""
    folder = os.fsencode(tmp_path / "root")
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/\xff.mp3")).write_bytes(b"x")
    assert await listed(store) == ["\udcff.mp3"]
    with pytest.raises(InvalidKey, match="UTF-8"):
        await store.get("\udcff.mp3")


async def test_a_store_that_is_not_there_is_empty(store: LocalStore, tmp_path: Path) -> None:
    """Looking creates nothing; the first write does."""
    assert await listed(store) == []
    with pytest.raises(NotFound):
        await store.get("a")
    await store.delete("a")
    assert not (tmp_path / "root").exists()
    await store.put("a", b"x")
    assert (tmp_path / "root/a").exists()


async def test_what_killed_writers_left_is_cleared(tmp_path: Path) -> None:
    """Temporary files of more than an hour go at the first write; younger ones may be in use."""
    folder = tmp_path / ".emiliad/tmp"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"x")
    (folder / "young").write_bytes(b"x")
    os.utime(folder / "old", (time.time() - 3700,) * 2)
    await LocalStore(tmp_path).put("a", b"x")
    assert [path.name for path in folder.iterdir()] == ["young"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_up_leaves_nothing_half_written(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The object keeps its content, the temporary file goes, the error says what and why."""
    await store.put("a", b"before")

    def full(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    source = tmp_path / "source"
    source.write_bytes(b"after")
    for write in (store.put("a", b"after"), store.upload("a", source)):
        with pytest.raises(DiskFull, match="'a' was not written: "):
            await write
    monkeypatch.undo()
    assert (await store.get("a")).body == b"before"
    assert temporary_files(tmp_path / "root") == []


_ON_A_FULL_DISK = """
import anyio, sys
from pathlib import Path
from emiliad.errors import DiskFull
from emiliad.stores.local import LocalStore
from tests.emiliad.rig import wait_until

async def main():
    store = LocalStore(Path(sys.argv[1]))
    await store.put("a", b"before")
    try:
        await store.put("a", b"x" * 1_000_000)
    except DiskFull as error:
        print(error)
    assert (await store.get("a")).body == b"before"
    assert list(Path(sys.argv[1], ".emiliad/tmp").iterdir()) == []
    await store.put("b", b"fits")
    Path(sys.argv[2]).write_bytes(b"x" * 1_000_000)
    await LocalStore(Path(sys.argv[2]).parent).download("big", Path(sys.argv[1], "target"))

try:
    anyio.run(main)
except OSError as error:
    print(error.strerror, Path(sys.argv[1], "target").exists())
"""


def test_a_small_disk_is_really_filled(tmp_path: Path) -> None:
    """The same on a file system of 256 KB; a full disk of the reader's own is an OSError."""
    disk, big = tmp_path / "disk", tmp_path / "other" / "big"
    disk.mkdir()
    big.parent.mkdir()
    script = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$0" -c "$3" "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, disk, big, _ON_A_FULL_DISK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 1 and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no file system of our own can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "'a' was not written: No space left on device",
        "No space left on device False",
    ]


@contextmanager
def as_nobody() -> Iterator[Path]:
    """An empty folder, and no more rights than any user, who is bound by permissions."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


async def test_what_may_not_be_read_is_that_objects_trouble() -> None:
    """Unreadable audio is listed, and fails alone; an unwritable store is unusable."""
    with as_nobody() as folder:
        store = LocalStore(folder / "root")
        await store.put("a", b"x")
        (folder / "root/a").chmod(0)
        assert await listed(store) == ["a"]
        with pytest.raises(StoreError, match="Permission denied") as told:
            await store.get("a")
        assert not isinstance(told.value, StoreUnusable)
        (folder / "root").chmod(0o500)
        with pytest.raises(StoreUnusable, match="Permission denied"):
            await store.put("new/b", b"x")
        (folder / "root").chmod(0o700)


async def test_trouble_with_a_local_file_is_an_os_error(store: LocalStore, tmp_path: Path) -> None:
    """It is the caller's file, not the store's."""
    await store.put("a", b"x")
    with pytest.raises(FileNotFoundError):
        await store.upload("b", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        await store.download("a", tmp_path / "no" / "folder")
    assert await listed(store) == ["a"]


async def test_a_large_copy_can_be_cancelled(store: LocalStore, tmp_path: Path) -> None:
    """Stopping does not wait for gigabytes; nothing half-written stays."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(4 << 30)  # sparse
    with anyio.move_on_after(0.05) as scope:
        await store.upload("big", source)
    assert scope.cancelled_caught
    assert await listed(store) == []
    assert temporary_files(tmp_path / "root") == []


async def test_stores_over_one_directory_are_one(tmp_path: Path) -> None:
    """Each sees the others' writes at once; a store's own folder that is gone is made again."""
    one, other = LocalStore(tmp_path), LocalStore(tmp_path)
    etag = await one.put("a", b"x")
    await other.put("a", b"y", if_match=etag)
    assert (await one.get("a")).body == b"y"
    await one.aclose()
    shutil.rmtree(tmp_path / ".emiliad")
    await other.put("b", b"z")
    assert await listed(one) == ["a", "b"]


@pytest.mark.parametrize(
    "url", ["", "s3://bucket", "http://x/y", "/some/dir", "file:relative", "file://host/dir"]
)
def test_only_directories_can_be_opened(url: str) -> None:
    """The message says what was written and what can be."""
    with pytest.raises(ConfigError, match="file:///"):
        open_store(url)


async def test_a_url_may_hold_any_path(tmp_path: Path) -> None:
    """Percent signs are decoded; what `Path.as_uri` writes is understood."""
    folder = tmp_path / "a b%20c#d?é"
    store = open_store(folder.as_uri())
    await store.put("x", b"")
    assert (folder / "x").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a directory"):
        open_store((tmp_path / "file").as_uri())
