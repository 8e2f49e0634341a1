"""The object stores: `open_store` picks one by its URL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from emiliad.errors import ConfigError
from emiliad.store import Observe, Store, Transferred
from emiliad.stores.local import LocalStore
from emiliad.stores.observed import observed
from emiliad.stores.r2 import R2


def is_remote(url: str) -> bool:
    """Whether this URL names R2, or another S3 server, and not a directory."""
    return not url or _parsed(url).scheme == "s3"


def open_store(
    url: str,
    r2: R2 | None = None,
    *,
    concurrency: int = 64,
    limit_s: float = 15.0,
    observe: Observe | None = None,
    transferred: Transferred | None = None,
) -> Store:
    """The store that `url` names; nothing is asked of it yet.

    `file:///dir` is a directory on this machine. No URL at all is the bucket of `r2`, and
    `s3://bucket` another bucket with the same endpoint and keys; `concurrency` and `limit_s` are
    theirs (`S3Store`, which also says what is observed). Raises ConfigError for anything else, or
    when a setting of R2 is missing.
    """
    if not is_remote(url):
        return observed(LocalStore(_directory(url)), observe, transferred)
    bucket = (r2 or R2()).bucket
    if url:
        parts = _parsed(url)
        bucket = parts.netloc
        if not bucket or parts.path.strip("/"):
            raise ConfigError(f"STORE_URL={url}: write s3://bucket; prefixes are settings")
    where = replace(r2 or R2(), bucket=bucket)
    where.check(url)
    from emiliad.stores.s3 import S3Store  # half a second that a directory need not cost

    return S3Store(
        where,
        concurrency=concurrency,
        limit_s=limit_s,
        observe=observe,
        transferred=transferred,
    )


def _parsed(url: str) -> SplitResult:
    return urlsplit(url.replace("?", "%3F").replace("#", "%23"))  # both are legal in a path


def _directory(url: str) -> Path:
    parts = _parsed(url)
    if parts.scheme != "file":
        raise ConfigError(f"STORE_URL={url}: only file:///dir and s3://bucket are understood")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigError(f"STORE_URL={url}: write file:///dir, with three slashes")
    root = Path(unquote(parts.path))
    if root.exists() and not root.is_dir():
        raise ConfigError(f"STORE_URL={url}: {root} is not a directory")
    return root
