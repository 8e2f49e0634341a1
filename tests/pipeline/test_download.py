"""One file over HTTP: what resumes, what is refused, what is kept."""

from __future__ import annotations

import hashlib
import io
import resource
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from pipeline import ModelError
from pipeline.disk import DiskFull
from pipeline.download import (
    Patience,
    RedirectsWithoutToken,
    Refused,
    Unreachable,
    download,
)
from tests.pipeline.file_server import Answer, FileServer, serving

BODY = bytes(range(256)) * 12_000  # 3 MB, several blocks
SHA256 = hashlib.sha256(BODY).hexdigest()
HASTY = Patience(attempts=3, wait_s=0.001)
TOKEN = "hf_secret"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as script:
        script.files["/model"] = BODY
        script.etags["/model"] = '"one"'
        yield script


def test_file_arrives_whole_and_nothing_else_stays(server: FileServer, tmp_path: Path) -> None:
    """The file has the server's bytes, its sha256 is returned, no unfinished file is left."""
    target = tmp_path / "deep" / "model.bin"
    seen: list[tuple[int, int | None]] = []
    found = download(server.url + "/model", target, report=lambda *at: seen.append(at))
    assert target.read_bytes() == BODY
    assert found == SHA256
    assert [path.name for path in target.parent.iterdir()] == ["model.bin"]
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert len(seen) > 3


def test_cut_connection_is_resumed(server: FileServer, tmp_path: Path) -> None:
    """After a cut the rest is asked for, with the ETag, and no byte is sent twice."""
    server.answers["/model"] = [Answer(cut_after=1_000_000)]
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    first, second = server.asked
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=1000000-"
    assert second.headers["If-Range"] == '"one"'
    assert (first.sent, second.sent) == (1_000_000, len(BODY) - 1_000_000)
    assert (tmp_path / "m").read_bytes() == BODY


def test_a_later_call_resumes(server: FileServer, tmp_path: Path) -> None:
    """What a call that gave up has brought is not fetched again by the next."""
    server.answers["/model"] = [Answer(cut_after=2_000_000)]
    with pytest.raises(Unreachable, match="broke off after 2000000 of 3072000 bytes"):
        download(server.url + "/model", tmp_path / "m", patience=Patience(attempts=1))
    assert not (tmp_path / "m").exists()
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert server.asked[-1].sent == len(BODY) - 2_000_000
    assert (tmp_path / "m").read_bytes() == BODY


def test_progress_renews_patience(server: FileServer, tmp_path: Path) -> None:
    """A connection that breaks again and again, but brings something each time, is used."""
    server.answers["/model"] = [Answer(cut_after=400_000) for _ in range(7)]
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert len(server.asked) == 8
    assert (tmp_path / "m").read_bytes() == BODY


def test_server_without_ranges_starts_over(server: FileServer, tmp_path: Path) -> None:
    """A server that answers a range with the whole file is taken at its word."""
    server.answers["/model"] = [Answer(cut_after=1_000_000), Answer(ranges=False)]
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert server.asked[1].sent == len(BODY)
    assert (tmp_path / "m").read_bytes() == BODY


def test_changed_file_is_not_mixed(server: FileServer, tmp_path: Path) -> None:
    """When the file changes between two connections, the result is the new one throughout."""
    server.answers["/model"] = [Answer(cut_after=1_000_000)]
    with pytest.raises(Unreachable):
        download(server.url + "/model", tmp_path / "m", patience=Patience(attempts=1))
    server.files["/model"] = BODY[::-1]
    server.etags["/model"] = '"two"'
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert (tmp_path / "m").read_bytes() == BODY[::-1]


@pytest.mark.parametrize(("sha256", "resumed"), [(SHA256, True), (None, False)])
def test_without_validator_only_a_hash_allows_to_resume(
    server: FileServer, tmp_path: Path, sha256: str | None, resumed: bool
) -> None:
    """Without ETag or date a mix of two versions could be told only by the hash."""
    server.etags["/model"] = ""
    server.answers["/model"] = [Answer(cut_after=1_000_000)]
    download(server.url + "/model", tmp_path / "m", sha256=sha256, patience=HASTY)
    assert ("Range" in server.asked[1].headers) is resumed
    assert (tmp_path / "m").read_bytes() == BODY


def test_another_part_than_asked_for_is_not_used(server: FileServer, tmp_path: Path) -> None:
    """A server that sends from the wrong byte makes the download start over."""
    server.answers["/model"] = [Answer(cut_after=1_000_000), Answer(shift=7)]
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert (tmp_path / "m").read_bytes() == BODY


def test_part_that_is_longer_than_the_file_starts_over(server: FileServer, tmp_path: Path) -> None:
    """An unfinished file that the server has no rest for (416) is dropped."""
    (tmp_path / "m.part").write_bytes(b"x" * (len(BODY) + 5))
    (tmp_path / "m.part.etag").write_text('"one"')
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert (tmp_path / "m").read_bytes() == BODY


def test_finished_but_not_renamed_needs_no_request(server: FileServer, tmp_path: Path) -> None:
    """When only the last step, the renaming, is missing, nothing is asked of the server."""
    (tmp_path / "m.part").write_bytes(BODY)
    download(server.url + "/model", tmp_path / "m", size=len(BODY), sha256=SHA256)
    assert server.asked == []
    assert (tmp_path / "m").read_bytes() == BODY
    assert not (tmp_path / "m.part").exists()


def test_wrong_hash_is_named_and_removed(server: FileServer, tmp_path: Path) -> None:
    """The message has the hash expected, the one found and the URL; nothing is kept."""
    expected = "0" * 64
    with pytest.raises(ModelError) as caught:
        download(server.url + "/model", tmp_path / "m", sha256=expected)
    for part in (expected, SHA256, server.url + "/model"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_hash_leaves_what_was_there(server: FileServer, tmp_path: Path) -> None:
    """The file in place is replaced only by one that was checked."""
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(ModelError, match="sha256"):
        download(server.url + "/model", tmp_path / "m", sha256="0" * 64)
    assert (tmp_path / "m").read_bytes() == b"old"


def test_other_length_than_expected_is_not_downloaded(server: FileServer, tmp_path: Path) -> None:
    """A file whose announced length is wrong (a page, a pointer) is refused at once."""
    with pytest.raises(ModelError, match=r"has 3072000 bytes; 12 are expected"):
        download(server.url + "/model", tmp_path / "m", size=12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_is_not_tried_again(server: FileServer, tmp_path: Path, status: int) -> None:
    """401 and 403 are final, and the message does not hold the token."""
    server.answers["/model"] = [Answer(status=status)] * 3
    with pytest.raises(Refused, match=f"HTTP {status}") as caught:
        download(server.url + "/model", tmp_path / "m", token=TOKEN, patience=HASTY)
    assert len(server.asked) == 1
    assert TOKEN not in str(caught.value)


def test_missing_file_is_named(server: FileServer, tmp_path: Path) -> None:
    """404 says what is missing and where, and is not tried again."""
    with pytest.raises(ModelError, match=f"there is no {server.url}/nothing"):
        download(server.url + "/nothing", tmp_path / "m", patience=HASTY)
    assert len(server.asked) == 1


def test_server_error_is_tried_again(server: FileServer, tmp_path: Path) -> None:
    """5xx and 429 pass."""
    server.answers["/model"] = [Answer(status=500), Answer(status=429)]
    download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert (tmp_path / "m").read_bytes() == BODY


def test_patience_ends(server: FileServer, tmp_path: Path) -> None:
    """A server that fails each time is asked as often as patience says, no more."""
    server.answers["/model"] = [Answer(status=503)] * 9
    with pytest.raises(Unreachable, match="HTTP 503"):
        download(server.url + "/model", tmp_path / "m", patience=HASTY)
    assert len(server.asked) == HASTY.attempts


def test_no_server_is_said_in_a_sentence(tmp_path: Path) -> None:
    """A host that cannot be reached is named, with the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/model"
    with pytest.raises(Unreachable, match=f"{url} could not be had: Connection refused$"):
        download(url, tmp_path / "m", patience=HASTY)


def test_token_stays_on_its_host(server: FileServer, tmp_path: Path) -> None:
    """The token follows a redirect within the host, and none to another one."""
    with serving() as elsewhere:
        elsewhere.files["/blob"] = BODY
        server.answers["/start"] = [Answer(status=307, location="/model")]
        server.answers["/model"] = [Answer(status=302, location=elsewhere.url + "/blob")]
        download(server.url + "/start", tmp_path / "m", token=TOKEN)
        assert [asked.headers.get("Authorization") for asked in server.asked] == [
            f"Bearer {TOKEN}",
            f"Bearer {TOKEN}",
        ]
        assert [asked.headers.get("Authorization") for asked in elsewhere.asked] == [None]
    assert (tmp_path / "m").read_bytes() == BODY


def test_resume_works_over_redirects(server: FileServer, tmp_path: Path) -> None:
    """The range is asked of the host that the redirect leads to."""
    with serving() as elsewhere:
        elsewhere.files["/blob"] = BODY
        elsewhere.etags["/blob"] = '"blob"'
        elsewhere.answers["/blob"] = [Answer(cut_after=1_000_000)]
        server.answers["/model"] = [Answer(status=302, location=elsewhere.url + "/blob")] * 2
        download(server.url + "/model", tmp_path / "m", patience=HASTY)
        assert elsewhere.asked[1].headers["Range"] == "bytes=1000000-"
    assert (tmp_path / "m").read_bytes() == BODY


def test_no_redirect_leaves_encryption() -> None:
    """A redirect from https to http is not followed."""
    asked = urllib.request.Request("https://models.example/a")
    with pytest.raises(urllib.error.URLError, match="without encryption"):
        RedirectsWithoutToken().redirect_request(
            asked, io.BytesIO(), 302, "Found", Message(), "http://models.example/a"
        )


def test_no_room_is_seen_before_the_download(server: FileServer, tmp_path: Path) -> None:
    """A file larger than what is free on the disk is not begun."""
    server.answers["/model"] = [Answer(length=10**18, cut_after=0)]
    with pytest.raises(DiskFull, match=r"m needs 1000000000000000000 more bytes in .* are free"):
        download(server.url + "/model", tmp_path / "m", patience=HASTY)


def test_full_disk_is_a_sentence_and_keeps_what_came(server: FileServer, tmp_path: Path) -> None:
    """When the disk fills up on the way the error says so, and the next call goes on."""
    limit = 1_000_000
    code = (
        "import sys, pathlib; from pipeline.download import *; "
        "download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, server.url + "/model", str(tmp_path / "m")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (f"pipeline.disk.DiskFull: {tmp_path} has no room for m")
    assert (tmp_path / "m.part").stat().st_size == limit
    download(server.url + "/model", tmp_path / "m")
    assert server.asked[-1].headers["Range"] == f"bytes={limit}-"
    assert (tmp_path / "m").read_bytes() == BODY


def test_unwritable_place_is_a_sentence(server: FileServer, tmp_path: Path) -> None:
    """A folder that cannot be made is named."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match=r"/file cannot be written: "):
        download(server.url + "/model", tmp_path / "file" / "m")
