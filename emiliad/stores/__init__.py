"""The object stores: `open_store` picks one by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from emiliad.errors import ConfigError
from emiliad.store import Store
from emiliad.stores.local import LocalStore


def open_store(url: str) -> Store:
    """The store that `url` names: `file:///dir` is a directory on this machine.

    Raises ConfigError for anything else.
    """
    if not url:
        raise ConfigError("STORE_URL is not set: file:///some/dir is a directory on this machine")
    parts = urlsplit(url.replace("?", "%3F").replace("#", "%23"))  # both are legal in a path
    if parts.scheme != "file":
        raise ConfigError(f"STORE_URL={url}: only file:///dir is understood")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigError(f"STORE_URL={url}: write file:///dir, with three slashes")
    root = Path(unquote(parts.path))
    if root.exists() and not root.is_dir():
        raise ConfigError(f"STORE_URL={url}: {root} is not a directory")
    return LocalStore(root)
