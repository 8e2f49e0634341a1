"""What must be true of a bucket when everything has come to rest, and at the very end."""

from __future__ import annotations

import json

from emiliad.queue.claims import State, parse_claim
from tests.emiliad.queue_kit import LAYOUT, ids
from tests.sim.bucket import Bucket, Violation


def unrest(bucket: Bucket) -> list[str]:
    """Tasks that are neither failed nor finished."""
    todo, claims = ids(bucket, LAYOUT.todo), ids(bucket, LAYOUT.claims)
    return sorted((todo - failed(bucket)) | (claims - todo - ids(bucket, LAYOUT.completed)))


def failed(bucket: Bucket) -> set[str]:
    """Tasks whose claim says that they have failed."""
    return {
        name
        for name in ids(bucket, LAYOUT.claims)
        if parse_claim(name, bucket.objects[LAYOUT.claim_key(name)]).state is State.FAILED
    }


def audio_of(bucket: Bucket, prefix: str) -> set[str]:
    """The audio keys that the records under a prefix name."""
    bodies = [body for key, body in bucket.objects.items() if key.startswith(prefix)]
    return {str(json.loads(body).get("audio_key")) for body in bodies}


def judge_promises(bucket: Bucket, promised: set[str]) -> None:
    """No task is lost: every file that an `enqueue` said to be in the queue has come to an end."""
    records = (LAYOUT.completed, LAYOUT.claims, LAYOUT.failed)
    lost = promised.difference(*(audio_of(bucket, prefix) for prefix in records))
    if lost:
        raise Violation(f"lost: {sorted(lost)}")


def judge_end(bucket: Bucket, old_letters: set[str]) -> None:
    """All raw files have a result, all results are whole, and nothing else is left.

    `old_letters`: dead letters of the old scripts, which have neither claim nor todo.
    """
    dead, done = failed(bucket), ids(bucket, LAYOUT.completed)
    ended = audio_of(bucket, LAYOUT.completed) | audio_of(bucket, LAYOUT.failed)
    raw = {key for key in bucket.objects if key.startswith(LAYOUT.raw)}
    packs = {
        key.removeprefix(LAYOUT.outputs).partition("/")[0]
        for key in bucket.objects
        if key.startswith(LAYOUT.outputs)
    }
    for wrong, what in (
        (raw - ended, "have no result"),
        ({name for name in done if bucket.flaw(name)}, "are not whole"),
        (done & dead, "are completed and failed"),
        (ids(bucket, LAYOUT.todo) ^ dead, "have a todo and not failed, or failed without"),
        (ids(bucket, LAYOUT.claims) - dead, "have a claim that is left over"),
        ((ids(bucket, LAYOUT.failed) ^ dead) - old_letters, "have a wrong dead letter"),
        (packs - dead, "have a pack that is left over"),
    ):
        if wrong:
            raise Violation(f"at the end, {sorted(wrong)} {what}")
    if bucket.violation is not None:
        raise Violation(bucket.violation)
