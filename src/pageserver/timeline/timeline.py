"""The hub of this room: one open timeline, its flush loop, and what is known to be durable.

    open layer ──freeze──▶ frozen layers ──flush loop──▶ L0 files ──upload queue──▶ index part ──▶ generation validated
                                                          disk_consistent            projected        visible: may be
                                                                                                      acknowledged

Invariants: layers are flushed oldest first and by one task; who waits for a flush hears of success only after the index
that names the layer was put; a failed flush leaves the layer frozen and readable, and is tried again at the next
request; what was flushed is scheduled at once, and the upload queue repeats uploads by itself.
`last_record_lsn ≥ disk_consistent_lsn ≥ projected ≥ visible` (tenants.md 20).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pageserver.clock import Clock
from pageserver.config import TenantSettings
from pageserver.counts import OPERATION_BOUNDS, WalCounts, histograms
from pageserver.disk_errors import DiskGuard
from pageserver.errors import LsnTimeoutError, PageServerError, RequestError, StoppedError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, ShardIdentity, TenantShardId, TimelineId
from pageserver.keyspace.snapshot import RelationDirectoryState, RelationDirectoryStatus, Snapshot
from pageserver.lsn import Lsn
from pageserver.remote.index_changes import migrating, with_layers
from pageserver.remote.remote_timeline import RemoteTimeline
from pageserver.remote.source_document import Flavour, HistoryGap, SourceDocument, SourceTraits
from pageserver.timeline.downloads import LayerDownloads
from pageserver.timeline.engine import LayerFacts, TimelineStore
from pageserver.timeline.info import SourceStatus, TimelineInfo
from pageserver.timeline.logical_size import CurrentLogicalSize
from pageserver.timeline.residence import LayerResidence
from pageserver.timeline.rolling import OpenLayerFacts, RollLimits, plan_roll
from pageserver.timeline.size_calculation import SizeCalculation
from pageserver.timeline.state import ACTIVE, LOADING, STOPPING, TimelineState, TimelineStatus
from pageserver.turns import TurnQueue

FROZEN_LAYERS_MAX = 2
"""Ingest waits for the flush loop while this many layers are frozen: the bound of memory that flushing may lag
behind.
"""
_WAIT_STEP_SECONDS = 0.01
_ROLL_CHECK_SECONDS_MAX = 5.0


class LsnInGapError(RequestError):
    """The WAL of that time never came: a lost source was resynchronised with a new base backup."""

    def __init__(self, *, lsn: Lsn, gap: HistoryGap) -> None:
        super().__init__(
            f"lsn {lsn} lies in a gap of the timeline's history, between {gap.from_lsn} and {gap.to_lsn}: the WAL of "
            "that time never came",
            hint=f"read at {gap.from_lsn} or below, or at {gap.to_lsn} or beyond",
            lsn=lsn,
            from_lsn=gap.from_lsn,
            to_lsn=gap.to_lsn,
        )


@dataclass(frozen=True, slots=True)
class TimelineIdentity:
    """What never changes about a timeline."""

    tenant_shard_id: TenantShardId
    shard_identity: ShardIdentity
    timeline_id: TimelineId
    generation: Generation
    pg_version: int
    initdb_lsn: Lsn
    ancestor_lsn: Lsn
    directory: Path


class Timeline:
    """One timeline that is open in the engine. Made by a tenant; `run` must be running while it is used."""

    def __init__(
        self,
        identity: TimelineIdentity,
        *,
        store: TimelineStore,
        remote: RemoteTimeline,
        downloads: LayerDownloads | None,
        document: SourceDocument | None,
        ancestor: Timeline | None,
        settings: Callable[[], TenantSettings],
        clock: Clock,
        log: Any,
        failpoints: Failpoints | None = None,
        disk: DiskGuard | None = None,
        size_turns: TurnQueue | None = None,
    ) -> None:
        """`size_turns`: among those who compute a size."""
        self.identity = identity
        self.tenant_shard_id = identity.tenant_shard_id
        self.timeline_id = identity.timeline_id
        self.pg_version = identity.pg_version
        self.generation = identity.generation
        self.initdb_lsn = identity.initdb_lsn
        self.ancestor = ancestor
        self.ancestor_lsn = identity.ancestor_lsn
        self.directory = identity.directory
        self.store = store
        self.remote = remote
        self._downloads = downloads
        self.residence = LayerResidence(
            store,
            remote,
            downloads,
            shard=identity.tenant_shard_id,
            timeline_id=identity.timeline_id,
            log=log,
            directory=identity.directory,
            low_residence_seconds=lambda: settings().evictions_low_residence_duration_metric_threshold.seconds,
        )
        self.document = document
        self.state: TimelineState = LOADING
        self.source_status: Callable[[], SourceStatus] = SourceStatus
        self.ingest_pause: Callable[[], str | None] = lambda: None
        """Why a WAL source must not add to this timeline now, if it must not."""
        self._settings = settings
        self._clock = clock
        self._log = log
        self.disk = disk or DiskGuard(log)
        self.flush_error: str | None = None
        """Why the last flush failed; none if it did not."""
        self.flush_failures = 0
        self._flush_wanted = asyncio.Event()
        self._flush_waiters: list[asyncio.Future[None]] = []
        self._flushed_one = asyncio.Event()
        self._failpoints = failpoints or Failpoints.off()
        self._unscheduled: LayerFacts | None = None
        self._migrating_from: Lsn | None = None
        if self.relation_directory.status is RelationDirectoryStatus.MIGRATED:
            store.set_relation_directory_v2_from(int(self.relation_directory.migrated_at or 0))
        self.operations = histograms(("layer flush", "gc", "logical size"), OPERATION_BOUNDS)
        """Times of background operations, for metrics."""
        self.wal_counts = WalCounts(remote.server_counts)
        self.logical_size = CurrentLogicalSize(self.last_record_lsn)
        self.size_calculation = SizeCalculation(
            self.logical_size,
            compute=lambda lsn: self.snapshot(lsn).logical_size(),
            is_here=self._are_layers_here,
            turns=size_turns or TurnQueue(1),
            counts=remote.server_counts.size_calculations,
            note_seconds=lambda seconds: self.note_operation("logical size", seconds),
            clock=clock,
            log=log,
        )
        self.logical_size.on_restart = self.size_calculation.want
        self.tell_gaps()

    @property
    def traits(self) -> SourceTraits:
        """What is known of the source's records and pages."""
        return (self.document or SourceDocument()).traits

    @property
    def flavour(self) -> Flavour:
        """Whose PostgreSQL writes the WAL now."""
        return self.traits.flavour

    @property
    def gaps(self) -> tuple[HistoryGap, ...]:
        """Stretches of the history that never came, oldest first (docs/decisions/0008)."""
        if self.document is None:
            return ()
        return self.document.gaps(max(self.remote.index.disk_consistent_lsn, self.disk_consistent_lsn))

    def check_not_in_gap(self, lsn: Lsn) -> None:
        """Refuse an LSN of which the state is not known. Raises LsnInGapError."""
        for gap in self.gaps:
            if gap.contains(lsn):
                raise LsnInGapError(lsn=lsn, gap=gap)

    def tell_gaps(self, planned: Sequence[HistoryGap] = ()) -> None:
        """Have the page service refuse what lies in a gap. One that is planned cannot be read yet anyway."""
        self.store.set_gaps([(gap.from_lsn, gap.to_lsn) for gap in (*self.gaps, *planned)])

    def tell_traits(self) -> None:
        """Have the engine read the document's traits: another source writes the WAL from now on."""
        traits = self.traits
        self.store.set_origin(
            flavour=traits.flavour,
            neon_until_lsn=int(traits.neon_until_lsn),
            hint_bits_logged=traits.hint_bits_logged,
            data_checksums=traits.data_checksums,
        )

    @property
    def last_record_lsn(self) -> Lsn:
        return Lsn(self.store.last_record_lsn)

    @property
    def disk_consistent_lsn(self) -> Lsn:
        """Up to here everything is in layer files."""
        return Lsn(self.store.disk_consistent_lsn)

    @property
    def durable_lsn(self) -> Lsn:
        """Up to here the WAL source may throw WAL away: named by an index of a generation that was still the newest."""
        return self.remote.visible_lsn

    @property
    def settings(self) -> TenantSettings:
        """The effective settings of the tenant, as they are now."""
        return self._settings()

    @property
    def gc_cutoff_lsn(self) -> Lsn:
        """Reads below this are refused."""
        return self.remote.index.metadata.latest_gc_cutoff_lsn

    def snapshot(self, lsn: Lsn) -> Snapshot:
        """Return what existed at `lsn`, for everything that asks for more than one page."""
        return Snapshot(self.store, lsn, self.pg_version, relation_directory=self.relation_directory)

    @property
    def relation_directory(self) -> RelationDirectoryState:
        """Which form of relation directory decides what exists, and whether both are written (keyspace.md 5.12)."""
        if self._migrating_from is not None:
            return RelationDirectoryState(RelationDirectoryStatus.MIGRATING, self._migrating_from)
        index = self.remote.index
        return RelationDirectoryState(
            RelationDirectoryStatus(index.rel_size_migration or "legacy"), index.rel_size_migrated_at
        )

    def begin_relation_directory_migration(self, lsn: Lsn) -> None:
        """Take note that both forms of relation directory are written from `lsn` on; called by the thread that
        ingests.

        The index says so once the copy of the first form is in layers: after a crash before that, the WAL comes again
        and the copy is made again.
        """
        self._migrating_from = lsn
        self._log.info("relation directories are written in both forms now", lsn=str(lsn))

    def become(self, state: TimelineState) -> None:
        """Change the state, as far as tenants.md 7.1 allows; a transition that it does not allow is ignored."""
        if state != self.state and self.state.may_become(state.status):
            self._log.info("timeline state", state=state.status.value, reason=state.reason or None)
            self.state = state

    def activate(self) -> None:
        """Serve. The databases' size is computed on shard zero only, since the others do not know all of it."""
        self.become(ACTIVE)
        if self.tenant_shard_id.is_shard_zero():
            self.size_calculation.want()

    def break_because(self, reason: str) -> None:
        """Stop acknowledging and writing: some belief about this timeline was wrong. Reads of what is there are refused
        too.
        """
        self.become(TimelineState(TimelineStatus.BROKEN, reason))
        self._dismiss_waiters()

    def _dismiss_waiters(self) -> None:
        """Tell those who wait for a flush that none will come."""
        self._flushed_one.set()
        waiters, self._flush_waiters = self._flush_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(StoppedError(f"timeline {self.timeline_id} is {self.state.status.value.lower()}"))

    async def wait_for_lsn(self, lsn: Lsn, timeout_seconds: float) -> None:
        """Wait until everything up to `lsn` was ingested. Raises LsnTimeoutError, StoppedError. Cancellation: safe.

        The page service has its own waiters in the engine; these few (branching, API, tools) look at the clock.
        """
        deadline = self._clock.monotonic_seconds() + timeout_seconds
        while self.last_record_lsn < lsn:
            if self.state.status in (TimelineStatus.STOPPING, TimelineStatus.BROKEN):
                raise StoppedError(f"timeline {self.timeline_id} is stopping", timeline_id=self.timeline_id)
            if self._clock.monotonic_seconds() >= deadline:
                raise LsnTimeoutError(lsn=lsn, last_record_lsn=self.last_record_lsn, timeout_seconds=timeout_seconds)
            await self._clock.sleep(_WAIT_STEP_SECONDS)

    async def run(self) -> None:
        """Flush what is frozen, roll what is due, compute sizes, until cancelled. The tenant owns the task."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._flush_loop(), name=f"flush {self.timeline_id}")
            group.create_task(self._roll_loop(), name=f"roll {self.timeline_id}")
            group.create_task(self.size_calculation.run(), name=f"logical size of {self.timeline_id}")

    async def roll(self) -> None:
        """Freeze the open layer and let it be flushed in the background; wait only if flushing lags too far behind.

        For the one who ingests, between two batches.
        """
        await asyncio.to_thread(self.store.freeze)
        self._flush_wanted.set()
        while self.store.frozen_layers() >= FROZEN_LAYERS_MAX:
            self._flushed_one.clear()
            self._flush_wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._flushed_one.wait()
            self._check_running()

    async def freeze_and_flush(self) -> None:
        """Make everything that was ingested so far durable: in layers, and named by an index in the store. Waits as
        long as the store is away. Raises what the flush raised; then nothing is lost, only not durable.

        Cancellation: the flush itself goes on in the timeline's own task.
        """
        self._check_running()
        await asyncio.to_thread(self.store.freeze)
        self._check_running()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flush_waiters.append(waiter)
        self._flush_wanted.set()
        await waiter
        await self.remote.wait_completion()
        self.remote.hurry_visible()

    async def publish_layers(
        self, new: Sequence[LayerFacts], removed: Iterable[str] = (), *, disk_consistent_lsn: Lsn | None = None
    ) -> None:
        """Name layers that were written outside of the flush (an import) in the index, and forget `removed`.

        `disk_consistent_lsn` is given by an import whose layers hold everything up to it.
        """
        removed = set(removed)
        metadata = self.remote.index.metadata
        if disk_consistent_lsn is not None:
            metadata = replace(metadata, disk_consistent_lsn=disk_consistent_lsn)
            self.store.set_disk_consistent_lsn(disk_consistent_lsn)
        self.remote.schedule_layers({layer.name: layer.file_size for layer in new})
        gone = {name: entry for name, entry in self.remote.index.layers.items() if name in removed}
        self.remote.keep_for_next_index(lambda index: with_layers(index, {}, gone))
        self.remote.schedule_metadata(metadata)
        self.remote.schedule_deletion(gone)
        await self.remote.wait_completion()

    async def resume_at(self, lsn: Lsn, images: Sequence[LayerFacts]) -> None:
        """Go on at `lsn`, of which `images` hold everything: they were written, and nothing is open or frozen.

        Durable when the index is, before anything becomes readable. Raises what the store raises.
        """
        assert lsn > self.last_record_lsn, "history only goes forward"
        self.remote.schedule_layers({layer.name: layer.file_size for layer in images})
        metadata = replace(self.remote.index.metadata, disk_consistent_lsn=lsn, prev_record_lsn=None)
        self.remote.schedule_metadata(metadata)
        await self.remote.wait_completion()
        await asyncio.to_thread(self.store.resume_at, lsn)
        if self.tenant_shard_id.is_shard_zero():
            self.logical_size.restart(lsn)
        self.remote.hurry_visible()

    async def advance_gc_cutoff(self, lsn: Lsn) -> None:
        """Refuse reads below `lsn` from now on, durably. The cutoff never goes back."""
        if lsn <= self.gc_cutoff_lsn:
            return
        self.remote.schedule_metadata(replace(self.remote.index.metadata, latest_gc_cutoff_lsn=lsn))
        self.store.set_gc_cutoff(lsn)
        await self.remote.wait_completion()

    async def stop(self) -> None:
        """Refuse new work, wake who waits. The tasks are ended by their owner, the engine by `close`."""
        self.become(STOPPING)
        self._dismiss_waiters()

    async def close(self) -> None:
        """Let go of the store's and the engine's half; the last step of a shutdown. Readers that wait for a layer go
        first; afterwards nothing is uploaded.
        """
        await self.residence.close()
        if self._downloads is not None:
            await self._downloads.close()
        await self.remote.close()
        await asyncio.to_thread(self.store.shutdown)
        if self.logical_size.is_accurate:
            self.remote.server_counts.size_calculations.results_dropped += 1

    def resident_bytes(self) -> int:
        """Return the size of the layer files that are on this disk."""
        return sum(layer.file_size for layer in self.store.layers() if layer.is_resident)

    def stored_bytes(self) -> int:
        """Return what the timeline takes: the layers of its index, and what is not in a layer yet. 0 for the layers
        where a repository does not say what one timeline takes.
        """
        layer = self.store.open_layer()
        return (self._physical_size() or 0) + (0 if layer is None else layer.size_bytes)

    def note_operation(self, name: str, seconds: float) -> None:
        """Count a background operation that ended well."""
        self.operations[name].observe(seconds)
        self.remote.server_counts.operation_seconds[name].observe(seconds)

    def detail(self) -> TimelineInfo:
        """Describe the timeline as it is now (http-api.md 5.3)."""
        index = self.remote.index
        return TimelineInfo(
            tenant_id=self.tenant_shard_id,
            timeline_id=self.timeline_id,
            ancestor_timeline_id=index.metadata.ancestor_timeline,
            ancestor_lsn=self.ancestor_lsn,
            last_record_lsn=self.last_record_lsn,
            prev_record_lsn=Lsn(self.store.prev_record_lsn),
            applied_gc_cutoff_lsn=self.gc_cutoff_lsn,
            disk_consistent_lsn=self.disk_consistent_lsn,
            remote_consistent_lsn=self.remote.projected_lsn,
            remote_consistent_lsn_visible=self.remote.visible_lsn,
            initdb_lsn=self.initdb_lsn,
            current_physical_size=self._physical_size(),
            current_logical_size=self.current_logical_size,
            current_logical_size_is_accurate=self.logical_size.is_accurate,
            pg_version=self.pg_version,
            state=self.state,
            flavour=self.flavour,
            source=self.source_status(),
            is_archived=index.archived_at is not None,
            rel_size_migration=self.relation_directory.status.value,
            rel_size_migrated_at=self.relation_directory.migrated_at,
            is_invisible=index.marked_invisible_at is not None,
            is_read_only=self.document is not None and self.document.is_read_only,
            flush_error=self.flush_error,
            gaps=self.gaps,
        )

    @property
    def current_logical_size(self) -> int:
        """Bytes of all relations, as far as known; 0 on all shards but the first."""
        return self.logical_size.size_bytes if self.tenant_shard_id.is_shard_zero() else 0

    def _are_layers_here(self) -> bool:
        """Return whether everything below the last record can be read without a download."""
        timeline: Timeline | None = self
        while timeline is not None:
            if not all(layer.is_resident for layer in timeline.store.layers()):
                return False
            timeline = timeline.ancestor
        return True

    def _physical_size(self) -> int | None:
        """Return the bytes of all layers; none where a repository does not say what one timeline takes."""
        if not self.remote.keeps_layers:
            return None
        return sum(entry.file_size for entry in self.remote.index.layers.values())

    def _check_running(self) -> None:
        if self.state.status in (TimelineStatus.STOPPING, TimelineStatus.BROKEN):
            raise StoppedError(f"timeline {self.timeline_id} is {self.state.status.value.lower()}")

    async def _flush_loop(self) -> None:
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            waiters, self._flush_waiters = self._flush_waiters, []
            try:
                await self._flush_frozen()
            except (PageServerError, OSError) as error:
                self.disk.check(error)
                # The layer stays frozen. A full disk or a store that is away mends itself; the next request tries
                # again.
                self.flush_error = str(error)
                self.flush_failures += 1
                self._log.error("flush failed, will retry", error=str(error))
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(error)
                continue
            except BaseException:
                self._flush_waiters.extend(waiters)
                self._dismiss_waiters()
                raise
            finally:
                self._flushed_one.set()
            if self.flush_error is not None:
                self.flush_error = None
                self._log.info("flush works again", disk_consistent_lsn=str(self.disk_consistent_lsn))
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _flush_frozen(self) -> None:
        while (layer := await self._write_oldest()) is not None:
            await self._failpoints.pause("flush-layer-cancel-after-writing-layer-out-pausable")
            await self._failpoints.fail("flush-layer-before-update-remote-consistent-lsn")
            await self._failpoints.fail("checkpoint-before-saving-metadata")
            self._schedule_flushed(layer)
            self._unscheduled = None
            self._flushed_one.set()
        # The object repository flushes without a layer to name.
        if self.remote.index.disk_consistent_lsn < self.disk_consistent_lsn:
            self._schedule_metadata()

    async def _write_oldest(self) -> LayerFacts | None:
        """Write the oldest frozen layer to a file. One that was written and not scheduled comes again: the engine has
        let go of its frozen layer by then.
        """
        if self._unscheduled is None:
            await self._failpoints.pause("flush-frozen-pausable")
            await self._failpoints.pause("flush-frozen-exit")
            started = self._clock.monotonic_seconds()
            self._unscheduled = await asyncio.to_thread(self.store.flush_oldest, self.generation.number)
            if self._unscheduled is not None:
                self.note_operation("layer flush", self._clock.monotonic_seconds() - started)
        return self._unscheduled

    def _schedule_flushed(self, layer: LayerFacts) -> None:
        """Have the layer and the index that names it uploaded."""
        self.remote.schedule_layers({layer.name: layer.file_size})
        self._schedule_metadata()
        self._log.info(
            "flushed", layer=layer.name, bytes=layer.file_size, disk_consistent_lsn=str(self.disk_consistent_lsn)
        )

    def _schedule_metadata(self) -> None:
        """Have an index uploaded that says how far the flush got."""
        flushed = self.disk_consistent_lsn
        last, prev = self.store.record_lsns()
        migrating_from = self._migrating_from
        if migrating_from is not None and flushed >= migrating_from:
            self.remote.keep_for_next_index(lambda index: migrating(index, migrating_from))
            self._migrating_from = None
        self.remote.schedule_metadata(
            replace(
                self.remote.index.metadata,
                disk_consistent_lsn=flushed,
                prev_record_lsn=Lsn(prev) if prev and last == flushed else None,
            )
        )

    async def _roll_loop(self) -> None:
        """Freeze an open layer that got old or far, also when no WAL arrives; retry a flush that failed."""
        while True:
            settings = self._settings()
            timeout = settings.checkpoint_timeout.seconds
            await self._clock.sleep(min(_ROLL_CHECK_SECONDS_MAX, max(timeout / 4, 0.1)))
            if self.store.frozen_layers() or self._unscheduled is not None:
                self._flush_wanted.set()
            layer = self.store.open_layer()
            if layer is None or self.state.status is not TimelineStatus.ACTIVE:
                continue
            facts = OpenLayerFacts(layer.size_bytes, Lsn(layer.lsn_start), layer.age_seconds)
            limits = RollLimits(settings.checkpoint_distance, timeout, max(1, self.tenant_shard_id.shard_count))
            reason = plan_roll(facts, last_record_lsn=self.last_record_lsn, limits=limits)
            if reason is not None:
                self._log.info("freezing the open layer", reason=reason, bytes=layer.size_bytes)
                try:
                    await asyncio.to_thread(self.store.freeze)
                except PageServerError as error:
                    # Ingest may be in the middle of a commit; the next round finds a better moment.
                    self._log.warning("the open layer cannot be frozen now", error=str(error))
                    continue
                self._flush_wanted.set()
