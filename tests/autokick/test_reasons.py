"""The scheduler's words: which waiting can be our doing, and what says that nodes have changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emiliad.autokick.reasons import mark, not_ours

HELD = frozenset({"nvidia.com/gpu", "nvidia.com/hostdev", "cpu", "memory"})
UNHELPFUL = " preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
NO_VICTIMS = " preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."


@pytest.mark.parametrize(
    "message",
    [
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu." + NO_VICTIMS,
        "0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient nvidia.com/gpu.",
        "0/3 nodes are available: 1 Insufficient memory, 2 node(s) didn't match Pod's node "
        "affinity/selector." + NO_VICTIMS,
        "0/3 nodes are available: 1 Too many pods, 2 node(s) were unschedulable.",
        "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports.",
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.",
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules.",
        "0/3 nodes are available: 3 node(s) had untolerated taint "
        "{node.kubernetes.io/disk-pressure: }." + UNHELPFUL,
        "0/3 nodes are available: 3 cannot allocate all claims. still not schedulable," + UNHELPFUL,
        "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated "
        "taint(s). preemption: 0/3 nodes are available: 1 No preemption victims found for "
        "incoming pod, 2 Preemption is not helpful for scheduling.",
        "something that no scheduler said yet",
        "",
    ],
)
def test_what_may_be_our_doing_counts(message: str) -> None:
    """Only certainty excuses: resources, slots, ports, affinities, pressure and unknown words."""
    assert not not_ours(message, HELD)


@pytest.mark.parametrize(
    "message",
    [
        "0/3 nodes are available: 3 Insufficient example.com/fpga.",
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector." + UNHELPFUL,
        "0/3 nodes are available: 1 node(s) had taint {a: b}, that the pod didn't tolerate, "
        "2 node(s) didn't match node selector.",
        "0/3 nodes are available: 1 node(s) had untolerated taint {dedicated: db}, 1 node(s) were "
        "unschedulable, 1 node(s) had volume node affinity conflict.",
        'persistentvolumeclaim "data" not found',
        '0/3 nodes are available: persistentvolumeclaim "data" is being deleted.' + UNHELPFUL,
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims." + UNHELPFUL,
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.",
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. no new claims to deallocate,"
        + UNHELPFUL,  # greater than any node, since Kubernetes 1.34
        "no nodes available to schedule pods",
    ],
)
def test_what_is_certainly_not_our_doing_does_not(message: str) -> None:
    """Nodes, volumes, resources that we do not hold, and what the scheduler itself rules out."""
    assert not_ours(message, HELD)


def test_what_we_hold_makes_the_difference() -> None:
    """'Insufficient' is our doing only if we ask for that resource."""
    message = "0/3 nodes are available: 3 Insufficient ephemeral-storage."
    assert not_ours(message, HELD)
    assert not not_ours(message, HELD | {"ephemeral-storage"})


def test_marks_differ_by_nodes_and_not_by_us() -> None:
    """Our return changes what is insufficient; only nodes change their number, taints, cordons."""
    alone = "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient nvidia.com/gpu."
    beside = (
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu, "
        "2 Insufficient memory, 2 Insufficient nvidia.com/gpu." + NO_VICTIMS
    )
    assert mark(alone) == mark(beside)
    for other in (
        alone.replace("0/3", "0/4"),
        alone.replace("1 node(s) were unschedulable, ", ""),
        alone.replace("were unschedulable", "had untolerated taint {a: b}"),
    ):
        assert mark(other) != mark(alone)


@given(st.text(), st.frozensets(st.text()))
def test_any_words_are_borne(message: str, held: frozenset[str]) -> None:
    """What another version says is no error."""
    assert not_ours(message, held) in (True, False)
    assert isinstance(mark(message), str)
