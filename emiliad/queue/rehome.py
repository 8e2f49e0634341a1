"""Moves todos whose ids are of no use to the ids that `enqueue` gives such files.

Another producer may name a task so that no folder, file or claim can be named after it: with more
than 200 bytes, or control characters. Its raw file's hashed id serves instead. The new todo stands
before the old one goes, so the task is not lost, and whoever repeats this does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from emiliad import logs
from emiliad.errors import Ambiguous, BadTask, InvalidKey, NotFound
from emiliad.patience import Patience
from emiliad.queue.cas import ABSENT, Verdict, cas
from emiliad.queue.claims import ClaimRecord, Stamp
from emiliad.queue.tasks import Layout, hashed_id, lenient_task, parse_object, todo_body
from emiliad.store import Store
from emiliad.types import Failure, TaskRef

_log = logs.get("rehome")


async def rehome(
    store: Store, layout: Layout, key: str, *, stamp: Callable[[], Stamp], patience: Patience
) -> bool:
    """Moves the todo `key`. False: it names no audio, and a dead letter that says so remains.

    Raises Ambiguous if nobody can say whether the new todo stands; the old one stays then.
    """
    try:
        body = (await store.get(key)).body
    except NotFound:
        return True  # another node was faster
    named = key.removeprefix(layout.todo).removesuffix(".task")
    try:
        task = lenient_task(named, parse_object(key, body))
        if not task.audio_key:
            raise BadTask(f"{key} names no audio")
    except BadTask as error:
        await _bury(store, layout, key, str(error), stamp())
        return False
    home = replace(task, episode_id=hashed_id(task.audio_key))
    todo = layout.todo_key(home.episode_id)
    if await cas(store, todo, todo_body(home), ABSENT, patience=patience) is Verdict.UNKNOWN:
        raise Ambiguous(f"nobody can say whether {todo} was written")
    _log.warning("todo.renamed", episode_id=home.episode_id, key=key[:300])
    await _remove(store, layout, key, named)
    return True


async def _bury(store: Store, layout: Layout, key: str, reason: str, stamp: Stamp) -> None:
    task = TaskRef(hashed_id(key), "", "")
    letter = ClaimRecord(task).give_up(stamp, Failure("bad_task", reason)).dead_letter()
    await store.put(layout.failed_key(task.episode_id), letter)
    _log.warning("task.given_up", episode_id=task.episode_id, reason=reason[:600])
    await _remove(store, layout, key, key.removeprefix(layout.todo).removesuffix(".task"))


async def _remove(store: Store, layout: Layout, key: str, named: str) -> None:
    """A claim without a todo would have it put again, so it goes too; there may never be one."""
    await store.delete(key)
    with suppress(InvalidKey):
        await store.delete(layout.claim_key(named))
