"""What host and executor say to each other: frames of a 4-byte big-endian length and JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, NoReturn, TypeAlias

PROTOCOL = 2  # goes up when a message changes its fields; both ends must agree
MAX_FRAME_BYTES = 16 * 1024 * 1024  # a manifest of a day-long episode takes well under 1 MiB

_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The bytes are no message, or the message is out of place; says what was found."""


@dataclass(frozen=True, slots=True)
class Process:
    """Host to child: run the pipeline on the file `audio`, results into the folder `out_dir`."""

    task_id: str
    audio: str
    out_dir: str
    name: str  # what the outputs are named after
    halvings: int = 0  # of every batch size for this task: 0 as configured, 2 a quarter


@dataclass(frozen=True, slots=True)
class Ready:
    """Child to host, once: the models are loaded."""

    protocol: int
    pid: int
    device: str
    load_seconds: float
    halves: bool = False  # whether the pipeline can work in smaller batches


@dataclass(frozen=True, slots=True)
class Stage:
    """Child to host: a stage of the task ended, having taken `seconds` of wall time."""

    task_id: str
    name: str
    seconds: float
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """Child to host: the outputs are in `out_dir`; `manifest` is what the pipeline returned."""

    task_id: str
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """Child to host: a task failed, or (`task_id` is None) the pipeline could not be loaded."""

    task_id: str | None
    kind: str  # bad_audio, out_of_memory, cuda, disk_full, garbage, error, model, load; of
    # the host's own making: crash, timeout, protocol
    error: str  # one sentence
    traceback: str  # its tail, or the last lines of stderr
    reusable: bool  # false: this executor must not be given another task


Message: TypeAlias = Process | Ready | Stage | Done | Failed

_CLASSES = {cls.__name__.lower(): cls for cls in (Process, Ready, Stage, Done, Failed)}
_JSON_TYPES: dict[str, tuple[type, ...]] = {  # by annotation, as it is written above
    "str": (str,),
    "str | None": (str, NoneType),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
}


def encode(message: Message) -> bytes:
    """The whole frame of a message. Raises ProtocolError if JSON cannot hold it, or its size."""
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    try:
        text = json.dumps({"type": type(message).__name__.lower(), **values}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not expressible in JSON: {error}") from error
    body = text.encode("ascii")
    _check_size(len(body))
    return _LENGTH.pack(len(body)) + body


def decode(frame: bytes) -> Message:
    """The message of exactly one whole frame. Raises ProtocolError."""
    decoder = Decoder()
    messages = list(decoder.feed(frame))
    if len(messages) != 1 or decoder.pending:
        raise ProtocolError(f"{len(frame)} bytes are not one whole frame")
    return messages[0]


class Decoder:
    """Cuts a stream of bytes into messages, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yields the messages that `data` completes. Raises ProtocolError at the first bad one."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            _check_size(size)
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield _parsed(body)


def _check_size(size: int) -> None:
    if size > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {size} bytes; the most is {MAX_FRAME_BYTES}")


def _parsed(body: bytes) -> Message:
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame that is not JSON ({error}): {body[:60]!r}") from error
    if not isinstance(values, dict):
        raise ProtocolError(f"a frame that is not a JSON object: {body[:60]!r}")
    cls = _CLASSES.get(str(values.pop("type", "")))
    if cls is None:
        raise ProtocolError(f"a message of no known type: {body[:60]!r}")
    _check_fields(cls, values)
    return cls(**values)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_fields(cls: type[Message], values: dict[str, Any]) -> None:
    expected = {field.name: str(field.type) for field in fields(cls)}
    if expected.keys() != values.keys():
        found = ", ".join(sorted(values)) or "none"
        raise ProtocolError(f"{cls.__name__} has the fields {', '.join(expected)}; found: {found}")
    for name, annotation in expected.items():
        if type(values[name]) not in _JSON_TYPES[annotation]:
            kind = type(values[name]).__name__
            raise ProtocolError(f"{cls.__name__}.{name} is not {annotation} but {kind}")
