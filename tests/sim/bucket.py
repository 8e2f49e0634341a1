"""The store of the simulation: it judges each write when it happens, by the protocol's invariants.

T1  a commit record is created once and never changes
T2  a todo is deleted only after its task's outputs are published whole
T3  a pack is deleted only after a commit names another, or after its own was published
--  nothing is published that the commit record does not name, byte for byte
--  a claim that is the only trace of its task is not deleted
"""

from __future__ import annotations

import json
from hashlib import md5
from typing import Any

from emiliad.queue.tasks import SUFFIX, id_of
from emiliad.stores.memory import MemoryStore
from tests.emiliad.queue_kit import LAYOUT


class Violation(AssertionError):
    """The protocol broke an invariant."""


class Bucket(MemoryStore):
    """A store in memory that remembers the first `violation`."""

    def __init__(self) -> None:
        super().__init__()
        self.violation: str | None = None
        self.commits = 0

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        before = self.objects.get(key)
        etag = await super().put(key, body, if_absent=if_absent, if_match=if_match)
        if key.startswith(LAYOUT.completed):
            self.commits += 1
            if before is not None:
                self._blame(f"T1: {key} was created twice")
        elif key.startswith(LAYOUT.processed):
            self._judge_publication(key, body)
        return etag

    async def delete(self, key: str) -> None:
        if key in self.objects:
            self._judge_deletion(key)
        await super().delete(key)

    def record(self, episode_id: str) -> dict[str, Any] | None:
        """The commit record of a task."""
        body = self.objects.get(LAYOUT.completed_key(episode_id))
        return None if body is None else dict(json.loads(body))

    def flaw(self, episode_id: str) -> str | None:
        """What is wrong with the outputs of a task; None if they are published whole."""
        record = self.record(episode_id)
        if record is None:
            return "it is not committed"
        if "outputs" not in record:  # an old script's
            return None
        prefix = record["published"]
        found = {
            key.removeprefix(prefix): body
            for key, body in self.objects.items()
            if key.startswith(prefix)
        }
        if {name: _facts(body) for name, body in found.items()} != record["outputs"]:
            return "its outputs are not those of the commit"
        rows = json.loads(found["all_segments.json"])
        if len(rows) != record["segments"] or len(found) != record["segments"] + 2:
            return "its segments are not as many as the commit says"
        return None

    def _judge_publication(self, key: str, body: bytes) -> None:
        prefix, _, name = key.rpartition("/")
        record = self.record(prefix.rpartition("/")[2])
        if record is None:
            self._blame(f"{key} was published before the commit")
        elif record.get("outputs", {}).get(name) != _facts(body):
            self._blame(f"{key} was published, and is not in the commit")

    def _judge_deletion(self, key: str) -> None:
        if key.startswith(LAYOUT.completed):
            self._blame(f"{key} was deleted")
        elif (done := id_of(key, LAYOUT.todo)) is not None:
            if (flaw := self.flaw(done)) is not None:
                self._blame(f"T2: {key} was deleted, but {flaw}")
        elif key.startswith((LAYOUT.claims, LAYOUT.failed)):
            self._judge_trace(key)
        elif key.startswith(LAYOUT.outputs):
            self._judge_pack(key)

    def _judge_trace(self, key: str) -> None:
        name = key.rpartition("/")[2].removesuffix(SUFFIX)
        others = {LAYOUT.todo_key(name), LAYOUT.claim_key(name), LAYOUT.completed_key(name)}
        if not (others - {key}) & self.objects.keys():
            self._blame(f"{key} was deleted, the only trace of its task")

    def _judge_pack(self, key: str) -> None:
        episode_id, _, nonce = key.removeprefix(LAYOUT.outputs).removesuffix(".tar").partition("/")
        record = self.record(episode_id)
        if record is None:
            self._blame(f"T3: {key} was deleted before any commit")
        elif record.get("pack") == nonce and (flaw := self.flaw(episode_id)) is not None:
            self._blame(f"T3: {key} was deleted, but {flaw}")

    def _blame(self, violation: str) -> None:
        self.violation = self.violation or violation


def _facts(body: bytes) -> dict[str, Any]:
    return {"size": len(body), "md5": md5(body, usedforsecurity=False).hexdigest()}
