"""The durable half of one loaded timeline: what its index shall say, what it says in the store, who may hear of it.

    engine writes a layer file ──▶ schedule_layers ─┐
    flush, gc cutoff, archival ──▶ schedule_… ──────┴─▶ queue ─▶ clean: projected LSN ─▶ generation valid: visible LSN
    last reader of a dropped layer is gone ─▶ schedule_deletion ─▶ deletion queue (or held back, see `UploadRights`)

`index` is the desired state; each schedule_… call changes it and appends a copy of it to the upload queue, so what
lands in the store is always a state that was meant. Objects are deleted in a second step only, after the index without
them was scheduled (remote-storage.md 9.8).

Where the local disk is the only copy (standalone.md 2), the same queue writes the same indices; layers are durable
where the engine wrote them, nobody else can have the timeline, and so an uploaded index is visible at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

from pageserver.clock import Clock
from pageserver.counts import ServerCounts
from pageserver.errors import CorruptDataError, PreconditionFailedError, UnavailableError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.remote import index_changes, paths
from pageserver.remote.backoff import run_unless
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.index_part import IndexPart, LayerEntry, TimelineMetadata
from pageserver.remote.retry import single_attempts
from pageserver.remote.storage import ObjectStorage
from pageserver.remote.upload_operations import (
    Barrier,
    DeleteLayers,
    LayerFile,
    Operation,
    Shutdown,
    UploadIndex,
    UploadLayer,
    UploadPolicy,
    is_same_object,
)
from pageserver.remote.upload_queue import QueueStoppedError, UploadQueue
from pageserver.remote.validation import VisibleLsn

_ARCHIVAL_WAIT_SECONDS = 10.0


class MissingLayerError(CorruptDataError):
    """The index names a layer that is neither on local disk nor in a store."""

    def __init__(self, *, timeline_id: TimelineId, name: str) -> None:
        super().__init__(
            f"layer {name} of timeline {timeline_id} is named by the index but is not on disk",
            hint="there is no remote storage to fetch it from",
            timeline_id=timeline_id,
            name=name,
        )


class LayerSizeError(CorruptDataError):
    """A local layer file has another size than the index would say. It is not uploaded."""

    def __init__(self, *, name: str, expected: int, got: int) -> None:
        super().__init__(
            f"layer file {name} has {got} bytes, its index entry says {expected}", name=name, expected=expected, got=got
        )


class ArchivalTimeoutError(UnavailableError):
    """408: the index did not get to the store in time. It is still on its way; repeat the request."""

    def __init__(self, *, timeline_id: TimelineId) -> None:
        super().__init__("hit pageserver internal timeout", timeline_id=timeline_id)


@dataclass(frozen=True, slots=True)
class UploadRights:
    """What the location's attach mode allows (4.3). Uploads are always allowed: they go under our own generation."""

    deletes: bool = True
    publishes_lsn: bool = True


@dataclass(frozen=True, slots=True)
class RemoteContext:
    """What the timelines of one attached shard have in common. `stores_layers` is false where the local disk is the
    only copy.
    """

    storage: ObjectStorage
    stores_layers: bool
    deletions: DeletionQueue
    shard: TenantShardId
    generation: Generation
    uploads: UploadPolicy
    clock: Clock
    log: Any
    failpoints: Failpoints = field(default_factory=Failpoints.off)
    counts: ServerCounts = field(default_factory=ServerCounts)


class RemoteTimeline:
    """One per open timeline. Scheduling calls never wait; they raise QueueStoppedError once the timeline stops."""

    def __init__(
        self,
        context: RemoteContext,
        *,
        timeline_id: TimelineId,
        directory: Path,
        index: IndexPart,
        loaded: bool,
        rights: UploadRights | None = None,
        keeps_layers: bool = True,
    ) -> None:
        """`keeps_layers` is false where another repository keeps the values, and the index the rest."""
        self._context = context
        self._timeline_id = timeline_id
        self._directory = directory
        self._log = context.log.bind(timeline=str(timeline_id))
        self._rights = rights or UploadRights()
        self.keeps_layers = keeps_layers
        self._is_in_store = loaded
        self._changes = 0
        self._is_archival_unsettled = False
        self._blocked: list[LayerFile] = []
        self._recently_deleted: set[tuple[str, Generation]] = set()
        # Another object was this timeline, or one of its id, before: what it had deleted is not known by name here.
        self._follows_deletions = context.deletions.has_pushed(context.shard, timeline_id, context.generation)
        self.index = index
        """What shall be true: the next scheduled index says it."""
        self.visible = VisibleLsn(index.disk_consistent_lsn if loaded else INVALID_LSN)
        self._queue = UploadQueue(
            index,
            execute=self._execute,
            on_index_uploaded=self._index_uploaded,
            policy=context.uploads,
            clock=context.clock,
            log=self._log,
            counts=context.counts,
        )

    # Looking

    @property
    def clean_index(self) -> IndexPart:
        """The index that is in the store (or, of a new timeline without one, what it began with)."""
        return self._queue.clean

    @property
    def projected_lsn(self) -> Lsn:
        """`disk_consistent_lsn` of the last index that this object uploaded (remote-storage.md 10)."""
        return self._queue.clean.disk_consistent_lsn if self._queue.has_uploaded_index else INVALID_LSN

    @property
    def visible_lsn(self) -> Lsn:
        """What a WAL source may be told: the same, after the generation was validated."""
        return self.visible.value

    @property
    def queue(self) -> UploadQueue:
        return self._queue

    @property
    def server_counts(self) -> ServerCounts:
        """What is counted over all timelines."""
        return self._context.counts

    @property
    def is_archived(self) -> bool:
        """Whether the timeline is archived, or may turn out to be after a crash."""
        return self.index.archived_at is not None or self.clean_index.archived_at is not None

    @property
    def is_durably_archived(self) -> bool:
        """Whether it is archived in the store, and nobody is taking it out of the archive."""
        return self.index.archived_at is not None and self.clean_index.archived_at is not None

    @property
    def has_pending_work(self) -> bool:
        """Whether something was scheduled and is not done."""
        stats = self._queue.stats()
        return self._changes > 0 or stats.queued + stats.running > 0

    @property
    def blocked_deletions(self) -> int:
        """How many objects wait for a mode that may delete."""
        return len(self._blocked)

    def remote_size_bytes(self) -> int:
        return sum(entry.file_size for entry in self._queue.clean.layers.values())

    # Scheduling: layers and metadata

    def schedule_layers(self, new: Mapping[str, int]) -> None:
        """Upload new local files (name to size) and name them in the next index."""
        self._queue.check_accepts()
        entries = {name: self._entry(size) for name, size in new.items()}
        self.index = index_changes.with_layers(self.index, entries)
        self._changes += len(entries)
        self._queue.schedule(*(UploadLayer(LayerFile(name, entry)) for name, entry in entries.items()))

    def schedule_metadata(self, metadata: TimelineMetadata) -> None:
        """Upload an index with this metadata: after a flush, whose layers were scheduled before, or at creation."""
        self._schedule_index(replace(self.index, metadata=metadata))

    def schedule_file_changes(self) -> None:
        """Upload an index if layers came or went since the last one was scheduled."""
        if self._changes:
            self._schedule_index(self.index)

    def schedule_compaction(self, new: Mapping[str, int], removed: Iterable[str]) -> None:
        """Exchange layers in one index. The removed objects stay until `schedule_deletion`."""
        self.schedule_layers(new)
        self._schedule_index(index_changes.with_layers(self.index, {}, removed))

    def schedule_gc(self, removed: Iterable[str]) -> None:
        """No longer name layers. The objects stay until `schedule_deletion`."""
        self._schedule_index(index_changes.with_layers(self.index, {}, removed))

    def schedule_unlink(self, names: Iterable[str]) -> dict[str, LayerEntry]:
        """No longer name layers; return the entries of those that were named. An index goes out if anything changed."""
        self._queue.check_accepts()
        gone: dict[str, LayerEntry] = {}
        for name in names:
            if name in self.index.layers:
                gone[name] = self.index.layers[name]
            else:
                self._log.info("unlinking a layer that the index does not name", layer=name)
        if gone:
            self.index = index_changes.with_layers(self.index, {}, gone)
            self._changes += len(gone)
        self.schedule_file_changes()
        return gone

    def schedule_deletion(self, unlinked: Mapping[str, LayerEntry]) -> None:
        """Delete objects that no scheduled index names any more. Those of ancestor shards stay: siblings may need them
        (3.2).
        """
        self._queue.check_accepts()
        assert not any(
            name in self.index.layers and is_same_object(self.index.layers[name], entry)
            for name, entry in unlinked.items()
        ), "what the index names is not deleted"
        own = tuple(
            LayerFile(name, entry) for name, entry in unlinked.items() if entry.shard == self._context.shard.shard_index
        )
        if own:
            self._queue.schedule(DeleteLayers(own))

    def schedule_layer_file_deletion(self, names: Iterable[str]) -> None:
        """Unlink and delete at once: nobody reads these layers (those "from the future" at load)."""
        self.schedule_deletion(self.schedule_unlink(names))

    # Scheduling: single facts

    def schedule_change(self, change: Callable[[IndexPart], IndexPart]) -> None:
        """Change the index by one of `index_changes` and upload it; nothing is uploaded if it changes nothing."""
        changed = change(self.index)
        if changed != self.index:
            self._schedule_index(changed)

    def keep_for_next_index(self, change: Callable[[IndexPart], IndexPart]) -> None:
        """Change the index; it goes out with the next one (the relation-size migration)."""
        self._queue.check_accepts()
        self.index = change(self.index)

    async def set_archived(self, now: str | None) -> None:
        """Archive (since `now`) or, with None, take out of the archive; durable when this returns. Raises
        ArchivalTimeoutError if that takes longer than 10 s.
        """
        before = self.index
        self.schedule_change(lambda index: index_changes.archived(index, now))
        # Also if the store has the wanted state: after a time-out, the opposite may still be on its way there.
        self._is_archival_unsettled |= self.index is not before
        if not self._is_archival_unsettled and (self.clean_index.archived_at is None) == (now is None):
            return
        try:
            async with asyncio.timeout(_ARCHIVAL_WAIT_SECONDS):
                await self.wait_completion()
        except TimeoutError as error:
            raise ArchivalTimeoutError(timeline_id=self._timeline_id) from error
        self._is_archival_unsettled = False

    async def reparent(self, ancestor: TimelineId) -> None:
        """Exchange the ancestor, durably. A timeline whose uploaded index has none stays as it is."""
        if self.clean_index.metadata.ancestor_timeline is not None:
            self.schedule_change(lambda index: index_changes.reparented(index, ancestor))
            await self.wait_completion()

    async def detach(self, layers: Mapping[str, LayerEntry], *, ancestor: TimelineId, lsn: Lsn, now: str) -> None:
        """Cut off the ancestor and adopt `layers`, copies that are in the store already; durable when this returns."""
        self.schedule_change(lambda index: index_changes.detached(index, layers, ancestor=ancestor, lsn=lsn, now=now))
        if self.clean_index.lineage.original_ancestor is None:
            await self.wait_completion()

    async def block_gc(self, reason: str, now: str) -> None:
        """Add a reason not to collect garbage, durably."""
        self.schedule_change(lambda index: index_changes.gc_blocked(index, reason, now))
        if self.clean_index.gc_blocking != self.index.gc_blocking:
            await self.wait_completion()

    async def unblock_gc(self, reason: str) -> None:
        """Take a reason away, durably."""
        self.schedule_change(lambda index: index_changes.gc_unblocked(index, reason))
        if self.clean_index.gc_blocking != self.index.gc_blocking:
            await self.wait_completion()

    # Waiting, stopping

    async def wait_completion(self) -> None:
        """Wait until everything scheduled so far is in the store. Raises QueueStoppedError."""
        await self._queue.wait_completion()

    def hurry_visible(self) -> None:
        """Have the uploaded LSN validated soon: somebody waits for the acknowledgement."""
        if self.visible_lsn < self.projected_lsn:
            self._context.deletions.hurry_lsns()

    async def shutdown(self) -> None:
        """Upload what was scheduled, then stop."""
        await self._queue.shutdown()

    async def shutdown_if_archived(self) -> None:
        """The same for a timeline that is archived, durably and still. Raises PreconditionFailedError."""
        self.begin_shutdown_if_archived()
        await self._queue.shutdown()

    def begin_shutdown_if_archived(self) -> None:
        """The first half, without waiting: nobody can take it out of the archive any more. Raises
        PreconditionFailedError.
        """
        if not self.is_durably_archived:
            raise PreconditionFailedError("timeline is not archived", timeline_id=self._timeline_id)
        self._queue.begin_shutdown()

    async def close(self) -> None:
        """Stop now. Afterwards no upload of this object reaches the store; deletions that are held back are leaked."""
        await self._queue.close()

    async def upload_deleted_index(self, now: str) -> bool:
        """Stop, then mark the timeline as deleted in the store: from here on deletion is durable. Returns False if it
        has no index there, so that nothing must be marked. Raises what the store raises; the call may be repeated.

        The mark goes on the index that is in the store: a later one may name layers that never got there.
        """
        await self.close()
        if not self._is_in_store and not self._queue.has_uploaded_index:
            return False
        await self._context.failpoints.pause("persist_deleted_index_part")
        await self._put_index(replace(self.clean_index, deleted_at=self.clean_index.deleted_at or now))
        return True

    def set_rights(self, rights: UploadRights) -> None:
        """Follow a change of the attach mode. What was held back is deleted once that is allowed."""
        self._rights = rights
        if rights.deletes and self._blocked:
            blocked, self._blocked = self._blocked, []
            self._push_deletions(blocked)

    # Downloads

    async def download_layer(self, name: str, entry: LayerEntry, temporary_number: int) -> Path:
        """Fetch a layer into the timeline's directory. Raises MissingLayerError, CorruptDataError (wrong size),
        UnavailableError; then nothing of it stays, since whoever reads may ask for it again and again.
        """
        if not self._context.stores_layers:
            raise MissingLayerError(timeline_id=self._timeline_id, name=name)
        target = self._directory / paths.local_layer_name(name, entry.generation)
        temporary = target.with_name(f"{target.name}.{temporary_number:x}.temp_download")
        await self._context.failpoints.pause("before-downloading-layer-stream-pausable")
        try:
            size = await self._fetch(self._key(name, entry), temporary)
            if size != entry.file_size:
                raise CorruptDataError(
                    f"According to layer file metadata should have downloaded {entry.file_size} bytes "
                    f"but downloaded {size} bytes",
                    name=name,
                    expected=entry.file_size,
                    got=size,
                )
            await self._context.failpoints.fail("remote-storage-download-pre-rename")
            await asyncio.to_thread(temporary.rename, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return target

    # Private

    async def _fetch(self, key: str, temporary: Path) -> int:
        """Download one object, counted. Returns its size."""
        call, clock = ("layer", "download"), self._context.clock
        counts = self._queue.counts
        started, status = clock.monotonic_seconds(), "failure"
        counts.start(call)
        try:
            size = await self._context.storage.download(key, temporary)
            status = "success"
        finally:
            counts.finish(call)
            self._context.counts.client_seconds[*call, status].observe(clock.monotonic_seconds() - started)
        return size

    def _check(self, index: IndexPart) -> None:
        if self.keeps_layers:
            index.check_before_upload()

    def _entry(self, size: int) -> LayerEntry:
        return LayerEntry(size, self._context.generation, self._context.shard.shard_index)

    def _schedule_index(self, index: IndexPart) -> None:
        self._queue.check_accepts()
        self._check(index)
        self.index = index
        self._changes = 0
        self._queue.schedule(UploadIndex(index))

    async def _execute(self, operation: Operation) -> None:
        match operation:
            case UploadLayer(file):
                await self._upload_layer(file)
            case UploadIndex(index):
                await self._pause("before-upload-index-pausable")
                await self._put_index(index)
            case DeleteLayers(files):
                await self._pause("before-delete-layer-pausable")
                self._delete(files)
            case Barrier() | Shutdown():
                raise AssertionError("the queue resolves these itself")
            case _:
                assert_never(operation)

    async def _upload_layer(self, file: LayerFile) -> None:
        entry = file.entry
        assert entry.generation == self._context.generation, "only files of our own generation are uploaded"
        if not self._context.stores_layers:
            return
        await self._context.failpoints.fail("before-upload-layer")
        await self._pause("before-upload-layer-pausable")
        await self._let_deletion_pass(file)
        source = self._directory / paths.local_layer_name(file.name, entry.generation)
        try:
            size = (await asyncio.to_thread(source.stat)).st_size
            if size != entry.file_size:
                raise LayerSizeError(name=source.name, expected=entry.file_size, got=size)
            await single_attempts(self._context.storage).upload(self._key(file.name, entry), source)
        except FileNotFoundError:
            # The layer was dropped meanwhile, and a later index in the queue no longer names it.
            self._log.info("a layer to upload is gone, which counts as done", layer=file.name)

    async def _let_deletion_pass(self, file: LayerFile) -> None:
        """Before the same key is written again in the same generation, its deletion must have happened (9.5)."""
        key = (file.name, file.entry.generation)
        if any(file.is_same(blocked) for blocked in self._blocked):
            self._blocked = [blocked for blocked in self._blocked if not file.is_same(blocked)]
            self._recently_deleted.discard(key)
        if key not in self._recently_deleted and not self._follows_deletions:
            return
        self._log.info(f"waiting for deletion queue flush to complete before uploading layer {file.name}")
        passed = set(self._recently_deleted)
        # A failure is a failed attempt of the upload: Neon warns and uploads, and may then lose the new object.
        await run_unless(self._queue.cancelled, self._context.deletions.flush_execute())
        if self._queue.cancelled.is_set():
            raise QueueStoppedError("queue is shutting down")
        self._recently_deleted -= passed
        self._follows_deletions = False

    async def _pause(self, failpoint: str) -> None:
        """Wait at a failpoint of the queue. Raises QueueStoppedError."""
        await self._context.failpoints.pause(failpoint, unless=self._queue.cancelled)
        if self._queue.cancelled.is_set():
            raise QueueStoppedError("queue is shutting down")

    async def _put_index(self, index: IndexPart) -> None:
        self._check(index)
        await self._context.failpoints.fail("before-upload-index")
        key = paths.index_key(self._context.shard, self._timeline_id, self._context.generation)
        await single_attempts(self._context.storage).put(key, await asyncio.to_thread(index.encode))

    def _delete(self, files: tuple[LayerFile, ...]) -> None:
        self._recently_deleted.update((file.name, file.entry.generation) for file in files)
        if self._rights.deletes:
            self._push_deletions(files)
        else:
            self._blocked.extend(files)

    def _push_deletions(self, files: Iterable[LayerFile]) -> None:
        if self._context.stores_layers:
            self._context.deletions.push_layers(
                self._context.shard,
                self._timeline_id,
                self._context.generation,
                (f"{file.name}{file.entry.generation.suffix()}" for file in files),
            )

    def _index_uploaded(self, index: IndexPart) -> None:
        if not self._context.stores_layers:
            self.visible.advance(index.disk_consistent_lsn)
        elif self._rights.publishes_lsn:
            self._context.deletions.push_lsn(
                self._context.shard,
                self._timeline_id,
                self._context.generation,
                index.disk_consistent_lsn,
                self.visible,
            )

    def _key(self, name: str, entry: LayerEntry) -> str:
        return paths.layer_key(self._context.shard.tenant_id, entry.shard, self._timeline_id, name, entry.generation)
