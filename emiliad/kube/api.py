"""What the autokicker needs of an API server, and how its resources are addressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Json = dict[str, Any]

REQUEST_S = 5.0  # seconds that a small request may take; also how long a dead server is believed in


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object: its API group, version and plural name."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As an object's `apiVersion` has it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", sub: str = "") -> str:
        """The URL's path of the collection, of an object in it, or of its subresource."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [root, self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        return "/".join([*parts, self.plural, *filter(None, (name, sub))])


PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node")
EVENTS = Resource("", "v1", "events", "Event")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
DAEMONSETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
AUTOSCALERS = Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")


class Api(Protocol):
    """An API server. Every method raises `emiliad.kube.errors.KubeError`, and nothing else."""

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_S,
        fence: Callable[[], bool] | None = None,
    ) -> Json:
        """One request and its answer; a PATCH is a merge patch. Never repeated in here.

        `fence` is asked again when the connection stands, just before the body leaves: a process
        that was paused meanwhile may have lost its right to send it.
        """

    async def watch(
        self,
        path: str,
        query: Mapping[str, str],
        handle: Callable[[Json], None],
        *,
        opened: Callable[[], None],
        silence_s: float,
    ) -> None:
        """Hands every event to `handle` until the server ends the stream in good order.

        Calls `opened` once the server has agreed; `handle` is given the events as they are sent,
        errors included. Raises Silent after `silence_s` seconds without an event.
        """
