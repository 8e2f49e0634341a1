"""A thousand segments on a real S3 server: in parallel, through faults, and cut off."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from emiliad.patience import Patience
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.publish import Publisher
from emiliad.queue.sweep import Sweeper
from emiliad.queue.tasks import todo_body
from emiliad.stores.patient import PatientStore
from emiliad.types import Claim, Outcome, Processed
from tests.emiliad.fault_proxy import Exchange, Fault, FaultProxy
from tests.emiliad.queue_kit import LAYOUT, Clock, task
from tests.emiliad.s3_rig import S3Bucket
from tests.emiliad.weed import Server

SEGMENTS = 1000
AT_ONCE = 16  # uploads
TTL_S = 300.0


class Watched(PatientStore):
    """Knows how many uploads were under way at a time."""

    most = now = 0

    async def upload(self, key: str, path: Path) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().upload(key, path)
        finally:
            self.now -= 1


class Uploader:
    """A node's queue side on the server, through an endpoint of its own."""

    def __init__(self, server: Server, scratch: Path, owner: str, endpoint: str) -> None:
        self.clock = Clock()
        self.store = Watched(
            server.store(endpoint, limit_s=2.0), Patience(tries=4, first_s=0.01, longest_s=0.05)
        )
        outputs = Outputs(self.store, LAYOUT, concurrency=AT_ONCE, scratch=scratch)
        self.leases = Leases(
            self.store, LAYOUT, owner=owner, ttl_s=TTL_S, clock=self.clock, outputs=outputs
        )
        self.publisher = Publisher(self.store, LAYOUT, self.leases, outputs=outputs)
        self.sweeper = Sweeper(self.store, LAYOUT, ttl_s=TTL_S, clock=self.clock, outputs=outputs)


def thousand(claim: Claim, workdir: Path) -> Processed:
    return some(claim, workdir, SEGMENTS)


def some(claim: Claim, workdir: Path, segments: int) -> Processed:
    out = workdir / "out"
    out.mkdir(parents=True)
    rows = [{"audio": f"one_{index:06d}.mp3"} for index in range(segments)]
    for row in rows:
        (out / row["audio"]).write_bytes(hashlib.sha256(row["audio"].encode()).digest() * 8)
    (out / "all_segments.json").write_text(json.dumps(rows))
    manifest = {"segments": segments, "audio_seconds": 3600.0}
    return Processed(claim, workdir, out, manifest, {})


async def claimed(node: Uploader) -> Claim:
    await node.store.put(LAYOUT.todo_key("one"), todo_body(task("one")), if_absent=True)
    claim = await node.leases.next()
    assert claim is not None
    return claim


async def test_a_failed_put_among_a_thousand_is_repeated(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """Sixteen at a time, one write in thirty fails, with and without effect; the episode is
    published whole."""
    rng = random.Random(3)
    faults = (Fault(500), Fault(500, applied=False), Fault("reset"), Fault(503, applied=False))

    def rule(exchange: Exchange) -> Fault | None:
        output = exchange.method == "PUT" and "/processed/" in exchange.path
        return rng.choice(faults) if output and rng.random() < 1 / 30 else None

    with FaultProxy(weed_bucket.endpoint, rule).running() as proxy:
        node = Uploader(weed_bucket, tmp_path, "one", proxy.endpoint)
        claim = await claimed(node)
        assert await node.publisher.commit(thousand(claim, tmp_path / "w")) is Outcome.COMPLETED
        await node.store.aclose()
    assert node.store.most == AT_ONCE
    S3Bucket(tmp_path, weed_bucket).verify_settled()


async def test_a_publication_that_is_cut_off_is_finished_by_another_node(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """The first node loses the store after 300 outputs; the second publishes from the pack."""
    published = 0

    def rule(exchange: Exchange) -> Fault | None:
        nonlocal published
        published += exchange.method == "PUT" and "/processed/" in exchange.path
        return Fault("reset", applied=False) if published > 300 else None

    bucket = S3Bucket(tmp_path, weed_bucket)
    with FaultProxy(weed_bucket.endpoint, rule).running() as proxy:
        first = Uploader(weed_bucket, tmp_path, "first", proxy.endpoint)
        claim = await claimed(first)
        assert await first.publisher.commit(thousand(claim, tmp_path / "w")) is Outcome.COMPLETED
        await first.store.aclose()
    outputs = bucket.keys("processed/")
    assert 0 < len(outputs) < SEGMENTS
    assert not [key for key in outputs if key.endswith("all_segments.json")]
    assert bucket.tasks("todo").keys() == {"one"}

    second = Uploader(weed_bucket, tmp_path, "second", weed_bucket.endpoint)
    await second.sweeper.sweep_once()
    second.clock.now += 1.2 * TTL_S
    await second.sweeper.sweep_once()
    await second.store.aclose()
    bucket.verify_settled()


async def test_the_todo_goes_only_after_a_listing_that_matches(
    weed_bucket: Server, tmp_path: Path
) -> None:
    """An output that vanishes before the listing keeps the task in the queue; another node
    publishes it again."""
    bucket = S3Bucket(tmp_path, weed_bucket)

    def rule(exchange: Exchange) -> None:
        if "list-type" in exchange.query and "prefix=processed" in exchange.query:
            gone = "processed/en/one/one_000007.mp3"
            bucket.client.delete_object(Bucket=weed_bucket.bucket, Key=gone)

    with FaultProxy(weed_bucket.endpoint, rule).running() as proxy:
        first = Uploader(weed_bucket, tmp_path, "first", proxy.endpoint)
        claim = await claimed(first)
        processed = some(claim, tmp_path / "w", segments=10)
        assert await first.publisher.commit(processed) is Outcome.COMPLETED
        await first.store.aclose()
    assert bucket.tasks("todo").keys() == {"one"}
    assert len(bucket.keys("processed/")) == 10

    second = Uploader(weed_bucket, tmp_path, "second", weed_bucket.endpoint)
    second.clock.now += TTL_S  # its back-off is over
    assert await second.leases.next() is None
    second.clock.now += TTL_S
    assert await second.leases.next() is None
    await second.store.aclose()
    bucket.verify_settled()
