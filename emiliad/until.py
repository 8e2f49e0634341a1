"""Ends work as soon as something happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio


@asynccontextmanager
async def until(*ends: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Cancels its body when one of `ends` returns. What the body raises comes in a group."""
    async with anyio.create_task_group() as group:

        async def watch(end: Callable[[], Awaitable[object]]) -> None:
            await end()
            group.cancel_scope.cancel()

        for end in ends:
            group.start_soon(watch, end)
        yield
        group.cancel_scope.cancel()
