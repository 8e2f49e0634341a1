"""R2 named wrongly: each mistake is told in one sentence that says what to check."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from emiliad.config import Settings
from emiliad.errors import (
    Ambiguous,
    ConfigError,
    InvalidKey,
    NotFound,
    PreconditionFailed,
    StoreError,
    StoreUnusable,
    Throttled,
)
from emiliad.patience import Patience
from emiliad.store import Store
from emiliad.stores import connection, is_remote, open_store
from emiliad.stores.answers import Refusal, Request, explain
from emiliad.stores.patient import PatientStore
from emiliad.stores.r2 import R2
from emiliad.stores.s3 import S3Store
from tests.emiliad.fault_proxy import FaultProxy
from tests.emiliad.rig import ROOT, Bucket
from tests.emiliad.weed import READER, READER_SECRET, SECRET_KEY, Server

SECRET = "a-secret-that-nobody-may-see"
GOOD = {
    "R2_ENDPOINT_URL": "https://account.r2.cloudflarestorage.com",
    "R2_ACCESS_KEY_ID": "an-access-key",
    "R2_SECRET_ACCESS_KEY": SECRET,
    "R2_BUCKET": "podcasts",
}


def where(env: dict[str, str]) -> R2:
    config = Settings.from_env(env).daemon
    return R2(
        config.r2_endpoint_url,
        config.r2_bucket,
        config.r2_access_key_id,
        config.r2_secret_access_key,
    )


@pytest.mark.parametrize("missing", [*GOOD, "all"])
def test_every_missing_variable_is_named_at_once(missing: str) -> None:
    """And none that is there."""
    env = {name: value for name, value in GOOD.items() if missing not in (name, "all")}
    with pytest.raises(ConfigError) as error:
        open_store("", where(env))
    assert {name for name in GOOD if name in str(error.value)} == GOOD.keys() - env.keys()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("R2_ENDPOINT_URL", "account.r2.cloudflarestorage.com", "https://"),
        ("R2_ENDPOINT_URL", "ftp://account.r2.cloudflarestorage.com", "https://"),
        ("R2_ENDPOINT_URL", "https://", "https://"),
        ("R2_ENDPOINT_URL", "https://[half", "no URL"),
        ("R2_ENDPOINT_URL", "https://host:port", "no URL"),
        ("R2_ENDPOINT_URL", "https://host/podcasts", "https://host, without a bucket"),
        ("R2_ENDPOINT_URL", f"https://user:{SECRET}@host", "password"),
        ("R2_BUCKET", "my bucket", "my bucket"),
        ("R2_BUCKET", "a", "'a'"),
        ("R2_SECRET_ACCESS_KEY", f"{SECRET}\nX-Header: y", "R2_SECRET_ACCESS_KEY"),
        ("R2_ACCESS_KEY_ID", "schlüssel", "R2_ACCESS_KEY_ID"),
    ],
)
def test_malformed_variables_are_named(name: str, value: str, said: str) -> None:
    """Before anything is sent, and without a secret in the message."""
    with pytest.raises(ConfigError, match=name) as error:
        open_store("", where(GOOD | {name: value}))
    assert said in str(error.value)
    assert SECRET not in str(error.value)
    assert "schlüssel" not in str(error.value)


def test_the_endpoint_has_two_names() -> None:
    """`R2_ENDPOINT` is what some manifests call it; the longer name goes first."""
    env = GOOD | {"R2_ENDPOINT": "https://other"}
    assert where(env).endpoint_url == GOOD["R2_ENDPOINT_URL"]
    del env["R2_ENDPOINT_URL"]
    assert where(env).endpoint_url == "https://other"


def test_secrets_are_not_shown() -> None:
    """Neither by the settings nor by what is made of them."""
    settings = Settings.from_env(GOOD | {"HF_TOKEN": "hf_secret"})
    shown = repr(settings) + repr(where(GOOD))
    assert not any(text in shown for text in (SECRET, "an-access-key", "hf_secret"))


def test_the_url_picks_the_store() -> None:
    """No URL is R2's bucket; `s3://` is another bucket with the same keys."""
    assert is_remote("")
    assert is_remote("s3://bucket")
    assert not is_remote("file:///dir")
    assert isinstance(open_store("", where(GOOD)), S3Store)
    assert isinstance(open_store("s3://other", where(GOOD | {"R2_BUCKET": ""})), S3Store)
    for url in ("s3://", "s3://bucket/prefix"):
        with pytest.raises(ConfigError, match="s3://bucket"):
            open_store(url, where(GOOD))


def test_a_directory_costs_no_client() -> None:
    """Half a second and 60 MB that only R2's users need."""
    code = (
        "import sys, emiliad.daemon; from emiliad.stores import open_store; "
        "open_store('file:///tmp'); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"aioboto3", "aiohttp", "botocore"} & set(done.stdout.split())


@pytest.fixture
def no_s3_server() -> Iterator[str]:
    """The address of a web server that answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b"<html></html>")

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def named(server: Server, **wrong: str) -> R2:
    """The server's bucket, with something wrong about it."""
    right = {
        "endpoint_url": server.endpoint,
        "bucket": server.bucket,
        "access_key_id": "test",
        "secret_access_key": SECRET_KEY,
    }
    return R2(**(right | wrong))


MISTAKES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "nobody listens": (
        {"endpoint_url": "http://127.0.0.1:9"},
        ("http://127.0.0.1:9 cannot be reached: Connection refused", "R2_ENDPOINT_URL"),
    ),
    "no such host": (
        {"endpoint_url": "https://no-such-host.invalid"},
        ("https://no-such-host.invalid cannot be reached", "R2_ENDPOINT_URL"),
    ),
    "no such bucket": ({"bucket": "nowhere"}, ("no bucket nowhere", "R2_BUCKET")),
    "wrong access key": (
        {"access_key_id": "wrong"},
        ("refuses the keys", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"),
    ),
    "wrong secret": (
        {"secret_access_key": SECRET},
        ("refuses the keys", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"),
    ),
    "may not write": (
        {"access_key_id": READER, "secret_access_key": READER_SECRET},
        ("does not let these keys write objects", "token"),
    ),
}


async def use(store: Store) -> None:
    """Reads before it writes: SeaweedFS makes the bucket that is written to."""
    assert [page async for page in store.list("")] == []
    await store.put("key", b"x")


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_each_mistake_is_one_sentence(
    weed_bucket: Server, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """It names what is wrong and what to check, and no secret."""
    monkeypatch.setattr(connection, "_HOPELESS_S", 0.0)
    wrong, said = MISTAKES[mistake]
    store = PatientStore(open_store("", named(weed_bucket, **wrong)), Patience(first_s=0.01))
    with pytest.raises(StoreUnusable) as error:
        await use(store)
    assert all(text in str(error.value) for text in said), error.value
    assert not any(text in str(error.value) for text in (SECRET, SECRET_KEY, READER_SECRET, "\n"))
    await store.aclose()


async def test_what_is_no_s3_server_is_told(
    no_s3_server: str, weed_bucket: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web page instead of an answer, and a server without TLS behind https."""
    monkeypatch.setattr(connection, "_HOPELESS_S", 0.0)
    store = open_store("", named(weed_bucket, endpoint_url=no_s3_server))
    with pytest.raises(StoreUnusable, match="no S3 server"):
        await store.put("key", b"x")
    with pytest.raises(StoreError, match="no S3 server"):
        assert [page async for page in store.list("")]
    await store.aclose()
    secure = weed_bucket.endpoint.replace("http:", "https:")
    store = open_store("", named(weed_bucket, endpoint_url=secure))
    with pytest.raises(StoreUnusable, match="TLS"):
        await store.put("key", b"x")
    await store.aclose()


async def test_a_store_that_comes_late_is_waited_for(
    weed_bucket: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at first, as in a pod whose network is not up yet: that is no mistake."""
    with FaultProxy(weed_bucket.endpoint, lambda e: None).running() as proxy:
        proxy.down()

        async def sleep(seconds: float) -> None:
            proxy.up()

        inner = weed_bucket.store(proxy.endpoint)
        store = PatientStore(inner, Patience(sleep=sleep))
        await store.put("key", b"x")
        # Once it has answered, silence is an outage, however long: never a wrong endpoint.
        monkeypatch.setattr(connection, "_HOPELESS_S", 0.0)
        proxy.down()
        with pytest.raises(Ambiguous, match="cannot be reached"):
            await inner.head("key")
        await store.aclose()


ANSWERS: list[tuple[int, str, type[StoreError]]] = [
    (412, "PreconditionFailed", PreconditionFailed),
    (404, "NoSuchKey", NotFound),
    (404, "404", NotFound),
    (404, "NoSuchBucket", StoreUnusable),
    (404, "404 Not Found", StoreUnusable),
    (401, "Unauthorized", StoreUnusable),
    (403, "403", StoreUnusable),
    (403, "AccessDenied", StoreUnusable),
    (403, "RequestTimeTooSkewed", StoreUnusable),
    (301, "PermanentRedirect", StoreUnusable),
    (501, "NotImplemented", StoreUnusable),
    (409, "ConditionalRequestConflict", Throttled),
    (429, "TooManyRequests", Throttled),
    (400, "RequestTimeout", Ambiguous),
    (400, "BadDigest", Ambiguous),
    (408, "RequestTimeout", Ambiguous),
    (500, "InternalError", Ambiguous),
    (502, "502", Ambiguous),
    (503, "SlowDown", Ambiguous),
    (400, "KeyTooLongError", InvalidKey),
]


@pytest.mark.parametrize(("status", "code", "expected"), ANSWERS)
def test_answers_mean_what_they_mean(status: int, code: str, expected: type[StoreError]) -> None:
    """The table of `emiliad.stores.answers`."""
    assert type(explain(Refusal(status, code), Request("read", "key"), where(GOOD))) is expected


def test_a_conditional_write_to_a_missing_object_is_a_failed_condition() -> None:
    """R2 says 412 and AWS 404; a missing bucket stays a mistake."""
    request = Request("write", "key", conditional=True)
    assert isinstance(explain(Refusal(404, "NoSuchKey"), request, where(GOOD)), PreconditionFailed)
    assert isinstance(explain(Refusal(404, "NoSuchBucket"), request, where(GOOD)), StoreUnusable)


def test_what_the_server_says_is_shown_without_secrets() -> None:
    """An answer that nobody foresaw is passed on, scrubbed and cut."""
    said = f"odd {SECRET} an-access-key " + "x" * 1000
    error = explain(Refusal(400, "Odd", said), Request("read", "key"), where(GOOD))
    assert type(error) is StoreError
    assert "400 Odd odd *** ***" in str(error)
    assert len(str(error)) < 500


def test_a_clock_that_is_wrong_and_a_short_key_are_told() -> None:
    """R2 calls the one forbidden and the other an argument."""
    request = Request("read", "key")
    late = explain(Refusal(403, "RequestTimeTooSkewed"), request, where(GOOD))
    assert "clock" in str(late)
    said = "Credential access key has length 4, should be 32"
    short = explain(Refusal(400, "InvalidArgument", said), request, where(GOOD))
    assert "R2_ACCESS_KEY_ID" in str(short)


@pytest.mark.parametrize("command", ["run", "enqueue", "status", "retry --all", "verify"])
def test_one_message_names_every_offender(tmp_path: Path, command: str) -> None:
    """What is missing for R2 and what is malformed elsewhere, in one run; exit code 2."""
    wrong = {
        "PREFETCH_DEPTH": "many",
        "BATCH_SIZE": "-1",
        "BUFFER": "x",
        "R2_ENDPOINT_URL": "ftp://somewhere",
        "R2_SECRET_ACCESS_KEY": f"{SECRET} with spaces",
    }
    missing = {"R2_BUCKET", "R2_ACCESS_KEY_ID"}
    done = Bucket(tmp_path).emiliad(*command.split(), STORE_URL="", **wrong)
    assert done.returncode == 2
    named = {line.strip().partition(":")[0] for line in done.stderr.splitlines()[1:]}
    assert named == wrong.keys() | missing | {"STORE_URL"}
    assert SECRET not in done.stderr


def test_commands_without_a_store_need_none(tmp_path: Path) -> None:
    """Local files are processed, and settings shown, without a bucket."""
    bucket = Bucket(tmp_path)
    audio = bucket.put_audio("one.mp3")
    done = bucket.emiliad("process", str(audio), "--out", str(tmp_path / "out"), STORE_URL="")
    assert done.returncode == 0, done.stderr
    assert bucket.emiliad("config", STORE_URL="").returncode == 0


@pytest.mark.parametrize("command", [["status"], ["enqueue"], ["run", "--exit-when-empty"]])
def test_commands_end_with_one_sentence(
    weed_bucket: Server, tmp_path: Path, command: list[str]
) -> None:
    """Exit code 1 for a store that refuses, 2 for settings that cannot be right."""
    bucket = Bucket(tmp_path, weed_bucket.environment())
    refused = bucket.emiliad(*command, R2_SECRET_ACCESS_KEY=SECRET)
    assert refused.returncode == 1
    assert "refuses the keys" in refused.stderr
    unset = bucket.emiliad(*command, R2_BUCKET="", R2_ACCESS_KEY_ID="")
    assert unset.returncode == 2
    assert "R2_BUCKET" in unset.stderr
    assert "R2_ACCESS_KEY_ID" in unset.stderr
    for done in (refused, unset):
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stderr + done.stdout
        assert SECRET_KEY not in done.stderr + done.stdout
