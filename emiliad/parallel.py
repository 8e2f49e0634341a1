"""A few requests at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

T = TypeVar("T")

AT_ONCE = 16  # requests; the store's round trip is what is waited for, not its capacity


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], *, at_once: int = AT_ONCE
) -> None:
    """Awaits `work` of every item, `at_once` of them at a time, begun in order.

    The first error ends the others and is raised as it is, without a group around it.
    """
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with anyio.create_task_group() as group:
            for _ in range(at_once):
                group.start_soon(worker)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
