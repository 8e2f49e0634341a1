"""The page for people: one file of HTML, and the policy that lets its own script run, no other."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Page:
    """The HTML and the Content-Security-Policy to send with it."""

    html: bytes
    policy: str


@cache
def page() -> Page:
    """The page as the package carries it."""
    html = resources.files("emiliad.health").joinpath("page.html").read_bytes()
    directives = (
        "default-src 'none'",
        f"script-src {_hashes(html, b'script')}",
        f"style-src {_hashes(html, b'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return Page(html, "; ".join(directives))


def _hashes(html: bytes, tag: bytes) -> str:
    """The sources of the inline elements of one kind, as CSP writes them."""
    inline = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in inline)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
