"""What an object store must do for emiliad: the port behind which R2 and a directory are alike.

Keys are `/`-separated text. An etag changes whenever the content does. Reads after writes,
deletes and lists are strongly consistent, as R2 promises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from emiliad.errors import (
    Ambiguous,
    NotFound,
    PreconditionFailed,
    StoreError,
    StoreUnusable,
    Throttled,
)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's name and state.

    `etag` is the hex MD5 of the body, or holds a `-`, and is then no more than a version: that of
    a body written in parts (R2), or of a larger file in a list of the embedded store.
    """

    key: str
    size: int  # bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Object:
    """A small object, read whole."""

    body: bytes
    etag: str


Page: TypeAlias = list[ObjectInfo]
PAGE = 1000  # objects in a page of a list at most, as S3 has it

# How a store that is asked over a network tells of its requests: operation, result, seconds.
Observe: TypeAlias = Callable[[str, str, float], None]
Transferred: TypeAlias = Callable[[str, int], None]  # `in` or `out`, bytes of bodies
# R2 charges for those that write, for `list` (class A) and, less, for those that read (class B);
# `delete` and `abort_multipart` are free.
OPERATIONS = (
    "get",
    "head",
    "put",
    "delete",
    "list",
    "download",
    "upload",
    "create_multipart",
    "upload_part",
    "complete_multipart",
    "abort_multipart",
)
RESULTS = (
    "ok",
    "not_found",
    "precondition",
    "throttled",
    "ambiguous",
    "unusable",
    "error",
    "cancelled",
)
_RESULT_OF: dict[type[StoreError], str] = {
    NotFound: "not_found",
    PreconditionFailed: "precondition",
    Throttled: "throttled",
    Ambiguous: "ambiguous",
    StoreUnusable: "unusable",
}


def result_of(error: StoreError) -> str:
    """The result under which a request that ended with `error` is counted."""
    return next((r for kind, r in _RESULT_OF.items() if isinstance(error, kind)), "error")


class Store(Protocol):
    """Besides what it names, any method may raise Throttled, Ambiguous, StoreUnusable, InvalidKey.

    What `path` names is a file of the caller's: trouble with it raises OSError.
    """

    async def get(self, key: str) -> Object:
        """Reads a small object. Raises NotFound."""

    async def head(self, key: str) -> ObjectInfo:
        """Looks an object up without its body. Raises NotFound."""

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Writes a small object, whole or not at all, and returns its etag.

        `if_absent`: only if the key has no object. `if_match`: only if its object has this etag.
        Raises PreconditionFailed, and then nothing was written.
        """

    async def delete(self, key: str) -> None:
        """Removes an object; succeeds if there is none."""

    def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        """Yields pages of 1 to 1,000 objects whose key begins with `prefix`.

        They come in key order (by Unicode code point), beginning behind `start_after`, where no
        key has another `/` behind the prefix; there `start_after` may be the prefix and any text
        without one. Elsewhere the order may be the store's own, always the same (SeaweedFS has
        `a/b` before `a-b`), and `start_after` is a key that the same list has shown. No key comes
        twice, and none that stood all the while is left out.
        """

    async def upload(self, key: str, path: Path) -> str:
        """Writes a file's bytes, whole or not at all, and returns the etag."""

    async def download(self, key: str, path: Path) -> ObjectInfo:
        """Writes an object's bytes to `path`, which is removed again if that fails.

        Raises NotFound.
        """

    async def aclose(self) -> None:
        """Lets go of connections and files."""
