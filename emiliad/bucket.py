"""The bucket that the settings name: its store and the layout of its keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from emiliad import stores
from emiliad.config import Config
from emiliad.patience import SAME_KEY_SPACING_S
from emiliad.queue.tasks import Layout
from emiliad.store import Observe, Store, Transferred
from emiliad.stores import is_remote, open_store
from emiliad.stores.patient import PatientStore
from emiliad.stores.r2 import R2

_REQUESTS = 64  # at a time, of commands that say nothing else


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the audio, the queue and the outputs are.

    `remote`: behind a network, so that it is to be probed before it is trusted.
    """

    store: Store
    layout: Layout
    remote: bool = False

    @property
    def write_spacing_s(self) -> float:
        """Seconds between two writes to one claim that the store asks for."""
        return SAME_KEY_SPACING_S if self.remote else 0.0


def objections(config: Config) -> list[str]:
    """What keeps `opened` from opening these settings' bucket: a line for each variable."""
    return stores.objections(config.store_url, _r2(config))


def _r2(config: Config) -> R2:
    return R2(
        endpoint_url=config.r2_endpoint_url,
        bucket=config.r2_bucket,
        access_key_id=config.r2_access_key_id,
        secret_access_key=config.r2_secret_access_key,
    )


@asynccontextmanager
async def opened(
    config: Config,
    *,
    requests: int = _REQUESTS,
    observe: Observe | None = None,
    transferred: Transferred | None = None,
) -> AsyncIterator[Bucket]:
    """The bucket for the length of a block, asked so much at a time at most.

    Raises ConfigError when it cannot be opened.
    """
    layout = Layout.under(
        raw_prefix=config.raw_audio_prefix,
        processed_prefix=config.processed_prefix,
        tasks_base=config.tasks_base_prefix,
        todo_prefix=config.tasks_todo_prefix,
    )
    store = PatientStore(
        open_store(
            config.store_url,
            _r2(config),
            concurrency=requests,
            limit_s=config.store_timeout_s,
            observe=observe,
            transferred=transferred,
        )
    )
    try:
        yield Bucket(store, layout, remote=is_remote(config.store_url))
    finally:
        await store.aclose()
