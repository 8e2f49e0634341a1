"""The daemon's settings, declared once; every field is an environment variable."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emiliad.credentials import with_credentials
from emiliad.errors import ConfigError
from pipeline.config import PipelineConfig
from pipeline.settings import Setting, SettingsError, declared, read, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of the daemon. Those of the pipeline are `pipeline.config.PipelineConfig`."""

    store_url: str = setting(
        "STORE_URL",
        "",
        "the object store: file:///dir is a directory on this machine; default: R2_BUCKET on R2",
    )
    r2_endpoint_url: str = setting(
        "R2_ENDPOINT_URL",
        "",
        "R2's S3 endpoint: https://<account id>.r2.cloudflarestorage.com",
        aliases=("R2_ENDPOINT",),
    )
    r2_access_key_id: str = setting(
        "R2_ACCESS_KEY_ID", "", "the key of a token that may read and write objects", secret=True
    )
    r2_secret_access_key: str = setting(
        "R2_SECRET_ACCESS_KEY", "", "that token's secret", secret=True
    )
    r2_bucket: str = setting("R2_BUCKET", "", "the bucket; STORE_URL=s3://bucket overrides it")
    store_timeout_s: float = setting(
        "STORE_TIMEOUT_S",
        15.0,
        "seconds after which a small request to R2 is given up and repeated",
        minimum=0.5,
    )
    raw_audio_prefix: str = setting("RAW_AUDIO_PREFIX", "raw_audio/", "where the raw audio lies")
    processed_prefix: str = setting("PROCESSED_PREFIX", "processed/", "where the outputs go")
    tasks_base_prefix: str = setting("TASKS_BASE_PREFIX", "tasks/", "where the queue lies")
    tasks_todo_prefix: str | None = setting(
        "TASKS_TODO_PREFIX", None, "where todo objects lie, if not under TASKS_BASE_PREFIX"
    )

    pipeline: str = setting(
        "PIPELINE", "pipeline:Pipeline", "the pipeline that the executors load (module:Class)"
    )
    workers_per_gpu: int = setting("WORKERS_PER_GPU", 1, "executors for each GPU", minimum=1)
    max_gpus: int | None = setting("MAX_GPUS", None, "GPUs to use at most; default: all", minimum=0)
    cpu_executors: int = setting(
        "CPU_EXECUTORS", 1, "executors where there is no GPU", minimum=1, maximum=256
    )
    scratch_dir: Path = setting(
        "SCRATCH_DIR",
        Path(tempfile.gettempdir()) / "emiliad",
        "working space for audio and outputs; created if missing",
    )
    load_timeout_s: float = setting(
        "LOAD_TIMEOUT_S", 900.0, "seconds an executor may take to load its models", minimum=1.0
    )
    task_timeout_base_s: float = setting(
        "TASK_TIMEOUT_BASE_S", 600.0, "seconds a task may take, besides its share", minimum=1.0
    )
    task_timeout_factor: float = setting(
        "TASK_TIMEOUT_FACTOR", 10.0, "that share: seconds per second of audio", minimum=0.0
    )
    crash_budget: int = setting(
        "CRASH_BUDGET",
        10,
        "tasks in a row that an executor may fail, by crashing, hanging or running out of memory, "
        "before it is taken for sick; first attempts alone count; 0: any number",
        minimum=0,
    )
    executor_pause_s: float = setting(
        "EXECUTOR_PAUSE_S",
        60.0,
        "seconds before an executor that was given up is tried again; doubles up to an hour",
        minimum=0.1,
    )
    recycle_tasks: int = setting(
        "RECYCLE_TASKS", 500, "tasks after which an executor is started anew; 0: never", minimum=0
    )
    recycle_growth_gb: float = setting(
        "RECYCLE_GROWTH_GB",
        8.0,
        "GB that an executor's memory may grow by after its first task; 0: any amount",
        minimum=0.0,
    )
    recycle_memory_gb: float = setting(
        "RECYCLE_MEMORY_GB", 0.0, "GB of memory that an executor may keep; 0: any", minimum=0.0
    )

    lease_ttl_s: float = setting(
        "LEASE_TTL_S", 300.0, "seconds after which a silent owner loses its task", minimum=1.0
    )
    drain_timeout_s: float = setting(
        "DRAIN_TIMEOUT_S", 10.0, "seconds that running work may take after SIGTERM", minimum=0.0
    )
    max_attempts: int = setting("MAX_ATTEMPTS", 3, "failures after which a task is dead", minimum=1)
    retry_backoff_s: float = setting(
        "RETRY_BACKOFF_S", 30.0, "seconds before a retry; doubles each time", minimum=0.0
    )
    prefetch_depth: int | None = setting(
        "PREFETCH_DEPTH",
        None,
        "episodes downloaded ahead of the executors, one at least; default: one for each, two at "
        "least",
        minimum=0,
        maximum=64,
    )
    prefetch_concurrency: int | None = setting(
        "PREFETCH_CONCURRENCY",
        None,
        "of them, downloaded at the same time; default: one for every two executors, two at least",
        minimum=1,
        maximum=64,
    )
    scratch_limit_gb: float | None = setting(
        "SCRATCH_LIMIT_GB",
        None,
        "GB of audio in scratch at most, but one larger file alone; default: what leaves a tenth "
        "of the disk free",
        minimum=0.0,
    )
    upload_episodes: int | None = setting(
        "UPLOAD_EPISODES",
        None,
        "finished episodes uploaded at the same time; default: two for each executor, four at "
        "least",
        minimum=1,
        maximum=256,
    )
    upload_concurrency: int = setting(
        "UPLOAD_CONCURRENCY", 8, "outputs of each uploaded at the same time", minimum=1, maximum=256
    )
    poll_s: float | None = setting(
        "POLL_S",
        None,
        "most seconds between looks for work on an idle node; default: 60, on a directory 5",
        minimum=0.05,
    )

    http_port: int = setting(
        "HTTP_PORT",
        9090,
        "where health, metrics and the page are served, on all interfaces; 0: any free port",
        minimum=0,
        maximum=65535,
    )

    hf_token: str = setting(
        "HF_TOKEN", "", "token for gated models; used by `emiliad models pull` alone", secret=True
    )
    log_level: str = setting(
        "LOG_LEVEL", "info", "how much is logged", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting(
        "LOG_FORMAT",
        "auto",
        "json, or text for people; auto: text on a terminal",
        choices=("auto", "json", "text"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AutokickConfig:
    """All settings of the autokicker, under the names that users' manifests have."""

    mode: str = setting(
        "AUTOKICK_MODE",
        "",
        "all: no pod of ours while another waits for what we hold; needed: as few less as will do; "
        "default: all; in a daemon that runs outside a cluster: off",
        choices=("", "off", "all", "needed"),
    )
    namespace: str = setting("NAMESPACE", "", "where the target lives; default: the pod's own")
    target_kind: str = setting(
        "TARGET_KIND", "Deployment", "what is scaled or held", choices=("Deployment", "DaemonSet")
    )
    target: str = setting("TARGET_DEPLOYMENT", "emiliad", "the target's name")
    our_selector: str = setting(
        "OUR_SELECTOR", "", "the labels of our pods; default: the target's own selector"
    )
    namespaces: str = setting(
        "AUTOKICK_NAMESPACES",
        "",
        "whose pending pods count: names separated by commas, or *; default: the target's own",
    )
    buffer: int = setting(
        "BUFFER", 1, "pods of ours kept pending, to learn when there is room", minimum=0
    )
    max_replicas: int | None = setting(
        "MAX_REPLICAS", None, "pods of ours at most; default: as many as fit", minimum=0
    )
    exclude_label: str = setting(
        "EXCLUDE_LABEL", "lowprio", "pods with this label never make us leave ..."
    )
    exclude_value: str = setting("EXCLUDE_VALUE", "true", "... if it has this value")
    restore_on_exit: bool = setting(
        "RESTORE_ON_EXIT", False, "scale to BASELINE when the autokicker ends; kills the fleet"
    )
    baseline: int | None = setting(
        "BASELINE", None, "only used by RESTORE_ON_EXIT; kept for old manifests", minimum=0
    )
    interval_s: float | None = setting(
        "INTERVAL", None, "ignored: changes are watched, not polled; kept for old manifests"
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the environment says, checked together."""

    daemon: Config
    pipeline: PipelineConfig
    autokick: AutokickConfig

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str] | None = None,
        *,
        check: Callable[[Config], Iterable[str]] = lambda _: (),
    ) -> Settings:
        """Those of `env`, by default of this process and its credentials file.

        `check` says what else is wrong with the daemon's settings, for those who need more. Raises
        ConfigError, with one message that names every offending variable.
        """
        env = with_credentials(os.environ) if env is None else env
        problems: list[str] = []
        parts = []
        for part in (Config, PipelineConfig, AutokickConfig):
            try:
                parts.append(read(part, env))
            except SettingsError as error:
                problems += error.problems
                parts.append(error.rest)
        settings = cls(*parts)  # type: ignore[arg-type]
        problems += check(settings.daemon)
        if problems:
            raise ConfigError("the environment is not usable:\n  " + "\n  ".join(problems))
        return settings


def all_settings() -> Iterator[Setting]:
    """Every setting of the daemon, the pipeline and the autokicker, in the order of declaration."""
    for part in (Config, PipelineConfig, AutokickConfig):
        for _, declaration in declared(part):
            yield declaration
