"""Another source for a timeline that exists, and a new start for one whose slot is lost (docs/decisions/0008).

    stop the source ─▶ flush, upload ─▶ ask the primary, hold its WAL ─▶ store the document ─▶ start the source

Whatever fails on the way, the source that the stored document describes runs again. One change of a timeline at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from pageserver.config import RepositoryKind
from pageserver.errors import ConflictError, PageServerError, PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.remote.source_document import SourceDocument
from pageserver.tenant.source_slot import SourceSlot
from pageserver.tenant.sources import TenantSources
from pageserver.tenant.way_in import WayIn
from pageserver.timeline import Timeline, TimelineInfo


class _Owner(Protocol):
    """What is asked of the tenant."""

    @property
    def repository_kind(self) -> RepositoryKind: ...
    def check_active(self) -> None: ...
    def get_timeline(self, timeline_id: TimelineId) -> Timeline: ...
    def is_busy(self, timeline_id: TimelineId) -> bool: ...


class SourceChanges:
    """Changes of the sources of one tenant's timelines."""

    def __init__(
        self,
        owner: _Owner,
        way_in: WayIn,
        sources: TenantSources,
        *,
        slot_of: Callable[[Timeline], SourceSlot],
        log: Any,
    ) -> None:
        self._owner = owner
        self._way_in = way_in
        self._sources = sources
        self._slot_of = slot_of
        self._log = log
        self._changing: set[TimelineId] = set()

    async def set_primary(self, timeline_id: TimelineId, options: Mapping[str, Any]) -> TimelineInfo:
        """Have a timeline go on from the primary of `options` (`conninfo`). Durable when this returns.

        Raises: what `WayIn.prepare_takeover` raises; ConflictError.
        """
        async with self._changing_source(timeline_id) as timeline:
            slot = self._slot_of(timeline)
            before = timeline.document
            prepared = await self._way_in.prepare_takeover(slot, options)
            try:
                # The engine first, for it may refuse; nothing reads or writes WAL of the new kind yet.
                timeline.document = SourceDocument(dict(prepared.body))
                timeline.tell_traits()
                await slot.save_document(prepared.body)
            except BaseException:
                timeline.document = before
                timeline.tell_traits()
                with contextlib.suppress(Exception):
                    await prepared.undo()
                raise
            self._log.info("source set", timeline=str(timeline_id), connection=prepared.body.get("connection"))
        return timeline.detail()

    async def resync(self, timeline_id: TimelineId, *, force: bool) -> TimelineInfo:
        """Have a new base backup taken into a timeline whose slot is lost; the history gets a gap.

        The wish is durable when this returns, the rest goes on by itself, over restarts; the timeline's detail tells.
        Raises: ConflictError (WAL comes, so that a gap would be needless; `force` makes one all the same),
        PreconditionFailedError (no primary, or pages are kept in RocksDB).
        """
        self._owner.check_active()
        if self._owner.repository_kind != "layered":
            raise PreconditionFailedError(
                f'a tenant with repository = "{self._owner.repository_kind}" cannot be resynchronised',
                hint="import the primary as a new timeline",
            )
        self._way_in.document_of_resync(self._slot_of(self._owner.get_timeline(timeline_id)))
        if not (force or self._sources.status(timeline_id).is_lost):
            raise ConflictError(
                "the timeline's slot is not known to be lost, and a resync would leave a gap in its history",
                hint="`force` takes a new base backup all the same",
            )
        async with self._changing_source(timeline_id) as timeline:
            slot = self._slot_of(timeline)
            await slot.save_document(self._way_in.document_of_resync(slot))
            self._log.info("resync asked for", timeline=str(timeline_id), last_record_lsn=str(timeline.last_record_lsn))
        return timeline.detail()

    async def describe(self, timeline_id: TimelineId) -> dict[str, Any]:
        """Return where a timeline's WAL comes from, and what the primary keeps for it, in JSON."""
        timeline = self._owner.get_timeline(timeline_id)
        status = self._sources.status(timeline_id)
        return {
            **await self._way_in.describe_source(self._slot_of(timeline)),
            "status": status.text,
            "error": status.error,
            "slot_lost": status.is_lost,
            "last_record_lsn": str(timeline.last_record_lsn),
            "durable_lsn": str(timeline.durable_lsn),
        }

    @contextlib.asynccontextmanager
    async def _changing_source(self, timeline_id: TimelineId) -> AsyncIterator[Timeline]:
        """Hold the timeline still, everything of it durable; afterwards run the source that its document describes."""
        self._owner.check_active()
        timeline = self._owner.get_timeline(timeline_id)
        if timeline_id in self._changing or self._owner.is_busy(timeline_id):
            raise ConflictError(f"timeline {timeline_id} is being changed already")
        if timeline.remote.is_archived:
            raise PreconditionFailedError(f"timeline {timeline_id} is archived", hint="unarchive it first")
        self._changing.add(timeline_id)
        try:
            if await self._slot_of(timeline).is_overtaken():
                raise PreconditionFailedError(
                    "another server has the tenant in a newer generation, and with it the replication slot",
                    hint="ask that server",
                )
            await self._sources.stop(timeline_id)
            try:
                await timeline.freeze_and_flush()
                yield timeline
            finally:
                if self._still_serves(timeline):
                    self._sources.start(self._slot_of(timeline))
        finally:
            self._changing.discard(timeline_id)

    def _still_serves(self, timeline: Timeline) -> bool:
        """Return whether the timeline was neither stopped nor deleted while it was held."""
        try:
            self._owner.check_active()
            is_here = self._owner.get_timeline(timeline.timeline_id) is timeline
        except PageServerError:
            return False
        return is_here and not self._owner.is_busy(timeline.timeline_id)
