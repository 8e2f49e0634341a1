"""From the API's objects to values; quantities and selectors as Kubernetes reads them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emiliad.autokick.model import Owner, Policy, Scheduled, Taint, Toleration
from emiliad.autokick.pods import node_from, pod_from, requests_of, target_from
from emiliad.autokick.quantity import parse_quantity
from emiliad.autokick.selectors import (
    Requirement,
    parse_selector,
    selector_from,
    selector_text,
    selects,
)
from emiliad.config import AutokickConfig
from emiliad.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500m", 0.5),
        ("512Gi", 512 * 2**30),
        ("1e3", 1000),
        ("1E", 10**18),
        ("1E3", 1000),
        ("0.1", 0.1),
        ("100n", 1e-7),
        (".5Ki", 512),
        ("5.", 5),
        ("-1", -1),
        (8, 8),
        ("1.5e-3", 0.0015),
    ],
)
def test_quantities_are_exact(text: str | int, amount: float) -> None:
    """Rounded once, when the amount becomes a float."""
    assert parse_quantity(text) == amount


@pytest.mark.parametrize("text", ["", "5 Gi", "5gi", "Gi", "1e", "1e999999999", "5mi", "x", "1K"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    """So is an exponent that would take the memory of the machine."""
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity(text)


@given(st.integers(0, 10**15), st.sampled_from(["Ki", "Mi", "Gi", "Ti"]))
def test_binary_suffixes_are_powers_of_1024(number: int, suffix: str) -> None:
    """Ki is 1024, each next one 1024 times as much."""
    power = ["Ki", "Mi", "Gi", "Ti"].index(suffix) + 1
    assert parse_quantity(f"{number}{suffix}") == float(Fraction(number) * 1024**power)


def test_a_pods_requests_are_what_the_scheduler_reserves() -> None:
    """The greatest init container or all containers, sidecars beside both, and the overhead."""
    spec = {
        "initContainers": [
            {"resources": {"requests": {"cpu": "10", "memory": "1Gi"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
            {"resources": {"requests": {"cpu": "8"}}},
        ],
        "containers": [
            {"resources": {"requests": {"cpu": "500m"}, "limits": {"nvidia.com/gpu": "8"}}},
            {"resources": {"requests": {"cpu": "2", "memory": "3Gi"}}},
        ],
        "overhead": {"cpu": "250m"},
    }
    assert requests_of(spec) == {"cpu": 10.25, "memory": 3 * 2.0**30, "nvidia.com/gpu": 8.0}


def test_requests_of_the_pod_as_a_whole_replace_the_sums() -> None:
    """Kubernetes since 1.34 lets a pod ask for cpu and memory as a whole."""
    spec = {
        "resources": {"requests": {"cpu": "4"}},
        "containers": [{"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
    }
    assert requests_of(spec) == {"cpu": 4.0, "memory": 2.0**30}


POD: dict[str, Any] = {
    "metadata": {
        "uid": "u",
        "namespace": "team",
        "name": "job-1",
        "labels": {"a": "b"},
        "creationTimestamp": "1970-01-01T00:01:00Z",
        "ownerReferences": [
            {"kind": "Other", "name": "o", "uid": "1"},
            {"kind": "Job", "name": "job", "uid": "2", "controller": True},
        ],
    },
    "spec": {
        "priority": -5,
        "schedulerName": "volcano",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [{"key": "z", "operator": "Exists"}],
                            "matchFields": [
                                {"key": "metadata.name", "operator": "In", "values": ["n"]}
                            ],
                        }
                    ]
                }
            }
        },
    },
    "status": {
        "phase": "Pending",
        "conditions": [
            {"type": "Ready", "status": "False"},
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "no room",
            },
        ],
    },
}


def test_a_pod_is_read() -> None:
    """Every field that scheduling is about."""
    pod = pod_from(POD)
    assert (pod.full_name, pod.uid, pod.labels) == ("team/job-1", "u", {"a": "b"})
    assert pod.owner == Owner("Job", "job", "2")
    assert (pod.scheduled, pod.message) == (Scheduled.UNSCHEDULABLE, "no room")
    assert (pod.priority, pod.scheduler, pod.created) == (-5, "volcano", 60.0)
    assert pod.selector == {"disk": "ssd"}
    assert pod.tolerations == (Toleration("gpu", "Exists"),)
    assert pod.node_terms == (
        (Requirement("z", "Exists"), Requirement("metadata.name", "In", ("n",))),
    )


@pytest.mark.parametrize(
    ("condition", "scheduled", "gated"),
    [
        ({"status": "True"}, Scheduled.YES, False),
        ({"status": "False", "reason": "Unschedulable"}, Scheduled.UNSCHEDULABLE, False),
        ({"status": "False", "reason": "SchedulingGated"}, Scheduled.UNKNOWN, True),
        ({"status": "False", "reason": "SchedulerError"}, Scheduled.UNKNOWN, False),
        ({}, Scheduled.UNKNOWN, False),
    ],
)
def test_the_schedulers_verdict_is_read(
    condition: dict[str, str], scheduled: Scheduled, gated: bool
) -> None:
    """Only 'Unschedulable' is a refusal; an error of the scheduler's own is none."""
    pod = pod_from({"status": {"conditions": [{"type": "PodScheduled", **condition}]}})
    assert (pod.scheduled, pod.gated) == (scheduled, gated)


def test_gates_mirrors_and_ends_are_seen() -> None:
    """In the specification and the annotations, whatever the conditions say."""
    assert pod_from({"spec": {"schedulingGates": [{"name": "g"}]}}).gated
    mirror = {"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}
    assert pod_from(mirror).mirror
    assert pod_from({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}).terminating
    assert pod_from({"status": {"phase": "Succeeded"}}).finished


def test_pods_that_a_scheduler_treats_alike_have_one_shape() -> None:
    """Volumes, ports, spreading and priority make a difference; names and images make none."""
    claim = {"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}}
    image = {"spec": {"containers": [{"image": "x"}]}, "metadata": {"name": "n"}}
    port = {"spec": {"containers": [{"ports": [{"hostPort": 80}]}]}}
    shapes = {pod_from(obj).shape for obj in (claim, port, {"spec": {"priority": 3}}, {})}
    assert len(shapes) == 4
    assert pod_from(image).shape == pod_from({"spec": {"containers": [{"image": "y"}]}}).shape


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*POD, *POD["spec"], "conditions"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"metadata": _json, "spec": _json, "status": _json}))
def test_missing_and_odd_parts_are_defaults(obj: dict[str, Any]) -> None:
    """An object of another version never stops the autokicker."""
    assert pod_from(obj).namespace is not None
    assert target_from(obj).kind in ("Deployment", "DaemonSet")
    assert node_from(obj).allocatable is not None


def test_what_cannot_be_read_stays_known_to_be_asked_for() -> None:
    """No API server lets such a quantity or time pass; but no guess is made of it either."""
    container = {"resources": {"requests": {"nvidia.com/gpu": "many"}}}
    assert requests_of({"containers": [container]}) == {"nvidia.com/gpu": 0.0}
    assert pod_from({"metadata": {"creationTimestamp": "yesterday"}}).created == 0.0


def test_a_deployment_is_read() -> None:
    """Replicas, selector, pause, roll-out, the template's requests, and Kubernetes' complaint."""
    target = target_from(
        {
            "kind": "Deployment",
            "metadata": {"name": "emiliad", "namespace": "s", "generation": 3},
            "spec": {
                "replicas": 4,
                "paused": True,
                "selector": {"matchLabels": {"app": "emiliad"}},
                "template": {
                    "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 8}}}]}
                },
            },
            "status": {
                "observedGeneration": 3,
                "replicas": 4,
                "updatedReplicas": 3,
                "conditions": [
                    {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
                ],
            },
        }
    )
    assert (target.replicas, target.paused, target.rolling) == (4, True, True)
    assert target.requests == {"nvidia.com/gpu": 8.0}
    assert target.problem == "exceeded quota"
    assert selects(target.selector, {"app": "emiliad", "x": "y"})


def test_a_held_daemonset_is_read() -> None:
    """By the node selector that we put there."""
    spec = {"template": {"spec": {"nodeSelector": {"emiliad.io/yield": "hold"}}}}
    status = {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2}
    target = target_from({"kind": "DaemonSet", "spec": spec, "status": status})
    assert (target.kind, target.held, target.replicas, target.rolling) == (
        "DaemonSet",
        True,
        2,
        False,
    )


def test_a_node_is_read() -> None:
    """What it can take, and whether it takes anything."""
    node = node_from(
        {
            "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "allocatable": {"cpu": "96", "memory": "1Ti"},
                "conditions": [{"type": "Ready", "status": "Unknown"}],
            },
        }
    )
    assert (node.name, node.ready, node.unschedulable) == ("n", False, True)
    assert node.allocatable == {"cpu": 96.0, "memory": 2.0**40}
    assert node.taints == (Taint("k", "", "NoSchedule"),)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("app=emiliad", {"app": "emiliad"}, {"app": "other"}),
        ("app==emiliad,tier!=web", {"app": "emiliad"}, {"app": "emiliad", "tier": "web"}),
        ("app in (a, b)", {"app": "b"}, {"app": "c"}),
        ("app,app notin (a,b)", {"app": "c"}, {"app": "a"}),
        ("app,!old", {"app": ""}, {"app": "", "old": ""}),
    ],
)
def test_selectors_are_read_as_kubectl_reads_them(
    text: str, yes: dict[str, str], no: dict[str, str]
) -> None:
    """Equality, sets and presence; and written again they mean the same."""
    selector = parse_selector(text)
    assert selects(selector, yes)
    assert not selects(selector, no)
    assert parse_selector(selector_text(selector)) == selector


@pytest.mark.parametrize("text", ["a b", "a in b", "a==b==c", "a,(b"])
def test_a_malformed_selector_is_a_configuration_error(text: str) -> None:
    """The message names the variable."""
    with pytest.raises(ConfigError, match="OUR_SELECTOR"):
        Policy.from_config(AutokickConfig(our_selector=text), standalone=True)


def test_an_empty_selector_means_nobody() -> None:
    """Where Kubernetes takes it for everybody, we would take all pods for ours."""
    assert not selects(selector_from({}), {"app": "emiliad"})
    assert not selects((), {})


def test_expressions_match_as_kubernetes_says() -> None:
    """In, NotIn, Exists, DoesNotExist, Gt, Lt; what is not known matches."""
    labels = {"n": "5", "a": "b"}
    for operator, key, values, matches in (
        ("In", "a", ("b", "c"), True),
        ("NotIn", "a", ("b",), False),
        ("NotIn", "missing", ("b",), True),
        ("Exists", "a", (), True),
        ("DoesNotExist", "a", (), False),
        ("Gt", "n", ("4",), True),
        ("Lt", "n", ("4",), False),
        ("Gt", "a", ("4",), False),
        ("New", "a", (), True),
    ):
        assert Requirement(key, operator, values).matches(labels) is matches


@pytest.mark.parametrize(
    ("toleration", "bears"),
    [
        (Toleration("gpu", "Exists"), True),
        (Toleration("", "Exists"), True),
        (Toleration("gpu", "Equal", "yes"), True),
        (Toleration("gpu", "Equal", "no"), False),
        (Toleration("gpu", "Exists", "", "NoExecute"), False),
        (Toleration("cpu", "Exists"), False),
    ],
)
def test_tolerations_bear_what_kubernetes_says(toleration: Toleration, bears: bool) -> None:
    """By key, operator, value and effect; an empty one of each means any."""
    assert toleration.bears(Taint("gpu", "yes", "NoSchedule")) is bears


def test_the_mode_depends_on_where_it_runs() -> None:
    """Off in a daemon, all in the command, unless it is set."""
    assert Policy.from_config(AutokickConfig(), standalone=True).mode == "all"
    assert Policy.from_config(AutokickConfig(), standalone=False).mode == "off"
    assert Policy.from_config(AutokickConfig(mode="needed"), standalone=False).mode == "needed"
