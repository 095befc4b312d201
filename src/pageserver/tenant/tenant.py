"""One attached tenant shard: its state, its timelines, their tasks, and the order in which they start and stop.

States go Attaching → Activating → Active → Stopping, or to Broken from the first two (tenants.md 2.1); a stopped tenant
never comes back, a new object does. A timeline that cannot be loaded is Broken by itself and its siblings are served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pageserver.config import TenantSettings
from pageserver.errors import (
    ConflictError,
    PreconditionFailedError,
    UnavailableError,
)
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import paths
from pageserver.remote.initdb_archive import preserve
from pageserver.remote.remote_timeline import UploadRights
from pageserver.remote.source_document import Flavour, SourceDocument, write_source_document
from pageserver.remote.tenant_manifest import ManifestKeeper
from pageserver.tenant.archival import Archival
from pageserver.tenant.creation_rules import index_of_root
from pageserver.tenant.creations import TimelineCreations
from pageserver.tenant.garbage import GarbageCollector
from pageserver.tenant.limits import TenantLimits
from pageserver.tenant.loading import load_timelines
from pageserver.tenant.location import Attached, AttachMode, LocationConfig
from pageserver.tenant.names import TenantNames
from pageserver.tenant.offloading import offload_by_and_by
from pageserver.tenant.opening import TimelineOpener
from pageserver.tenant.owned import run_owned
from pageserver.tenant.parts import TenantParts
from pageserver.tenant.placeholder import Placeholder, describe
from pageserver.tenant.resources import TenantResources
from pageserver.tenant.running import RunningTimelines
from pageserver.tenant.source_changes import SourceChanges
from pageserver.tenant.source_slot import RootParameters, SlotActions, SourceSlot
from pageserver.tenant.sources import TenantSources
from pageserver.tenant.state import TenantState, TenantStatus
from pageserver.tenant.tasks import TaskScope, end_tasks
from pageserver.tenant.tenant_errors import (
    TenantBrokenError,
    TenantStoppingError,
    TimelineNotActiveError,
    TimelineNotFoundError,
)
from pageserver.tenant.timeline_deletions import TimelineDeletions
from pageserver.timeline import (
    Timeline,
    TimelineInfo,
    TimelineState,
    TimelineStatus,
    check_repository,
)
from pageserver.timeline.state import LOADING
from pageserver.turns import TurnQueue

T = TypeVar("T")


class Tenant:
    """An attached tenant shard in one generation."""

    def __init__(self, shard: TenantShardId, location: LocationConfig, resources: TenantResources) -> None:
        assert isinstance(location.mode, Attached), "a tenant object is an attached location"
        self.shard = shard
        self.location = location
        self.generation: Generation = location.mode.generation
        self.state = TenantState(TenantStatus.ATTACHING)
        self.is_stopped = False
        self.is_overtaken = False
        """A newer generation exists: whatever the location says, this is AttachedStale (standalone.md 1)."""
        self.timelines: dict[TimelineId, Timeline | Placeholder] = {}
        self._resources = resources
        self._log = resources.log.bind(tenant=str(shard), generation=self.generation.number)
        self._redo = resources.engine.open_redo(shard)
        self.repository_kind = self.settings().repository
        """Fixed for good: another repository would not know the timelines."""
        self._repository = resources.engine.make_repository(
            self.repository_kind, paths.tenant_directory(resources.workdir, shard)
        )
        self.limits = TenantLimits(
            settings=self.settings,
            timelines=self.open_timelines,
            count_timelines=lambda: len({*self.timelines, *self.archival.offloaded, *self._creations.running}),
            files=None if self._repository.keeps_layers else paths.tenant_directory(resources.workdir, shard),
            clock=resources.clock,
        )
        self._opener = TimelineOpener(
            resources,
            shard=shard,
            identity=location.shard,
            generation=self.generation,
            repository=self._repository,
            redo=self._redo,
            settings=self.settings,
            rights=self._upload_rights,
            ingest_pause=self.limits.pause_reason,
        )
        self._manifest = ManifestKeeper(
            resources.storage,
            shard,
            self.generation,
            clock=resources.clock,
            log=self._log,
            failpoints=resources.failpoints,
        )
        self._tasks = TaskScope()
        self._sources = TenantSources(resources.way_in, self._tasks, self._log)
        self.source_changes = SourceChanges(
            self,
            resources.way_in,
            self._sources,
            slot_of=self._slot_of,
            log=self._log,
        )
        self._gc_and_branches = asyncio.Lock()
        self._running = RunningTimelines(
            resources.pages, self._sources, self._tasks, slot_of=self._slot_of, log=self._log
        )
        parts = TenantParts(
            shard=shard,
            generation=self.generation,
            resources=resources,
            opener=self._opener,
            running=self._running,
            exclusion=self._gc_and_branches,
            tasks=self._tasks,
            log=self._log,
        )
        self.archival = Archival(self, parts, manifest=self._manifest)
        self.names = TenantNames(
            resources,
            shard,
            self.generation,
            is_known=lambda timeline_id: timeline_id in self.timelines or timeline_id in self.archival.offloaded,
            tasks=self._tasks,
            log=self._log,
        )
        self._deletions = TimelineDeletions(
            self, parts, sources=self._sources, archival=self.archival, names=self.names
        )
        self._creations = TimelineCreations(
            self, parts, archival=self.archival, limits=self.limits, unbury=self._deletions.unbury
        )
        self.garbage = GarbageCollector(
            self._repository,
            timelines=self.open_timelines,
            settings=self.settings,
            may_delete=self.may_delete,
            exclusion=self._gc_and_branches,
            clock=resources.clock,
            log=self._log,
            failpoints=resources.failpoints,
        )
        self._state_changed = asyncio.Event()
        self.changing_config = asyncio.Lock()
        """Held while a changed location is written to disk and takes effect."""
        self._attaching: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._is_startup = False
        self._constructed_at = resources.clock.monotonic_seconds()

    # Lifecycle

    def start(self, warmup: TurnQueue | None = None, *, is_startup: bool = False) -> None:
        """Begin to attach in the background, when `warmup`, if given, says so. Poll `state` or wait with
        `wait_active`. `is_startup`: the tenant was found when the server started.
        """
        self._is_startup = is_startup
        self._resources.pages.tenant_changed(self)
        self._attaching = self._tasks.spawn(
            self._attach(warmup), name=f"attach {self.shard}", on_failure=self._attach_failed
        )

    def hurry(self) -> None:
        """Somebody needs this tenant now: attach without waiting for a turn."""
        self._wanted.set()

    async def wait_active(self, timeout_seconds: float) -> None:
        """Wait until the tenant serves; the time counts from the last change of its state (tenants.md 25.19).

        Raises UnavailableError (timeout), TenantStoppingError, TenantBrokenError.
        """
        self.hurry()
        try:
            while self.state.status in (TenantStatus.ATTACHING, TenantStatus.ACTIVATING):
                async with asyncio.timeout(timeout_seconds):
                    await self._state_changed.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"Timed out waiting {timeout_seconds:g}s for tenant active state. "
                f"Latest state: Some({self.state.status.value})"
            ) from error
        if self.state.status is TenantStatus.BROKEN:
            raise TenantBrokenError(reason=self.state.reason)
        if self.state.status is TenantStatus.STOPPING:
            raise TenantStoppingError

    async def shut_down(self, *, flush: bool) -> None:
        """Stop everything, in the order of tenants.md 7.3 and 7.4. With `flush`, what was ingested becomes durable
        first.

        Afterwards nothing of this object touches files or objects any more.
        """
        if self.is_stopped:
            return
        was_active = self.state.status is TenantStatus.ACTIVE
        self._become(TenantState(TenantStatus.STOPPING))
        if self._attaching is not None:
            # An attach that went on would open timelines behind our back.
            await end_tasks(self._attaching)
        await self._sources.stop_all()
        await asyncio.gather(
            *(self._running.halt(timeline, flush=flush and was_active) for timeline in self.open_timelines())
        )
        await self._tasks.close()
        # Children read through their ancestors until here.
        for timeline in self.open_timelines():
            await timeline.close()
        await asyncio.to_thread(self._repository.close)
        if self._redo is not None:
            await asyncio.to_thread(self._redo.shutdown)
        self._resources.pages.tenant_gone(self.shard)
        self.is_stopped = True

    def break_stopped(self, reason: str) -> None:
        """Show why a stopped tenant was neither replaced nor removed: who is told that it is not here might attach it
        elsewhere, and its files are here. Only the slot can be changed from now on.
        """
        assert self.is_stopped, "a running tenant breaks by itself"
        self._log.error("the tenant is broken", reason=reason)
        self.timelines.clear()
        self.state = TenantState(TenantStatus.BROKEN, reason)
        self._resources.pages.tenant_changed(self)

    def update_location(self, location: LocationConfig) -> None:
        """Replace mode and settings within the same generation; loops read them afresh each time."""
        assert isinstance(location.mode, Attached), "a change to secondary makes another object"
        assert location.mode.generation == self.generation, "another generation makes another object"
        self.location = location
        self._resources.pages.tenant_changed(self)
        for timeline in self.open_timelines():
            timeline.remote.set_rights(self._upload_rights())

    def settings(self) -> TenantSettings:
        """Return the effective settings as they are now."""
        return self.location.overrides.effective(self._resources.settings.tenant_defaults())

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run something that ends with this tenant; what it raises is logged."""
        self._tasks.spawn(
            work, name=name, on_failure=lambda error: self._log.warning(f"{name} failed", error=str(error))
        )

    async def own(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run something in a task of this tenant and wait for it: it does not outlive the tenant, nor ends with the
        caller. Raises what the work raises, TenantStoppingError.
        """
        return await run_owned(self._tasks, work, name=name)

    async def flush(self) -> None:
        """Make durable what all active timelines have ingested. Raises what a flush raises."""
        active = [one for one in self.open_timelines() if one.state.status is TimelineStatus.ACTIVE]
        await asyncio.gather(*(timeline.freeze_and_flush() for timeline in active))

    def note_overtaken(self) -> None:
        """Go on as AttachedStale: delete nothing, tell WAL sources nothing new. The stored location stays."""
        self.is_overtaken = True
        for timeline in self.open_timelines():
            timeline.remote.set_rights(self._upload_rights())

    def effective_location(self) -> LocationConfig:
        """Return the location as it is in truth: AttachedStale if another server has taken over."""
        mode = self.location.mode
        if not self.is_overtaken or not isinstance(mode, Attached):
            return self.location
        return replace(self.location, mode=replace(mode, mode=AttachMode.STALE))

    def may_delete(self) -> bool:
        """Return whether the location is AttachedSingle, and nobody has taken over."""
        mode = self.effective_location().mode
        return isinstance(mode, Attached) and mode.mode is AttachMode.SINGLE

    # Looking

    def open_timelines(self) -> list[Timeline]:
        return [timeline for timeline in self.timelines.values() if isinstance(timeline, Timeline)]

    def get_timeline(self, timeline_id: TimelineId) -> Timeline:
        """Return an active timeline. Raises TimelineNotFoundError, TimelineNotActiveError."""
        entry = self._entry(timeline_id)
        if not isinstance(entry, Timeline) or entry.state.status is not TimelineStatus.ACTIVE:
            raise TimelineNotActiveError(shard=self.shard, timeline_id=timeline_id, state=entry.state)
        return entry

    def detail(self, timeline_id: TimelineId) -> TimelineInfo:
        """Describe a timeline in any state. Raises TimelineNotFoundError."""
        return self._describe(self._entry(timeline_id))

    def details(self) -> list[TimelineInfo]:
        return [self._describe(entry) for _, entry in sorted(self.timelines.items())]

    def physical_size(self) -> int:
        """Return the bytes of all layers of all timelines."""
        return sum(timeline.detail().current_physical_size or 0 for timeline in self.open_timelines())

    def all_layers_bytes(self) -> int:
        """Return the bytes that all layers would take here if none were evicted."""
        return sum(layer.file_size for timeline in list(self.open_timelines()) for layer in timeline.store.layers())

    def redo_pid(self) -> int | None:
        return None if self._redo is None else self._redo.pid()

    def last_redo_at(self) -> datetime | None:
        """Return when records last went to the WAL redo process (walredo.md 2.2)."""
        idle = None if self._redo is None else self._redo.idle_seconds()
        return None if idle is None else self._resources.clock.now() - timedelta(seconds=idle)

    def stop_idle_redo(self, idle_seconds: float) -> None:
        if self._redo is not None:
            self._redo.stop_if_idle(idle_seconds)

    # Creating

    async def create_branch(
        self, new_id: TimelineId, ancestor_id: TimelineId, start_lsn: Lsn | None, *, read_only: bool = False
    ) -> TimelineInfo:
        """Branch off at `start_lsn`, or at the end; a branch that is `read_only` takes no WAL. Durable when this
        returns. Raises the errors of `creation_rules`.
        """
        return await self._creations.branch(new_id, ancestor_id, start_lsn, read_only=read_only)

    async def create_from_primary(self, new_id: TimelineId, options: Mapping[str, Any]) -> TimelineInfo:
        """Start following a primary. When this returns the document is durable and the import runs; poll the
        timeline.
        """
        return await self._creations.follow_primary(new_id, options)

    async def bootstrap(
        self, new_id: TimelineId, *, pg_version: int, existing: TimelineId | None, flavour: Flavour | None
    ) -> TimelineInfo:
        """Make a timeline by initdb, or of the cluster that `existing` began with (tenants.md 9.4)."""
        return await self._creations.bootstrap(new_id, pg_version=pg_version, existing=existing, flavour=flavour)

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
        await self._creations.import_base_backup(
            new_id, body, base_lsn=base_lsn, end_lsn=end_lsn, pg_version=pg_version, flavour=flavour
        )

    async def import_wal(
        self, timeline_id: TimelineId, body: AsyncIterator[bytes], *, start_lsn: Lsn, end_lsn: Lsn
    ) -> None:
        """Ingest WAL segments that come as a tar, then flush."""
        work = self._import_wal(timeline_id, body, start_lsn=start_lsn, end_lsn=end_lsn)
        await run_owned(self._tasks, work, name=f"import wal into {timeline_id}")

    async def _import_wal(
        self, timeline_id: TimelineId, body: AsyncIterator[bytes], *, start_lsn: Lsn, end_lsn: Lsn
    ) -> None:
        timeline = self.get_timeline(timeline_id)
        if timeline.document is not None and timeline.document.is_read_only:
            raise PreconditionFailedError(f"timeline {timeline_id} is a read-only branch, which takes no wal")
        if self._sources.has(timeline_id):
            raise ConflictError(f"timeline {timeline_id} follows a primary; wal cannot be imported from files as well")
        self.limits.check_bytes()
        before = timeline.document
        slot = self._slot_of(timeline)
        await self._resources.way_in.import_wal(slot, body, start_lsn=start_lsn, end_lsn=end_lsn)
        if timeline.document is not None and timeline.document is not before:
            await write_source_document(
                self._resources.storage, self.shard, timeline_id, self.generation, timeline.document
            )

    # Deleting

    async def delete_timeline(self, timeline_id: TimelineId) -> None:
        """Delete a timeline: durably marked when this returns, gone some time later."""
        await run_owned(self._tasks, self._deletions.begin(timeline_id), name=f"mark {timeline_id} as deleted")

    async def preserve_initdb(self, timeline_id: TimelineId) -> None:
        """Keep what a timeline began with beyond its deletion. Raises TimelineNotFoundError,
        InitdbArchiveMissingError.
        """
        self._entry(timeline_id)
        await preserve(self._resources.storage, self.shard.tenant_id, timeline_id)

    # Private: attach

    async def _attach(self, warmup: TurnQueue | None) -> None:
        failpoints = self._resources.failpoints
        constructed, clock, counts = self._constructed_at, self._resources.clock, self._resources.counts
        await failpoints.sleep("before-attaching-tenant")
        if warmup is None:
            await self._load()
        else:
            async with warmup.turn(self._wanted):
                await self._load()
        await failpoints.sleep("attach-before-activate-sleep")
        await failpoints.fail("attach-before-activate")
        self._log.info("attach finished, activating")
        self._become(TenantState(TenantStatus.ACTIVATING))
        for timeline in self.open_timelines():
            self._running.run(timeline)
            self._running.serve(timeline)
        self._become(TenantState(TenantStatus.ACTIVE))
        counts.activation_seconds.observe(clock.monotonic_seconds() - constructed)
        self._note_startup(is_active=True)
        for timeline in self.open_timelines():
            self._running.follow(timeline)
        if self._resources.stores_layers:
            self._spawn_offloading()
        if self.garbage.removes_versions:
            self._tasks.spawn(self.garbage.run(), name=f"garbage of {self.shard}", on_failure=self.garbage.ended)

    def _spawn_offloading(self) -> None:
        wanted, clock = self._resources.settings.timeline_offloading, self._resources.clock
        work = offload_by_and_by(
            self.archival, settings=self.settings, wanted_by_server=wanted, clock=clock, log=self._log
        )
        self.spawn(work, name=f"offloading of {self.shard}")

    async def _load(self) -> None:
        check_repository(
            self.repository_kind,
            stores_layers=self._resources.stores_layers,
            is_sharded=not self.location.shard.is_unsharded(),
        )
        await asyncio.to_thread(self._repository.open)
        outcome = await load_timelines(self._resources, self._opener, self._manifest, self.shard, self.generation)
        # From here on they are ours to close.
        self.timelines.update({timeline.timeline_id: timeline for timeline in outcome.loaded})
        self.archival.offloaded.update({record.timeline_id: record for record in outcome.offloaded})
        await self.names.load()
        for timeline_id, reason in outcome.broken.items():
            self._log.error("timeline cannot be loaded", timeline=str(timeline_id), reason=reason)
            self.timelines[timeline_id] = Placeholder(timeline_id, TimelineState(TimelineStatus.BROKEN, reason))
        for timeline_id, document in outcome.importing.items():
            self._log.info("an unfinished import starts again", timeline=str(timeline_id))
            self.add_importing(timeline_id, self.open_slot(timeline_id, document, None))
        self._deletions.buried.update(outcome.buried)
        for timeline_id in outcome.deleted:
            self._deletions.resume(timeline_id)
        await self.archival.upload_manifest()

    def _upload_rights(self) -> UploadRights:
        mode = self.effective_location().mode
        return mode.mode.upload_rights() if isinstance(mode, Attached) else UploadRights(False, False)

    def _attach_failed(self, error: Exception) -> None:
        self._log.error("attach failed", error=str(error), exc_info=error)
        self._become(TenantState(TenantStatus.BROKEN, str(error)))
        self._note_startup(is_active=False)

    def _note_startup(self, *, is_active: bool) -> None:
        """Count, once, a tenant that was found at the start."""
        if self._is_startup:
            self._is_startup = False
            self._resources.counts.note_startup(self._resources.clock.monotonic_seconds(), is_active=is_active)

    def _become(self, state: TenantState) -> None:
        if self.state.status is TenantStatus.STOPPING:
            return
        self._log.info("tenant state", state=state.status.value, reason=state.reason or None)
        self.state = state
        self._resources.pages.tenant_changed(self)
        self._state_changed.set()
        self._state_changed = asyncio.Event()

    # Private: timelines and their sources

    def add_importing(self, timeline_id: TimelineId, slot: SourceSlot) -> None:
        """Show a timeline that its source is about to import, and begin."""
        body = {} if slot.document is None else slot.document.body
        pg_version = body.get("pg_version")
        self.timelines[timeline_id] = Placeholder(
            timeline_id,
            LOADING,
            pg_version if isinstance(pg_version, int) else 0,
            SourceDocument(body).traits.flavour,
            slot,
        )
        self._sources.start(slot)

    def _slot_of(self, timeline: Timeline) -> SourceSlot:
        return self.open_slot(timeline.timeline_id, timeline.document, timeline)

    def open_slot(
        self, timeline_id: TimelineId, document: SourceDocument | None, timeline: Timeline | None
    ) -> SourceSlot:
        """Return the place that a WAL source fills."""

        async def save(changed: SourceDocument) -> None:
            await write_source_document(self._resources.storage, self.shard, timeline_id, self.generation, changed)

        async def begin(root: RootParameters) -> Timeline:
            return await self._begin_root(timeline_id, slot, root)

        slot = SourceSlot(
            shard=self.shard,
            identity=self.location.shard,
            timeline_id=timeline_id,
            generation=self.generation,
            document=document,
            timeline=timeline,
            actions=SlotActions(
                save=save, begin=begin, finish=self._running.serve, is_overtaken=self._ask_whether_overtaken
            ),
        )
        return slot

    async def _ask_whether_overtaken(self) -> bool:
        source = self._resources.generations
        valid = (await source.validate({self.shard: self.generation})).get(self.shard, False)
        if not valid:
            source.found_stale(self.shard, self.generation)
        return not valid

    async def _begin_root(self, timeline_id: TimelineId, slot: SourceSlot, root: RootParameters) -> Timeline:
        await self.discard_open(timeline_id)
        index = index_of_root(
            pg_version=root.pg_version,
            start_lsn=root.start_lsn,
            readable_from=root.readable_from,
            prev_record_lsn=root.prev_record_lsn,
        )
        body = {} if slot.document is None else dict(slot.document.body)
        body.update(
            flavour=root.traits.flavour,
            data_checksums=root.traits.data_checksums,
            hint_bits_logged=root.traits.hint_bits_logged,
        )
        timeline = await self._opener.create(timeline_id, index, SourceDocument(body), None)
        timeline.source_status = lambda: self._sources.status(timeline_id)
        self.timelines[timeline_id] = timeline
        self._running.run(timeline)
        return timeline

    async def discard_open(self, timeline_id: TimelineId) -> None:
        """Stop and close the timeline if it is open."""
        entry = self.timelines.get(timeline_id)
        if isinstance(entry, Timeline):
            await self._running.halt(entry, flush=False)
            await entry.close()

    def is_busy(self, timeline_id: TimelineId) -> bool:
        """Return whether the timeline is being made or deleted."""
        return self._creations.is_running(timeline_id) or self._deletions.is_running(timeline_id)

    def check_active(self) -> None:
        """Raise TenantStoppingError unless the tenant serves."""
        if self.state.status is not TenantStatus.ACTIVE:
            raise TenantStoppingError

    def _entry(self, timeline_id: TimelineId) -> Timeline | Placeholder:
        entry = self.timelines.get(timeline_id)
        if entry is None:
            raise TimelineNotFoundError(shard=self.shard, timeline_id=timeline_id)
        return entry

    def _describe(self, entry: Timeline | Placeholder) -> TimelineInfo:
        return describe(entry, self.shard, self._sources.status(entry.timeline_id))
