"""The whole loop - mirror, core, writer, display - on a toy cluster, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import anyio
import pytest

from emiliad.autokick.model import Policy
from emiliad.kube.tenure import Tenure
from ops.rig.apiserver import ApiServer
from ops.rig.controllers import (
    GPU,
    Cluster,
    daemonset,
    deployment,
    node,
    pod,
    remove,
    requests,
)
from ops.rig.objects import Objects
from ops.rig.rbac import Rule
from tests.kube.rig import (
    NAMESPACE,
    POLICY,
    SCOPE,
    TARGET,
    Watched,
    Wire,
    background,
    bound,
    full,
    furnished,
    governed,
    home,
    pods,
    server_in,
    until,
    wanted,
)
from tests.sim.loop import run

SEEDS = 12


@dataclass(slots=True)
class Stage:
    """A cluster in which our autokicker leads."""

    cluster: Cluster
    server: ApiServer
    wire: Wire
    watched: Watched

    @property
    def objects(self) -> Objects:
        return self.cluster.objects

    @property
    def state(self) -> str:
        return str(self.watched.seen.status.get("state"))

    def writes(self, since: int = 0) -> list[int]:
        """What was asked of the target's scale."""
        return [
            seen.body["spec"]["replicas"]
            for seen in self.server.audit[since:]
            if seen.request.sub == "scale" and seen.code == 200
        ]

    def events(self) -> list[tuple[str, str]]:
        return [(event["reason"], event["message"]) for event in self.objects.all("events")]


def play(
    story: Callable[[Stage], Awaitable[None]],
    *,
    nodes: int = 4,
    policy: Policy = POLICY,
    prepare: Callable[[Objects], object] = lambda _: None,
    **scope: object,
) -> None:
    """Plays a story in virtual time, with the governor at work."""

    async def main() -> None:
        cluster = furnished(nodes=nodes, start_s=60.0, drain_s=10.0)
        prepare(cluster.objects)
        server = server_in(cluster)
        wire = Wire(server)
        chosen = replace(SCOPE, **scope)  # type: ignore[arg-type]
        watched = governed(wire, policy=policy, scope=chosen)
        tenure = Tenure(float("inf"), anyio.current_time)
        stage = Stage(cluster, server, wire, watched)
        async with background(cluster.run, lambda: watched.governor.run(tenure)):
            await story(stage)

    run(main())


# -- the working order


def test_free_nodes_are_filled_and_one_pod_waits() -> None:
    """Growth follows what is bound, not what is ready: a model load of a minute delays nothing."""

    async def story(stage: Stage) -> None:
        await until(lambda: full(stage.objects), limit_s=10)
        ready = [p for p in pods(stage.objects) if p["status"]["phase"] == "Running"]
        assert ready == []

    play(story, nodes=20)


def test_a_quiet_cluster_is_left_in_peace() -> None:
    """Ten minutes without a change: no write to the scale, no list; watches alone are renewed."""

    async def story(stage: Stage) -> None:
        await until(lambda: full(stage.objects))
        await anyio.sleep(120)  # until all pods are ready
        begin = len(stage.server.audit)
        await anyio.sleep(600)
        asked = {seen.request.verb for seen in stage.server.audit[begin:]}
        assert asked == {"watch"}
        assert len(stage.server.audit) - begin <= 4 * 3

    play(story)


def test_everything_leaves_when_somebody_waits_and_comes_back_when_nobody_does() -> None:
    """The user's rule: while another's pod waits for what we hold, there are no pods of ours."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: full(objects))
        begin = len(stage.server.audit)
        objects.create("pods", NAMESPACE, pod("team"))
        await until(lambda: stage.writes(begin) == [0], limit_s=1)
        await until(lambda: home(objects, "team"), limit_s=11)
        assert stage.state in ("yield", "settle")
        await until(lambda: stage.state == "fill", limit_s=30)
        await until(lambda: bound(objects) == 3)
        remove(objects, NAMESPACE, "team")
        await until(lambda: full(objects), limit_s=60)
        assert stage.watched.value("kicks_total", reason="unschedulable") == 1
        assert stage.watched.value("kick_latency_seconds_count") == 1
        assert stage.watched.value("kick_latency_seconds_sum") < 1
        assert stage.watched.value("yielded_seconds_total") > 20
        reasons = [reason for reason, _ in stage.events()]
        assert reasons == ["Yielded", "Resumed"]
        assert "emiliad/team" in stage.events()[0][1]

    play(story)


def test_a_pod_that_pulls_its_image_holds_nobody_back() -> None:
    """A pod that has its node is not waiting for ours, however long it stays Pending."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        objects.create("pods", NAMESPACE, pod("team", gpus=8))
        await until(lambda: home(objects, "team"))
        await until(lambda: bound(objects) == 3)
        assert objects.get("pods", NAMESPACE, "team")["status"]["phase"] == "Pending"
        assert 0 not in stage.writes()

    play(story)


def test_a_new_node_is_filled_at_once() -> None:
    """The pod that waits takes it; the next one to wait is asked for within moments."""

    async def story(stage: Stage) -> None:
        await until(lambda: full(stage.objects))
        stage.objects.create("nodes", "", node("new"))
        await until(lambda: full(stage.objects), limit_s=2)

    play(story)


def test_a_pod_that_nobody_can_help_is_muted() -> None:
    """Sixteen GPUs on nodes of eight: after five minutes in vain we come back, and say so."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: full(objects))
        objects.create("pods", NAMESPACE, pod("giant", gpus=16))
        await until(lambda: wanted(objects) == 0, limit_s=2)
        await until(lambda: full(objects), limit_s=400)
        assert stage.watched.seen.status["muted"] == ("emiliad/giant",)
        assert stage.watched.value("muted_pods") == 1

    play(story)


def test_only_as_many_leave_as_are_needed() -> None:
    """AUTOKICK_MODE=needed: one pod of one GPU costs us one node."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: full(objects))
        objects.create("pods", NAMESPACE, pod("team"))
        await until(lambda: home(objects, "team"), limit_s=30)
        assert bound(objects) == 3
        assert 0 not in stage.writes()[1:]

    play(story, policy=replace(POLICY, mode="needed"))


def test_pods_of_other_namespaces_count_where_they_are_to() -> None:
    """AUTOKICK_NAMESPACES=*: everybody's pods, and with the rights to see nodes, an exact fit."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: full(objects))
        objects.create("pods", "research", pod("giant", gpus=16))
        objects.create("pods", "research", pod("team"))
        await until(lambda: home(objects, "team", "research"), limit_s=30)
        await until(lambda: bound(objects) == 3, limit_s=60)
        assert stage.server.count("list", "nodes") == 2  # whether it may, and the mirror's

    play(story, namespaces=("*",))


def test_a_daemonset_is_held_and_released() -> None:
    """TARGET_KIND=DaemonSet: a node selector that nobody meets, and its removal."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: bound(objects) == 4)
        objects.create("pods", NAMESPACE, pod("team"))
        await until(lambda: home(objects, "team"), limit_s=30)
        template = objects.get("daemonsets", NAMESPACE, TARGET)["spec"]["template"]["spec"]
        assert template["nodeSelector"] == {"emiliad.io/yield": "hold"}
        remove(objects, NAMESPACE, "team")
        await until(lambda: bound(objects) == 4, limit_s=90)
        assert stage.watched.value("actions_total", action="hold") == 1
        assert stage.watched.value("actions_total", action="release") == 1

    play(
        story,
        policy=replace(POLICY, kind="DaemonSet"),
        prepare=_a_daemonset_instead,
        kind="DaemonSet",
    )


def _a_daemonset_instead(objects: Objects) -> None:
    objects.delete("deployments", NAMESPACE, TARGET)
    objects.create("daemonsets", NAMESPACE, daemonset(TARGET))


def test_leaving_scales_nothing_unless_told_so() -> None:
    """An autokicker that ends leaves the fleet as it is; RESTORE_ON_EXIT is for who wants it."""

    async def story(restore: int | None) -> list[int]:
        cluster = furnished()
        server = server_in(cluster)
        watched = governed(Wire(server))
        object.__setattr__(watched.governor._plan, "restore", restore)
        tenure = Tenure(float("inf"), anyio.current_time)
        async with background(cluster.run, lambda: watched.governor.run(tenure)):
            await until(lambda: full(cluster.objects))
            begin = len(server.audit)
        patches = [seen for seen in server.audit[begin:] if seen.request.sub == "scale"]
        return [seen.body["spec"]["replicas"] for seen in patches]

    assert run(story(None)) == []
    assert run(story(2)) == [2]


def test_a_dry_run_says_what_it_would_do_and_writes_nothing() -> None:
    """Not a single request but lists and watches, and a sentence with the reason."""

    async def story() -> None:
        cluster = furnished()
        server = server_in(cluster)
        said: list[str] = []
        async with background(
            cluster.run, lambda: governed(Wire(server)).governor.look(said.append)
        ):
            await until(lambda: said)
            cluster.objects.create("nodes", "", node("x"))
            await anyio.sleep(10)
        assert {seen.request.verb for seen in server.audit} == {"list", "watch"}
        assert "would scale emiliad/emiliad from 0 to 1" in said[-1]
        assert wanted(cluster.objects) == 0

    run(story())


# -- what is wrong, and how it is said


def frozen(stage: Stage, words: str) -> bool:
    """Whether it stands still for this reason, in the state, the problem and the metric."""
    seen = stage.watched.seen
    return (
        stage.state == "frozen"
        and words in seen.status["reason"]
        and words in (seen.problem or "")
        and stage.watched.value("state", state="frozen") == 1
    )


def test_a_missing_target_is_waited_for() -> None:
    """Nothing to scale: say so, in an event as well, and go on once it is there."""

    async def story(stage: Stage) -> None:
        await until(lambda: frozen(stage, "no such Deployment"))
        await until(lambda: [r for r, _ in stage.events()] == ["Frozen"])
        stage.objects.create("deployments", NAMESPACE, deployment(TARGET))
        await until(lambda: full(stage.objects))

    play(story, prepare=lambda o: o.delete("deployments", NAMESPACE, TARGET))


@pytest.mark.parametrize("keda", [False, True])
def test_an_autoscaler_on_the_target_is_not_fought(keda: bool) -> None:
    """A HorizontalPodAutoscaler, be it KEDA's, wins: we stand still until it is gone."""
    name = "keda-hpa-emiliad" if keda else "emiliad"
    scaler = {
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": TARGET},
            "maxReplicas": 3,
        },
    }

    async def story(stage: Stage) -> None:
        await until(lambda: frozen(stage, name))
        await until(lambda: [r for r, _ in stage.events()] == ["Frozen"])
        assert stage.writes() == []
        stage.objects.delete("horizontalpodautoscalers", NAMESPACE, name)
        await until(lambda: full(stage.objects))

    play(story, prepare=lambda o: o.create("horizontalpodautoscalers", NAMESPACE, scaler))


def test_a_paused_deployment_is_left_alone() -> None:
    """Somebody is at work on it."""

    async def story(stage: Stage) -> None:
        await until(lambda: frozen(stage, "paused"))
        await anyio.sleep(30)
        assert stage.writes() == []

    play(
        story,
        prepare=lambda o: o.update(
            "deployments", NAMESPACE, TARGET, lambda d: d["spec"].update(paused=True)
        ),
    )


def rights(*, without: str) -> list[Rule]:
    """All rights but those to one resource."""
    names = ("pods", "deployments", "deployments/scale", "events", "horizontalpodautoscalers")
    every = frozenset({"get", "list", "watch", "patch", "create"})
    groups = frozenset({"", "apps", "autoscaling"})
    return [Rule(groups, frozenset({n}), every, frozenset(), None) for n in names if n != without]


@pytest.mark.parametrize("what", ["pods", "deployments", "deployments/scale"])
def test_without_rights_nothing_is_guessed(what: str) -> None:
    """403: nothing is written, the reason is shown, the server is not hammered; rights help."""

    async def story(stage: Stage) -> None:
        stage.server.rights = rights(without=what)
        await until(lambda: stage.state == "frozen" and "403" in (stage.watched.seen.problem or ""))
        await anyio.sleep(120)
        assert stage.writes() == []
        assert len(stage.server.audit) < 120
        problem = "write" if "/" in what else "watch"
        assert stage.watched.value("problems", problem=problem) == 1
        if "/" in what:
            assert stage.watched.value("write_errors_total") > 1
            assert any(r == "Frozen" and "403" in m for r, m in stage.events())
        stage.server.rights = None
        await until(lambda: full(stage.objects), limit_s=60)
        assert stage.watched.seen.problem is None

    play(story)


def test_without_the_right_to_see_autoscalers_it_works_and_complains() -> None:
    """Yielding matters more than knowing who else scales; but somebody should mend the Role."""

    async def story(stage: Stage) -> None:
        stage.server.rights = rights(without="horizontalpodautoscalers")
        await until(lambda: full(stage.objects))
        assert "horizontalpodautoscalers" in (stage.watched.seen.problem or "")

    play(story)


def test_without_the_right_to_create_events_it_works() -> None:
    """Events are for people; nobody waits for them."""

    async def story(stage: Stage) -> None:
        stage.server.rights = rights(without="events")
        await until(lambda: full(stage.objects))
        stage.objects.create("pods", NAMESPACE, pod("team"))
        await until(lambda: home(stage.objects, "team"), limit_s=30)
        refused = [seen for seen in stage.server.audit if seen.request.what == "events"]
        assert {seen.code for seen in refused} == {403}
        assert stage.events() == []

    play(story)


def test_an_api_server_that_hangs_is_not_replaced_by_guesses() -> None:
    """After 90 s without a word from it nothing is certain: frozen; then all goes on."""

    async def story(stage: Stage) -> None:
        await until(lambda: full(stage.objects))
        stage.wire.parted = True
        stage.objects.create("pods", NAMESPACE, pod("team"))
        await until(lambda: frozen(stage, "last heard of"), limit_s=120)
        assert stage.watched.value("cache_age_seconds") > 90
        begin = len(stage.server.audit)
        stage.wire.parted = False
        await until(lambda: home(stage.objects, "team"), limit_s=60)
        assert stage.writes(begin)[0] == 0

    play(story)


def test_who_scales_us_up_while_we_yield_is_overruled() -> None:
    """mode=all holds nothing while somebody waits, whoever asks for more."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: full(objects))
        objects.create("pods", NAMESPACE, pod("giant", gpus=16))
        await until(lambda: wanted(objects) == 0)
        await anyio.sleep(30)
        objects.update("deployments", NAMESPACE, TARGET, lambda d: d["spec"].update(replicas=3))
        await until(lambda: wanted(objects) == 0, limit_s=1)
        assert stage.watched.value("kicks_total", reason="scaled_up") == 1

    play(story)


def test_an_unseen_opponent_is_not_fought_for_ever() -> None:
    """Another autokicker without our lease undoes every write: stand still and say so."""

    async def story(stage: Stage) -> None:
        objects = stage.objects
        await until(lambda: full(objects))

        async def opponent() -> None:
            while True:
                await anyio.sleep(0.5)
                objects.update(
                    "deployments", NAMESPACE, TARGET, lambda d: d["spec"].update(replicas=1)
                )

        async with background(opponent):
            await until(lambda: frozen(stage, "again and again"))
            begin = len(stage.server.audit)
            await anyio.sleep(30)
            assert stage.writes(begin) == []
        await until(lambda: full(objects), limit_s=200)

    play(story)


# -- histories


def blocked_by_us(objects: Objects) -> list[str]:
    """Whose pods would fit if ours were gone: the truth, not the view."""
    free = {
        n["metadata"]["name"]: float(n["status"]["allocatable"][GPU]) for n in objects.all("nodes")
    }
    for other in pods(objects, ours=False):
        if where := other["spec"].get("nodeName"):
            free[where] -= requests(other).get(GPU, 0.0)
    return [
        other["metadata"]["name"]
        for other in pods(objects, ours=False)
        if not other["spec"].get("nodeName") and requests(other).get(GPU, 0.0) <= max(free.values())
    ]


@dataclass(slots=True)
class History:
    """Random arrivals and departures of pods and nodes, and random trouble on the wire."""

    stage: Stage
    rng: random.Random
    longest_s: float = 0.0

    async def live(self) -> None:
        objects, rng = self.stage.objects, self.rng
        for number in range(25):
            await anyio.sleep(rng.choice([0.1, 1, 5, 20, 60]))
            waiting = [p["metadata"]["name"] for p in pods(objects, ours=False)]
            match rng.choice(["team", "team", "leave", "leave", "giant", "compact", "node"]):
                case "team":
                    objects.create(
                        "pods", NAMESPACE, pod(f"team-{number}", gpus=rng.choice([1, 8]))
                    )
                case "giant":
                    objects.create("pods", NAMESPACE, pod(f"giant-{number}", gpus=16))
                case "leave" if waiting:
                    remove(objects, NAMESPACE, rng.choice(waiting))
                case "compact":
                    objects.compact()
                case "node" if len(objects.all("nodes")) < 6:
                    objects.create("nodes", "", node(f"more-{number}"))
        for other in pods(objects, ours=False):
            remove(objects, NAMESPACE, other["metadata"]["name"])

    async def judge(self) -> None:
        """Measures for how long somebody waited for us while pods of ours had not been told."""
        since: float | None = None
        while True:
            staying = [
                p for p in pods(self.stage.objects) if not p["metadata"].get("deletionTimestamp")
            ]
            guilty = bool(blocked_by_us(self.stage.objects)) and bool(staying)
            now = anyio.current_time()
            since = (since if since is not None else now) if guilty else None
            if since is not None:
                self.longest_s = max(self.longest_s, now - since)
            await anyio.sleep(0.05)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_rules_hold_through_random_histories_and_faults(seed: int) -> None:
    """Nobody waits for us for long, and in the end every place is taken and one pod waits."""

    async def story(stage: Stage) -> None:
        rng = random.Random(seed)
        stage.wire.rng = random.Random(seed + 1)
        stage.wire.abort, stage.wire.cut = rng.choice([0.0, 0.25]), rng.choice([0.0, 0.1])
        history = History(stage, rng)
        async with background(history.judge):
            await history.live()
            stage.wire.abort = stage.wire.cut = 0.0
            await until(lambda: full(stage.objects), limit_s=200)
        assert history.longest_s <= 10
        await anyio.sleep(100)
        begin = len(stage.server.audit)
        await anyio.sleep(60)
        assert {seen.request.verb for seen in stage.server.audit[begin:]} <= {"watch"}

    play(story)
