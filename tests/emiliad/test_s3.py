"""The store on a real S3 server, directly and through a proxy that breaks what it can."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from emiliad.errors import Ambiguous, InvalidKey, NotFound, PreconditionFailed, Throttled
from emiliad.parallel import for_each
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Verdict, cas, etag_of
from emiliad.store import OPERATIONS, PAGE, RESULTS
from emiliad.stores.patient import PatientStore
from emiliad.stores.s3 import S3Store, Sizes
from tests.emiliad.careless_server import CarelessServer
from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy, Rule
from tests.emiliad.weed import Server

MIB = 1 << 20
SMALL_PARTS = Sizes(part=5 * MIB, single=6 * MIB)
HANG_S = 30.0  # a test that takes longer has found something that hangs
QUICK = Patience(first_s=0.01)


@pytest.fixture
def bucket(weed_bucket: Server) -> Server:
    return weed_bucket


@asynccontextmanager
async def opened(store: S3Store) -> AsyncIterator[S3Store]:
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def proxy(bucket: Server) -> Iterator[FaultProxy]:
    """Passes everything on until the test gives it a rule."""
    with FaultProxy(bucket.endpoint, lambda exchange: None).running() as running:
        yield running


def once(fault: Fault, *methods: str, times: int = 1) -> Rule:
    """Hits the first requests with one of these methods."""
    hits = iter(range(times))
    return lambda exchange: fault if exchange.method in methods and next(hits, -1) >= 0 else None


def write(path: Path, size: int) -> bytes:
    body = os.urandom(size)
    path.write_bytes(body)
    return body


async def test_large_files_go_in_parts_through_little_memory(
    bucket: Server, tmp_path: Path
) -> None:
    """30 MiB up and down, while no more than a few pieces are held; all parts but the last are
    equal, as R2 wants them."""
    body = write(tmp_path / "source", 30 * MIB + 1)
    async with opened(bucket.store(sizes=SMALL_PARTS)) as store:
        await store.put("warm", b"up")
        tracemalloc.start()
        try:
            etag = await store.upload("large", tmp_path / "source")
            info = await store.download("large", tmp_path / "target")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (info.size, info.etag) == (len(body), etag)
        assert info == await store.head("large")
    assert (tmp_path / "target").read_bytes() == body
    assert peak < 8 * MIB
    client = bucket.client()
    sizes = [
        client.head_object(Bucket=bucket.bucket, Key="large", PartNumber=n)["ContentLength"]
        for n in range(1, 8)
    ]
    assert sizes == [5 * MIB] * 6 + [1]


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1])
async def test_files_of_all_sizes_arrive_whole(bucket: Server, tmp_path: Path, size: int) -> None:
    """The empty one too, which has no range that could be asked for."""
    body = write(tmp_path / "source", size)
    async with opened(bucket.store(sizes=SMALL_PARTS)) as store:
        assert await store.upload("file", tmp_path / "source") == etag_of(body)
        info = await store.download("file", tmp_path / "target")
    assert (info.size, info.etag) == (size, etag_of(body))
    assert (tmp_path / "target").read_bytes() == body


async def test_empty_bodies_do_not_poison_the_connection(bucket: Server) -> None:
    """A PUT without a body is answered at once, and so is the next one on that connection."""
    async with opened(bucket.store(concurrency=1, limit_s=3.0)) as store:
        for number in range(5):
            await store.put(f"{number}", b"")
            assert (await store.get(f"{number}")).body == b""


async def test_requests_are_what_r2_understands(bucket: Server, proxy: FaultProxy) -> None:
    """No `Expect`, whose answer R2 never sends; no checksum but an MD5; the bucket in the path."""
    async with opened(bucket.store(proxy.endpoint)) as store:
        await store.put("key", b"body", if_absent=True)
    (request,) = proxy.seen
    assert request.path == f"/{bucket.bucket}/key"
    assert request.headers["if-none-match"] == "*"
    assert "content-md5" in request.headers
    assert "expect" not in request.headers
    assert "transfer-encoding" not in request.headers
    assert not any("checksum" in name or "crc" in name for name in request.headers)


@pytest.mark.parametrize("answer", ["reset", "hang", 500, 503])
async def test_no_request_is_repeated_behind_our_back(
    bucket: Server, proxy: FaultProxy, answer: str | int
) -> None:
    """A PUT whose answer is lost is sent once, also on a connection that was used before."""
    async with opened(bucket.store(proxy.endpoint, concurrency=1, limit_s=1.0)) as store:
        await PatientStore(store, QUICK).put("before", b"x")
        proxy.rule = once(Fault(answer), "PUT", times=10)
        with pytest.raises(Ambiguous):
            await store.put("key", b"body", if_absent=True)
    assert proxy.applied.count(("PUT", f"/{bucket.bucket}/key")) == 1


LOST = [
    Fault("reset", applied=False),
    Fault("reset"),
    Fault("hang", applied=False),
    Fault("hang"),
    Fault(500, applied=False),
    Fault(500),
    Fault(503),
]


def named(fault: Fault) -> str:
    return f"{fault.answer} {'after' if fault.applied else 'before'}"


@pytest.mark.parametrize("fault", LOST, ids=named)
async def test_a_lost_answer_is_resolved_by_reading_back(
    bucket: Server, proxy: FaultProxy, fault: Fault
) -> None:
    """Create and swap say WON for what was applied, however it was answered."""
    async with opened(bucket.store(proxy.endpoint, limit_s=1.0)) as store:
        patient = PatientStore(store, QUICK)
        proxy.rule = once(fault, "PUT")
        assert await cas(patient, "key", b"one", ABSENT, patience=QUICK) is Verdict.WON
        proxy.rule = once(fault, "PUT")
        verdict = await cas(patient, "key", b"two", etag_of(b"one"), patience=QUICK)
        assert verdict is Verdict.WON
        assert (await store.get("key")).body == b"two"


async def test_somebody_elses_write_is_not_taken_for_ours(
    bucket: Server, proxy: FaultProxy
) -> None:
    """A request that never arrived, and another that did meanwhile: LOST."""

    def rule(exchange: Exchange) -> Fault | None:
        if exchange.method != "PUT" or exchange.number > 1:
            return None
        bucket.client().put_object(Bucket=bucket.bucket, Key="key", Body=b"theirs")
        return Fault("reset", applied=False)

    proxy.rule = rule
    async with opened(bucket.store(proxy.endpoint)) as store:
        verdict = await cas(PatientStore(store, QUICK), "key", b"ours", ABSENT, patience=QUICK)
        assert verdict is Verdict.LOST
        assert (await store.get("key")).body == b"theirs"


async def test_a_request_that_lands_late_is_not_denied(bucket: Server, proxy: FaultProxy) -> None:
    """Given up, read as absent, and applied after that: the verdict was UNKNOWN."""
    proxy.rule = once(Fault(late_s=3.0), "PUT")
    async with opened(bucket.store(proxy.endpoint, limit_s=0.5)) as store:
        verdict = await cas(store, "key", b"late", ABSENT, patience=Patience(tries=1))
        assert verdict is Verdict.UNKNOWN
        with anyio.fail_after(HANG_S):
            while not [page async for page in PatientStore(store, QUICK).list("key")]:
                await anyio.sleep(0.05)


async def test_throttling_is_no_doubt(bucket: Server, proxy: FaultProxy) -> None:
    """429 means that nothing was written: a claim is somebody else's, other writes wait."""
    async with opened(bucket.store(proxy.endpoint)) as store:
        proxy.rule = once(Fault(429, applied=False), "PUT")
        with pytest.raises(Throttled):
            await store.put("key", b"x")
        proxy.rule = once(Fault(429, applied=False), "PUT")
        verdict = await cas(store, "key", b"x", ABSENT, patience=QUICK, contended=True)
        assert verdict is Verdict.LOST
        proxy.rule = once(Fault(429, applied=False), "PUT")
        assert await cas(store, "key", b"x", ABSENT, patience=QUICK) is Verdict.WON


async def drain(store: S3Store) -> None:
    assert [page async for page in store.list("")]


OPERATE: dict[str, Callable[[S3Store, Path], Awaitable[object]]] = {
    "get": lambda store, folder: store.get("key"),
    "head": lambda store, folder: store.head("key"),
    "put": lambda store, folder: store.put("key", b"y"),
    "delete": lambda store, folder: store.delete("key"),
    "list": lambda store, folder: drain(store),
    "upload": lambda store, folder: store.upload("key", folder / "small"),
    "upload in parts": lambda store, folder: store.upload("key", folder / "large"),
    "download": lambda store, folder: store.download("key", folder / "target"),
}


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", OPERATE)
async def test_nothing_waits_for_ever(
    bucket: Server, proxy: FaultProxy, tmp_path: Path, operation: str, applied: bool
) -> None:
    """A server that takes requests and never answers costs a limit, not a node."""
    write(tmp_path / "small", 10)
    write(tmp_path / "large", 6 * MIB + 1)
    async with opened(bucket.store(proxy.endpoint, limit_s=0.5, sizes=SMALL_PARTS)) as store:
        async with opened(bucket.store()) as direct:
            await direct.put("key", b"x")
        proxy.rule = lambda exchange: Fault("hang", applied=applied)
        with anyio.fail_after(HANG_S), pytest.raises(Ambiguous):
            await OPERATE[operation](store, tmp_path)
    assert not (tmp_path / "target").exists()


async def test_an_answer_that_drips_is_given_up(bucket: Server, proxy: FaultProxy) -> None:
    """Bytes that keep coming do not make a request live for ever."""
    async with opened(bucket.store(proxy.endpoint, limit_s=1.0)) as store:
        async with opened(bucket.store()) as direct:
            await direct.put("key", bytes(2 * MIB))
        proxy.rule = lambda exchange: Fault(drip_s=0.2)
        with anyio.fail_after(HANG_S), pytest.raises(Ambiguous, match="within 1 s"):
            await store.get("key")


async def test_waiting_for_a_turn_is_not_waiting_for_the_store(
    bucket: Server, proxy: FaultProxy
) -> None:
    """More requests than connections: each has its limit from when it is sent."""
    async with opened(bucket.store(proxy.endpoint, concurrency=2, limit_s=4.0)) as store:
        await PatientStore(store, QUICK).put("warm", b"up")
        proxy.rule = lambda exchange: Fault(late_s=0.25)
        names = [f"{number}" for number in range(40)]
        await for_each(names, lambda name: store.put(name, b"x"), at_once=40)
        proxy.rule = lambda exchange: None
        assert {info.key async for page in store.list("") for info in page} == {"warm", *names}


async def test_a_download_that_is_cut_goes_on_where_it_was(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Ten answers break off half-way; what had arrived is not asked for again."""
    body = write(tmp_path / "source", 17 * MIB + 1)
    bytes_in: list[int] = []
    store = bucket.store(
        proxy.endpoint, sizes=SMALL_PARTS, transferred=lambda direction, size: bytes_in.append(size)
    )
    async with opened(store):
        await store.upload("file", tmp_path / "source")
        bytes_in.clear()
        proxy.rule = once(Fault("cut"), "GET", times=10)
        await PatientStore(store, QUICK).download("file", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == body
    assert sum(bytes_in) == len(body)
    reads = [e.headers for e in proxy.seen if e.method == "GET"]
    assert ["if-match" in headers for headers in reads] == [False] + [True] * (len(reads) - 1)
    ranges = [headers["range"] for headers in reads]
    assert len(ranges) == 4 + 10
    assert len(set(ranges)) == len(ranges)


async def test_a_download_survives_an_outage(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Refused connections in the middle of a file cost a wait, and nothing that had arrived."""
    body = write(tmp_path / "source", 17 * MIB)
    bytes_in: list[int] = []

    async def sleep(seconds: float) -> None:
        proxy.rule = lambda exchange: None

    def rule(exchange: Exchange) -> Fault | None:
        return Fault(503, applied=False) if exchange.number > 3 else None

    store = bucket.store(
        proxy.endpoint, sizes=SMALL_PARTS, transferred=lambda direction, size: bytes_in.append(size)
    )
    async with opened(store):
        async with opened(bucket.store()) as direct:
            await direct.upload("file", tmp_path / "source")
        proxy.rule = rule
        await PatientStore(store, Patience(sleep=sleep)).download("file", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == body
    assert sum(bytes_in) == len(body)


async def test_an_object_that_is_replaced_meanwhile_is_not_mixed(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The download begins again with the new version."""
    write(tmp_path / "old", 12 * MIB)
    new = write(tmp_path / "new", 11 * MIB)

    def replace(exchange: Exchange) -> None:
        if exchange.headers.get("range", "").startswith(f"bytes={5 * MIB}-"):
            proxy.rule = lambda exchange: None
            bucket.client().put_object(Bucket=bucket.bucket, Key="file", Body=new)

    async with opened(bucket.store(proxy.endpoint, sizes=SMALL_PARTS)) as store:
        await store.upload("file", tmp_path / "old")
        proxy.rule = replace
        info = await store.download("file", tmp_path / "target")
        assert info == await store.head("file")
    assert (tmp_path / "target").read_bytes() == new


async def test_a_server_that_ignores_conditions_of_reads_mixes_nothing(tmp_path: Path) -> None:
    """What comes from another version than the first part's is not written down."""
    with CarelessServer().running() as server:
        server.objects["file"] = b"old" * 1000

        def observe(operation: str, result: str, seconds: float) -> None:
            server.objects["file"] = b"new" * 900

        bucket = Server(server.endpoint, "bucket")
        async with opened(bucket.store(sizes=Sizes(part=100), observe=observe)) as store:
            await store.download("file", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"new" * 900


async def test_a_download_that_fails_leaves_no_file(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Deleted meanwhile, or cut off for good: half a file is never taken for a whole one."""
    write(tmp_path / "source", 12 * MIB)
    async with opened(bucket.store(proxy.endpoint, sizes=SMALL_PARTS)) as store:
        await store.upload("file", tmp_path / "source")
        first = len(proxy.seen) + 1
        proxy.rule = lambda e: Fault("reset", applied=False) if e.number > first else None
        with pytest.raises(Ambiguous):
            await store.download("file", tmp_path / "target")
        assert not (tmp_path / "target").exists()
        with pytest.raises(OSError, match="nowhere"):
            await store.download("file", tmp_path / "nowhere" / "target")
        proxy.rule = lambda e: None
        with pytest.raises(NotFound):
            await store.download("missing", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def uploads(bucket: Server) -> list[str]:
    """The uploads in parts that were neither completed nor aborted."""
    answer = bucket.client().list_multipart_uploads(Bucket=bucket.bucket)
    return [upload["Key"] for upload in answer.get("Uploads", ())]


async def test_parts_that_fail_are_sent_again_alone(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """An upload in parts goes through resets and refusals without beginning again."""
    body = write(tmp_path / "source", 17 * MIB)
    faults = iter([Fault("reset"), Fault("reset", applied=False), Fault(503, applied=False)])

    def rule(exchange: Exchange) -> Fault | None:
        return next(faults, None) if "partNumber" in exchange.query else None

    proxy.rule = rule
    async with opened(bucket.store(proxy.endpoint, sizes=SMALL_PARTS)) as store:
        etag = await PatientStore(store, QUICK).upload("file", tmp_path / "source")
        assert (await store.head("file")).etag == etag
        assert (await store.download("file", tmp_path / "target")).size == len(body)
    assert (tmp_path / "target").read_bytes() == body
    assert len([e for e in proxy.seen if "partNumber" in e.query]) == 4 + 3
    assert uploads(bucket) == []


async def test_an_upload_that_fails_leaves_no_parts(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """It is aborted, when a part cannot be written or the file vanishes, and when cancelled."""
    write(tmp_path / "source", 17 * MIB)
    path = tmp_path / "source"
    async with opened(bucket.store(proxy.endpoint, sizes=SMALL_PARTS)) as store:
        proxy.rule = lambda e: Fault(500, applied=False) if "partNumber=3" in e.query else None
        with pytest.raises(Ambiguous):
            await PatientStore(store, QUICK).upload("file", path)
        proxy.rule = lambda e: path.unlink() if "uploads" in e.query else None
        with pytest.raises(FileNotFoundError):
            await PatientStore(store, QUICK).upload("file", path)
        write(path, 17 * MIB)
        proxy.rule = lambda e: Fault("hang") if "partNumber=2" in e.query else None
        with anyio.move_on_after(1.0) as scope:
            await store.upload("file", path)
        assert scope.cancelled_caught
        with pytest.raises(NotFound):
            await store.head("file")
    assert uploads(bucket) == []


@pytest.mark.parametrize("server", ["weed", "moto"])
@pytest.mark.parametrize("forgetful", [False, True], ids=["still known", "unknown by then"])
async def test_a_completion_whose_answer_is_lost_is_found_out(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, forgetful: bool
) -> None:
    """By the second try some servers know no such upload any more; the object is there."""
    bucket: Server = request.getfixturevalue(f"{server}_server").with_bucket()
    body = write(tmp_path / "source", 11 * MIB)
    faults = iter([Fault("reset"), *([Fault(404, applied=False)] if forgetful else [])])

    def rule(exchange: Exchange) -> Fault | None:
        completes = exchange.method == "POST" and "uploadId" in exchange.query
        return next(faults, None) if completes else None

    with FaultProxy(bucket.endpoint, rule).running() as proxy:
        async with opened(bucket.store(proxy.endpoint, sizes=SMALL_PARTS)) as store:
            etag = await PatientStore(store, QUICK).upload("file", tmp_path / "source")
            assert (await store.head("file")).etag == etag
            await store.download("file", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == body


async def test_an_upload_that_is_gone_is_not_taken_for_done(
    bucket: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Neither when there is no object, nor when there is one of the same size."""
    write(tmp_path / "source", 11 * MIB)
    proxy.rule = lambda e: (
        Fault(404, applied=False) if e.method == "POST" and "uploadId" in e.query else None
    )
    async with opened(bucket.store(proxy.endpoint, sizes=SMALL_PARTS)) as store:
        with pytest.raises(Ambiguous, match="gone"):
            await store.upload("file", tmp_path / "source")
        await store.put("file", bytes(11 * MIB))
        with pytest.raises(Ambiguous, match="gone"):
            await store.upload("file", tmp_path / "source")


async def test_a_list_that_breaks_off_goes_on(bucket: Server, proxy: FaultProxy) -> None:
    """Behind the last key seen: none is missing and none comes twice."""
    names = [f"p/{number:04}" for number in range(PAGE + 1)]
    async with opened(bucket.store()) as direct:
        await for_each(names, lambda name: direct.put(name, b"x"))
    proxy.rule = lambda e: Fault(503, applied=False) if e.number % 2 else None
    async with opened(bucket.store(proxy.endpoint)) as store:
        patient = PatientStore(store, QUICK)
        assert [i.key async for page in patient.list("p/") for i in page] == names


async def test_what_may_be_repeated_is(bucket: Server, proxy: FaultProxy) -> None:
    """Reads, deletes and plain writes go through any single fault."""
    faults = [fault for fault in LOST if fault.answer != "hang"]
    async with opened(bucket.store(proxy.endpoint)) as store:
        patient = PatientStore(store, QUICK)
        for fault in faults:
            proxy.rule = once(fault, "PUT")
            await patient.put("key", b"x")
            proxy.rule = once(fault, "GET")
            assert (await patient.get("key")).body == b"x"
            proxy.rule = once(fault, "HEAD")
            assert (await patient.head("key")).size == 1
            proxy.rule = once(fault, "DELETE")
            await patient.delete("key")
            with pytest.raises(NotFound):
                await patient.get("key")


async def test_every_request_is_told(bucket: Server, tmp_path: Path) -> None:
    """With its operation and result, and the bytes of the bodies: what metrics are made of."""
    seen: Counter[tuple[str, str]] = Counter()
    moved: Counter[str] = Counter()

    def observe(operation: str, result: str, seconds: float) -> None:
        assert seconds > 0
        seen[operation, result] += 1

    def transferred(direction: str, size: int) -> None:
        moved[direction] += size

    write(tmp_path / "source", 6 * MIB + 1)
    store = bucket.store(sizes=SMALL_PARTS, observe=observe, transferred=transferred)
    async with opened(store):
        await store.put("key", b"12345")
        with pytest.raises(PreconditionFailed):
            await store.put("key", b"123", if_absent=True)
        await store.get("key")
        await store.upload("large", tmp_path / "source")
        await store.download("large", tmp_path / "target")
        with pytest.raises(NotFound):
            await store.head("missing")
        assert [page async for page in store.list("")]
        await store.delete("key")
    assert seen == {
        ("put", "ok"): 1,
        ("put", "precondition"): 1,
        ("get", "ok"): 1,
        ("create_multipart", "ok"): 1,
        ("upload_part", "ok"): 2,
        ("complete_multipart", "ok"): 1,
        ("download", "ok"): 2,
        ("head", "not_found"): 1,
        ("list", "ok"): 1,
        ("delete", "ok"): 1,
    }
    assert {operation for operation, _ in seen} <= set(OPERATIONS)
    assert {result for _, result in seen} <= set(RESULTS)
    assert moved == {"out": 6 * MIB + 6, "in": 6 * MIB + 6}


@pytest.mark.parametrize("key", ["", "k" * 1025, "é" * 513, "half \ud800"])
async def test_names_that_no_object_can_have_are_refused(bucket: Server, key: str) -> None:
    """Before anything is sent: a key has 1 to 1,024 bytes of UTF-8."""
    async with opened(bucket.store()) as store:
        with pytest.raises(InvalidKey):
            await store.put(key, b"x")
        with pytest.raises(InvalidKey):
            await store.get(key)


async def test_a_store_can_be_used_again_after_it_was_closed(bucket: Server) -> None:
    """Closing lets go of connections, and of nothing else."""
    async with opened(bucket.store()) as store:
        await store.put("key", b"x")
        await store.aclose()
        assert (await store.get("key")).body == b"x"
