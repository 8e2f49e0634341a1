"""The election: one leads, stops before it can lapse, and hands over; in virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import anyio
import pytest
from anyio.abc import TaskGroup

from emiliad.kube import election
from emiliad.kube.api import LEASES
from emiliad.kube.election import Election
from emiliad.kube.errors import KubeError
from emiliad.kube.lease import EMBEDDED, Record, micro_time, record_from
from emiliad.kube.lease import lease as lease_body
from emiliad.kube.tenure import STANDARD, Candidate, Tenure, Terms
from ops.rig.apiserver import ApiServer
from ops.rig.objects import ApiError, Json
from ops.rig.rbac import Request, Rule
from tests.kube.rig import NAMESPACE, Wire, furnished, server_in, until
from tests.sim.loop import run

LEASE = "emiliad-autokicker"
SCALE = "/apis/apps/v1/namespaces/emiliad/deployments/emiliad/scale"
FAILOVER_S = 20.0
SEEDS = 30


@dataclass(slots=True)
class Referee(ApiServer):
    """An API server that notes every scale patch of somebody who does not hold the lease."""

    strays: list[str] = field(default_factory=list)

    def answer(self, request: Request, query: Mapping[str, str], body: Json | None) -> Json:
        if request.sub == "scale" and body is not None and body["who"] != holder(self):
            self.strays.append(f"{self.clock():.2f}: {body['who']}, not {holder(self)}")
        return ApiServer.answer(self, request, query, body)


@dataclass(slots=True)
class Runner:
    """A candidate whose work is to write all the time."""

    name: str
    wire: Wire
    embedded: bool = False
    terms: Terms = STANDARD
    offices: list[tuple[float, float, str]] = field(default_factory=list)
    leading: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    seen: Record | None = None

    async def run(self) -> None:
        """Stands for election until `scope` is cancelled; `offices` are the times in office."""
        candidate = Candidate(
            NAMESPACE, LEASE, self.name, self.embedded, version="1", terms=self.terms
        )
        standing = Election(
            self.wire,
            candidate,
            seen=self.see,
            clock=anyio.current_time,
            rng=random.Random(self.name),
        )
        self.scope = anyio.CancelScope()
        with self.scope:
            await standing.run(self.work)

    def see(self, record: Record | None) -> None:
        self.seen = record

    async def work(self, tenure: Tenure) -> None:
        began = anyio.current_time()
        self.leading = True
        try:
            while True:
                await self.write(tenure)
                await anyio.sleep(0.3)
        finally:
            self.leading = False
            self.offices.append((began, anyio.current_time(), self.name))

    async def write(self, tenure: Tenure) -> None:
        """As the real writer does it: bounded by the tenure, and finished before the end."""
        left_s = min(3.0, tenure.left_s())
        if left_s <= 0:
            return
        body = {"spec": {"replicas": self.wire.rng.randint(0, 9)}, "who": self.name}
        try:
            with anyio.CancelScope(shield=True):
                await self.wire.call("PATCH", SCALE, body, timeout_s=left_s)
            tenure.unsettled = False
        except KubeError:
            tenure.unsettled = True


def referee() -> Referee:
    """A server with our Deployment, on the loop's clock."""
    return Referee(furnished(nodes=0).objects, clock=anyio.current_time)


def holder(server: ApiServer) -> str:
    try:
        return str(server.objects.get("leases", NAMESPACE, LEASE)["spec"]["holderIdentity"])
    except ApiError:
        return ""


def no_overlap(*runners: Runner) -> None:
    """Asserts that no two were in office at the same time."""
    offices = sorted(office for runner in runners for office in runner.offices)
    for (_, end, one), (begin, _, other) in itertools.pairwise(offices):
        assert begin >= end, f"{other} began at {begin:.2f}, {one} ended at {end:.2f}"


# -- the storm


@dataclass(slots=True)
class Storm:
    """Random trouble for some candidates; the same for the same seed."""

    seed: int
    server: Referee = field(default_factory=referee)
    runners: list[Runner] = field(default_factory=list)

    async def rage(self) -> None:
        rng = random.Random(self.seed)
        self.runners = [
            Runner(f"{kind}-{n}", self.wire(rng), embedded=kind == "embedded")
            for n, kind in enumerate(rng.choice([("alone",) * 2, ("alone", "alone", "embedded")]))
        ]
        async with anyio.create_task_group() as group:
            for runner in self.runners:
                group.start_soon(runner.run)
            end = anyio.current_time() + 240
            while anyio.current_time() < end:
                await anyio.sleep(rng.uniform(0.1, 15))
                await self.strike(rng, group)
            await self.calm()
            for runner in self.runners:
                runner.scope.cancel()

    def wire(self, rng: random.Random) -> Wire:
        return Wire(
            self.server,
            rng=random.Random(rng.random()),
            latency_s=(0.001, rng.choice([0.01, 0.3, 1.2])),
            abort=rng.choice([0.0, 0.25]),
            cut=rng.choice([0.0, 0.1]),
        )

    async def strike(self, rng: random.Random, group: TaskGroup) -> None:
        runner = rng.choice(self.runners)
        match rng.choice(["part", "part", "heal", "leave", "compact"]):
            case "part":
                runner.wire.parted = True
            case "heal":
                runner.wire.parted = False
            case "compact":
                self.server.objects.compact()
            case "leave":
                runner.scope.cancel()
                await anyio.sleep(rng.uniform(0, 5))
                group.start_soon(runner.run)

    async def calm(self) -> None:
        for runner in self.runners:
            runner.wire.parted, runner.wire.abort, runner.wire.cut = False, 0.0, 0.0
        await anyio.sleep(60)
        leading = [runner for runner in self.runners if runner.leading]
        assert len(leading) == 1, f"{len(leading)} lead in calm"
        assert not leading[0].embedded, "an embedded one leads, though a standalone one is there"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_never_two_in_office_and_never_a_stray_write(seed: int) -> None:
    """Through partitions, lost answers, restarts and deleted leases, one writes at a time."""
    storm = Storm(seed)
    run(storm.rage())
    no_overlap(*storm.runners)
    assert storm.server.strays == []


# -- one rule each


def test_a_leader_that_vanishes_is_replaced_within_twenty_seconds() -> None:
    """A killed process renews no more; its lease lapses, and a follower takes over."""

    async def story() -> None:
        server = referee()
        one, two = Runner("one", Wire(server)), Runner("two", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            group.start_soon(two.run)
            await anyio.sleep(33.3)
            one.wire.parted = True
            vanished = anyio.current_time()
            await until(lambda: two.leading)
            assert anyio.current_time() - vanished <= FAILOVER_S
            assert not one.leading
            group.cancel_scope.cancel()
        no_overlap(one, two)

    run(story())


def test_a_clean_exit_hands_over_at_once() -> None:
    """The lease is freed after the work has ended, and the next one need not wait."""

    async def story() -> None:
        server = referee()
        one, two = Runner("one", Wire(server)), Runner("two", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            group.start_soon(two.run)
            await anyio.sleep(7)
            one.scope.cancel()
            left = anyio.current_time()
            await until(lambda: two.leading)
            assert anyio.current_time() - left < 1.0
            group.cancel_scope.cancel()
        no_overlap(one, two)
        assert server.strays == []

    run(story())


def test_the_lease_lapses_by_itself_if_a_write_may_still_be_on_its_way() -> None:
    """Handing over while a lost write can still arrive would make two writers."""

    async def story() -> None:
        server = referee()
        one, two = Runner("one", Wire(server)), Runner("two", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            group.start_soon(two.run)
            await anyio.sleep(7)
            one.wire.parted = True
            await anyio.sleep(1)
            one.scope.cancel()
            await until(lambda: not one.leading)
            one.wire.parted = False
            left = anyio.current_time()
            await until(lambda: two.leading)
            assert anyio.current_time() - left > 5
            group.cancel_scope.cancel()

    run(story())


def test_an_embedded_candidate_lets_a_standalone_one_go_first() -> None:
    """It acquires only after twice the lease's time without a standalone autokicker."""

    async def story() -> None:
        server = referee()
        inside = Runner("inside", Wire(server), embedded=True)
        async with anyio.create_task_group() as group:
            group.start_soon(inside.run)
            await anyio.sleep(29)
            assert not inside.leading
            await until(lambda: inside.leading)
            assert anyio.current_time() >= 2 * STANDARD.lease_s
            group.cancel_scope.cancel()

    run(story())


def test_an_embedded_leader_leaves_when_a_standalone_one_comes() -> None:
    """The standalone one asks by a note on the lease, and leads a moment later, for good."""

    async def story() -> None:
        server = referee()
        inside = Runner("inside", Wire(server), embedded=True)
        alone = Runner("alone", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(inside.run)
            await until(lambda: inside.leading, limit_s=60)
            asked = anyio.current_time()
            group.start_soon(alone.run)
            await until(lambda: alone.leading)
            assert anyio.current_time() - asked < 2
            await anyio.sleep(120)
            assert alone.leading
            assert not inside.leading
            group.cancel_scope.cancel()
        no_overlap(inside, alone)
        assert EMBEDDED not in server.objects.get("leases", NAMESPACE, LEASE)["metadata"].get(
            "annotations", {}
        )

    run(story())


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in a record are for people: years ahead or back, nobody compares them."""
    rng = random.Random(5)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumping:
            return cls(rng.randint(1980, 2090), 1, 1, tzinfo=tz)

    monkeypatch.setattr(election, "datetime", Jumping)

    async def story() -> None:
        server = referee()
        one, two = Runner("one", Wire(server)), Runner("two", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            group.start_soon(two.run)
            await anyio.sleep(300)
            assert one.leading
            assert not one.offices
            assert not two.leading
            group.cancel_scope.cancel()

    run(story())


def test_two_versions_with_other_terms_agree() -> None:
    """A follower believes in a holder for as long as the record says, not for its own time."""

    async def story() -> None:
        server = referee()
        slow = Terms(lease_s=60, deadline_s=50, renew_s=25)
        old, new = Runner("old", Wire(server), terms=slow), Runner("new", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(old.run)
            await until(lambda: old.leading)
            group.start_soon(new.run)
            await anyio.sleep(300)
            assert old.leading
            assert not new.offices
            group.cancel_scope.cancel()
        no_overlap(old, new)

    run(story())


def test_a_deleted_lease_frees_nobody_who_does_not_know_of_it() -> None:
    """A follower that saw it held waits as if it still were: its holder may be cut off."""

    async def story() -> None:
        server = referee()
        one, two = Runner("one", Wire(server)), Runner("two", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            group.start_soon(two.run)
            await anyio.sleep(7)
            one.wire.parted = True
            server.objects.delete("leases", NAMESPACE, LEASE)
            await until(lambda: two.leading)
            await anyio.sleep(20)
            group.cancel_scope.cancel()
        no_overlap(one, two)

    run(story())


def test_work_that_fails_frees_the_lease_and_is_heard_of() -> None:
    """A leader whose work is dead must not renew for ever."""

    async def story() -> None:
        server = referee()
        candidate = Candidate(NAMESPACE, LEASE, "one")
        standing = Election(Wire(server), candidate, clock=anyio.current_time)

        async def work(tenure: Tenure) -> None:
            await anyio.sleep(1)
            raise RuntimeError("broken")

        with pytest.raises(ExceptionGroup) as caught:
            await standing.run(work)
        assert caught.group_contains(RuntimeError, match="broken")
        assert holder(server) == ""

    run(story())


def test_a_steady_leader_asks_for_nothing_but_its_renewal() -> None:
    """A leader renews every five seconds; followers watch and ask for nothing."""

    async def story() -> None:
        server = referee()
        one, two = Runner("one", Wire(server)), Runner("two", Wire(server, agent="two"))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            group.start_soon(two.run)
            await anyio.sleep(10)
            begin = len(server.audit)
            await anyio.sleep(60)
            renewals = server.count("update", "leases", since=begin)
            assert 11 <= renewals <= 13
            assert server.count("list", since=begin) == 0
            assert [seen for seen in server.audit[begin:] if seen.agent == "two"] == []
            group.cancel_scope.cancel()

    run(story())


def test_who_may_not_see_the_lease_never_leads() -> None:
    """Without rights there is no election, and the candidate says why."""

    async def story() -> None:
        server = referee()
        server.rights = list[Rule]()
        standing = Election(
            Wire(server), Candidate(NAMESPACE, LEASE, "one"), clock=anyio.current_time
        )

        async def work(tenure: Tenure) -> None:
            raise AssertionError("it leads")

        with anyio.move_on_after(120):
            await standing.run(work)
        assert "403" in (standing.problem or "")
        assert not standing.synced
        assert len(server.audit) < 20  # it does not hammer

    run(story())


# -- records


def test_times_have_exactly_six_digits_and_no_numeric_zone() -> None:
    """The API server refuses a whole second without a fraction, and an offset."""
    moment = datetime(2026, 3, 1, 12, 0, 30, 0, tzinfo=timezone(timedelta(hours=5)))
    assert micro_time(moment) == "2026-03-01T07:00:30.000000Z"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"holderIdentity": None, "leaseDurationSeconds": None, "leaseTransitions": None},
        {"leaseDurationSeconds": -1, "leaseTransitions": "many"},
        {"leaseDurationSeconds": 10**9},
    ],
)
def test_a_record_of_anybody_can_be_read(spec: Json) -> None:
    """Nonsense in a lease is the same as nothing: our own terms count."""
    record = record_from({"metadata": {"resourceVersion": "7"}, "spec": spec})
    assert (record.holder, record.duration_s, record.transitions) == ("", 0.0, 0)


def test_a_lease_written_is_a_lease_read() -> None:
    """The rig's API server takes it, and it says what it was made from."""
    record = Record(holder="one", duration_s=15, transitions=3, notes={"a": "b"})
    now = datetime.now(UTC)
    server = referee_without_loop()
    stored = server.objects.create(
        "leases",
        NAMESPACE,
        lease_body(NAMESPACE, LEASE, record, acquired=now, renewed=now),
    )
    again = record_from(stored)
    assert (again.holder, again.duration_s, again.transitions) == ("one", 15, 3)
    assert again.notes == {"a": "b"}
    assert again.version == stored["metadata"]["resourceVersion"]


def referee_without_loop() -> ApiServer:
    return ApiServer()


def test_the_lease_is_asked_for_by_name() -> None:
    """Rights are given for one lease; a list that does not name it would be refused."""

    async def story() -> None:
        cluster = furnished(nodes=0)
        server = server_in(cluster, rights=[_lease_rule()])
        one = Runner("one", Wire(server))
        async with anyio.create_task_group() as group:
            group.start_soon(one.run)
            await until(lambda: one.leading)
            await anyio.sleep(12)
            group.cancel_scope.cancel()
        refused = [seen for seen in server.audit if seen.code == 403]
        assert {seen.request.resource for seen in refused} == {"deployments"}

    run(story())


def _lease_rule() -> Rule:
    verbs = frozenset({"create", "get", "list", "watch", "update"})
    return Rule(frozenset({LEASES.group}), frozenset({"leases"}), verbs, frozenset(), NAMESPACE)
