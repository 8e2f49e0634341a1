"""Which objects under the raw prefix are recordings, by their names alone."""

from __future__ import annotations

from pathlib import PurePosixPath

# What ffmpeg can open and people call audio, or video with sound; lower case.
_EXTENSIONS = """
3gp aac ac3 aif aifc aiff alac amr ape au avi caf dts flac flv m4a m4b m4v mka mkv mov mp2 mp3 mp4
mpeg mpg mpga oga ogg ogv opus ra rm snd ts wav webm wma wmv wv
"""
AUDIO_EXTENSIONS = frozenset(_EXTENSIONS.split())


def objection(key: str) -> str | None:
    """Why an object is no recording to process; None if it is one."""
    name = key.rpartition("/")[2]
    if not name:
        return "folder"
    if name.startswith("."):
        return "hidden file"
    extension = PurePosixPath(name).suffix.lower()
    if extension.removeprefix(".") not in AUDIO_EXTENSIONS:
        return f"not audio ({extension or 'no extension'})"
    if any("\ud800" <= character <= "\udfff" for character in key):
        return "name is not UTF-8"
    return None
