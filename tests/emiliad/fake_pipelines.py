"""A pipeline without models that does what the file's name or the episode's says, good or bad.

`PIPELINE=tests.emiliad.fake_pipelines:Fake` with the repository's root on PYTHONPATH. Standard
library only. FAKE_SECONDS is how long a task takes (default 0.05), FAKE_SLOW_SECONDS how long a
`slow` one does (default 3), FAKE_LOAD a fault of the constructor: model, raises, exit, segfault,
hang, noise. In the folder FAKE_SICK a file named after what CUDA_VISIBLE_DEVICES holds makes that
GPU sick for as long as it is there: it has the word of a fault of the constructor, or with `task `
before it of one that befalls every task. In the folder FAKE_STATE a fake remembers what it did.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OnStage = Callable[[str, float, float], None]
STAGES = ("standardise", "transcribe", "export")
_FOREVER_S = 3600.0


class BadAudio(Exception):
    """Known by its name alone, as a replacement pipeline's would be."""


class ModelError(Exception):
    """Known by its name alone, too."""


class DeviceError(ModelError):
    """Known by its name alone, too: no model is wrong, the device is, at least now."""


class Fake:
    """Picks its behaviour by words in the audio's file name and the episode's name."""

    def __init__(self, config: object) -> None:
        self.device = "fake"
        fault = os.environ.get("FAKE_LOAD", "") or _sickness()
        if fault in _LOAD:
            _LOAD[fault]()

    def run(
        self,
        audio: Path,
        out_dir: Path,
        *,
        name: str | None = None,
        on_stage: OnStage | None = None,
    ) -> Any:
        """Does what the first of the known words says; without one, it writes an episode."""
        report = on_stage or (lambda stage, seconds, audio_seconds: None)
        name = name or audio.stem
        words = f"{audio.name} {name} {_sickness()}"
        slow = "slow" in words
        seconds = _seconds("FAKE_SLOW_SECONDS", 3.0) if slow else _seconds("FAKE_SECONDS", 0.05)
        report(STAGES[0], _work(seconds / 3), 1.0)
        for word, fault in _TASK.items():
            if word in words:
                manifest = fault(out_dir)
                if manifest is not _GO_ON:
                    return manifest
                break
        for stage in STAGES[1:]:
            report(stage, _work(seconds / 3), 1.0)
        return _write_episode(audio, out_dir, name)


class Frugal(Fake):
    """Can work in smaller batches, which is all that some of its tasks need."""

    @contextmanager
    def reduced(self, halvings: int) -> Iterator[None]:
        global _halvings
        before, _halvings = _halvings, halvings
        try:
            yield
        finally:
            _halvings = before


_halvings = 0
_hoard: list[bytearray] = []


def _sickness() -> str:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
    try:
        return (Path(os.environ["FAKE_SICK"]) / gpu).read_text().strip()
    except (KeyError, FileNotFoundError):
        return ""


def _seconds(variable: str, default: float) -> float:
    return float(os.environ.get(variable) or default)


def _work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _write_episode(audio: Path, out_dir: Path, name: str) -> dict[str, Any]:
    """Segments whose number and bytes differ between attempts, all signed by the attempt."""
    out_dir.mkdir(parents=True, exist_ok=True)
    nonce = os.urandom(8).hex()
    rows = [_write_segment(out_dir, name, nonce, i) for i in range(1 + os.urandom(1)[0] % 4)]
    audio_seconds = max(1.0, audio.stat().st_size / 32_000)
    episode = {"name": name, "nonce": nonce, "segments": len(rows)}
    _write_json(out_dir / "filtered_segments.json", rows[:1])
    _write_json(out_dir / "episode.json", episode)
    _write_json(out_dir / "all_segments.json", rows)
    return {"segments": len(rows), "audio_seconds": audio_seconds, "nonce": nonce}


def _write_segment(out_dir: Path, name: str, nonce: str, index: int) -> dict[str, Any]:
    file = f"{name}_{index:06d}.mp3"
    (out_dir / file).write_bytes(f"{nonce} {index} ".encode() + os.urandom(200))
    return {
        "text": f"{nonce} {index}",
        "start": 4.0 * index,
        "end": 4.0 * index + 3.5,
        "speaker": "SPEAKER_00",
        "language": "en",
        "dnsmos": 3.2,
        "audio": file,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _raises(out_dir: Path) -> Any:
    raise RuntimeError("the fake pipeline was told to fail\nand this is a second line")


def _bad_audio(out_dir: Path) -> Any:
    class TooShort(BadAudio):
        pass

    raise TooShort("the audio is 0.2 s long; at least 1 s is needed")


def _exits(out_dir: Path | None = None) -> Any:
    sys.exit(42)


def _segfaults(out_dir: Path | None = None) -> Any:
    ctypes.string_at(0)


def _hangs(out_dir: Path | None = None) -> Any:
    time.sleep(_FOREVER_S)


def _hangs_with_the_gil(out_dir: Path) -> Any:
    _hangs_in_c(out_dir, ctypes.PyDLL)


def _hangs_in_c(out_dir: Path, library: type[ctypes.CDLL] = ctypes.CDLL) -> Any:
    """Reads a pipe that nobody writes to; unlike sleep(3), a signal does not end it."""
    silent, _ = os.pipe()
    library(None).read(silent, ctypes.create_string_buffer(1), 1)


def _runs_out_of_memory(out_dir: Path) -> Any:
    raise MemoryError


def _runs_out_of_memory_unless(halvings: int) -> Any:
    if _halvings < halvings:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    return _GO_ON


def _has_a_sick_gpu(out_dir: Path) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _fills_the_disk(out_dir: Path) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out_dir))


def _prints(out_dir: Path | None = None) -> Any:
    print("printed by the pipeline")
    os.write(1, b"written to descriptor 1\n")
    subprocess.run(["echo", "printed by a grandchild"], check=True)
    return _GO_ON


def _lists_descriptors(out_dir: Path) -> Any:
    subprocess.run(["ls", "-1", "/proc/self/fd"], close_fds=False, check=True)
    return _GO_ON


def _starts_a_program(out_dir: Path) -> Any:
    # It writes its own number before it sleeps, and would outlive this process.
    subprocess.Popen(["/bin/sh", "-c", 'echo "grandchild $$" && exec sleep 3600'])
    _hangs()


def _forks(out_dir: Path) -> Any:
    """Leaves a fork that holds all of this process's pipes, then dies."""
    if os.fork() == 0:
        time.sleep(_FOREVER_S)
    os._exit(42)


def _leaks(out_dir: Path) -> Any:
    threading.Thread(target=_hangs).start()  # not a daemon: the interpreter waits for it
    return _GO_ON


def _leaks_memory(out_dir: Path) -> Any:
    _hoard.append(bytearray(os.urandom(1024) * 1024 * 60))  # 60 MB, every page of it touched
    return _GO_ON


def _leaves_a_program(out_dir: Path) -> Any:
    """It prints when the task is long done."""
    subprocess.Popen(["/bin/sh", "-c", "sleep 0.3; echo printed too late"])
    return _GO_ON


def _ends_a_program(out_dir: Path) -> Any:
    """As libraries end what they have started."""
    program = subprocess.Popen(["sleep", "3600"])
    program.terminate()
    print("it ended with", program.wait())
    if (fork := os.fork()) == 0:
        time.sleep(_FOREVER_S)
    while (ended := os.waitpid(fork, os.WNOHANG))[0] == 0:
        os.kill(fork, signal.SIGTERM)  # again, should it have come before the fork was ready
        time.sleep(0.01)
    print("and the fork with", ended[1])
    return _GO_ON


def _closes_its_streams(out_dir: Path) -> Any:
    os.close(1)
    os.close(2)
    return _GO_ON


def _dies_half_way(out_dir: Path) -> Any:
    """With some of the outputs written, among them the last of all."""
    (out_dir / "half_000000.mp3").write_bytes(b"half")
    (out_dir / "all_segments.json").write_text("[")
    os._exit(1)


def _dies_half_way_once(out_dir: Path) -> Any:
    try:
        (Path(os.environ["FAKE_STATE"]) / out_dir.parent.name.rsplit("-", 1)[0]).mkdir()
    except FileExistsError:
        return _GO_ON
    return _dies_half_way(out_dir)


def _babbles(out_dir: Path) -> Any:
    for descriptor in range(3, 32):
        try:
            os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    _hangs()


def _shouts(out_dir: Path) -> Any:
    for number in range(20_000):
        os.write(2, b"line %d %s\n" % (number, b"x" * 200))
    return _GO_ON


def _model_is_missing() -> None:
    raise ModelError("the model demo/vad is missing: run `emiliad models pull`")


def _device_is_missing() -> None:
    raise DeviceError("torch sees no GPU")


def _does_not_load() -> None:
    raise RuntimeError("the fake pipeline was told not to load")


_GO_ON = object()
_TASK: dict[str, Callable[[Path], Any]] = {
    "raises": _raises,
    "bad_audio": _bad_audio,
    "exit42": _exits,
    "segfault": _segfaults,
    "hang_gil": _hangs_with_the_gil,
    "hang_c": _hangs_in_c,
    "hang": _hangs,
    "oom_until_halved": lambda out_dir: _runs_out_of_memory_unless(1),
    "oom_until_afresh": lambda out_dir: _runs_out_of_memory_unless(2),
    "oom": _runs_out_of_memory,
    "cuda": _has_a_sick_gpu,
    "disk_full": _fills_the_disk,
    "prints": _prints,
    "descriptors": _lists_descriptors,
    "grandchild": _starts_a_program,
    "forks": _forks,
    "hoards": _leaks_memory,
    "leaks": _leaks,
    "leaves": _leaves_a_program,
    "ends_a_program": _ends_a_program,
    "closes": _closes_its_streams,
    "half_once": _dies_half_way_once,
    "half": _dies_half_way,
    "babbles": _babbles,
    "shouts": _shouts,
    "garbage": lambda out_dir: None,
    "wrong_manifest": lambda out_dir: {"segments": "many", "audio_seconds": 1.0},
    "nan_manifest": lambda out_dir: {"segments": 1, "audio_seconds": float("nan")},
    "unsendable": lambda out_dir: {"segments": 1, "audio_seconds": 1.0, "out": out_dir},
}
_LOAD: dict[str, Callable[[], Any]] = {
    "model": _model_is_missing,
    "device": _device_is_missing,
    "raises": _does_not_load,
    "exit": _exits,
    "segfault": _segfaults,
    "hang": _hangs,
    "noise": _prints,
}
