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
    r2 = r2 or R2()
    if problems := objections(url, r2):
        raise ConfigError("the store cannot be opened:\n  " + "\n  ".join(problems))
    if not is_remote(url):
        return observed(LocalStore(_directory(url)), observe, transferred)
    where = _bucket(url, r2)
    from emiliad.stores.s3 import S3Store  # half a second that a directory need not cost

    return S3Store(
        where,
        concurrency=concurrency,
        limit_s=limit_s,
        observe=observe,
        transferred=transferred,
    )


def objections(url: str, r2: R2) -> list[str]:
    """What is wrong with the settings of a store: a line for each variable."""
    try:
        if not is_remote(url):
            _directory(url)
            return []
        problems = list(_bucket(url, r2).problems())
    except ConfigError as error:
        return [str(error)]
    if problems:
        now = f"is {url}" if url else "is not set"
        problems.append(f"STORE_URL: {now}, so R2 is the store; file:///dir is a directory here")
    return problems


def _bucket(url: str, r2: R2) -> R2:
    if not url:
        return r2
    parts = _parsed(url)
    if not parts.netloc or parts.path.strip("/"):
        raise ConfigError(f"STORE_URL={url}: write s3://bucket; prefixes are settings")
    return replace(r2, bucket=parts.netloc)


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
