"""Who deletes timelines of an attached shard, and when: the steps are in `deletion` (tenants.md 12).

    refuse: children, busy ─▶ stop ─▶ mark ─▶ (offloaded: out of the manifest) ─▶ answer ─▶ steps in the background,
    the first of which drops the replication slot (`primary_slots`)

Invariant: what was answered goes on after a crash. A load sees the mark in the index; the index of an offloaded
timeline is not read, so the manifest lets go of it between the mark and the answer.
"""

from __future__ import annotations

from pageserver.errors import ConflictError, NotFoundError, PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.remote import paths
from pageserver.remote.source_document import SourceDocument
from pageserver.tenant.archival import Archival, TimelineHost
from pageserver.tenant.deletion import check_may_delete, delete_timeline_objects, mark_deleted
from pageserver.tenant.names import TenantNames
from pageserver.tenant.parts import TenantParts
from pageserver.tenant.placeholder import Placeholder
from pageserver.tenant.primary_slots import drop_slots, read_document_patiently
from pageserver.tenant.sources import TenantSources
from pageserver.timeline import Timeline, TimelineState, TimelineStatus


class TimelineDeletions:
    """The deletions of one attached shard."""

    def __init__(
        self,
        host: TimelineHost,
        parts: TenantParts,
        *,
        sources: TenantSources,
        archival: Archival,
        names: TenantNames,
    ) -> None:
        self._host = host
        self._parts = parts
        self._sources = sources
        self._archival = archival
        self._names = names
        self._running: set[TimelineId] = set()
        self.buried: set[TimelineId] = set()
        """Ids that have a tombstone of our own generation."""

    def is_running(self, timeline_id: TimelineId) -> bool:
        """Return whether the timeline is being deleted."""
        return timeline_id in self._running

    async def begin(self, timeline_id: TimelineId) -> None:
        """Mark a timeline as deleted, durably, and go on in the background. Raises NotFoundError, ConflictError,
        PreconditionFailedError (children), StaleDeletionError, and what the store raised.
        """
        await self._archival.settle(timeline_id)
        # A branch that is being made counts as a child only when it is open; from here on none is begun.
        async with self._parts.exclusion:
            entry = self._host.timelines.get(timeline_id)
            record = self._archival.offloaded.get(timeline_id)
            if entry is None and record is None:
                raise NotFoundError("timeline not found", timeline_id=timeline_id)
            if self._host.is_busy(timeline_id) or self._archival.is_moving(timeline_id):
                raise ConflictError("Timeline deletion is already in progress", timeline_id=timeline_id)
            children = self._archival.children(timeline_id)
            if children:
                shown = ", ".join(str(child) for child in children)
                raise PreconditionFailedError(
                    f"Cannot delete timeline which has child timelines: [{shown}]", children=children
                )
            self._running.add(timeline_id)
        try:
            await check_may_delete(self._parts.resources, self._parts.shard, self._parts.generation)
            timeline = entry if isinstance(entry, Timeline) else None
            if timeline is not None:
                await self._parts.running.stop(timeline)
            else:
                await self._sources.stop(timeline_id)
            document = await self._read_document(timeline_id)
            failpoints = self._parts.resources.failpoints
            await failpoints.fail("timeline-delete-before-index-deleted-at", text="failpoint: {}")
            await mark_deleted(self._parts.resources, self._parts.shard, timeline_id, self._parts.generation, timeline)
            if record is not None:
                await self._archival.forget_deleted(record)
            await failpoints.fail("timeline-delete-before-schedule", text="failpoint: {}")
        except BaseException:
            self._running.discard(timeline_id)
            raise
        self._spawn(timeline_id, document)

    async def unbury(self, timeline_id: TimelineId) -> None:
        """Let an id be used again in this generation: before anything of the new timeline is stored."""
        if timeline_id in self.buried:
            await self._parts.resources.storage.delete(
                [paths.tombstone_key(self._parts.shard, timeline_id, self._parts.generation)]
            )
            self.buried.discard(timeline_id)

    def resume(self, timeline_id: TimelineId) -> None:
        """Go on with a deletion that a load found marked."""
        self._running.add(timeline_id)
        self._host.timelines[timeline_id] = Placeholder(timeline_id, TimelineState(TimelineStatus.STOPPING))
        self._spawn(timeline_id, None)

    async def _read_document(self, timeline_id: TimelineId) -> SourceDocument | None:
        storage, generation = self._parts.resources.storage, self._parts.generation
        return await read_document_patiently(storage, self._parts.shard, timeline_id, generation, log=self._parts.log)

    def _spawn(self, timeline_id: TimelineId, document: SourceDocument | None) -> None:
        """Begin the steps. The source's document may be gone by then, if the timeline had no index to mark."""
        self._parts.tasks.spawn(
            self._finish(timeline_id, document),
            name=f"delete {timeline_id}",
            on_failure=lambda error: self._failed(timeline_id, error),
        )

    async def _finish(self, timeline_id: TimelineId, document: SourceDocument | None) -> None:
        document = document or await self._read_document(timeline_id)
        if document is not None:
            await drop_slots(self._parts.resources.way_in, {str(timeline_id): document}, log=self._parts.log)
        failpoints = self._parts.resources.failpoints
        await failpoints.fail("timeline-delete-before-rm", text="failpoint: {}")
        await self._names.forget(timeline_id)
        await self._parts.opener.drop_directory(timeline_id)
        await failpoints.fail("timeline-delete-after-rm", text="failpoint: {}")
        leaves_tombstone = self._parts.resources.stores_layers
        await delete_timeline_objects(
            self._parts.resources,
            self._parts.shard,
            timeline_id,
            self._parts.generation,
            leaves_tombstone=leaves_tombstone,
        )
        if leaves_tombstone:
            self.buried.add(timeline_id)
        await failpoints.pause("in_progress_delete")
        self._host.timelines.pop(timeline_id, None)
        self._running.discard(timeline_id)
        await self._archival.upload_manifest()
        self._parts.log.info("timeline deleted", timeline=str(timeline_id))

    def _failed(self, timeline_id: TimelineId, error: Exception) -> None:
        self._parts.log.error("timeline deletion failed", timeline=str(timeline_id), error=str(error))
        self._running.discard(timeline_id)
        self._host.timelines[timeline_id] = Placeholder(timeline_id, TimelineState(TimelineStatus.BROKEN, str(error)))
