"""Archiving timelines, and letting archived ones go from this machine (tenants.md 13, remote-storage.md 6 and 14).

    unarchived ◀──▶ archived ──offload──▶ offloaded          archived: `archived_at` in the index; loaded, readable,
         ▲              ▲                     │               ingesting, but nothing branches off
         └──────────────┴─────unarchive───────┘               offloaded: objects, a line in the manifest, nothing else

Invariants
- What is not archived has an ancestor that is not archived: in memory and, since each step waits for its index, in the
  store. So an offloaded timeline never has a loaded child, and a load never misses an ancestor.
- A timeline is in `timelines` or in `offloaded`, never in both.
- The manifest names only timelines whose index in the store says archived, or deleted. It goes last when a timeline is
  offloaded and before `archived_at` is cleared when it comes back: a crash in between leaves an archived timeline that
  is loaded, which is offloaded or unarchived again by repeating the request.
- Objects are never touched. The record keeps the branch point, which pins the ancestor's history like a loaded child.

Offload                                                    a crash after it leaves
  1 refuse: children, not archived in the store, uploads
    pending; shut the upload queue in the same moment      loaded
  2 stop source, tasks, readers, engine                    loaded
  3 remove the local directory                             loaded, layers come back on demand
  4 move the record from `timelines` to `offloaded`        loaded
  5 upload the manifest                                    offloaded

Unarchive an offloaded one
  1 refuse: the ancestor is archived or offloaded          offloaded
  2 read index and source document, open                   offloaded
  3 move it back to `timelines`                            offloaded
  4 upload the manifest                                    archived, loaded
  5 run, activate, follow the source again                 archived, loaded
  6 clear `archived_at` in the index                       unarchived

Both run in a task of the tenant: a client that hangs up does not leave half of it. One at a time, and never while a
branch is made or garbage is collected (`exclusion`); two requests for one timeline are a conflict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from pageserver.errors import ConflictError, NotFoundError, PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.remote import IndexPart, ObjectNotFoundError
from pageserver.remote.generations import find_index
from pageserver.remote.index_changes import naive_time
from pageserver.remote.source_document import read_source_document
from pageserver.remote.tenant_manifest import ManifestKeeper, OffloadedTimeline, TenantManifest
from pageserver.tenant.deletion import check_may_delete
from pageserver.tenant.location import LocationConfig
from pageserver.tenant.parts import TenantParts
from pageserver.tenant.placeholder import Placeholder
from pageserver.tenant.tenant_errors import TenantStoppingError, TimelineNotActiveError
from pageserver.timeline import Timeline, TimelineState, TimelineStatus


class TimelineHost(Protocol):
    """What archival and deletions need of their tenant."""

    timelines: dict[TimelineId, Timeline | Placeholder]
    location: LocationConfig

    def check_active(self) -> None:
        """Raise TenantStoppingError unless the tenant serves."""

    def is_busy(self, timeline_id: TimelineId) -> bool:
        """Return whether the timeline is being made or deleted."""

    def may_delete(self) -> bool:
        """Return whether the location is AttachedSingle, and nobody has taken over."""


class Archival:
    """The archived and offloaded timelines of one attached shard. Owns `offloaded` and the manifest."""

    def __init__(
        self,
        host: TimelineHost,
        parts: TenantParts,
        *,
        manifest: ManifestKeeper,
    ) -> None:
        self.offloaded: dict[TimelineId, OffloadedTimeline] = {}
        self._host = host
        self._parts = parts
        self._manifest = manifest
        self._moving: set[TimelineId] = set()
        self._unasked: dict[TimelineId, asyncio.Event] = {}

    async def upload_manifest(self) -> None:
        """Upload the tenant manifest if it would say something new. Raises what the store raises."""
        records, stripe_size = tuple(self.offloaded.values()), self._host.location.shard.stripe_size
        await self._manifest.upload(TenantManifest(offloaded_timelines=records, stripe_size=stripe_size))

    def is_moving(self, timeline_id: TimelineId) -> bool:
        """Return whether a request for this timeline is under way here."""
        return timeline_id in self._moving

    def children(self, timeline_id: TimelineId) -> list[TimelineId]:
        """Return all children, loaded or offloaded."""
        offloaded = [
            record.timeline_id for record in self.offloaded.values() if record.ancestor_timeline_id == timeline_id
        ]
        return [child.timeline_id for child in self._loaded_children(timeline_id)] + offloaded

    async def forget_deleted(self, record: OffloadedTimeline) -> None:
        """Take a timeline out of the manifest whose index says deleted, so that the next start resumes the deletion."""
        timeline_id = record.timeline_id
        del self.offloaded[timeline_id]
        self._host.timelines[timeline_id] = Placeholder(timeline_id, TimelineState(TimelineStatus.STOPPING))
        try:
            await self.upload_manifest()
        except BaseException:
            del self._host.timelines[timeline_id]
            self.offloaded[timeline_id] = record
            raise

    # What the API calls; each returns when its effect is durable, and may be repeated

    async def archive(self, timeline_id: TimelineId) -> None:
        """Mark a timeline as archived. Raises NotFoundError, PreconditionFailedError (a child is not archived),
        ArchivalTimeoutError, ConflictError.
        """
        await self.settle(timeline_id)
        await self._own(self._archive(timeline_id), timeline_id)

    async def unarchive(self, timeline_id: TimelineId) -> None:
        """Take a timeline out of the archive; load it if it was offloaded. Raises NotFoundError,
        PreconditionFailedError (its ancestor is archived), ArchivalTimeoutError, ConflictError.
        """
        await self.settle(timeline_id)
        await self._own(self._unarchive(timeline_id), timeline_id)

    async def offload(self, timeline_id: TimelineId) -> None:
        """Let go of an archived timeline. Raises NotFoundError, PreconditionFailedError, StaleDeletionError (somebody
        else has taken over), ConflictError.
        """
        await self.settle(timeline_id)
        await self._own(self._offload(timeline_id), timeline_id)

    # What the tenant does by itself

    async def offload_unasked(self, timeline_id: TimelineId) -> None:
        """Let go of an archived timeline that nobody asked about. Who does meanwhile waits for the end of it. Raises
        what `offload` raises.
        """
        ended = self._unasked[timeline_id] = asyncio.Event()
        try:
            await self._own(self._offload(timeline_id), timeline_id)
        finally:
            del self._unasked[timeline_id]
            ended.set()

    async def settle(self, timeline_id: TimelineId) -> None:
        """Wait for what the tenant is doing by itself with a timeline: that is no conflict of two requests."""
        while (ended := self._unasked.get(timeline_id)) is not None:
            await ended.wait()

    def ready_to_offload(self) -> list[TimelineId]:
        """Return the timelines that `offload` would let go of now, as far as this server knows."""
        if not self._parts.resources.stores_layers or not self._host.may_delete():
            return []
        return [
            timeline_id
            for timeline_id, entry in sorted(self._host.timelines.items())
            if isinstance(entry, Timeline)
            and entry.state.status is TimelineStatus.ACTIVE
            and entry.remote.is_durably_archived
            and not entry.remote.has_pending_work
            and not self._loaded_children(timeline_id)
            and not self._host.is_busy(timeline_id)
            and timeline_id not in self._moving
        ]

    # Steps

    async def _archive(self, timeline_id: TimelineId) -> None:
        if timeline_id in self.offloaded:
            return
        timeline = self._active(timeline_id)
        loose = [
            child.timeline_id for child in self._loaded_children(timeline_id) if not child.remote.is_durably_archived
        ]
        if loose:
            raise PreconditionFailedError(
                f"Cannot archive timeline which has non-archived child timelines: [{_listed(loose)}]", children=loose
            )
        await timeline.remote.set_archived(naive_time(self._parts.resources.clock.now()))

    async def _unarchive(self, timeline_id: TimelineId) -> None:
        record = self.offloaded.get(timeline_id)
        if record is None:
            timeline = self._active(timeline_id)
            self._check_ancestor(timeline.remote.index.metadata.ancestor_timeline)
        else:
            self._check_ancestor(record.ancestor_timeline_id)
            timeline = await self._load(record)
        await timeline.remote.set_archived(None)

    async def _load(self, record: OffloadedTimeline) -> Timeline:
        timeline_id = record.timeline_id
        storage, shard, generation = self._parts.resources.storage, self._parts.shard, self._parts.generation
        try:
            content, _ = await find_index(
                storage, shard, timeline_id, generation, now=self._parts.resources.clock.now()
            )
        except ObjectNotFoundError as error:
            raise NotFoundError("timeline not found", timeline_id=timeline_id) from error
        index = IndexPart.decode(content)
        if index.deleted_at is not None:
            raise NotFoundError("timeline not found", timeline_id=timeline_id)
        document = await read_source_document(storage, shard, timeline_id, generation)
        ancestor = self._check_ancestor(index.metadata.ancestor_timeline)
        timeline = await self._parts.opener.load(timeline_id, index, document, ancestor)
        try:
            self._host.check_active()
            del self.offloaded[timeline_id]
            self._host.timelines[timeline_id] = timeline
            await self.upload_manifest()
        except BaseException:
            self._host.timelines.pop(timeline_id, None)
            self.offloaded[timeline_id] = record
            await timeline.close()
            raise
        self._parts.running.start(timeline)
        self._parts.log.info("timeline loaded again", timeline=str(timeline_id))
        return timeline

    async def _offload(self, timeline_id: TimelineId) -> None:
        if not self._parts.resources.stores_layers:
            raise PreconditionFailedError(
                "without remote storage the local disk is the only copy; an offload would lose the timeline",
                hint="configure [remote_storage]",
            )
        if timeline_id not in self.offloaded:
            await self._let_go(timeline_id)
        # A repeat uploads what an earlier attempt could not.
        await self.upload_manifest()

    async def _let_go(self, timeline_id: TimelineId) -> None:
        self._active(timeline_id)
        if not self._host.may_delete():
            raise _cannot("the tenant is not AttachedSingle, somebody else may have it", timeline_id)
        # The manifest of a server that was overtaken must not speak for the one that took over.
        await check_may_delete(self._parts.resources, self._parts.shard, self._parts.generation)
        # From here to the shut queue nothing waits: neither an upload nor an unarchival comes in between.
        self._host.check_active()
        timeline = self._active(timeline_id)
        if self._loaded_children(timeline_id):
            raise PreconditionFailedError("timeline has attached children", timeline_id=timeline_id)
        remote = timeline.remote
        if not remote.is_durably_archived:
            raise _cannot("timeline is not archived", timeline_id)
        if remote.has_pending_work:
            raise _cannot("uploads are pending", timeline_id)
        archived_at, metadata = remote.clean_index.archived_at, remote.clean_index.metadata
        assert archived_at is not None, "it is durably archived"
        remote.begin_shutdown_if_archived()
        self._parts.log.info("offloading archived timeline", timeline=str(timeline_id))
        try:
            await self._parts.running.stop(timeline)
            await self._parts.opener.drop_directory(timeline_id)
            self._host.check_active()
        except Exception as error:
            # Nothing is lost: the next start loads it.
            self._host.timelines[timeline_id] = Placeholder(
                timeline_id, TimelineState(TimelineStatus.BROKEN, f"offloading failed: {error}"), timeline.pg_version
            )
            raise
        del self._host.timelines[timeline_id]
        ancestor = metadata.ancestor_timeline
        self.offloaded[timeline_id] = OffloadedTimeline(
            timeline_id=timeline_id,
            ancestor_timeline_id=ancestor,
            ancestor_retain_lsn=None if ancestor is None else metadata.ancestor_lsn,
            archived_at=archived_at,
        )

    # Checks

    def _active(self, timeline_id: TimelineId) -> Timeline:
        entry = self._host.timelines.get(timeline_id)
        if entry is None:
            raise NotFoundError("timeline not found", timeline_id=timeline_id)
        if not isinstance(entry, Timeline) or entry.state.status is not TimelineStatus.ACTIVE:
            raise TimelineNotActiveError(shard=self._parts.shard, timeline_id=timeline_id, state=entry.state)
        return entry

    def _check_ancestor(self, ancestor_id: TimelineId | None) -> Timeline | None:
        """Return the ancestor. Raises PreconditionFailedError if it is archived, offloaded or not there."""
        if ancestor_id is None:
            return None
        ancestor = self._host.timelines.get(ancestor_id)
        if not isinstance(ancestor, Timeline) or ancestor.remote.is_archived:
            raise PreconditionFailedError(f"ancestor is archived: {ancestor_id}", ancestor=ancestor_id)
        return ancestor

    def _loaded_children(self, timeline_id: TimelineId) -> list[Timeline]:
        return [
            entry
            for _, entry in sorted(self._host.timelines.items())
            if isinstance(entry, Timeline) and entry.remote.index.metadata.ancestor_timeline == timeline_id
        ]

    # Owning

    async def _own(self, work: Coroutine[Any, Any, None], timeline_id: TimelineId) -> None:
        """Run a step in a task of the tenant, alone, and wait for it. Cancellation: the step goes on."""
        try:
            self._host.check_active()
            if self._host.is_busy(timeline_id) or timeline_id in self._moving:
                raise ConflictError("Timeline archival is already in progress", timeline_id=timeline_id)
        except BaseException:
            work.close()
            raise
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        outcome: Exception | None = TenantStoppingError()

        async def alone() -> None:
            nonlocal outcome
            async with self._parts.exclusion:
                await work
            outcome = None

        def failed(error: Exception) -> None:
            nonlocal outcome
            self._parts.log.info("archival request failed", timeline=str(timeline_id), error=str(error))
            outcome = error

        def ended(_: asyncio.Task[None]) -> None:
            # The only place that ends a request, since a task that is cancelled early never runs.
            work.close()
            self._moving.discard(timeline_id)
            if done.done():
                return
            if outcome is None:
                done.set_result(None)
            else:
                done.set_exception(outcome)

        self._moving.add(timeline_id)
        self._parts.tasks.spawn(alone(), name=f"archival of {timeline_id}", on_failure=failed).add_done_callback(ended)
        await done


def _cannot(why: str, timeline_id: TimelineId) -> PreconditionFailedError:
    return PreconditionFailedError(f"Timeline::can_offload() check failed: {why}", timeline_id=timeline_id)


def _listed(ids: list[TimelineId]) -> str:
    return ", ".join(map(str, ids))
