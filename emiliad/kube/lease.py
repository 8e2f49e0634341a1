"""A Lease object as the election reads and writes it; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from emiliad.kube.api import LEASES, Json

EMBEDDED = "emiliad.io/embedded"  # "true" on a lease whose holder runs inside a daemon
WANTED_BY = "emiliad.io/wanted-by"  # a standalone candidate that asks an embedded holder to leave
VERSION = "emiliad.io/version"  # of the holder
_DURATIONS = (1, 600)  # seconds; what a record may say its holder lives without renewal


@dataclass(frozen=True, slots=True)
class Record:
    """Who holds the lease, as last read. `version` is the resource's."""

    holder: str = ""
    duration_s: float = 0.0  # 0: the record does not say, or says nonsense
    renewed: str = ""
    transitions: int = 0
    notes: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    raw: Json = field(default_factory=dict, compare=False, repr=False)

    @property
    def embedded(self) -> bool:
        """Whether the holder runs inside a daemon, or the last one did."""
        return self.notes.get(EMBEDDED) == "true"

    @property
    def wanted_by(self) -> str:
        """The standalone candidate that waits for an embedded holder to leave, or nobody."""
        return self.notes.get(WANTED_BY, "")


def record_from(item: Json) -> Record:
    """Reads a Lease, whoever wrote it."""
    meta, spec = item["metadata"], item.get("spec") or {}
    duration = spec.get("leaseDurationSeconds")
    if not isinstance(duration, int) or not _DURATIONS[0] <= duration <= _DURATIONS[1]:
        duration = 0
    transitions = spec.get("leaseTransitions")
    return Record(
        holder=str(spec.get("holderIdentity") or ""),
        duration_s=float(duration),
        renewed=str(spec.get("renewTime") or ""),
        transitions=transitions if isinstance(transitions, int) else 0,
        notes=dict(meta.get("annotations") or {}),
        version=str(meta["resourceVersion"]),
        raw=item,
    )


def lease(
    namespace: str, name: str, record: Record, *, acquired: datetime, renewed: datetime
) -> Json:
    """A Lease to write; if the record has a version, only over the one that has it."""
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": dict(record.notes),
            **({"resourceVersion": record.version} if record.version else {}),
        },
        "spec": {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": round(record.duration_s),
            "leaseTransitions": record.transitions,
            "acquireTime": micro_time(acquired),
            "renewTime": micro_time(renewed),
        },
    }


def wanted(record: Record, by: str) -> Json:
    """The same Lease, its term unchanged, with the wish that its holder leave."""
    meta = record.raw["metadata"]
    notes = {**record.notes, WANTED_BY: by}
    return {**record.raw, "metadata": {**meta, "annotations": notes}}


def micro_time(moment: datetime) -> str:
    """A MicroTime: the API server takes exactly six digits and no numeric zone."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
