"""Settings out of a credentials file, as systemd's LoadCredential hands it to a service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from emiliad.errors import ConfigError

FILE = "emiliad.env"  # its name in $CREDENTIALS_DIRECTORY
_QUOTES = ("'", '"')


def with_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """`env`, and for variables that it does not set the KEY=VALUE lines of the credentials file.

    There need be no such file. Raises ConfigError if it cannot be read, or a line in it is none;
    the message names the line's number and never its content.
    """
    folder = env.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder) / FILE
    if not folder or not path.exists():
        return dict(env)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    found = dict(_pairs(path, text))
    return {**found, **{name: value for name, value in env.items() if value or name not in found}}


def _pairs(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        name, equals, value = stripped.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.isidentifier():
            raise ConfigError(f"{path}, line {number}: is not KEY=VALUE")
        if len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
            value = value[1:-1]
        yield name, value
