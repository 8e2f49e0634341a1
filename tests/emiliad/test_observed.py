"""What is told of a store's requests that does not tell by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from emiliad.errors import NotFound, PreconditionFailed
from emiliad.store import OPERATIONS, RESULTS
from emiliad.stores import open_store
from emiliad.stores.local import LocalStore
from emiliad.stores.observed import observed


async def test_a_directorys_requests_are_told_as_r2s_are(tmp_path: Path) -> None:
    """Operation, result and bytes of each, under the names that the metrics have."""
    told: list[tuple[str, str]] = []
    moved: list[tuple[str, int]] = []
    store = open_store(
        (tmp_path / "store").as_uri(),
        observe=lambda operation, result, seconds: told.append((operation, result)),
        transferred=lambda direction, size: moved.append((direction, size)),
    )
    await store.put("a", b"12345", if_absent=True)
    with pytest.raises(PreconditionFailed):
        await store.put("a", b"6", if_absent=True)
    await store.get("a")
    with pytest.raises(NotFound):
        await store.head("b")
    await store.head("a")
    await store.download("a", tmp_path / "file")
    await store.upload("c", tmp_path / "file")
    assert [info.key async for page in store.list("") for info in page] == ["a", "c"]
    await store.delete("a")
    with pytest.raises(OSError, match="No such file"):  # the caller's file, not the store's fault
        await store.download("c", tmp_path / "nowhere" / "file")
    await store.aclose()
    assert told == [
        ("put", "ok"),
        ("put", "precondition"),
        ("get", "ok"),
        ("head", "not_found"),
        ("head", "ok"),
        ("download", "ok"),
        ("upload", "ok"),
        ("list", "ok"),
        ("list", "ok"),  # of its end
        ("delete", "ok"),
        ("download", "cancelled"),
    ]
    assert moved == [("out", 5), ("in", 5), ("in", 5), ("out", 5)]
    assert {operation for operation, _ in told} <= set(OPERATIONS)
    assert {result for _, result in told} <= set(RESULTS)


def test_a_store_that_nobody_watches_stays_as_it_is(tmp_path: Path) -> None:
    """Commands other than the daemon pay nothing for it."""
    store = LocalStore(tmp_path)
    assert observed(store, None, None) is store
