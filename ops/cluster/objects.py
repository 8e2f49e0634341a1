"""What the toy cluster consists of: nodes, and pods with what happens to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from emiliad.autokick.model import Node, Owner, Pod, Requests, Scheduled

GPU, HOSTDEV = "nvidia.com/gpu", "nvidia.com/hostdev"
ZONE = "topology.kubernetes.io/zone"
OURS = {"app": "emiliad"}


@dataclass(slots=True)
class Machine:
    """A node."""

    name: str
    allocatable: Requests
    zone: str = "a"
    labels: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    cordoned: bool = False
    used: dict[str, float] = field(default_factory=dict)  # by all pods
    by_others: dict[str, float] = field(default_factory=dict)  # by all but ours

    def seen(self) -> Node:
        """As the API shows it."""
        return Node(
            name=self.name,
            allocatable=self.allocatable,
            labels={**self.labels, ZONE: self.zone},
            ready=self.ready,
            unschedulable=self.cordoned,
        )


@dataclass(slots=True)
class Life:
    """A pod: its object in the API, and what only the toy cluster knows of it."""

    pod: Pod
    ours: bool = False
    counts: bool = True  # in truth: one for whom we are to make room
    zone: str | None = None  # its volume lies there; the API shows no more than a volume's name
    pull_s: float = 1.0  # from a node to running
    load_s: float = 0.0  # from running to ready
    run_s: float | None = None  # from running to its end; None: for ever
    drain_s: float = 1.0  # from its deletion to its end
    ready: bool = False
    tries: int = 0
    tried_at: float = 0.0
    nominated: str | None = None  # the node on which others are evicted for it

    def show(self, **changes: object) -> None:
        """Changes its object."""
        self.pod = replace(self.pod, **changes)  # type: ignore[arg-type]

    @property
    def waits(self) -> bool:
        """Whether a scheduler has it in its queue."""
        pod = self.pod
        return pod.node is None and not (pod.gated or pod.terminating or pod.finished)

    @property
    def refused(self) -> bool:
        """Whether the scheduler has said that there is no room for it."""
        return self.waits and self.pod.scheduled is Scheduled.UNSCHEDULABLE


def a_pod(
    name: str,
    requests: Requests,
    *,
    namespace: str = "team",
    owner: Owner | None = None,
    priority: int = 0,
    labels: dict[str, str] | None = None,
    selector: dict[str, str] | None = None,
    volume: str = "",
    created: float = 0.0,
) -> Pod:
    """A pod as it is created; names are used as uids, too."""
    return Pod(
        uid=f"{namespace}/{name}",
        namespace=namespace,
        name=name,
        labels=labels or {},
        owner=owner,
        requests=requests,
        priority=priority,
        selector=selector or {},
        shape=volume,
        created=created,
    )
