"""Timelines in the making: branches, initdb, a primary, files (tenants.md 9).

What is checked, and what a request must agree with, is in `creation_rules`; here are the steps and who owns them. A
creation runs in a task of the tenant, so that a client that hangs up does not leave half of it, and a tenant that stops
waits for its end. While it runs its id is reserved.

    branch      under `exclusion`: check the branch point, open, add to `timelines` (from here it pins the ancestor)
                then: source document ─▶ index ─▶ Active
    bootstrap   initdb, or an archive of it ─▶ archive stored ─▶ document ─▶ layers, WAL, one index ─▶ Active
    primary     document {importing} ─▶ answer; its source does the rest (`source_slot`)
    base backup layers from the body ─▶ document ─▶ index ─▶ Active

Invariants
- A timeline exists once its index is in the store, and not before: until then a crash leaves a local directory and
  objects that no index names; the first is removed at the next attach, the others are found by `pagectl scrub`.
- The source document is stored before the index: a timeline is never seen without its flavour.
- A creation that fails takes back what it made. If its index is in the store already, it is deleted like every other
  timeline, marked first. One that is cut off by the end of its tenant leaves what a crash leaves.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pageserver.errors import InternalError, LsnTimeoutError, PageServerError, StoppedError
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import initdb_archive, paths
from pageserver.remote.source_document import Flavour, SourceDocument, read_source_document, write_source_document
from pageserver.tenant.archival import Archival, TimelineHost
from pageserver.tenant.creation_rules import (
    AncestorNotActiveError,
    BootstrapKey,
    BranchKey,
    BranchRefusedError,
    CreationInProgressError,
    DifferentParametersError,
    IdempotencyKey,
    NeverEqual,
    ShardedBootstrapError,
    StaleCreationError,
    UnknownAncestorError,
    check_branch_point,
    index_of_branch,
    is_repeat,
)
from pageserver.tenant.deletion import delete_timeline_objects, holds_newest_generation, mark_deleted
from pageserver.tenant.limits import TenantLimits
from pageserver.tenant.opening import remove_tree
from pageserver.tenant.owned import run_owned
from pageserver.tenant.parts import TenantParts
from pageserver.tenant.placeholder import Placeholder
from pageserver.tenant.source_slot import SourceSlot
from pageserver.timeline import Timeline, TimelineInfo, TimelineStatus
from pageserver.timeline.state import LOADING


class CreationHost(TimelineHost, Protocol):
    """What creations need of their tenant."""

    def open_slot(
        self, timeline_id: TimelineId, document: SourceDocument | None, timeline: Timeline | None
    ) -> SourceSlot: ...

    def add_importing(self, timeline_id: TimelineId, slot: SourceSlot) -> None:
        """Show a timeline that its source is about to import, and begin."""

    async def discard_open(self, timeline_id: TimelineId) -> None:
        """Stop and close the timeline if it is open."""

    def detail(self, timeline_id: TimelineId) -> TimelineInfo: ...


class TimelineCreations:
    """The creations of one attached shard."""

    def __init__(
        self,
        host: CreationHost,
        parts: TenantParts,
        *,
        archival: Archival,
        limits: TenantLimits,
        unbury: Callable[[TimelineId], Awaitable[None]],
    ) -> None:
        self._host = host
        self._parts = parts
        self._archival = archival
        self._limits = limits
        self._unbury = unbury
        self.running: set[TimelineId] = set()

    def is_running(self, timeline_id: TimelineId) -> bool:
        """Return whether the timeline is being made."""
        return timeline_id in self.running

    # What the API calls

    async def branch(
        self, new_id: TimelineId, ancestor_id: TimelineId, start_lsn: Lsn | None, *, read_only: bool
    ) -> TimelineInfo:
        """Branch off at `start_lsn`, or at the end. Durable when this returns. Raises the errors of the rules."""
        work = self._branch(new_id, ancestor_id, start_lsn, read_only=read_only)
        return await run_owned(self._parts.tasks, work, name=f"branch {new_id}")

    async def bootstrap(
        self, new_id: TimelineId, *, pg_version: int, existing: TimelineId | None, flavour: Flavour | None
    ) -> TimelineInfo:
        """Make a timeline of a new cluster, or of the one that `existing` began with (its archive). Durable when this
        returns.

        `flavour` is whose PostgreSQL made the cluster; left out, that of the installation, or of `existing`.
        Raises the errors of `creation_rules`, InitdbError, InitdbArchiveMissingError.
        """
        work = self._bootstrap(new_id, pg_version, existing, flavour)
        return await run_owned(self._parts.tasks, work, name=f"bootstrap {new_id}")

    async def follow_primary(self, new_id: TimelineId, options: Mapping[str, Any]) -> TimelineInfo:
        """Start following a primary. When this returns the document is durable and the import runs."""
        return await run_owned(self._parts.tasks, self._follow_primary(new_id, options), name=f"follow {new_id}")

    async def import_base_backup(
        self,
        new_id: TimelineId,
        body: AsyncIterator[bytes],
        *,
        base_lsn: Lsn,
        end_lsn: Lsn,
        pg_version: int,
        flavour: Flavour,
    ) -> None:
        """Make a root timeline from a base backup's tar. Whatever fails, nothing of it stays (tenants.md 9.6)."""
        work = self._import_base_backup(
            new_id, body, base_lsn=base_lsn, end_lsn=end_lsn, pg_version=pg_version, flavour=flavour
        )
        await run_owned(self._parts.tasks, work, name=f"import {new_id}")

    # Branches

    async def _branch(
        self, new_id: TimelineId, ancestor_id: TimelineId, start_lsn: Lsn | None, *, read_only: bool
    ) -> TimelineInfo:
        self._host.check_active()
        ancestor = self._ancestor(ancestor_id)
        if start_lsn is not None:
            start_lsn = start_lsn.aligned()
            check_branch_point(start_lsn, ancestor=ancestor.remote.index, ancestor_id=ancestor_id)
            try:
                await ancestor.wait_for_lsn(start_lsn, self._parts.resources.settings.wait_lsn_timeout.seconds)
            except (LsnTimeoutError, StoppedError) as error:
                self._host.check_active()
                raise BranchRefusedError(f"invalid start lsn {start_lsn}: {error}") from error
        async with self._parts.exclusion:
            # Archived, offloaded, deleted or collected meanwhile: look again.
            self._host.check_active()
            ancestor = self._ancestor(ancestor_id)
            lsn = ancestor.last_record_lsn if start_lsn is None else start_lsn
            existing = self._begin(new_id, BranchKey(ancestor_id, lsn))
            if existing is None:
                try:
                    check_branch_point(lsn, ancestor=ancestor.remote.index, ancestor_id=ancestor_id)
                    ancestor.check_not_in_gap(lsn)
                    timeline = await self._open_branch(new_id, ancestor, lsn, read_only=read_only)
                except BaseException:
                    await self._parts.opener.drop_directory(new_id)
                    self.running.discard(new_id)
                    raise
        if existing is not None:
            return await _settled(existing)
        try:
            await self._unbury(new_id)
            if timeline.document is not None:
                await write_source_document(
                    self._parts.resources.storage, self._parts.shard, new_id, self._parts.generation, timeline.document
                )
            timeline.remote.schedule_metadata(timeline.remote.index.metadata)
            await timeline.remote.wait_completion()
            self._host.check_active()
            self._parts.running.start(timeline)
        except BaseException as error:
            await self._abandon(new_id, error)
            raise
        finally:
            self.running.discard(new_id)
        return timeline.detail()

    def _ancestor(self, ancestor_id: TimelineId) -> Timeline:
        ancestor = self._host.timelines.get(ancestor_id)
        if not isinstance(ancestor, Timeline):
            if ancestor is not None:
                raise AncestorNotActiveError(timeline_id=ancestor_id)
            raise UnknownAncestorError(timeline_id=ancestor_id)
        if ancestor.remote.is_archived:
            raise BranchRefusedError("ancestor timeline is archived")
        if ancestor.state.status is not TimelineStatus.ACTIVE or self._host.is_busy(ancestor_id):
            raise AncestorNotActiveError(timeline_id=ancestor_id)
        return ancestor

    async def _open_branch(self, new_id: TimelineId, ancestor: Timeline, lsn: Lsn, *, read_only: bool) -> Timeline:
        index = index_of_branch(
            ancestor.remote.index,
            ancestor_id=ancestor.timeline_id,
            start_lsn=lsn,
            ancestor_last=ancestor.last_record_lsn,
            ancestor_prev=Lsn(ancestor.store.prev_record_lsn),
        )
        body = dict(
            self._parts.resources.way_in.document_of_branch(
                ancestor.document, branch_lsn=lsn, pg_version=ancestor.pg_version
            )
        )
        document = SourceDocument({**body, "read_only": True} if read_only else body)
        timeline = await self._parts.opener.create(new_id, index, document, ancestor)
        self._host.timelines[new_id] = timeline
        return timeline

    # Bootstrap

    async def _bootstrap(
        self, new_id: TimelineId, pg_version: int, existing_id: TimelineId | None, flavour: Flavour | None
    ) -> TimelineInfo:
        self._host.check_active()
        if not self._host.location.shard.is_unsharded():
            raise ShardedBootstrapError(shard=self._parts.shard)
        known = self._begin(new_id, BootstrapKey(pg_version))
        if known is not None:
            return await _settled(known)
        # An earlier server may have been killed while its initdb, which goes on, filled a directory of the same id.
        scratch = _Scratch(
            paths.timelines_directory(self._parts.resources.workdir, self._parts.shard), new_id, secrets.token_hex(4)
        )
        try:
            await self._unbury(new_id)
            await self._check_may_store_archive()
            if existing_id is None:
                began = self._parts.resources.clock.monotonic_seconds()
                made_by = await self._parts.resources.way_in.make_data_directory(scratch.data, pg_version)
                took = self._parts.resources.clock.monotonic_seconds() - began
                self._parts.resources.counts.initdb_seconds.observe(took)
                await self._store_archive(new_id, scratch)
            else:
                made_by = await self._unpack_archive(new_id, existing_id, scratch)
            slot = self._host.open_slot(new_id, None, None)
            await self._parts.resources.way_in.import_data_directory(
                slot, scratch.data, pg_version=pg_version, flavour=flavour or made_by
            )
            return self._finished(new_id).detail()
        except BaseException as error:
            await self._abandon(new_id, error, keeps_initdb=existing_id == new_id)
            raise
        finally:
            self.running.discard(new_id)
            await asyncio.to_thread(scratch.remove)

    async def _check_may_store_archive(self) -> None:
        """The archive has no generation in its name: a server that was overtaken would write over the newer one's."""
        if not await holds_newest_generation(self._parts.resources, self._parts.shard, self._parts.generation):
            raise StaleCreationError(shard=self._parts.shard, generation=self._parts.generation)

    async def _store_archive(self, new_id: TimelineId, scratch: _Scratch) -> None:
        archive = scratch.archive("upload")
        size = await asyncio.to_thread(initdb_archive.pack, scratch.data, archive)
        if size > initdb_archive.USUAL_SIZE_BYTES_MAX:
            self._parts.log.warning("initdb archive is unusually large", timeline=str(new_id), bytes=size)
        await self._parts.resources.failpoints.pause("before-initdb-upload")
        await self._check_may_store_archive()
        await initdb_archive.upload(
            self._parts.resources.storage,
            self._parts.shard.tenant_id,
            new_id,
            archive,
            clock=self._parts.resources.clock,
            log=self._parts.log,
        )

    async def _unpack_archive(self, new_id: TimelineId, existing_id: TimelineId, scratch: _Scratch) -> Flavour:
        """Bring the archive of a timeline; return that timeline's flavour."""
        storage, tenant_id = self._parts.resources.storage, self._parts.shard.tenant_id
        if existing_id != new_id:
            await initdb_archive.copy_to_timeline(storage, tenant_id, source=existing_id, target=new_id)
        archive = scratch.archive("download")
        await initdb_archive.download(storage, tenant_id, existing_id, archive)
        await asyncio.to_thread(initdb_archive.unpack, archive, scratch.data)
        return await self._flavour_of(existing_id)

    async def _flavour_of(self, timeline_id: TimelineId) -> Flavour:
        """Return the flavour of a timeline that may be gone: then it was what stands beside us that made it."""
        document = await read_source_document(
            self._parts.resources.storage, self._parts.shard, timeline_id, self._parts.generation
        )
        if document is not None:
            return document.traits.flavour
        is_known = timeline_id in self._host.timelines or timeline_id in self._archival.offloaded
        # Of Neon's flavour is what has an index and no document (standalone.md 3).
        return "neon" if is_known else "stock"

    # Imports

    async def _follow_primary(self, new_id: TimelineId, options: Mapping[str, Any]) -> TimelineInfo:
        self._host.check_active()
        self._begin(new_id, NeverEqual())
        try:
            await self._unbury(new_id)
            slot = self._host.open_slot(new_id, None, None)
            body = await self._parts.resources.way_in.prepare_primary(slot, options)
            await slot.save_document(body)
            self._host.check_active()
            self._host.add_importing(new_id, slot)
            return self._host.detail(new_id)
        finally:
            self.running.discard(new_id)

    async def _import_base_backup(
        self,
        new_id: TimelineId,
        body: AsyncIterator[bytes],
        *,
        base_lsn: Lsn,
        end_lsn: Lsn,
        pg_version: int,
        flavour: Flavour,
    ) -> None:
        self._host.check_active()
        self._begin(new_id, NeverEqual())
        slot = self._host.open_slot(new_id, None, None)
        self._host.timelines[new_id] = Placeholder(new_id, LOADING, pg_version, flavour, slot)
        try:
            await self._unbury(new_id)
            await self._parts.resources.way_in.import_base_backup(
                slot, body, base_lsn=base_lsn, end_lsn=end_lsn, pg_version=pg_version, flavour=flavour
            )
            self._finished(new_id)
        except BaseException as error:
            await self._abandon(new_id, error)
            raise
        finally:
            self.running.discard(new_id)

    # Beginning and ending

    def _begin(self, timeline_id: TimelineId, key: IdempotencyKey) -> Timeline | None:
        """Reserve an id, or return the timeline if this is a repeat. Raises DifferentParametersError,
        CreationInProgressError, LimitReachedError.
        """
        if timeline_id in self._archival.offloaded:
            raise DifferentParametersError(timeline_id=timeline_id)
        if timeline_id in self.running:
            raise CreationInProgressError(timeline_id=timeline_id)
        entry = self._host.timelines.get(timeline_id)
        if entry is not None:
            if isinstance(entry, Timeline) and is_repeat(entry.remote.index, entry.document, key):
                return entry
            raise DifferentParametersError(timeline_id=timeline_id)
        self._limits.check_timelines()
        if not isinstance(key, BranchKey):
            self._limits.check_bytes()
        self.running.add(timeline_id)
        return None

    def _finished(self, new_id: TimelineId) -> Timeline:
        entry = self._host.timelines.get(new_id)
        if not isinstance(entry, Timeline) or entry.state.status is not TimelineStatus.ACTIVE:
            raise InternalError(f"creation of {new_id} ended without a timeline")
        self._parts.running.follow(entry)
        return entry

    async def _abandon(self, new_id: TimelineId, error: BaseException, *, keeps_initdb: bool = False) -> None:
        """Take back a creation that failed: no file of it stays, and no object unless the tenant ends."""
        entry = self._host.timelines.get(new_id)
        await self._host.discard_open(new_id)
        self._host.timelines.pop(new_id, None)
        await self._parts.opener.drop_directory(new_id)
        if not isinstance(error, Exception) or isinstance(error, StoppedError):
            return
        opened = entry if isinstance(entry, Timeline) else None
        try:
            await mark_deleted(self._parts.resources, self._parts.shard, new_id, self._parts.generation, opened)
            await delete_timeline_objects(
                self._parts.resources, self._parts.shard, new_id, self._parts.generation, keeps_initdb=keeps_initdb
            )
        except PageServerError as failure:
            self._parts.log.warning("a failed creation left objects", timeline=str(new_id), error=str(failure))


class _Scratch:
    """Temporary names of one bootstrap; a start removes what a crash leaves (tenants.md 1.2)."""

    def __init__(self, parent: Path, timeline_id: TimelineId, nonce: str) -> None:
        self._parent = parent
        self._end = f"{timeline_id}.{nonce}.{paths.DIRECTORY_TEMPORARY_SUFFIX}"
        self.data = parent / f"basebackup-{self._end}"

    def archive(self, use: str) -> Path:
        return self._parent / f"{paths.INITDB_NAME}.{use}-{self._end}"

    def remove(self) -> None:
        remove_tree(self.data)
        for use in ("upload", "download"):
            self.archive(use).unlink(missing_ok=True)


async def _settled(timeline: Timeline) -> TimelineInfo:
    """Describe a timeline that exists, once all that it has scheduled is in the store (tenants.md 9.2)."""
    await timeline.remote.wait_completion()
    return timeline.detail()
