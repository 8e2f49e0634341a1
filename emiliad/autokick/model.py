"""The values that the autokicker decides on: what it sees, what it remembers, what it wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from emiliad.autokick.selectors import Requirement, Selector, parse_selector
from emiliad.config import AutokickConfig

Requests: TypeAlias = Mapping[str, float]  # a resource's name -> its amount in base units


class Scheduled(StrEnum):
    """What the scheduler says of a pod in the condition PodScheduled."""

    UNKNOWN = "unknown"  # nothing yet, or that it failed for a moment
    YES = "yes"
    UNSCHEDULABLE = "unschedulable"


class Stage(StrEnum):
    """Where the autokicker stands: the values of the label of `emiliad_autokick_state`."""

    FROZEN = "frozen"  # something is wrong or unknown: nothing is written
    FILL = "fill"  # nobody waits for what we hold: take what is free
    YIELD = "yield"  # somebody waits: make room
    SETTLE = "settle"  # nobody waits any more: let them arrive before we come back


class Action(StrEnum):
    """What is to be written to the target."""

    NONE = "none"
    GROW = "grow"  # a Deployment: more replicas
    TRIM = "trim"  # fewer replicas than were asked for; what runs goes on
    KICK = "kick"  # fewer replicas, to make room
    HOLD = "hold"  # a DaemonSet: none of its pods anywhere
    RELEASE = "release"  # a DaemonSet: its pods may come back


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of a pod."""

    kind: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Taint:
    """What keeps pods off a node."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True)
class Toleration:
    """A taint that a pod bears; empty fields match everything."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def bears(self, taint: Taint) -> bool:
        """As Kubernetes reads it: Exists without a key bears everything."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        return self.operator == "Exists" or (bool(self.key) and self.value == taint.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod, reduced to what scheduling is about."""

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    node: str | None = None  # where it is bound
    phase: str = "Pending"
    terminating: bool = False
    gated: bool = False
    mirror: bool = False  # of a static pod: the kubelet's own
    scheduler: str = "default-scheduler"
    priority: int = 0
    created: float = 0.0  # seconds since 1970; 0: not known
    scheduled: Scheduled = Scheduled.UNKNOWN
    message: str = ""  # the scheduler's reason, in its words
    requests: Requests = field(default_factory=dict)
    selector: Mapping[str, str] = field(default_factory=dict)
    node_terms: tuple[tuple[Requirement, ...], ...] = ()  # required node affinity; one must match
    tolerations: tuple[Toleration, ...] = ()
    shape: str = ""  # canonical text of all else that the scheduler heeds: volumes, ports, ...

    @property
    def full_name(self) -> str:
        """namespace/name, as people write it."""
        return f"{self.namespace}/{self.name}"

    @property
    def finished(self) -> bool:
        """Whether it has ended and holds nothing any more."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The Deployment that is scaled, or the DaemonSet that is held."""

    name: str
    namespace: str
    uid: str = ""
    kind: str = "Deployment"
    replicas: int = 0  # asked for; of a DaemonSet: the nodes it wants
    selector: Selector = ()
    paused: bool = False
    terminating: bool = False
    held: bool = False  # a DaemonSet that our node selector keeps off every node
    rolling: bool = False  # a new template is being rolled out
    annotations: Mapping[str, str] = field(default_factory=dict)
    requests: Requests = field(default_factory=dict)  # of one pod, from the template
    scheduler: str = "default-scheduler"
    problem: str | None = None  # what Kubernetes itself complains of, such as a spent quota


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node, where the rights to see nodes were given."""

    name: str
    allocatable: Requests
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    ready: bool = True
    unschedulable: bool = False  # cordoned


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known at one moment; `others` may hold ours too: the core tells them apart.

    `nodes` is None without the rights to see nodes. With nodes, `others` must hold the bound pods
    of all namespaces as well, for they take room.
    """

    target: Target | None
    ours: tuple[Pod, ...] = ()
    others: tuple[Pod, ...] = ()
    nodes: tuple[Node, ...] | None = None
    stale_s: float = 0.0  # the age of the oldest cache
    synced: bool = True
    leader: bool = True
    fought_by: str | None = None  # an autoscaler that scales the same target


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, and why; a `replicas` of None means that nothing is to be scaled."""

    action: Action
    stage: Stage
    reason: str  # one sentence, for people
    replicas: int | None = None
    blocked: tuple[str, ...] = ()  # namespace/name of the pods that we make room for
    muted: tuple[str, ...] = ()  # ... and of those that our leaving did not help
    next_look_s: float | None = None  # decide again after so long, even if nothing happens

    @property
    def state(self) -> str:
        """The stage as a word: frozen, fill, yield or settle."""
        return self.stage.value


@dataclass(frozen=True, slots=True)
class Tally:
    """How long pods of one kind have waited in vain: while we were completely gone."""

    spent_s: float  # since the last sign of progress
    fewest: int  # the least of them that waited at once since then
    seen: float  # when they last waited
    dropped: bool = False  # there have been fewer of them than before ...
    forgiven_s: float = 0.0  # ... for which so much was not counted any more
    replaced: bool = False  # but others came in their stead: that was no progress


@dataclass(frozen=True, slots=True)
class Mute:
    """A verdict: our leaving does not help pods of one kind."""

    strikes: int  # how often it was passed
    since: float
    until: float
    marks: frozenset[str]  # what the scheduler said of the nodes then
    lifted: bool = False  # before its time, because something changed


@dataclass(frozen=True, slots=True)
class Cut:
    """How far we have gone down for those who wait, when as few as needed are to go."""

    ceiling: int  # replicas at most
    answered: frozenset[str]  # uids of those it was for
    rounds: int = 0  # times it did not suffice
    clear_since: float | None = None  # since then all that had to go is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the core remembers from one decision to the next; start with `State()`."""

    stage: Stage = Stage.FILL
    settle_since: float | None = None
    surplus_since: float | None = None  # more replicas than wanted
    wrote_at: float | None = None  # the last growth or trim
    looked_at: float | None = None
    gone_since: float | None = None  # since then no pod of ours is left
    waiting: Mapping[str, str] = field(default_factory=dict)  # uid -> kind of who waited then
    tallies: Mapping[str, Tally] = field(default_factory=dict)  # by kind of pod
    mutes: Mapping[str, Mute] = field(default_factory=dict)  # by kind of pod
    undecided: Mapping[str, float] = field(default_factory=dict)  # uid -> first seen
    parting: Mapping[str, float] = field(default_factory=dict)  # uid of ours -> terminating since
    full: int | None = None  # our bound pods when there was no room for one more
    moved_at: float | None = None  # when room appeared that was not there before
    nodes: frozenset[str] | None = None  # the nodes as they were
    holders: frozenset[str] = frozenset()  # uids of others' pods that hold what we want
    cut: Cut | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules, from the settings. Durations in seconds."""

    mode: str = "all"  # off, all, needed
    standalone: bool = True  # this autokicker is none of the pods that it removes
    kind: str = "Deployment"
    namespace: str = ""
    our_selector: Selector | None = None  # None: the target's own
    buffer: int = 1
    max_replicas: int | None = None
    exclude_label: str = "lowprio"
    exclude_value: str = "true"
    scheduler: str | None = None  # whose pods count; None: the scheduler of our own pods
    autokicker_label: tuple[str, str] = ("app.kubernetes.io/component", "autokick")
    cooldown_s: float = 20.0  # nobody waits for so long before we come back
    hopeless_after_s: float = 300.0  # we were gone for so long, in vain: not our fault
    stale_s: float = 90.0  # a view older than this is no ground to act on

    @property
    def holds(self) -> bool:
        """A DaemonSet knows no number: all of its pods go, or none."""
        return self.kind == "DaemonSet"

    @property
    def partial(self) -> bool:
        """Whether as few pods as needed go, rather than all."""
        return self.mode == "needed" and not self.holds

    @property
    def floor(self) -> int:
        """The pods that always stay: the one that the autokicker itself runs in."""
        return 0 if self.standalone else 1

    @classmethod
    def from_config(cls, config: AutokickConfig, *, standalone: bool) -> Policy:
        """The settings' rules. Raises ConfigError for an OUR_SELECTOR that is none."""
        return cls(
            mode=config.mode or ("all" if standalone else "off"),
            standalone=standalone,
            kind=config.target_kind,
            namespace=config.namespace,
            our_selector=parse_selector(config.our_selector) if config.our_selector else None,
            buffer=config.buffer,
            max_replicas=config.max_replicas,
            exclude_label=config.exclude_label,
            exclude_value=config.exclude_value,
        )
