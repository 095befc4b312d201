"""The place that a WAL source fills: a timeline that may not exist yet, and the document that outlives restarts.

What happens to a timeline from a primary, and what a crash leaves:

    prepare   document {state: importing} stored          crash before: nothing; after: the import starts again from
    nothing begin     empty directory, timeline open, Loading     crash: the directory has no index and is removed, the
    import starts again publish   image layers named by the first index       crash: the document still says importing:
    all of it is dropped and begun again finish    document without that state; timeline Active   from here a restart
    goes on streaming at disk_consistent_lsn
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pageserver.ids import Generation, ShardIdentity, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote.source_document import SourceDocument, SourceTraits
from pageserver.timeline import Timeline


@dataclass(frozen=True, slots=True)
class RootParameters:
    """How to begin a timeline without ancestor. Its first layers are images at `start_lsn`, and ingest goes on from
    there.

    `readable_from` is where reads become legal (the end of a base backup), if that is known already and later than
    `start_lsn`. `prev_record_lsn` is where the last record before `start_lsn` begins, if that is known.
    """

    pg_version: int
    start_lsn: Lsn
    traits: SourceTraits
    readable_from: Lsn | None = None
    prev_record_lsn: Lsn | None = None


@dataclass(frozen=True, slots=True)
class SlotActions:
    """What the tenant does for a slot."""

    save: Callable[[SourceDocument], Awaitable[None]]
    begin: Callable[[RootParameters], Awaitable[Timeline]]
    finish: Callable[[Timeline], None]
    is_overtaken: Callable[[], Awaitable[bool]]


class SourceSlot:
    """One timeline as its source sees it."""

    def __init__(
        self,
        *,
        shard: TenantShardId,
        identity: ShardIdentity,
        timeline_id: TimelineId,
        generation: Generation,
        document: SourceDocument | None,
        timeline: Timeline | None,
        actions: SlotActions,
    ) -> None:
        self.tenant_shard_id = shard
        self.shard_identity = identity
        self.timeline_id = timeline_id
        self.generation = generation
        self.document = document
        self.timeline = timeline
        """None until `begin`; a timeline that was loaded is there from the start."""
        self._actions = actions

    async def save_document(self, body: Mapping[str, Any]) -> None:
        """Store the document under this generation; durable when this returns."""
        document = SourceDocument(dict(body))
        await self._actions.save(document)
        self.document = document
        if self.timeline is not None:
            self.timeline.document = document

    async def begin(self, root: RootParameters) -> Timeline:
        """Open an empty timeline to be filled. What an earlier attempt left is dropped first."""
        self.timeline = await self._actions.begin(root)
        return self.timeline

    async def is_overtaken(self) -> bool:
        """Ask whether another server has the tenant in a newer generation: then it may also have our replication slot.

        Raises UnavailableError.
        """
        return await self._actions.is_overtaken()

    async def finish(self, body: Mapping[str, Any]) -> None:
        """Declare the import complete: the index is published; store the document without its importing state;
        activate.

        Must be called after the first `publish_layers`: a crash between the two repeats the import.
        """
        assert self.timeline is not None, "an import finishes what it began"
        assert not SourceDocument(dict(body)).is_importing, "a finished import does not say that it imports"
        await self.save_document(body)
        self._actions.finish(self.timeline)

    def activate(self) -> None:
        """Declare a creation complete whose document was stored before its index."""
        assert self.timeline is not None and self.document is not None, "a creation finishes what it began"
        self._actions.finish(self.timeline)
