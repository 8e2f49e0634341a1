"""What the scheduler's words for 'no room' say: could it be our doing, and did the nodes change?

The scheduler names, for each node, the first of its filters that refused the pod, in a fixed order:
cordons, node names, taints, node affinity, ports, resources, volumes, spreading, pod affinity. So a
node refused for a reason behind `resources` has the resources, and we are not in the way there; and
reasons before `ports` are about the node itself, so our own coming and going does not change them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from functools import lru_cache

_TAIL = re.compile(r"[.,\s]*(?:no new claims to deallocate, )?preemption: ", re.DOTALL)
_TOTAL = re.compile(r"^0/(\d+) nodes are available")
_HEAD = re.compile(r"^0/\d+ nodes are available: ?")
_ITEM = re.compile(r", (?=\d+ )")  # a taint's own commas are not followed by a number
_COUNT = re.compile(r"^(\d+) ")
_INSUFFICIENT = re.compile(r"Insufficient (\S+)")
_UNHELPFUL = re.compile(r"(\d+) Preemption is not helpful for scheduling")

# Refusals by the node itself. A node under pressure is none: our own disk and memory may press.
_OF_NODE = re.compile(
    r"had (untolerated )?taint(?!.*pressure)"
    r"|(was|were) unschedulable"
    r"|didn't match (Pod's )?node (affinity|selector)"
    r"|didn't match the requested (hostname|node name)"
)
# Other refusals that no leaving of ours can change.
_NOT_OURS = re.compile(
    r"volume node affinity conflict"
    r"|no available volume zone"
    r"|PersistentVolume's node affinity"
    r"|persistent ?volumes to bind"
    r"|unbound immediate PersistentVolumeClaims"
    r"|non-existent PersistentVolume"
    r"|persistentvolumeclaim .*(not found|being deleted|deleted)"
    r"|didn't match pod affinity rules"
    r"|no nodes available to schedule pods",
    re.IGNORECASE,
)


def not_ours(message: str, held: Set[str]) -> bool:
    """Whether it is certain that nothing we hold keeps the pod waiting; `held`: our resources."""
    head, tail = _split(message)
    if not head:
        return False
    items = [*_items(head)]
    if all(_item_not_ours(item, held) for item in items):
        return True
    return _all_nodes_refuse(items, head, held) or _hopeless(items, head, tail)


@lru_cache(maxsize=1024)  # the same few texts come again and again
def mark(message: str) -> str:
    """What the text says of the nodes themselves: differs only if nodes have changed."""
    head, _ = _split(message)
    total = _TOTAL.match(head)
    if total is None:
        return head
    return "; ".join([total[1], *sorted(item for item in _items(head) if _OF_NODE.search(item))])


def _split(message: str) -> tuple[str, str]:
    head, _, tail = message.partition("preemption: ")
    cut = _TAIL.search(message)
    return (message[: cut.start()] if cut else head).strip(" ."), tail


def _items(head: str) -> Iterator[str]:
    """The reasons, each with its number of nodes where it has one."""
    yield from _ITEM.split(_HEAD.sub("", head))


def _all_nodes_refuse(items: list[str], head: str, held: Set[str]) -> bool:
    """Whether each node has a reason that is not ours, be it that some lack our things as well.

    A node is counted once among the reasons of nodes, but once for each resource that it lacks.
    """
    total = _TOTAL.match(head)
    certain = [item for item in items if _item_not_ours(item, held)]
    lacking = [_count(item) for item in certain if _INSUFFICIENT.search(item)]
    refusing = [_count(item) for item in certain if not _INSUFFICIENT.search(item)]
    return total is not None and sum(refusing) + max(lacking, default=0) >= int(total[1]) > 0


def _count(item: str) -> int:
    found = _COUNT.match(item)
    return int(found[1]) if found else 0


def _item_not_ours(item: str, held: Set[str]) -> bool:
    if found := _INSUFFICIENT.search(item):
        return found[1].rstrip(".,") not in held
    return bool(_OF_NODE.search(item) or _NOT_OURS.search(item))


def _hopeless(items: list[str], head: str, tail: str) -> bool:
    """Whether the scheduler itself says that no removal of pods would help, on any node.

    Since Kubernetes 1.34 it says so of pods that are greater than the nodes as well; before, it did
    not look at that. Nodes under pressure are excepted, for their pressure may be ours.
    """
    total, unhelpful = _TOTAL.match(head), _UNHELPFUL.search(tail)
    if total is None or unhelpful is None or total[1] != unhelpful[1] or "pressure" in head:
        return False
    return all(_INSUFFICIENT.search(i) or _OF_NODE.search(i) or _NOT_OURS.search(i) for i in items)
