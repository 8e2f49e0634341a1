"""What tasks are called, where their objects lie, and what the records say."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emiliad.errors import BadTask
from emiliad.queue.claims import ClaimRecord, Stamp, State, parse_claim
from emiliad.queue.tasks import (
    Completed,
    Layout,
    Output,
    episode_id,
    hashed_id,
    id_of,
    parse_completed,
    parse_task,
    todo_body,
)
from emiliad.types import Failure, TaskRef
from pipeline.naming import safe_name

TASK = TaskRef("one", "en", "raw_audio/en/one.mp3")


@pytest.mark.parametrize(
    ("audio_key", "expected"),
    [
        ("raw_audio/en/show/one.mp3", "one"),
        ("one.mp3", "one"),
        ("raw_audio/en/a.b.c.wav", "a.b.c"),
        ("raw_audio/en/no extension", "no extension"),
        ('raw_audio/en/it\'s "quoted" & 100 % fun.mp3', 'it\'s "quoted" & 100 % fun'),
        ("raw_audio/ja/日本語 🎙.ogg", "日本語 🎙"),
        ("raw_audio/fr/cafe\u0301.mp3", "caf\u00e9"),
    ],
)
def test_a_task_is_called_as_its_file(audio_key: str, expected: str) -> None:
    """The file's name without its extension, in NFC, whatever else it holds."""
    assert episode_id(audio_key) == expected


@pytest.mark.parametrize(
    ("audio_key", "begins"),
    [
        ("raw/a\nb.mp3", "a_b-"),
        ("raw/tab\there.mp3", "tab_here-"),
        ("raw/nul\0.mp3", "nul_-"),
        ("raw/line\u2028end.mp3", "line_end-"),
        ("raw/bad\udcff.mp3", "bad_-"),
        ("raw/.mp3", "_-"),
        ("raw/..mp3", "_-"),
        ("raw/...mp3", "_-"),
        ("raw/" + "x" * 201 + ".mp3", "x" * 191 + "-"),
        ("raw/" + "é" * 101 + ".mp3", "é" * 95 + "-"),
    ],
)
def test_an_unusable_name_is_replaced_and_hashed(audio_key: str, begins: str) -> None:
    """Too long, or with characters that no name should hold: 8 hex digits keep it apart."""
    found = episode_id(audio_key)
    assert found == hashed_id(audio_key)
    assert found.startswith(begins)
    assert len(found.encode()) <= 200
    assert len(found.removeprefix(begins)) == 8


def test_the_hash_is_that_of_the_audio_key() -> None:
    """Anybody can compute it: sha256 of the key's UTF-8, 8 hex digits."""
    assert hashed_id("raw_audio/fr/one.mp3") == "one-418ad24b"


def test_a_name_of_200_bytes_is_kept() -> None:
    """The limit is inclusive, and counts bytes of UTF-8."""
    assert episode_id("x" * 200 + ".mp3") == "x" * 200
    assert episode_id("é" * 100 + ".mp3") == "é" * 100


@given(st.text(max_size=300), st.sampled_from([episode_id, hashed_id]))
def test_every_id_is_one_safe_name(key: str, name_of: object) -> None:
    """Whatever a file is called: one component, NFC, at most 200 bytes, as the pipeline has it."""
    assert callable(name_of)
    found = name_of(key)
    assert found == unicodedata.normalize("NFC", found)
    assert found not in ("", ".", "..")
    assert "/" not in found
    assert len(found.encode()) <= 200
    assert safe_name(found) == found


def test_the_keys_are_those_of_the_old_buckets() -> None:
    """The defaults, and the key of every object of a task."""
    layout = Layout.under()
    assert layout.raw == "raw_audio/"
    assert layout.todo_key("one") == "tasks/processing_todo/one.task"
    assert layout.claim_key("one") == "tasks/processing_in_progress/one.task"
    assert layout.completed_key("one") == "tasks/processing_completed/one.task"
    assert layout.failed_key("one") == "tasks/processing_failed/one.task"
    assert layout.pack_key("one", "n") == "tasks/processing_outputs/one/n.tar"
    assert layout.output_key(TASK, "episode.json") == "processed/en/one/episode.json"


def test_prefixes_may_lack_their_slash() -> None:
    """What users write is understood; the todo prefix can be anywhere; the root is a prefix."""
    layout = Layout.under("raw", "/out/", "", "elsewhere/todo")
    assert (layout.raw, layout.processed) == ("raw/", "out/")
    assert layout.todo_key("one") == "elsewhere/todo/one.task"
    assert layout.claim_key("one") == "processing_in_progress/one.task"


@pytest.mark.parametrize("language", ["", ".", "..", "a/b", "x\n", "y" * 201])
def test_a_language_that_is_no_folder_is_unknown(language: str) -> None:
    """No hint can lead outputs out of their place."""
    task = TaskRef("one", language, "k")
    assert Layout.under().published(task) == "processed/unknown/one/"


@pytest.mark.parametrize("key", ["p/", "p/x", "p/.task", "p/d/x.task", "q/x.task"])
def test_only_task_objects_have_an_id(key: str) -> None:
    """Folder markers and other files are none."""
    assert id_of(key, "p/") is None
    assert id_of("p/x.y.task", "p/") == "x.y"


def test_a_todo_says_what_it_was_given() -> None:
    """Extra keys are kept; equal tasks have equal bytes."""
    task = TaskRef("日本", "ja", "raw/日本.mp3", {"priority": 3})
    assert parse_task("todo/日本.task", todo_body(task)) == task
    assert "日本" in todo_body(task).decode()


def test_a_name_in_another_unicode_form_is_the_same() -> None:
    """R2 normalises keys; the body may hold the form that its writer had."""
    body = todo_body(TaskRef("cafe\u0301", "fr", "k"))
    assert parse_task("todo/caf\u00e9.task", body).episode_id == "caf\u00e9"


@pytest.mark.parametrize("missing", ["episode_id", "language", "audio_key"])
def test_a_todo_without_a_key_is_bad(missing: str) -> None:
    """The message names the object and the key."""
    content = {"episode_id": '"one"', "language": '"en"', "audio_key": '"k"'}
    del content[missing]
    body = "{" + ", ".join(f'"{key}": {value}' for key, value in content.items()) + "}"
    with pytest.raises(BadTask, match=f"todo/one.task lacks the key {missing}"):
        parse_task("todo/one.task", body.encode())


def test_a_claim_says_what_was_written() -> None:
    """Every field of every state survives."""
    stamp = Stamp("node", "nonce", 1_800_000_000.0)
    task = TaskRef("one", "en", "raw_audio/en/one.mp3", {"extra": [1]})
    leased = ClaimRecord(task).lease_to(stamp, task)
    failure = Failure("crash", "so sad", "Traceback")
    for record in (
        leased,
        leased.renew(stamp),
        leased.retry_later(stamp, failure, 30.0),
        leased.give_up(stamp, failure),
        leased.hand_back(stamp),
    ):
        assert parse_claim("one", record.body()) == record
    assert leased.leased == "2027-01-15T08:00:00+00:00"


def test_what_utf8_cannot_hold_does_not_break_a_record() -> None:
    """A traceback may hold halves of surrogate pairs, from a file's odd name."""
    record = ClaimRecord(TASK, State.LEASED, attempt=1)
    stamp = Stamp("node", "nonce", 0.0)
    told = record.give_up(stamp, Failure("error", "no such file: \udcff")).body()
    assert parse_claim("one", told).history[0].reason == "no such file: ?"


def test_a_commit_record_says_what_was_written() -> None:
    """Every field survives."""
    record = Completed(
        TASK,
        owner="node",
        attempt=2,
        finished="2027-01-15T08:00:00+00:00",
        pack="nonce",
        published="processed/en/one/",
        outputs={"episode.json": Output(2, "d41d8")},
        facts={"segments": 3, "audio_seconds": 60.5, "models": {"asr": "whisper"}},
    )
    assert parse_completed("one", record.body()) == record


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", todo_body(TASK), b'{"outputs": []}', b'{"outputs": {"a": {"size": "x"}}}'],
)
def test_whatever_stands_under_a_completed_key_is_a_commit(body: bytes) -> None:
    """The old scripts' records name no outputs; a damaged one names none either."""
    record = parse_completed("one", body)
    assert record.task.episode_id == "one"
    assert record.outputs is None
