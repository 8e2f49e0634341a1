"""Every overlay is valid, whole, and keeps what a shared cluster asks of a pod."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from emiliad.config import all_settings
from emiliad.health.server import HealthServer
from tests.deploy.cluster import (
    CLUSTER_SCOPED,
    COMPONENT_NAMES,
    KUSTOMIZE,
    OVERLAY_NAMES,
    WORKLOADS,
    Manifests,
    Object,
    containers_of,
    each_container,
    name_of,
    overlay,
    overlay_of_ones_own,
    pod_of,
)

# Kinds of operators, whose schemas are not Kubernetes' own.
ALIEN = {"PodMonitor", "PrometheusRule", "ExternalSecret"}
OLDEST, NEWEST = "1.27", "1.37"  # of Kubernetes
# What libraries read; everything else in a pod's environment is a setting of emiliad.
OF_LIBRARIES = {
    "CUDA_CACHE_PATH",
    "HF_HOME",
    "HOME",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "TMPDIR",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
}
# Seconds from the end of DRAIN_TIMEOUT_S to the exit: 5 to hand back the leases, and as many again
# for a machine that is busy.
AFTER_DRAIN_S = 15
DAEMONS = [name for name in OVERLAY_NAMES if overlay(name).daemon]
every_overlay = pytest.mark.parametrize("shown", OVERLAY_NAMES)
every_daemon = pytest.mark.parametrize("shown", DAEMONS)


def validated(text: str, version: str, folder: Path) -> tuple[int, list[str]]:
    """What the validator says of manifests: its exit code, its lines but for the good news."""
    file = folder / "manifests.yaml"
    file.write_text(text)
    done = subprocess.run(
        [Path(sys.executable).with_name("kubernetes-validate"), "--strict", "-k", version, file],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, [line for line in lines if not line.startswith("INFO")]


def unknown_kinds(lines: list[str]) -> set[str]:
    """The kinds that the validator has no schema for; any other complaint is an error."""
    kinds = set()
    for line in lines:
        assert line.startswith("WARN"), line
        assert "Couldn't find schema for kind" in line
        kinds.add(line.partition("for kind ")[2].partition(" ")[0])
    return kinds


@every_overlay
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_overlay_is_valid(shown: str, version: str, tmp_path: Path) -> None:
    """Old and new API servers know every field; only operators' kinds are taken on trust."""
    code, complaints = validated(overlay(shown).text, version, tmp_path)
    assert unknown_kinds(complaints) <= ALIEN
    assert code == 0


def test_the_validator_would_see_a_slip(tmp_path: Path) -> None:
    """A misspelt field is an error, and not passed over."""
    text = overlay("h100").text.replace("readinessProbe:", "readinessProbee:")
    code, complaints = validated(text, NEWEST, tmp_path)
    assert code != 0
    assert any("readinessProbee" in line for line in complaints)


@pytest.mark.parametrize("component", COMPONENT_NAMES)
def test_every_component_works_by_itself(component: str, tmp_path: Path) -> None:
    """A user may add any one component to the base and gets something valid that differs."""
    base = KUSTOMIZE / "base"
    with_it = overlay_of_ones_own(
        tmp_path,
        resources=[base],
        components=[KUSTOMIZE / "components" / component],
        more="namespace: team",
    )
    assert (
        with_it.text != overlay_of_ones_own(tmp_path, resources=[base], more="namespace: team").text
    )
    code, complaints = validated(with_it.text, NEWEST, tmp_path)
    assert unknown_kinds(complaints) <= ALIEN
    assert code == 0
    assert missing_references(with_it) == set()


def missing_references(shown: Manifests) -> set[str]:
    """What the objects refer to and none of them is."""
    there = {f"{item['kind']}/{name_of(item)}" for item in shown.objects}
    wanted = set()
    for workload, container in each_container(shown):
        pod = pod_of(workload)
        wanted.add(f"ServiceAccount/{pod['serviceAccountName']}")
        if "priorityClassName" in pod:
            wanted.add(f"PriorityClass/{pod['priorityClassName']}")
        for source in container.get("envFrom", []):
            wanted |= {
                f"{kind}/{source[field]['name']}"
                for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
                if field in source
            }
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                wanted.add(f"PersistentVolumeClaim/{claim['claimName']}")
    for binding in shown.of_kind("RoleBinding", "ClusterRoleBinding"):
        wanted.add(f"{binding['roleRef']['kind']}/{binding['roleRef']['name']}")
        wanted |= {f"{subject['kind']}/{subject['name']}" for subject in binding["subjects"]}
    # The one thing that a user brings.
    return wanted - there - {"Secret/emiliad-r2"}


@every_overlay
def test_nothing_is_referred_to_that_is_not_there(shown: str) -> None:
    """Accounts, settings, volumes, roles and classes are all in the overlay that names them."""
    assert missing_references(overlay(shown)) == set()


@every_overlay
def test_no_secret_is_rendered(shown: str) -> None:
    """Secrets come by reference from the one Secret emiliad-r2, and no manifest has a value."""
    secret_names = {setting.name for setting in all_settings() if setting.secret}
    manifests = overlay(shown)
    assert manifests.of_kind("Secret") == []
    assert [name for name in secret_names if name in manifests.text] == []
    for workload, container in each_container(manifests):
        for source in container.get("envFrom", []):
            assert source.get("secretRef", {"name": "emiliad-r2"}) == {"name": "emiliad-r2"}
        assert all("valueFrom" not in variable for variable in container.get("env", []))
        assert "secret" not in str(pod_of(workload)["volumes"]).lower()


@every_overlay
def test_every_variable_is_a_setting(shown: str) -> None:
    """A misspelt variable would be a setting that silently keeps its default."""
    names = {name for setting in all_settings() for name in (setting.name, *setting.aliases)}
    for workload, container in each_container(overlay(shown)):
        env = overlay(shown).environment(workload, container)
        assert env.keys() - OF_LIBRARIES <= names
        assert all(env.values())


@every_overlay
def test_probes_ask_what_the_server_answers(shown: str) -> None:
    """Each probe's path is served, on the port that HTTP_PORT names."""
    server = HealthServer(
        port=0,
        registry=CollectorRegistry(),
        status=dict,
        ready=lambda: "not yet",
        alive=lambda: None,
    )
    server.start()
    try:
        asked = set()
        for workload in overlay(shown).of_kind("Deployment", "DaemonSet"):
            container = containers_of(workload)[-1]
            port = overlay(shown).environment(workload, container)["HTTP_PORT"]
            assert container["ports"] == [{"name": "metrics", "containerPort": int(port)}]
            asked |= {probed(container, kind) for kind in ("startup", "readiness", "liveness")}
        assert {path: status(server.port, path) for path in asked} == {
            "/readyz": 503,
            "/livez": 200,
        }
    finally:
        server.close()


def probed(container: Object, kind: str) -> str:
    """The path that a probe asks for; a restart is never for more than a dead event loop."""
    asks = container[f"{kind}Probe"]["httpGet"]
    assert asks["port"] == "metrics"
    assert (asks["path"] == "/livez") == (kind == "liveness")
    path: str = asks["path"]
    return path


def status(port: int, path: str) -> int:
    """The status code of a GET."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@every_daemon
def test_a_pod_may_drain_before_it_is_killed(shown: str) -> None:
    """The grace period exceeds the drain, and no hook delays it."""
    daemon = overlay(shown).daemon
    assert daemon is not None
    container = containers_of(daemon)[-1]
    drain_s = float(overlay(shown).environment(daemon, container)["DRAIN_TIMEOUT_S"])
    assert pod_of(daemon)["terminationGracePeriodSeconds"] >= drain_s + AFTER_DRAIN_S
    assert "lifecycle" not in container


@every_daemon
def test_the_autokicker_owns_the_replicas(shown: str) -> None:
    """The target states none, and a rollout ends although one of its pods is always pending."""
    daemon = overlay(shown).daemon
    assert daemon is not None
    assert "replicas" not in daemon["spec"]
    if daemon["kind"] == "Deployment":
        rolling = daemon["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxSurge"] == 0
        assert rolling["maxUnavailable"] > 1  # the BUFFER's pod, and one that gives its node up
        assert daemon["spec"]["progressDeadlineSeconds"] == 2**31 - 1


@every_overlay
def test_every_pod_is_willing_to_leave(shown: str) -> None:
    """All carry lowprio=true, so that no autokicker, not an older one either, leaves for them."""
    for workload in overlay(shown).workloads:
        assert workload["spec"]["template"]["metadata"]["labels"]["lowprio"] == "true"


@every_overlay
def test_every_pod_meets_the_restricted_standard(shown: str) -> None:
    """Non-root, read-only root, no capability, seccomp: what Kubernetes calls `restricted`."""
    for workload, container in each_container(overlay(shown)):
        pod = pod_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        on_the_node = [volume["name"] for volume in pod["volumes"] if "hostPath" in volume]
        assert on_the_node == (["models"] if shown == "daemonset" and on_the_node else [])
        assert container["resources"]["limits"]["memory"]


@every_overlay
def test_what_is_written_has_a_place(shown: str) -> None:
    """On a read-only root every cache and temporary file lies in a bounded, writable volume."""
    for workload, container in each_container(overlay(shown)):
        volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
        writable = [
            mount["mountPath"]
            for mount in container["volumeMounts"]
            if not mount.get("readOnly") and "emptyDir" in volumes[mount["name"]]
        ]
        env = overlay(shown).environment(workload, container)
        wanted = [env[name] for name in env.keys() & (OF_LIBRARIES | {"SCRATCH_DIR"})]
        if workload["kind"] == "Job" or container["name"] == "models":
            wanted = [path for path in wanted if path != "/scratch"]
        homeless = [path for path in wanted if not any(path.startswith(p) for p in writable)]
        assert homeless == []
        assert all(v["emptyDir"]["sizeLimit"] for v in volumes.values() if "emptyDir" in v)


@every_daemon
def test_the_daemon_has_what_it_works_with(shown: str) -> None:
    """Room for shared memory and scratch; models that it cannot change; caches of its own."""
    daemon = overlay(shown).daemon
    assert daemon is not None
    container = containers_of(daemon)[-1]
    volumes = {volume["name"]: volume for volume in pod_of(daemon)["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    env = overlay(shown).environment(daemon, container)
    assert mounts[env["MODELS_DIR"]]["readOnly"] is True
    assert mounts[env["SCRATCH_DIR"]]
    assert env.keys() >= OF_LIBRARIES


@every_daemon
def test_a_pod_in_its_beginnings_leaves_at_once(shown: str) -> None:
    """What runs before the daemon obeys SIGTERM, which a shell as PID 1 would ignore."""
    daemon = overlay(shown).daemon
    assert daemon is not None
    for container in pod_of(daemon)["initContainers"]:
        command = container.get("command", ["/usr/bin/tini"])
        assert command[0] == "/usr/bin/tini"
        assert ("-g" in command) == ("/bin/sh" in command)


@every_overlay
def test_the_daemons_have_no_token_unless_they_watch(shown: str) -> None:
    """A token is where the autokicker runs, and every binding names the accounts that carry one."""
    manifests = overlay(shown)
    with_token = {
        pod_of(workload)["serviceAccountName"]
        for workload in manifests.workloads
        if pod_of(workload)["automountServiceAccountToken"]
    }
    for binding in manifests.of_kind("RoleBinding", "ClusterRoleBinding"):
        assert {subject["name"] for subject in binding["subjects"]} == with_token
    daemon = manifests.daemon
    if daemon:
        env = manifests.environment(daemon, containers_of(daemon)[-1])
        watches = pod_of(daemon)["automountServiceAccountToken"]
        assert watches == (env["AUTOKICK_MODE"] != "off")


@every_overlay
def test_only_an_administrators_overlay_reaches_beyond_its_namespace(shown: str) -> None:
    """The members of a namespace can apply all others, in whichever namespace they like."""
    manifests = overlay(shown)
    if shown != "h100-cluster":
        assert manifests.of_kind(*CLUSTER_SCOPED) == []
        assert "namespace:" not in manifests.text
        return
    for item in manifests.objects:
        if item["kind"] not in CLUSTER_SCOPED:
            assert item["metadata"]["namespace"] == "emiliad"
    for binding in manifests.of_kind("ClusterRoleBinding"):
        assert {subject["namespace"] for subject in binding["subjects"]} == {"emiliad"}


@every_overlay
def test_selectors_find_their_pods(shown: str) -> None:
    """Workloads, monitors and policies select what is meant, and no workload another's pods."""
    manifests = overlay(shown)
    labels = {
        name_of(workload) + workload["kind"]: workload["spec"]["template"]["metadata"]["labels"]
        for workload in manifests.workloads
    }
    for workload in manifests.of_kind("Deployment", "DaemonSet"):
        selector = workload["spec"]["selector"]["matchLabels"]
        chosen = [name for name, found in labels.items() if selector.items() <= found.items()]
        assert chosen == [name_of(workload) + workload["kind"]]
    for policy in manifests.of_kind("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        assert all(selector.items() <= found.items() for found in labels.values())
    for monitor in manifests.of_kind("PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert [1 for found in labels.values() if selector.items() <= found.items()] == [1]


def test_the_daemon_set_has_the_deployments_pods() -> None:
    """One pod template for both, but for where a DaemonSet's pods go and find their models."""
    deployment, daemon_set = overlay("h100").daemon, overlay("daemonset").daemon
    assert deployment is not None
    assert daemon_set is not None
    assert (deployment["kind"], daemon_set["kind"]) == ("Deployment", "DaemonSet")
    assert deployment["spec"]["selector"] == daemon_set["spec"]["selector"]
    ours, theirs = pod_of(deployment), pod_of(daemon_set)
    assert theirs["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert ours["containers"] == theirs["containers"]
    apart = {"nodeSelector", "initContainers", "volumes"}
    assert {k: v for k, v in ours.items() if k not in apart} == {
        k: v for k, v in theirs.items() if k not in apart
    }


def test_the_models_are_filled_once_and_waited_for() -> None:
    """One Job writes the volume and checks it; the daemons mount it read-only and wait for that."""
    manifests = overlay("h100")
    job, daemon = manifests.get("Job", "emiliad-models"), manifests.daemon
    assert daemon is not None
    assert containers_of(job)[0]["args"] == ["emiliad models pull && emiliad models verify"]
    assert "ttlSecondsAfterFinished" in job["spec"]
    waits = pod_of(daemon)["initContainers"][0]
    assert waits["args"] == ["until emiliad models verify; do sleep 15; done"]
    volumes = {volume["name"]: volume for volume in pod_of(daemon)["volumes"]}
    for container in containers_of(daemon):
        mounts = [m for m in container["volumeMounts"] if m["mountPath"] == "/models"]
        assert [mount["readOnly"] for mount in mounts] == [True]
    assert volumes["models"] == {
        "name": "models",
        "persistentVolumeClaim": {"claimName": "emiliad-models"},
    }
    assert set(WORKLOADS) >= {job["kind"]}
