"""Settings as environment variables: each declared once, read and checked together."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class SettingsError(ValueError):
    """One or more variables are missing or malformed; `problems` names every one of them.

    `rest` holds the settings that are well, and defaults for the others: for further checks.
    """

    def __init__(self, problems: list[str], rest: Any = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.rest = rest


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: what it is called, what it means, what it may be."""

    name: str
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False

    @property
    def shown_default(self) -> str:
        """The default as one would write it in the environment."""
        return _written(self.default)


def setting(name: str, default: Any, help: str, **rules: Any) -> Any:
    """Declares a dataclass field that is read from the environment variable `name`."""
    declared = Setting(name, default, help, **rules)
    return dataclasses.field(
        default=default, repr=not declared.secret, metadata={"setting": declared}
    )


def declared(cls: type) -> Iterator[tuple[str, Setting]]:
    """The settings of a dataclass, as (field name, setting), in the order of declaration."""
    for field in dataclasses.fields(cls):
        if "setting" in field.metadata:
            yield field.name, field.metadata["setting"]


def read(cls: type[T], env: Mapping[str, str]) -> T:
    """Builds the dataclass `cls` from `env`; an empty variable counts as unset.

    Raises SettingsError, which lists every malformed variable and never shows a secret's value.
    """
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field, declaration in declared(cls):
        text = _lookup(declaration, env)
        if text is None:
            continue
        try:
            values[field] = _checked(declaration, _parsed(hints[field], text))
        except ValueError as error:
            shown = "its value" if declaration.secret else repr(text)
            problems.append(f"{declaration.name}: {shown} {error}")
    if problems:
        raise SettingsError(problems, cls(**values))
    return cls(**values)


def _lookup(declaration: Setting, env: Mapping[str, str]) -> str | None:
    for name in (declaration.name, *declaration.aliases):
        if env.get(name, "").strip():
            return env[name].strip()
    return None


def _parsed(hint: Any, text: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if hint is bool:
        return _parsed_bool(text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"is not {'a whole' if hint is int else 'a'} number") from None
    if hint is Path:
        return Path(text).expanduser()
    if typing.get_origin(hint) is tuple:
        return tuple(text.replace(",", " ").split())
    return text


def _parsed_bool(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("is neither true nor false")


def _checked(declaration: Setting, value: Any) -> Any:
    if declaration.choices and value not in declaration.choices:
        raise ValueError(f"is not one of {', '.join(declaration.choices)}")
    if isinstance(value, float) and value != value:
        raise ValueError("is not a number")
    if declaration.minimum is not None and value < declaration.minimum:
        raise ValueError(f"is less than {_written(declaration.minimum)}")
    if declaration.maximum is not None and value > declaration.maximum:
        raise ValueError(f"is more than {_written(declaration.maximum)}")
    return value


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
