"""Where the API server is and who we are to it: a mounted service account, or a kubeconfig.

Only the second loads kubernetes_asyncio, which costs 34 MB: a daemon in a cluster never does.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emiliad import logs
from emiliad.kube.errors import NoCluster

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_log = logs.get("kube.access")
_TOKEN_S = 60.0  # seconds for which a token that was read is used: the kubelet replaces the file

# Gives the Authorization header; True asks for a new one because the last was not accepted.
Authorization = Callable[[bool], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach one API server. `namespace` is the default one, empty if none is known."""

    url: str
    tls: ssl.SSLContext | bool
    authorization: Authorization
    namespace: str = ""
    server_name: str | None = None  # of its certificate, if it is not the URL's host
    proxy: str | None = None
    trust_env: bool = False  # whether HTTPS_PROXY and NO_PROXY count


def mounted(env: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> bool:
    """Whether a service account's token is mounted here: whether this is a pod that may ask."""
    return bool(env.get("KUBERNETES_SERVICE_HOST")) and (account / "token").is_file()


def in_cluster(env: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Access:
    """The API server of the cluster that this pod runs in. Raises NoCluster.

    A proxy from the environment is meant for the world outside and is not used.
    """
    if not mounted(env, account):
        raise NoCluster(f"no service account is mounted in {account}")
    host, port = env["KUBERNETES_SERVICE_HOST"], env.get("KUBERNETES_SERVICE_PORT") or "443"
    try:
        tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
        token = _MountedToken(account / "token")
        namespace = _read(account / "namespace")
    except (OSError, ssl.SSLError) as error:
        raise NoCluster(f"the service account in {account} is not usable: {error}") from None
    # Python 3.13 asks of certificates what many clusters' own authorities do not write into them.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    name = f"[{host}]" if ":" in host else host
    return Access(f"https://{name}:{port}", tls, token, namespace=namespace)


class _MountedToken:
    """The mounted token, read again once it is old."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = _read(path)
        self._read_at = time.monotonic()

    async def __call__(self, refused: bool) -> str | None:
        if refused or time.monotonic() - self._read_at > _TOKEN_S:
            self._token, self._read_at = _read(self._path), time.monotonic()
        return f"Bearer {self._token}"


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


async def from_kubeconfig(env: Mapping[str, str]) -> Access:
    """The API server of the current context of `KUBECONFIG`, default ~/.kube/config.

    Raises NoCluster. Credentials from plugins are fetched again when one is refused.
    """
    kubeconfig = _Kubeconfig(env.get("KUBECONFIG") or _default_kubeconfig())
    await kubeconfig.load()
    return kubeconfig.access()


def _default_kubeconfig() -> str:
    return str(Path.home() / ".kube" / "config")


class _Kubeconfig:
    def __init__(self, where: str) -> None:
        from kubernetes_asyncio.client import Configuration

        self._where = where
        self._configuration = Configuration()
        self._namespace = ""
        self._tls: ssl.SSLContext | bool = True

    async def load(self) -> None:
        """Reads the file, and runs the plugin that it names. Raises NoCluster."""
        from kubernetes_asyncio.config import load_kube_config

        if not self._is_there():
            raise NoCluster(
                f"no cluster: no service account is mounted here, and there is no {self._where}: "
                "set KUBECONFIG"
            )
        try:
            loader = await load_kube_config(
                config_file=self._where,
                client_configuration=self._configuration,
                persist_config=False,
            )
            context = loader.current_context or {}
            self._namespace = context.get("context", {}).get("namespace") or "default"
            self._tls = self._context()
        except Exception as error:  # whatever YAML, plugins and files bring
            why = " ".join(str(error).split())
            raise NoCluster(f"no cluster: {self._where} is not usable: {why}") from error

    def _is_there(self) -> bool:
        """Whether one of the files that KUBECONFIG lists exists."""
        return any(Path(part).is_file() for part in self._where.split(os.pathsep))

    def access(self) -> Access:
        configuration = self._configuration
        return Access(
            str(configuration.host),
            self._tls,
            self._authorization,
            namespace=self._namespace,
            server_name=configuration.tls_server_name,
            proxy=configuration.proxy,
            trust_env=True,
        )

    def _context(self) -> ssl.SSLContext:
        configuration = self._configuration
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if configuration.cert_file:
            tls.load_cert_chain(configuration.cert_file, configuration.key_file)
        if not configuration.verify_ssl:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        return tls

    async def _authorization(self, refused: bool) -> str | None:
        if refused:
            try:
                await self.load()
            except NoCluster as error:
                _log.warning("access.not_renewed", error=str(error))
        return self._configuration.api_key.get("BearerToken")


async def find(env: Mapping[str, str]) -> Access:
    """In-cluster if a service account is mounted, else a kubeconfig. Raises NoCluster."""
    return in_cluster(env) if mounted(env) else await from_kubeconfig(env)
