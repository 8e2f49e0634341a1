"""Two hundred tasks, a third of them to fail, through one real daemon with four executors."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.emiliad.rig import Bucket, Daemon, alive, wait_until

EXECUTORS = 4
ATTEMPTS = 2
FEW = 50  # tasks that come first, for the daemon to be warm when it is measured
PATIENCE_S = 240.0  # the whole takes 40 s on two idle cores
FLAT_BYTES = 32 * 1024**2  # more than the daemon may grow by in 150 tasks

# What a file's name makes the pipeline do, in how many files, and how such a task must end:
# None is completed, else the kind that the dead letter must name.
KINDS: dict[str, tuple[int, str | None]] = {
    "good": (60, None),
    "slow": (10, None),
    "raises": (12, "error"),
    "bad_audio": (12, "bad_audio"),
    "exit42": (8, "crash"),
    "segfault": (8, "crash"),
    "hang_gil": (2, "timeout"),
    "hang_c": (2, "timeout"),
    "oom": (6, "out_of_memory"),
    "oom_until_halved": (8, None),
    "oom_until_afresh": (4, None),
    "cuda": (4, "cuda"),
    "prints": (12, None),
    "leaves": (8, None),
    "hoards": (8, None),
    "garbage": (12, "garbage"),
    "half": (4, "crash"),
    "half_once": (6, None),
    "shouts": (6, None),
    "closes": (8, None),
}


@dataclass
class Observed:
    """What was seen of a daemon from outside."""

    bucket: Bucket
    daemon: Daemon
    memory: list[int] = field(default_factory=list)  # bytes, idle, after so many tasks as below
    descriptors: list[int] = field(default_factory=list)
    children: list[Counter[str]] = field(default_factory=list)  # by state, as the kernel has it

    def look(self) -> None:
        pid = self.daemon.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        self.children.append(Counter(_state(child) for child in _children(pid)))

    def settled(self) -> bool:
        """Every task is completed or failed, and none is held."""
        todo, failed, held = map(self._names, ("todo", "failed", "in_progress"))
        return todo == failed and held <= failed

    def _names(self, state: str) -> set[str]:
        folder = self.bucket.root / "bucket" / "tasks" / f"processing_{state}"
        return {path.stem for path in folder.glob("*.task")}

    def idle(self) -> bool:
        """Every executor has its models loaded, and none is about to be replaced."""
        time.sleep(0.3)  # what a task's end entails is decided within milliseconds
        return sum(map(alive, self.daemon.executors())) == EXECUTORS


def _children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for each in threads for child in (each / "children").read_text().split()]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _names() -> list[str]:
    names = [f"{kind}-{number}" for kind, (count, _) in KINDS.items() for number in range(count)]
    random.Random(4).shuffle(names)
    return names


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A daemon that was given 50 tasks, then 150, looked at before, between and after."""
    root = tmp_path_factory.mktemp("misbehaviour")
    (root / "state").mkdir()
    bucket = Bucket(
        root,
        {
            "PIPELINE": "tests.emiliad.fake_pipelines:Frugal",
            "CPU_EXECUTORS": str(EXECUTORS),
            "MAX_ATTEMPTS": str(ATTEMPTS),
            "PREFETCH_DEPTH": "4",
            "LEASE_TTL_S": "60",
            "POLL_S": "0.2",
            "TASK_TIMEOUT_BASE_S": "4",
            "TASK_TIMEOUT_FACTOR": "0",
            "RECYCLE_GROWTH_GB": "0.05",
            "FAKE_SECONDS": "0.02",
            "FAKE_SLOW_SECONDS": "0.5",
            "FAKE_STATE": str(root / "state"),
        },
    )
    bucket.emiliad("enqueue")
    with bucket.daemon() as daemon:
        seen = Observed(bucket, daemon)
        wait_until(seen.idle, daemon.log.read_text)
        seen.look()
        names = _names()
        for some in (names[:FEW], names[FEW:]):
            for name in some:
                bucket.put_audio(f"{name}.mp3")
            assert bucket.emiliad("enqueue").returncode == 0
            wait_until(seen.settled, daemon.log.read_text, PATIENCE_S)
            wait_until(seen.idle, daemon.log.read_text)
            seen.look()
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0
        yield seen


def test_every_task_ends_as_it_should(observed: Observed) -> None:
    """The good are completed, the bad dead-lettered with their kind after all their attempts."""
    expected = {
        f"{kind}-{number}": fault
        for kind, (count, fault) in KINDS.items()
        for number in range(count)
    }
    assert len(expected) == 200
    failed = observed.bucket.tasks("failed")
    ends: dict[str, str | None] = dict.fromkeys(observed.bucket.tasks("completed"))
    ends |= {name: letter["attempts"][-1]["kind"] for name, letter in failed.items()}
    assert ends == expected
    attempts = {name: len(letter["attempts"]) for name, letter in failed.items()}
    assert attempts == {
        name: 1 if fault == "bad_audio" else ATTEMPTS
        for name, fault in expected.items()
        if fault is not None
    }


def test_memory_that_runs_out_costs_no_attempt_where_less_will_do(observed: Observed) -> None:
    """What works in smaller batches, or in a fresh process, is completed by the first attempt."""
    records = observed.bucket.tasks("completed")
    tries = {name: record["attempt"] for name, record in records.items() if "oom" in name}
    assert tries == dict.fromkeys(tries, 1)
    assert len(tries) == 12


def test_outputs_are_whole_and_of_one_attempt(observed: Observed) -> None:
    """Also those of tasks that once died with half of them written; nothing is held."""
    records = observed.bucket.tasks("completed")
    assert {records[f"half_once-{n}"]["attempt"] for n in range(6)} == {2}
    observed.bucket.verify_settled()


def test_no_process_is_left(observed: Observed) -> None:
    """While it runs the daemon has its four executors and no zombie; afterwards none is alive."""
    assert [sum(states.values()) for states in observed.children] == [EXECUTORS] * 3
    assert not any(states["Z"] for states in observed.children)
    assert not any(map(alive, observed.daemon.executors()))


def test_no_descriptor_leaks(observed: Observed) -> None:
    """The daemon has as many open files as before its first task."""
    before, *later = observed.descriptors
    assert later == [before, before]


def test_the_daemons_memory_is_flat(observed: Observed) -> None:
    """A hundred and fifty tasks more, some eighty dead children: the same memory."""
    _, fifty, all_of_them = observed.memory
    megabytes = ", ".join(f"{size / 1e6:.1f}" for size in observed.memory)
    starts = len(observed.daemon.executors())
    print(f"after 0, 50, 200 tasks: {megabytes} MB, {observed.descriptors} descriptors open")
    print(f"{starts} executors started")
    assert all_of_them - fifty < FLAT_BYTES


def test_every_executor_was_kept_at_work(observed: Observed) -> None:
    """Bad files do not make an executor look sick; one that hoards memory is recycled."""
    assert observed.daemon.events("executor.given_up") == []
    grown = observed.daemon.events("executor.recycled")
    assert grown
    assert all("memory has grown by" in event["reason"] for event in grown)


def test_the_log_tells_where_it_hung(observed: Observed) -> None:
    """The stack of a hang is in the log, and its end, the innermost call, in the dead letter."""
    hangs = observed.daemon.events("executor.failed")
    overdue = {e["episode_id"]: e["details"] for e in hangs if e["kind"] == "timeout"}
    assert overdue.keys() == {f"hang_{how}-{n}" for how in ("gil", "c") for n in (0, 1)}
    for name, details in overdue.items():
        assert details.splitlines()[-1].endswith("in _hangs_in_c"), details
        letter = observed.bucket.tasks("failed")[name]["attempts"][-1]
        assert letter["traceback"].endswith("in _hangs_in_c")
