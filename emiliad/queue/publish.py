"""Commits an attempt: pack, commit record, publication, clean-up, in this order and no other.

The commit is one create-if-absent write of the record that names the attempt's pack (K). Before it
nothing of the attempt is visible, after it nothing can undo it, and whoever comes may finish it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from emiliad import logs
from emiliad.errors import Ambiguous, InvalidKey, Throttled
from emiliad.queue.cas import ABSENT, Verdict, cas
from emiliad.queue.leases import Leases
from emiliad.queue.outputs import Outputs
from emiliad.queue.pack import write_pack
from emiliad.queue.tasks import FACTS, Completed, Layout, Output
from emiliad.store import Store
from emiliad.types import Claim, Failure, Outcome, Processed

_log = logs.get("publish")


class Publisher:
    """Commits for the holder of `leases`."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        leases: Leases,
        *,
        concurrency: int = 8,
        outputs: Outputs | None = None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._leases = leases
        self._outputs = outputs or Outputs(store, layout, concurrency=concurrency)

    async def commit(
        self, processed: Processed, committed: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Commits and publishes an attempt's outputs; `committed` is called between the two.

        COMPLETED if this attempt's commit stands, be its outputs published already or not. LOST if
        another's does, or the store would not say (then it may yet turn out that this one does).
        RELEASED if the store took no outputs, RETRIED or FAILED if they could not be packed. To
        lose the lease meanwhile does not matter: do not stop a commit for that.
        """
        claim = processed.claim
        try:
            return await self._commit(processed, committed)
        except (OSError, InvalidKey) as error:
            failure = Failure("outputs", f"the outputs could not be packed: {error}")
            return await self._leases.fail(claim, failure)
        except (Ambiguous, Throttled) as error:
            _log.warning("store.busy", episode_id=claim.task.episode_id, reason=str(error))
            await self._leases.release(claim)
            return Outcome.RELEASED

    async def _commit(self, processed: Processed, committed: Callable[[], None]) -> Outcome:
        record = await self._pack(processed)
        key = self._layout.completed_key(record.task.episode_id)
        patience = self._leases.patience
        verdict = await cas(self._store, key, record.body(), ABSENT, patience=patience)
        match verdict:
            case Verdict.WON:
                committed()
                await self._finish(processed, record)
                return Outcome.COMPLETED
            case Verdict.LOST:
                return await self._yield(processed.claim)
            case Verdict.UNKNOWN:  # T4: pack and claim stay as they are
                await self._leases.forget(processed.claim)
                return Outcome.LOST

    async def _pack(self, processed: Processed) -> Completed:
        """S: packs and uploads the outputs, and says what is to be committed."""
        claim = processed.claim
        pack = processed.workdir / f"{claim.nonce}.tar"
        packed = await self._outputs.offload(partial(write_pack, processed.out_dir, pack))
        key = self._layout.pack_key(claim.task.episode_id, claim.nonce)
        await self._store.upload(key, pack)
        return self._record(processed, packed)

    def _record(self, processed: Processed, packed: Mapping[str, Output]) -> Completed:
        task = processed.claim.task
        stamp = self._leases.stamp()
        facts = {**processed.manifest, "stage_seconds": dict(processed.stage_seconds)}
        return Completed(
            task,
            owner=stamp.owner,
            attempt=processed.claim.attempt,
            finished=stamp.time,
            pack=processed.claim.nonce,
            published=self._layout.published(task),
            outputs=packed,
            facts={name: facts[name] for name in FACTS if name in facts},
        )

    async def _finish(self, processed: Processed, record: Completed) -> None:
        """P from our own files, and Z; what fails here is left to the next who comes by."""
        try:
            published = await self._outputs.publish(record, processed.out_dir)
            if published is not None:
                await self._leases.forget(processed.claim)
                await self._outputs.clean_up(published)
                return
            reason = "the outputs in the store are not those of the commit"
        except (Ambiguous, Throttled, InvalidKey, OSError) as error:
            reason = str(error)
        _log.error("publish.unfinished", episode_id=record.task.episode_id, reason=reason)
        await self._leases.release(processed.claim)

    async def _yield(self, claim: Claim) -> Outcome:
        """Another attempt's commit stands: finish that one, and drop our pack (T3)."""
        episode_id = claim.task.episode_id
        await self._leases.forget(claim)
        winner = await self._outputs.committed(episode_id)
        if winner is not None and winner.pack != claim.nonce:
            await self._store.delete(self._layout.pack_key(episode_id, claim.nonce))
            await self._outputs.finish(episode_id)
        return Outcome.LOST
