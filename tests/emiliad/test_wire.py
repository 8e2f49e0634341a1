"""What host and executor say to each other survives the pipe, and nothing else passes."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emiliad.wire import (
    MAX_FRAME_BYTES,
    Decoder,
    Done,
    Failed,
    Message,
    Process,
    ProtocolError,
    Ready,
    Stage,
    decode,
    encode,
)

_finite = st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Process, st.text(), st.text(), st.text(), st.text(), st.integers()),
    st.builds(Ready, st.integers(), st.integers(), st.text(), _finite, st.booleans()),
    st.builds(Stage, st.text(), st.text(), _finite, _finite),
    st.builds(Done, st.text(), st.dictionaries(st.text(), _json)),
    st.builds(Failed, st.none() | st.text(), st.text(), st.text(), st.text(), st.booleans()),
)


def _frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@given(_messages)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    """What was encoded decodes to an equal message."""
    assert decode(encode(message)) == message


@given(st.lists(_messages, max_size=4), st.integers(min_value=1, max_value=50))
def test_frames_are_found_however_the_bytes_arrive(messages: list[Message], size: int) -> None:
    """A stream cut into pieces of any size gives the same messages in the same order."""
    stream = b"".join(encode(message) for message in messages)
    decoder = Decoder()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [found for piece in pieces for found in decoder.feed(piece)] == messages
    assert not decoder.pending


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_protocol_error(data: bytes) -> None:
    """Arbitrary bytes are messages, an unfinished frame, or a ProtocolError, and never else."""
    decoder = Decoder()
    with suppress(ProtocolError):
        messages = list(decoder.feed(data))
        assert decoder.pending or messages or not data


def test_a_path_that_is_no_utf8_passes() -> None:
    """A file name with undecodable bytes (surrogates in Python) reaches the other side."""
    message = Process("a", "/x/\udcff.mp3", "/y", "é\n\x00")
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"type": "unheard"}', "no known type"),
        (b"{}", "no known type"),
        (b'{"type": ["done"]}', "no known type"),
        (b'{"type": "done", "task_id": "a"}', "Done has the fields task_id, manifest"),
        (b'{"type": "done", "task_id": "a", "manifest": {}, "x": 1}', "found: manifest, task_id"),
        (b'{"type": "done", "task_id": 1, "manifest": {}}', "Done.task_id is not str but int"),
        (b'{"type": "done", "task_id": "a", "manifest": []}', "not dict[str, Any] but list"),
        (b'{"type": "done", "task_id": "a", "manifest": {"n": NaN}}', "NaN is not a JSON number"),
        (
            b'{"type": "ready", "protocol": true, "pid": 1, "device": "", "load_seconds": 0, '
            b'"halves": false}',
            "Ready.protocol is not int but bool",
        ),
        (b'{"type": "done", "manifest": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_garbage_is_named(body: bytes, reason: str) -> None:
    """A frame that is no message raises a ProtocolError that says what is wrong with it."""
    with pytest.raises(ProtocolError) as caught:
        decode(_frame(body))
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_frame_has_a_largest_size() -> None:
    """A length beyond the limit is refused before the bytes arrive, and is never sent."""
    with pytest.raises(ProtocolError, match="the most is"):
        list(Decoder().feed(struct.pack(">I", MAX_FRAME_BYTES + 1)))
    with pytest.raises(ProtocolError, match="the most is"):
        encode(Done("a", {"text": "x" * MAX_FRAME_BYTES}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", object(), {1, 2}])
def test_what_json_cannot_hold_is_not_sent(value: object) -> None:
    """A manifest with a value outside JSON raises a ProtocolError at the sender."""
    with pytest.raises(ProtocolError, match="not expressible in JSON"):
        encode(Done("a", {"value": value}))


@pytest.mark.parametrize("cut", [0, 3, 4, 20])
def test_a_cut_frame_is_not_a_message(cut: int) -> None:
    """`decode` wants one whole frame; the stream's decoder waits for the rest."""
    frame = encode(Stage("a", "export", 1.0, 2.0))[:cut]
    with pytest.raises(ProtocolError, match="not one whole frame"):
        decode(frame)
    decoder = Decoder()
    assert list(decoder.feed(frame)) == []
    assert decoder.pending == (cut > 0)


def test_the_length_is_four_bytes_big_endian() -> None:
    """The frame is a length and JSON, readable by any language."""
    frame = encode(Stage("a", "export", 1.0, 2.0))
    assert struct.unpack(">I", frame[:4]) == (len(frame) - 4,)
    assert json.loads(frame[4:])["type"] == "stage"
