"""How the outputs are called, and how any title becomes one file name. Standard library only."""

from __future__ import annotations

import hashlib
import re
import unicodedata

ALL_SEGMENTS = "all_segments.json"
FILTERED_SEGMENTS = "filtered_segments.json"
EPISODE = "episode.json"

MAX_NAME_BYTES = 200  # ext4 takes 255; `_000000.mp3` and temporary suffixes need the rest
_HASH_DIGITS = 8
# Slashes, control characters, line and paragraph separators, halves of surrogate pairs.
_UNUSABLE = re.compile("[/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def segment_file(name: str, index: int) -> str:
    """The MP3 of segment `index` (its place in all_segments.json) of the episode `name`."""
    return f"{name}_{index:06d}.mp3"


def safe_name(stem: str) -> str:
    """`stem` as one path component of at most 200 bytes of UTF-8, in Unicode form NFC.

    A stem that has to be shortened or changed gets `-` and 8 hex digits of its SHA-256, so that
    two such stems stay apart. Spaces, quotes, emoji and other scripts are kept as they are.
    """
    name = _UNUSABLE.sub("_", unicodedata.normalize("NFC", stem))
    if name in ("", ".", ".."):
        name = "_"
    if name == unicodedata.normalize("NFC", stem) and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    kept = name.encode()[: MAX_NAME_BYTES - _HASH_DIGITS - 1].decode("utf-8", "ignore")
    return f"{kept}-{digest}"
