"""The queue's objects: where they lie, what tasks are called, and what the records say."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from emiliad.errors import BadTask
from emiliad.types import TaskRef

VERSION = 1  # of the JSON that we write
SUFFIX = ".task"
UNKNOWN_LANGUAGE = "unknown"  # the folder of outputs whose task names no language

_ID_BYTES = 200  # `_000000.mp3` and `.task` are added, and a file's name holds 255
_HASH_DIGITS = 8
_NO_NAMES = frozenset({"", ".", ".."})
# What no id may hold: slashes, control characters, line ends, halves of surrogate pairs.
_UNUSABLE = re.compile("[/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Layout:
    """The prefixes of all keys; each is empty or ends in `/`."""

    raw: str
    processed: str
    todo: str
    claims: str
    completed: str
    failed: str
    outputs: str
    probes: str

    @classmethod
    def under(
        cls,
        raw_prefix: str = "raw_audio/",
        processed_prefix: str = "processed/",
        tasks_base: str = "tasks/",
        todo_prefix: str | None = None,
    ) -> Self:
        """The layout of the two old scripts' buckets. A missing slash at the end is added."""
        base = _folder(tasks_base)
        return cls(
            raw=_folder(raw_prefix),
            processed=_folder(processed_prefix),
            todo=_folder(todo_prefix or f"{base}processing_todo/"),
            claims=f"{base}processing_in_progress/",
            completed=f"{base}processing_completed/",
            failed=f"{base}processing_failed/",
            outputs=f"{base}processing_outputs/",
            probes=f"{base}probes/",
        )

    def todo_key(self, episode_id: str) -> str:
        return f"{self.todo}{episode_id}{SUFFIX}"

    def claim_key(self, episode_id: str) -> str:
        return f"{self.claims}{episode_id}{SUFFIX}"

    def completed_key(self, episode_id: str) -> str:
        return f"{self.completed}{episode_id}{SUFFIX}"

    def failed_key(self, episode_id: str) -> str:
        return f"{self.failed}{episode_id}{SUFFIX}"

    def packs(self, episode_id: str) -> str:
        """The prefix of all packs of a task, one for each attempt that got so far."""
        return f"{self.outputs}{episode_id}/"

    def pack_key(self, episode_id: str, nonce: str) -> str:
        return f"{self.packs(episode_id)}{nonce}.tar"

    def published(self, task: TaskRef) -> str:
        """The prefix of a task's outputs. A language that is no folder's name counts as unknown."""
        language = task.language if is_name(task.language) else UNKNOWN_LANGUAGE
        return f"{self.processed}{language}/{task.episode_id}/"

    def output_key(self, task: TaskRef, file: str) -> str:
        return self.published(task) + file


def _folder(prefix: str) -> str:
    stripped = prefix.strip("/")
    return f"{stripped}/" if stripped else ""


def id_of(key: str, prefix: str) -> str | None:
    """The id of the task whose object under `prefix` this is; None for other things there."""
    if not key.startswith(prefix) or not key.endswith(SUFFIX):
        return None
    name = key[len(prefix) : -len(SUFFIX)]
    return name if name and "/" not in name else None


def episode_id(audio_key: str) -> str:
    """What a raw file's task is called: its name without extension, if that can be one.

    A name of more than 200 bytes of UTF-8, or with characters that no file's name should hold,
    gives `hashed_id` instead. All ids are in Unicode form NFC.
    """
    stem = _stem(audio_key)
    return stem if is_name(stem) else hashed_id(audio_key)


def hashed_id(audio_key: str) -> str:
    """The id of a file whose plain one is unusable or taken: `<name>-<8 hex of the key's hash>`."""
    digest = hashlib.sha256(audio_key.encode("utf-8", "surrogatepass")).hexdigest()
    stem = _stem(audio_key)
    name = "_" if stem in _NO_NAMES else _UNUSABLE.sub("_", stem)
    kept = name.encode()[: _ID_BYTES - _HASH_DIGITS - 1].decode("utf-8", "ignore")
    return f"{kept}-{digest[:_HASH_DIGITS]}"


def _stem(audio_key: str) -> str:
    name = audio_key.rpartition("/")[2]
    stem, dot, _ = name.rpartition(".")
    return unicodedata.normalize("NFC", stem if dot else name)


def is_name(text: str) -> bool:
    """Whether `text` can be a part of a key and of a path: what every id of ours is."""
    if text in _NO_NAMES or _UNUSABLE.search(text):
        return False
    return len(text.encode()) <= _ID_BYTES


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON for people too; what UTF-8 cannot hold becomes `?`."""
    return json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "replace")


def task_keys(task: TaskRef) -> dict[str, Any]:
    """The three keys that every record of a task holds."""
    return {
        "episode_id": task.episode_id,
        "language": task.language,
        "audio_key": task.audio_key,
    }


def todo_body(task: TaskRef) -> bytes:
    """The content of a task's todo object."""
    return to_json({**task_keys(task), **task.extra})


def parse_task(key: str, body: bytes) -> TaskRef:
    """The task that the object `key` states. Raises BadTask, with the reason, if it states none."""
    content = parse_object(key, body)
    values = []
    for name in ("episode_id", "language", "audio_key"):
        if name not in content:
            raise BadTask(f"{key} lacks the key {name}")
        if not isinstance(content[name], str):
            raise BadTask(f"{key}: {name} is {content[name]!r:.100}, which is no text")
        values.append(content.pop(name))
    episode, language, audio_key = values
    named = key.rpartition("/")[2].removesuffix(SUFFIX)
    if unicodedata.normalize("NFC", episode) != unicodedata.normalize("NFC", named):
        raise BadTask(f"{key} says that it is {episode!r:.300}")
    if not audio_key:
        raise BadTask(f"{key} names no audio: its audio_key is empty")
    return TaskRef(named, language, audio_key, content)


def parse_object(key: str, body: bytes) -> dict[str, Any]:
    """The JSON object that stands under `key`. Raises BadTask."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadTask(f"{key} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadTask(f"{key} is JSON, but no object")
    return content


@dataclass(frozen=True, slots=True)
class Output:
    """A file of the outputs, as the winning attempt made it."""

    size: int  # bytes
    md5: str  # hex


@dataclass(frozen=True, slots=True)
class Completed:
    """The commit record. Old buckets' records state no outputs: `outputs` is None."""

    task: TaskRef
    owner: str = ""
    attempt: int = 0
    finished: str = ""  # ISO 8601, UTC
    pack: str = ""  # the nonce of the pack that holds the outputs
    published: str = ""  # the prefix under which they are to be published
    outputs: Mapping[str, Output] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # segments, audio_seconds, ...

    def body(self) -> bytes:
        """The record as JSON."""
        return to_json(
            {
                "v": VERSION,
                **task_keys(self.task),
                "owner": self.owner,
                "attempt": self.attempt,
                "finished": self.finished,
                **self.facts,
                "pack": self.pack,
                "published": self.published,
                "outputs": {
                    name: {"size": output.size, "md5": output.md5}
                    for name, output in (self.outputs or {}).items()
                },
            }
        )


FACTS = ("segments", "audio_seconds", "stage_seconds", "config_hash", "models")


def parse_completed(episode_id: str, body: bytes) -> Completed:
    """Whatever stands under a completed key is a commit; what it does not say stays empty."""
    try:
        content = parse_object(episode_id, body)
        outputs = {
            str(name): Output(int(facts["size"]), str(facts["md5"]))
            for name, facts in content["outputs"].items()
        }
    except BadTask:
        return Completed(TaskRef(episode_id, "", ""))
    except (KeyError, TypeError, ValueError, AttributeError):
        return Completed(lenient_task(episode_id, content))
    return Completed(
        lenient_task(episode_id, content),
        owner=str(content.get("owner", "")),
        attempt=int(content.get("attempt", 0)),
        finished=str(content.get("finished", "")),
        pack=str(content.get("pack", "")),
        published=str(content.get("published", "")),
        outputs=outputs,
        facts={name: content[name] for name in FACTS if name in content},
    )


def lenient_task(episode_id: str, content: Mapping[str, Any]) -> TaskRef:
    """The task that a record of ours or of the old scripts is about, as far as it says."""

    def text(name: str) -> str:
        value = content.get(name)
        return value if isinstance(value, str) else ""

    return TaskRef(episode_id, text("language"), text("audio_key"))
