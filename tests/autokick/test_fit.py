"""With the nodes in sight: would a pod fit without ours, and how many of ours must go."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emiliad.autokick.fit import Room
from emiliad.autokick.model import Action, Node, Stage, Taint, Toleration
from emiliad.autokick.needed import pods_to_remove
from emiliad.autokick.selectors import Requirement
from tests.autokick.views import GPU, OURS, Talk, a_target, a_view, ours, someone

NODE = Node(name="n0", allocatable={GPU: 8, "cpu": 96, "memory": 1000, "pods": 10})
TAINT = Taint("dedicated", "db", "NoSchedule")


@pytest.mark.parametrize(
    ("node", "pod", "fits"),
    [
        ({}, {"requests": {GPU: 8}}, True),
        ({}, {"requests": {GPU: 16}}, False),
        ({}, {"requests": {"example.com/fpga": 1}}, False),
        ({}, {"requests": {"example.com/fpga": 0}}, True),
        ({"ready": False}, {}, False),
        ({"unschedulable": True}, {}, False),
        ({"unschedulable": True}, {"tolerations": (Toleration("", "Exists"),)}, True),
        ({"taints": (TAINT,)}, {}, False),
        ({"taints": (TAINT,)}, {"tolerations": (Toleration("dedicated", "Exists"),)}, True),
        ({"taints": (replace(TAINT, effect="PreferNoSchedule"),)}, {}, True),
        ({"taints": (Taint("node.kubernetes.io/disk-pressure"),)}, {}, True),
        ({}, {"selector": {"disk": "ssd"}}, False),
        ({"labels": {"disk": "ssd"}}, {"selector": {"disk": "ssd"}}, True),
        ({}, {"node_terms": ((Requirement("metadata.name", "In", ("n0",)),),)}, True),
        ({}, {"node_terms": ((Requirement("metadata.name", "In", ("n1",)),),)}, False),
        ({}, {"node_terms": ((Requirement("a", "Exists"),), (Requirement("b", "DoesNotExist"),))},
         True),
    ],
)  # fmt: skip
def test_a_node_takes_whom_a_scheduler_would_send_there(
    node: dict[str, Any], pod: dict[str, Any], fits: bool
) -> None:
    """Room, readiness, cordons, taints, selectors and required affinity."""
    room = Room.without_ours((replace(NODE, **node),), [])
    assert room.could_take(someone(**pod)) is fits


def test_what_others_hold_is_not_to_be_had() -> None:
    """Bound pods take room until they end, terminating ones too, and a slot each."""
    holders = [someone(f"h{n}", node="n0", requests={GPU: 1}) for n in range(3)]
    wants = someone("w", requests={GPU: 6})
    assert not Room.without_ours((NODE,), holders).could_take(wants)
    ended = [replace(holders[0], phase="Succeeded"), *holders[1:]]
    assert Room.without_ours((NODE,), ended).could_take(wants)
    assert Room.without_ours((replace(NODE, allocatable={GPU: 8}),), holders).could_take(
        someone(requests={GPU: 5})
    )  # what a node does not count, nobody takes from it
    small = [someone(f"s{n}", node="n0", requests={}) for n in range(10)]
    assert not Room.without_ours((NODE,), small).could_take(someone(requests={}))


def test_whom_nobody_can_help_moves_nobody() -> None:
    """With the nodes in sight the impossible is no reason to go, though the words are the same."""
    for gpus, stage in ((16, Stage.FILL), (8, Stage.YIELD)):
        view = a_view(a_target(2), ours(1, 1), [someone(requests={GPU: gpus})], nodes=(NODE,))
        assert Talk().look(view).stage is stage


def test_a_new_node_ends_a_mute() -> None:
    """The nodes themselves tell when they have changed."""
    talk = Talk()
    hopeless = someone("db", requests={GPU: 1})
    nodes = {"nodes": (NODE,)}
    talk.look(a_view(a_target(2), ours(1, 1), [hopeless], **nodes))
    talk.look(a_view(a_target(0), (), [hopeless], **nodes), 10)
    assert talk.look(a_view(a_target(0), (), [hopeless], **nodes), 300).stage is Stage.FILL
    same = a_view(a_target(2), ours(1, 1), [hopeless], **nodes)
    assert talk.look(same, 100).action is Action.NONE
    more = a_view(a_target(2), ours(1, 1), [hopeless], nodes=(NODE, replace(NODE, name="n1")))
    assert talk.look(more, 1).action is Action.KICK


_sizes = st.lists(st.integers(1, 24), min_size=1, max_size=12)


@given(_sizes)
def test_what_goes_is_enough_and_no_waste(sizes: list[int]) -> None:
    """At least the sum of what is asked for, at most a pod of ours for each part of a pod."""
    waiting = [someone(f"j{n}", requests={GPU: gpus}) for n, gpus in enumerate(sizes)]
    number = pods_to_remove(waiting, OURS)
    assert ceil(sum(sizes) / 8) <= number <= sum(ceil(gpus / 8) for gpus in sizes)


@given(_sizes)
def test_each_of_them_finds_an_undivided_place(sizes: list[int]) -> None:
    """Two who ask for five of eight GPUs need two nodes, not ten eighths of one."""
    waiting = [someone(f"j{n}", requests={GPU: gpus}) for n, gpus in enumerate(sizes)]
    large = sum(gpus > 4 for gpus in sizes)
    assert pods_to_remove(waiting, OURS) >= large


def test_the_scarcest_resource_decides() -> None:
    """Who asks for little GPU and much memory needs as many of ours as the memory takes."""
    pod = someone(requests={GPU: 1, "memory": 1024})
    assert pods_to_remove([pod], OURS) == 2
    assert pods_to_remove([someone(requests={})], OURS) == 1
