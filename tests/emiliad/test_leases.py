"""The lease protocol: every transition of the state table, on a clock that the test moves."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import anyio
import pytest

from emiliad.errors import StoreUnusable, Throttled
from emiliad.queue.claims import ClaimRecord, Stamp, State, parse_claim
from emiliad.queue.holdings import ALONE_FROM
from emiliad.queue.leases import LOST_LIMIT
from emiliad.stores.memory import MemoryStore
from emiliad.types import Claim, Failure, Outcome
from tests.emiliad.queue_kit import (
    LAYOUT,
    TTL_S,
    Clock,
    Node,
    Wire,
    content,
    ids,
    put_todo,
    task,
    verify_all_done,
)

BROKEN = Failure("crash", "it crashed", "Traceback ...\nBoom")
BAD = Failure("bad_audio", "no sound in it", retriable=False)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    put_todo(store, "one")
    return store


def claim_of(store: MemoryStore, name: str = "one") -> ClaimRecord:
    return parse_claim(name, store.objects[LAYOUT.claim_key(name)])


async def test_c1_an_unclaimed_task_is_leased(store: MemoryStore, tmp_path: Path) -> None:
    """The claim says who works on what, readable to people."""
    node = Node(store, tmp_path)
    claim = await node.take()
    assert claim == Claim(task("one"), attempt=1, lost=0, nonce=claim.nonce)
    assert node.leases.held == {"one": claim}
    said = content(store, LAYOUT.claim_key("one"))
    assert (said["state"], said["owner"], said["attempt"]) == ("leased", "node-a", 1)
    assert (said["language"], said["audio_key"]) == ("en", "raw_audio/en/one.mp3")
    assert claim.nonce == said["lease"]


async def test_only_one_node_leases_a_task(tmp_path: Path) -> None:
    """Many nodes at once, many tasks: each is leased once."""
    store = MemoryStore()
    for number in range(40):
        put_todo(store, f"{number:02}")
    nodes = [Node(store, tmp_path, f"node-{n}") for n in range(8)]
    taken: Counter[str] = Counter()

    async def take_all(node: Node) -> None:
        while (claim := await node.leases.next()) is not None:
            taken[claim.task.episode_id] += 1

    async with anyio.create_task_group() as group:
        for node in nodes:
            group.start_soon(take_all, node)
    assert taken == dict.fromkeys((f"{n:02}" for n in range(40)), 1)


async def test_nodes_begin_at_different_tasks(tmp_path: Path) -> None:
    """Candidates are shuffled: nodes that start together do not race for the same task."""
    first = set()
    for number in range(8):
        store = MemoryStore()
        for name in range(40):
            put_todo(store, f"{name:02}")
        first.add((await Node(store, tmp_path, f"node-{number}").take()).task.episode_id)
    assert len(first) >= 5


async def test_a_live_lease_is_respected(store: MemoryStore, tmp_path: Path) -> None:
    """Renewed in time, a lease lasts for ever, and is always seen as leased by another."""
    clock = Clock()
    owner, other = Node(store, tmp_path, clock=clock), Node(store, tmp_path, "b", clock=clock)
    claim = await owner.take()
    for _ in range(20):
        clock.now += TTL_S / 3
        assert await owner.leases.renew(claim)
        assert await other.leases.next() is None
        assert other.leases.outlook.leased == 1
        assert not other.leases.outlook.settled


async def test_each_renewal_changes_the_etag(store: MemoryStore, tmp_path: Path) -> None:
    """Equal content would bring an old etag back, and a live lease would look dead."""
    node = Node(store, tmp_path)
    claim = await node.take()
    bodies = {store.objects[LAYOUT.claim_key("one")]}
    for _ in range(5):
        await node.leases.renew(claim)
        bodies.add(store.objects[LAYOUT.claim_key("one")])
    assert len(bodies) == 6


async def test_c3_a_lease_that_stands_unchanged_for_1_1_ttl_is_taken_over(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The observer counts from when it first saw the etag, on its own clock; attempts stay."""
    owner, other = Node(store, tmp_path), Node(store, tmp_path, "b")
    claim = await owner.take()
    other.clock.now += 50 * TTL_S  # an hour later on some clock: nothing was seen yet
    assert await other.leases.next() is None
    assert other.leases.outlook.wait_s == pytest.approx(1.1 * TTL_S)
    other.clock.now += 1.09 * TTL_S
    assert await other.leases.next() is None
    other.clock.now += 0.02 * TTL_S
    taken = await other.take()
    assert (taken.attempt, taken.lost) == (1, 1)
    lost = owner.leases.lost(claim)
    assert not lost.is_set()
    assert not await owner.leases.renew(claim)
    assert lost.is_set()
    assert owner.leases.held == {}
    assert await other.leases.renew(taken)


async def test_the_wall_clock_decides_nothing(store: MemoryStore, tmp_path: Path) -> None:
    """A claim that claims to be a year old is as live as any."""
    owner, other = Node(store, tmp_path), Node(store, tmp_path, "b")
    owner.clock.now -= 365 * 86_400
    await owner.take()
    assert await other.leases.next() is None


async def test_a_restarted_owner_takes_its_lease_back_at_once(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The same owner id means that the process before is dead. It counts as a lost owner."""
    await Node(store, tmp_path).take()
    again = await Node(store, tmp_path, seed=1).take()
    assert (again.attempt, again.lost) == (1, 1)


async def test_x_a_failure_is_retried_after_a_growing_wait(
    store: MemoryStore, tmp_path: Path
) -> None:
    """30 s, 60 s, ...: counted from when the failure was seen; the history tells why."""
    node = Node(store, tmp_path, max_attempts=4)
    for number, wait in ((1, 30), (2, 60), (3, 120)):
        claim = await node.take()
        assert claim.attempt == number
        assert await node.leases.fail(claim, BROKEN) is Outcome.RETRIED
        assert node.leases.held == {}
        node.clock.now += wait - 1
        assert await node.leases.next() is None
        assert node.leases.outlook.backing_off == 1
        assert not node.leases.outlook.settled
        node.clock.now += 2
    said = content(store, LAYOUT.claim_key("one"))
    assert (said["state"], said["attempt"]) == ("free", 3)
    assert [incident["attempt"] for incident in said["history"]] == [1, 2, 3]
    assert said["history"][0]["kind"] == "crash"
    assert said["history"][0]["where"] == "node-a"
    assert (await node.take()).attempt == 4


async def test_the_wait_is_bounded(store: MemoryStore, tmp_path: Path) -> None:
    """An hour at most."""
    record = ClaimRecord(task("one"), State.LEASED, attempt=30)
    assert record.retry_later(Stamp("a", "n", 0.0), BROKEN, 30.0).retry_after_s == 3600.0


async def test_f_the_last_failure_makes_a_dead_letter(store: MemoryStore, tmp_path: Path) -> None:
    """It tells what happened; the todo stays for a retry; nobody takes the task again."""
    node = Node(store, tmp_path, max_attempts=2, backoff_s=0.0)
    assert await node.leases.fail(await node.take(), BROKEN) is Outcome.RETRIED
    assert await node.leases.fail(await node.take(), BROKEN) is Outcome.FAILED
    letter = content(store, LAYOUT.failed_key("one"))
    assert letter["audio_key"] == "raw_audio/en/one.mp3"
    assert [incident["kind"] for incident in letter["attempts"]] == ["crash", "crash"]
    assert letter["attempts"][1]["reason"] == "it crashed"
    assert "Boom" in letter["attempts"][1]["traceback"]
    assert ids(store, LAYOUT.todo) == {"one"}
    node.clock.now += 100 * TTL_S
    assert await node.leases.next() is None
    assert node.leases.outlook.failed == 1
    assert node.leases.outlook.settled


async def test_f_bad_input_is_given_up_at_once(store: MemoryStore, tmp_path: Path) -> None:
    """What no retry can mend is not retried."""
    node = Node(store, tmp_path)
    assert await node.leases.fail(await node.take(), BAD) is Outcome.FAILED
    assert ids(store, LAYOUT.failed) == {"one"}


async def test_a_claim_stays_small(store: MemoryStore, tmp_path: Path) -> None:
    """The last five failures are kept, each cut to size: the head of the reason, the end of the
    traceback."""
    node = Node(store, tmp_path, max_attempts=20, backoff_s=0.0)
    long = Failure("error", "r" * 10_000, "t" * 100_000 + "the end")
    for _ in range(9):
        await node.leases.fail(await node.take(), long)
    body = store.objects[LAYOUT.claim_key("one")]
    assert len(body) < 8192
    history = claim_of(store).history
    assert [incident.attempt for incident in history] == [5, 6, 7, 8, 9]
    assert history[-1].traceback.endswith("the end")


async def test_g_a_released_task_counts_for_nothing(store: MemoryStore, tmp_path: Path) -> None:
    """Handed back, it is there for anyone at once, with its attempt unused."""
    node, other = Node(store, tmp_path), Node(store, tmp_path, "b")
    claim = await node.take()
    await node.leases.release(claim)
    assert node.leases.held == {}
    said = content(store, LAYOUT.claim_key("one"))
    assert (said["state"], said["attempt"], said["lost"]) == ("free", 0, 0)
    assert (await other.take()).attempt == 1


async def test_release_all_frees_every_lease(tmp_path: Path) -> None:
    """The daemon's last words."""
    store = MemoryStore()
    for name in "abcde":
        put_todo(store, name)
    node = Node(store, tmp_path)
    for _ in "abcde":
        await node.take()
    await node.leases.release_all()
    assert {claim_of(store, name).state for name in "abcde"} == {State.FREE}
    assert node.leases.held == {}


async def test_a_lease_that_was_cut_short_is_released_too(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Cancelled between the claim's write and its answer, the node still knows to give it back."""

    class Cutting(MemoryStore):
        async def put(
            self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
        ) -> str:
            etag = await super().put(key, body, if_absent=if_absent, if_match=if_match)
            if if_absent:
                scope.cancel()
                await anyio.lowlevel.checkpoint()
            return etag

    cutting = Cutting()
    cutting.objects = store.objects
    node = Node(cutting, tmp_path)
    with anyio.CancelScope() as scope:
        await node.leases.next()
    assert claim_of(store).state is State.LEASED
    assert node.leases.held == {}
    await node.leases.release_all()
    assert claim_of(store).state is State.FREE


async def test_an_ended_lease_cannot_be_used_again(store: MemoryStore, tmp_path: Path) -> None:
    """Renewing, failing or releasing what is no longer held does nothing."""
    node = Node(store, tmp_path)
    old = await node.take()
    await node.leases.release(old)
    new = await node.take()
    before = store.objects[LAYOUT.claim_key("one")]
    assert not await node.leases.renew(old)
    assert await node.leases.fail(old, BROKEN) is Outcome.LOST
    await node.leases.release(old)
    assert node.leases.lost(old).is_set()
    assert store.objects[LAYOUT.claim_key("one")] == before
    assert node.leases.held == {"one": new}


async def test_a_failure_after_the_lease_was_lost_is_ignored(
    store: MemoryStore, tmp_path: Path
) -> None:
    """X and F of a frozen owner that wakes do not touch the new owner's claim."""
    frozen, other = Node(store, tmp_path), Node(store, tmp_path, "b")
    claim = await frozen.take()
    await other.leases.next()
    other.clock.now += 2 * TTL_S
    taken = await other.take()
    assert await frozen.leases.fail(claim, BAD) is Outcome.LOST
    assert await other.leases.renew(taken)
    assert ids(store, LAYOUT.failed) == set()


async def test_a_renewal_through_an_outage_keeps_the_lease(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Nobody can tell, so the work goes on; a write that landed unseen is recognised later."""
    down = {"fate": ""}
    wire = Wire(store, lambda _, name: down["fate"] if name.startswith(("put", "get")) else None)
    node = Node(wire, tmp_path)
    claim = await node.take()
    for fate in ("lost before", "lost after"):
        down["fate"] = fate
        assert await node.leases.renew(claim)
        assert node.leases.held == {"one": claim}
    down["fate"] = ""
    assert await node.leases.renew(claim)
    assert not node.leases.lost(claim).is_set()
    assert await node.work(claim) is Outcome.COMPLETED


async def test_a_claim_whose_answer_was_lost_is_held(store: MemoryStore, tmp_path: Path) -> None:
    """C1 is read back and recognised."""
    lost = [True]
    wire = Wire(
        store, lambda _, name: "lost after" if name.startswith("put") and lost.pop() else None
    )
    lost.insert(0, False)
    claim = await Node(wire, tmp_path).take()
    assert claim_of(store).lease == claim.nonce


async def test_a_busy_key_is_somebody_elses(store: MemoryStore, tmp_path: Path) -> None:
    """429 on a claim: another is writing it this second, so the next candidate is tried."""

    class OneASecond(MemoryStore):
        async def put(
            self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
        ) -> str:
            if key == LAYOUT.claim_key("one"):
                raise Throttled(key)
            return await super().put(key, body, if_absent=if_absent, if_match=if_match)

    busy = OneASecond()
    busy.objects = store.objects
    put_todo(busy, "two")
    node = Node(busy, tmp_path)
    assert (await node.take()).task.episode_id == "two"
    assert await node.leases.next() is None
    assert node.clock.now == 1000.0  # no time was spent waiting for the busy key


async def test_writes_to_one_claim_are_spaced_out(store: MemoryStore, tmp_path: Path) -> None:
    """Where the store takes one write a second to a key, none comes sooner."""
    node = Node(store, tmp_path, write_spacing_s=1.1)
    claim = await node.take()
    began = node.clock.now
    await node.leases.renew(claim)
    await node.leases.renew(claim)
    await node.leases.release(claim)
    assert node.clock.now == pytest.approx(began + 3.3)


async def test_renewals_of_one_claim_are_serialised(store: MemoryStore, tmp_path: Path) -> None:
    """Two at once both succeed, one after the other."""
    node = Node(store, tmp_path)
    claim = await node.take()
    results: list[bool] = []

    async def renew() -> None:
        results.append(await node.leases.renew(claim))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(renew)
    assert results == [True] * 5


async def test_a_task_that_outlived_three_owners_runs_alone(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Its node holds no other lease, so a file that kills nodes takes no neighbour with it."""
    clock = Clock()
    for number in range(ALONE_FROM):
        node = Node(store, tmp_path, f"victim-{number}", clock=clock)
        await node.leases.next()
        clock.now += 2 * TTL_S
        await node.leases.next()
    assert claim_of(store).lost == ALONE_FROM - 1
    put_todo(store, "two")
    node = Node(store, tmp_path, "survivor", clock=clock)
    two = await node.take()
    clock.now += 2 * TTL_S
    assert two.task.episode_id == "two"
    await node.leases.renew(two)
    assert await node.leases.next() is None  # would be the third loss, and "two" is held
    await node.leases.release(two)
    put_todo(store, "three")
    while (claim := await node.take()).task.episode_id != "one":
        await node.work(claim)
    assert claim.lost == ALONE_FROM
    put_todo(store, "four")
    assert await node.leases.next() is None
    assert not node.leases.outlook.settled
    await node.work(claim)
    assert await node.leases.next() is not None


async def test_a_task_that_outlives_ten_owners_is_given_up(
    store: MemoryStore, tmp_path: Path
) -> None:
    """The file that kills every node it meets ends as a dead letter."""
    for number in range(LOST_LIMIT):
        assert (await Node(store, tmp_path, seed=number).take()).lost == number
    node = Node(store, tmp_path, seed=99)
    assert await node.leases.next() is None
    assert node.leases.given_up == 1
    (incident,) = content(store, LAYOUT.failed_key("one"))["attempts"]
    assert incident["kind"] == "lost"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "no object"),
        (b'{"episode_id": "one", "language": "en"}', "lacks the key audio_key"),
        (b'{"episode_id": "one", "language": 7, "audio_key": "a"}', "language is 7"),
        (b'{"episode_id": "two", "language": "en", "audio_key": "a"}', "says that it is 'two'"),
        (b'{"episode_id": "one", "language": "en", "audio_key": ""}', "names no audio"),
        (b"[" * 100_000, "not JSON"),
    ],
)
async def test_a_todo_that_is_no_task_is_a_dead_letter(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    """It says what is wrong with it, and the other tasks go on."""
    store = MemoryStore()
    store.objects[LAYOUT.todo_key("one")] = body
    put_todo(store, "two")
    node = Node(store, tmp_path)
    await node.work(await node.take())
    assert await node.leases.next() is None
    assert await node.leases.next() is None
    assert node.leases.given_up == 1
    assert node.leases.outlook.settled
    (incident,) = content(store, LAYOUT.failed_key("one"))["attempts"]
    assert incident["kind"] == "bad_task"
    assert reason in incident["reason"]
    assert ids(store, LAYOUT.completed) == {"two"}


async def test_what_is_no_todo_is_left_alone(tmp_path: Path) -> None:
    """Folder markers, notes and deeper keys among the todos are no tasks."""
    store = MemoryStore()
    for name in ("", "README.md", "deep/one.task", ".task"):
        store.objects[f"{LAYOUT.todo}{name}"] = b""
    node = Node(store, tmp_path)
    assert await node.leases.next() is None
    assert node.leases.outlook.settled
    assert len(store.objects) == 4


async def test_old_and_unreadable_claims_expire_like_any_other(tmp_path: Path) -> None:
    """A claim without our fields beside a todo is a lease of an unknown owner."""
    store = MemoryStore()
    for name, claim in {"old": None, "torn": b"{", "odd": b'{"state": "dancing"}'}.items():
        put_todo(store, name)
        todo = store.objects[LAYOUT.todo_key(name)]
        store.objects[LAYOUT.claim_key(name)] = todo if claim is None else claim
    node = Node(store, tmp_path)
    assert await node.leases.next() is None
    assert node.leases.outlook.leased == 3
    node.clock.now += 1.2 * TTL_S
    claims = [await node.take() for _ in range(3)]
    claims.sort(key=lambda claim: claim.task.episode_id)
    assert [claim.task for claim in claims] == [task("odd"), task("old"), task("torn")]
    assert {claim.attempt for claim in claims} == {1}


async def test_a_named_task_can_be_claimed(store: MemoryStore, tmp_path: Path) -> None:
    """`claim` follows the same rules as `next`."""
    put_todo(store, "two")
    node, other = Node(store, tmp_path), Node(store, tmp_path, "b")
    claim = await node.leases.claim("two")
    assert claim is not None
    assert claim.task == task("two")
    assert await node.leases.claim("two") is None
    assert await other.leases.claim("two") is None
    assert await node.leases.claim("three") is None


async def test_a_committed_task_is_finished_not_repeated(
    store: MemoryStore, tmp_path: Path
) -> None:
    """An old bucket's record beside a todo: the work is done, the todo goes."""
    store.objects[LAYOUT.completed_key("one")] = store.objects[LAYOUT.todo_key("one")]
    node = Node(store, tmp_path)
    assert await node.leases.next() is None
    assert ids(store, LAYOUT.todo) == ids(store, LAYOUT.claims) == set()
    assert await node.leases.next() is None
    assert node.leases.outlook.settled


async def test_a_long_queue_is_walked_from_random_places(tmp_path: Path) -> None:
    """More todos than pages, more claims than are listed whole: all are found, each once."""
    store = MemoryStore()
    names = [f"{number:05}" for number in range(2600)]
    for name in names:
        put_todo(store, name)
    failed = ClaimRecord(task("x"), State.LEASED).give_up(Stamp("a", "n", 0.0), BAD).body()
    for number in range(11_000):
        store.objects[LAYOUT.claim_key(f"{number:05}")] = failed
    free = random.Random(1).sample(names, 130)
    for name in free:
        del store.objects[LAYOUT.claim_key(name)]
    node = Node(store, tmp_path)
    taken = [(await node.take()).task.episode_id for _ in free]
    assert sorted(taken) == sorted(free)
    assert taken != sorted(taken)
    assert await node.leases.next() is None
    outlook = node.leases.outlook
    assert (outlook.todo, outlook.held, outlook.failed) == (2600, 130, 2470)


async def test_a_page_of_candidates_is_not_tried_for_ever(tmp_path: Path) -> None:
    """After a while the listing is stale: what others did meanwhile is looked at again."""
    store = MemoryStore()
    for number in range(10):
        put_todo(store, f"{number}")
    wire = Wire(store, lambda *_: None)
    node = Node(wire, tmp_path)
    await node.take()
    await node.take()
    listings = sum(name.startswith("list") for name in wire.requests)
    node.clock.now += 301
    await node.take()
    assert sum(name.startswith("list") for name in wire.requests) > listings


async def test_an_outage_while_looking_is_no_end(store: MemoryStore, tmp_path: Path) -> None:
    """A store that does not answer gives no task, and no claim that the queue is empty."""
    down = [True]
    wire = Wire(store, lambda *_: "lost before" if down[0] else None)
    node = Node(wire, tmp_path)
    assert await node.leases.next() is None
    assert not node.leases.outlook.settled
    down[0] = False
    assert await node.leases.next() is not None


async def test_a_lease_is_given_back_when_the_store_fails_after_it(
    store: MemoryStore, tmp_path: Path
) -> None:
    """A task that was leased but not handed out is not kept from others."""
    rule = [True]
    wire = Wire(
        store,
        lambda _, name: "lost before" if "head" in name and rule and rule.pop() else None,
    )
    node = Node(wire, tmp_path)
    assert await node.leases.next() is None
    assert node.leases.held == {}
    assert claim_of(store).state is State.FREE
    await node.finish_all()
    verify_all_done(store, {"one"})


async def test_an_unusable_store_is_told(store: MemoryStore, tmp_path: Path) -> None:
    """Wrong keys, a full disk: no retry hides that."""

    class Unusable(MemoryStore):
        async def put(
            self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
        ) -> str:
            raise StoreUnusable("the disk is full")

    unusable = Unusable()
    unusable.objects = store.objects
    with pytest.raises(StoreUnusable, match="full"):
        await Node(unusable, tmp_path).leases.next()


async def test_an_empty_queue_is_settled(tmp_path: Path) -> None:
    """Nothing to do is an end, once it was looked at."""
    node = Node(MemoryStore(), tmp_path)
    assert not node.leases.outlook.settled
    assert await node.leases.next() is None
    assert node.leases.outlook.settled
