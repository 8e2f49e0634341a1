"""A GPU that is sick takes only itself out, and a node without any that works holds no task."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.emiliad.rig import Bucket, Daemon, alive, wait_until

GPUS = ("GPU-aaaa", "GPU-bbbb")
ROWS = "".join(f"{i}, {uuid}, 143771, Disabled, NVIDIA H200\\n" for i, uuid in enumerate(GPUS))


class Node(Bucket):
    """A machine with two GPUs, as far as nvidia-smi says, and a bucket."""

    def driver(self, script: str) -> None:
        program = self.root / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def fall_ill(self, gpu: str, word: str) -> None:
        """From now on the fake pipeline has this fault on this GPU; see `fake_pipelines`."""
        (self.root / "sick").mkdir(exist_ok=True)
        (self.root / "sick" / gpu).write_text(word)

    def recover(self, gpu: str) -> None:
        (self.root / "sick" / gpu).unlink()

    def fill(self, count: int) -> None:
        for number in range(count):
            self.put_audio(f"{number:02}.mp3")
        assert self.emiliad("enqueue").returncode == 0

    def leased(self) -> list[str]:
        """The episodes that someone holds."""
        folder = self.root / "bucket" / "tasks" / "processing_in_progress"
        return [path.stem for path in folder.glob("*.task") if _state(path) == "leased"]


def _state(claim: Path) -> str:
    try:
        return str(json.loads(claim.read_text())["state"])
    except FileNotFoundError:  # settled meanwhile
        return ""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    settings = {
        "DEVICE": "auto",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FAKE_SICK": str(tmp_path / "sick"),
        "EXECUTOR_PAUSE_S": "0.5",
        "LEASE_TTL_S": "60",
        "MAX_ATTEMPTS": "20",
        "POLL_S": "0.2",
        "LOG_LEVEL": "debug",
    }
    node = Node(tmp_path, settings)
    node.driver(f"printf '{ROWS}'")
    return node


def _done_by(daemon: Daemon) -> set[str]:
    """The executors whose tasks were completed."""
    done = {event["episode_id"] for event in daemon.events("task.completed")}
    began = daemon.events("executor.began")
    return {event["executor"] for event in began if event["episode_id"] in done}


def test_each_gpu_has_its_executor(node: Node) -> None:
    """One executor for each GPU that nvidia-smi lists, pinned to it, and both take tasks."""
    node.fill(12)
    with node.daemon("--exit-when-empty", FAKE_SECONDS="0.3") as daemon:
        assert daemon.ends() == 0
        ready = {event["executor"] for event in daemon.events("executor.ready")}
        assert ready == _done_by(daemon) == {"gpu0.0", "gpu1.0"}
    node.verify_settled()


def test_one_that_cannot_load_takes_only_itself_out_and_is_tried_again(node: Node) -> None:
    """The other does all the work; when the GPU is well again, its executor works again."""
    node.fall_ill("GPU-bbbb", "segfault")
    node.fill(5)
    with node.daemon() as daemon:
        told = daemon.until("executor.given_up", executor="gpu1.0")
        assert "SIGSEGV" in told["reason"]
        wait_until(lambda: len(node.tasks("completed")) == 5)
        assert _done_by(daemon) == {"gpu0.0"}
        node.recover("GPU-bbbb")
        daemon.until("executor.ready", executor="gpu1.0")
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0
    node.verify_settled()


def test_one_that_fails_every_task_is_taken_out(node: Node) -> None:
    """After CRASH_BUDGET first attempts in a row it gets no more; other GPUs do those tasks."""
    node.fall_ill("GPU-aaaa", "task segfault")
    node.fill(10)
    with node.daemon("--exit-when-empty", CRASH_BUDGET="2", FAKE_SECONDS="0.3") as daemon:
        told = daemon.until("executor.given_up", executor="gpu0.0")
        assert told["reason"].startswith("2 tasks in a row failed in it, the last: the executor")
        assert daemon.ends() == 0
        assert _done_by(daemon) >= {"gpu1.0"}
        assert not [e for e in daemon.events("executor.given_up") if e["executor"] == "gpu1.0"]
    assert len(node.tasks("completed")) == 10
    node.verify_settled()


def test_a_node_on_which_none_works_any_more_holds_nothing_and_waits(node: Node) -> None:
    """It hands back what it has, claims no more, and goes on when a GPU is well again."""
    node.fill(8)
    with node.daemon("--exit-when-empty", MAX_GPUS="1", FAKE_SECONDS="0.5") as daemon:
        pid = daemon.until("executor.ready")["pid"]
        daemon.until("executor.began")
        node.fall_ill("GPU-aaaa", "raises")
        os.kill(pid, signal.SIGKILL)
        daemon.until("executor.given_up", executor="gpu0.0")
        wait_until(lambda: not node.leased(), lambda: f"{node.leased()}\n{daemon.log.read_text()}")
        wait_until(lambda: len(daemon.events("executor.given_up")) > 1, daemon.log.read_text)
        released = daemon.events("task.released")
        assert {event["reason"] for event in released} == {"no executor can work"}
        assert len(released) <= 8  # what was on its way, and nothing again
        assert daemon.process.poll() is None
        node.recover("GPU-aaaa")
        wait_until(lambda: len(node.tasks("completed")) == 8, daemon.log.read_text)
        assert daemon.ends() == 0
    node.verify_settled()


def test_a_node_on_which_none_works_stops_at_once(node: Node) -> None:
    """SIGTERM does not wait for the next try, which may be an hour away."""
    with node.daemon(EXECUTOR_PAUSE_S="3000", DRAIN_TIMEOUT_S="3000") as daemon:
        daemon.until("executor.ready", executor="gpu0.0")
        daemon.until("executor.ready", executor="gpu1.0")
        for gpu, pid in zip(GPUS, daemon.executors(), strict=True):
            node.fall_ill(gpu, "raises")
            os.kill(pid, signal.SIGKILL)
        daemon.until("executor.given_up", executor="gpu0.0")
        daemon.until("executor.given_up", executor="gpu1.0")
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0


def test_a_node_on_which_none_ever_worked_ends(node: Node) -> None:
    """Exit code 1 and one sentence; no task is touched."""
    node.fill(1)
    for gpu in GPUS:
        node.fall_ill(gpu, "raises")
    done = node.emiliad("run", LOG_LEVEL="error")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("emiliad: gpu")
    assert last.endswith(".0: RuntimeError: the fake pipeline was told not to load")
    assert node.tasks("in_progress") == {}


@pytest.mark.parametrize(
    ("script", "device", "code", "sentence"),
    [
        ("echo segmentation fault; exit 3", "auto", 1, "nvidia-smi failed with exit code 3: segm"),
        ("echo 7, quite well, thank you", "auto", 1, "nvidia-smi answered what makes no sense"),
        ("printf '\\377\\376'", "auto", 1, "nvidia-smi cannot be run: 'utf-8' codec"),
        ("echo No devices were found; exit 6", "cuda", 2, "DEVICE=cuda, but no NVIDIA GPU can be"),
    ],
)
def test_a_sick_driver_is_one_sentence_and_no_silent_cpu(
    node: Node, script: str, device: str, code: int, sentence: str
) -> None:
    """A driver that fails or answers nonsense ends the daemon; it does not work on the CPU."""
    node.fill(1)
    node.driver(script)
    done = node.emiliad("run", "--exit-when-empty", DEVICE=device, LOG_LEVEL="error")
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"emiliad: {sentence}")
    assert node.tasks("in_progress") == {}


def test_a_wrong_model_on_one_gpu_ends_them_all(node: Node) -> None:
    """What no retry can mend is a configuration error: exit code 2, though the other loads."""
    node.fall_ill("GPU-bbbb", "model")
    done = node.emiliad("run", LOG_LEVEL="error")
    assert done.returncode == 2
    assert done.stderr == (
        "emiliad: gpu1.0: the model demo/vad is missing: run `emiliad models pull`\n"
    )


def test_a_signal_to_every_process_drains_all_the_same(node: Node) -> None:
    """SIGTERM to executors, too, as a container without an init sends it, ends no task."""
    node.fill(2)
    with node.daemon(FAKE_SECONDS="2", DRAIN_TIMEOUT_S="60") as daemon:
        wait_until(lambda: len(daemon.events("executor.began")) == 2, daemon.log.read_text)
        daemon.signal(signal.SIGTERM)
        for pid in daemon.executors():
            os.kill(pid, signal.SIGTERM)
        assert daemon.ends() == 0
        assert len(daemon.events("task.completed")) == 2
        assert not any(map(alive, daemon.executors()))


@pytest.mark.parametrize("word", ["hang", "hang_gil", "hang_c"])
def test_no_executor_outlives_a_killed_daemon(node: Node, word: str) -> None:
    """SIGKILL of the daemon in mid-task: every executor is gone, even one that hangs in C."""
    for number in range(2):
        node.put_audio(f"{word}-{number}.mp3")
    node.emiliad("enqueue")
    with node.daemon() as daemon:
        wait_until(lambda: len(daemon.events("executor.stage")) == 2, daemon.log.read_text)
        executors = daemon.executors()
        assert len(executors) == 2
        assert all(map(alive, executors))
        daemon.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, executors)), lambda: f"alive: {executors}")


def test_an_executor_is_recycled_between_tasks(node: Node) -> None:
    """After RECYCLE_TASKS tasks each child is replaced, which costs no task an attempt."""
    node.fill(7)
    with node.daemon("--exit-when-empty", MAX_GPUS="1", RECYCLE_TASKS="2") as daemon:
        assert daemon.ends() == 0
        reasons = {event["reason"] for event in daemon.events("executor.recycled")}
        assert reasons == {"it has done 2 tasks"}
        assert len(set(daemon.executors())) == 4
    assert {record["attempt"] for record in node.tasks("completed").values()} == {1}
    node.verify_settled()
