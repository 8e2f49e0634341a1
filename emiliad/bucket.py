"""The bucket that the settings name: its store and the layout of its keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from emiliad.config import Config
from emiliad.queue.tasks import Layout
from emiliad.store import Store
from emiliad.stores import open_store
from emiliad.stores.patient import PatientStore


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the audio, the queue and the outputs are."""

    store: Store
    layout: Layout


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Bucket]:
    """The bucket for the length of a block. Raises ConfigError when it cannot be opened."""
    layout = Layout.under(
        raw_prefix=config.raw_audio_prefix,
        processed_prefix=config.processed_prefix,
        tasks_base=config.tasks_base_prefix,
        todo_prefix=config.tasks_todo_prefix,
    )
    store = PatientStore(open_store(config.store_url))
    try:
        yield Bucket(store, layout)
    finally:
        await store.aclose()
