"""Which bucket the settings name, and with which keys: checked before any request is made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_KEY = re.compile(r"[\x21-\x7e]+")  # what a header can hold; no key has anything else


@dataclass(frozen=True, slots=True)
class R2:
    """A bucket behind the S3 protocol, as R2_ENDPOINT_URL and the other variables name it."""

    endpoint_url: str = ""
    bucket: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)

    def problems(self) -> Iterator[str]:
        """A line for each variable that is missing or malformed."""
        if problem := self._wrong_endpoint():
            yield f"R2_ENDPOINT_URL: {problem}"
        keys = {
            "R2_ACCESS_KEY_ID": self.access_key_id,
            "R2_SECRET_ACCESS_KEY": self.secret_access_key,
        }
        for name, value in keys.items():
            if not value:
                yield f"{name}: is not set"
            elif not _KEY.fullmatch(value):
                yield f"{name}: its value holds characters that no key has"
        if not self.bucket:
            yield "R2_BUCKET: is not set"
        elif not _BUCKET.fullmatch(self.bucket):
            yield f"R2_BUCKET: {self.bucket!r} is no name of a bucket"

    def _wrong_endpoint(self) -> str | None:
        """What follows the host is not shown: passwords hide there."""
        if not self.endpoint_url:
            return "is not set; R2's is https://<account id>.r2.cloudflarestorage.com"
        try:
            parts = urlsplit(self.endpoint_url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            return "is no URL"
        if parts.scheme not in ("http", "https") or not host:
            return "must begin with https:// and a host"
        if parts.username is not None or parts.password is not None:
            return "must not hold a user or a password"
        if parts.path.strip("/") or parts.query or parts.fragment:
            return f"ends with the host: write {parts.scheme}://{parts.netloc}, without a bucket"
        return None
