"""The original autokicker's algorithm, to compare with: polls, and counts pods that are Pending."""

from __future__ import annotations

from ops.cluster.cluster import Cluster
from ops.cluster.controllers import OurController

INTERVAL_S = 15.0


class Original:
    """Every interval: a pod of others is Pending -> 0 replicas; else those that are ready + 1."""

    def __init__(self, cluster: Cluster, ours: OurController) -> None:
        self._cluster, self._ours = cluster, ours
        cluster.clock.every(INTERVAL_S, self._poll)

    def _poll(self) -> None:
        pods = self._cluster.pods.values()
        pending = any(life.pod.phase == "Pending" and not life.ours for life in pods)
        ready = sum(life.ready for life in pods if life.ours)
        replicas = 0 if pending else ready + 1
        if replicas != self._ours.target.replicas:
            self._ours.change(replicas=replicas)
