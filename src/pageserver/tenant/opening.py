"""Opening one timeline in the engine: from its index after a start, or new and empty (tenants.md 6.4, 9.3)."""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pageserver.config import TenantSettings
from pageserver.errors import CorruptDataError
from pageserver.ids import Generation, ShardIdentity, TenantShardId, TimelineId
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.remote import IndexPart, paths
from pageserver.remote.local_store import make_directory_durable, sync_directory
from pageserver.remote.remote_timeline import MissingLayerError, RemoteContext, RemoteTimeline, UploadRights
from pageserver.remote.source_document import SourceDocument
from pageserver.tenant.resources import TenantResources
from pageserver.timeline import (
    LayerDownloads,
    RedoPool,
    Repository,
    StoreParameters,
    Timeline,
    TimelineIdentity,
    TimelineStore,
)
from pageserver.timeline.load import list_directory, plan_load, tidy_files

_REMOVALS_MAX = 50
_REMOVAL_PAUSE_SECONDS = 0.1


class TimelineOpener:
    """Opens the timelines of one attached tenant shard."""

    def __init__(
        self,
        resources: TenantResources,
        *,
        shard: TenantShardId,
        identity: ShardIdentity,
        generation: Generation,
        repository: Repository,
        redo: RedoPool | None,
        settings: Callable[[], TenantSettings],
        rights: Callable[[], UploadRights],
        ingest_pause: Callable[[], str | None],
    ) -> None:
        self._resources = resources
        self._repository = repository
        self._shard = shard
        self._identity = identity
        self._generation = generation
        self._redo = redo
        self._settings = settings
        self._rights = rights
        self._ingest_pause = ingest_pause
        self._remote = RemoteContext(
            storage=resources.storage,
            stores_layers=resources.stores_layers,
            deletions=resources.deletions,
            shard=shard,
            generation=generation,
            uploads=resources.uploads,
            clock=resources.clock,
            log=resources.log.bind(tenant=str(shard)),
            failpoints=resources.failpoints,
            counts=resources.counts,
        )

    async def load(
        self, timeline_id: TimelineId, index: IndexPart, document: SourceDocument | None, ancestor: Timeline | None
    ) -> Timeline:
        """Open what the index names. Raises CorruptDataError (this timeline cannot be served), UnavailableError,
        UnrecognizedFilesError.
        """
        keeps_layers = self._repository.keeps_layers
        if index.layers and not keeps_layers:
            raise CorruptDataError(
                "timeline has layers, which the tenant's repository does not keep",
                hint="the tenant's setting `repository` must stay what it was when the tenant was created",
                timeline_id=timeline_id,
            )
        if keeps_layers and index.disk_consistent_lsn == INVALID_LSN:
            # Every layer would be one of the future, to be deleted (remote-storage.md 5.9, 13).
            raise CorruptDataError("Timeline has invalid disk_consistent_lsn", timeline_id=timeline_id)
        if keeps_layers and index.metadata.ancestor_timeline is None and not index.layers:
            raise CorruptDataError("Timeline has no ancestor and no layer files", timeline_id=timeline_id)
        check_gc_blocking(timeline_id, index)
        metadata = index.metadata
        timeline = await self._open(
            timeline_id,
            index,
            document,
            ancestor,
            last_record_lsn=metadata.disk_consistent_lsn,
            prev_record_lsn=metadata.prev_record_lsn or Lsn(0),
            next_open_layer_at=metadata.disk_consistent_lsn + 1,
            loaded=True,
        )
        try:
            if keeps_layers:
                await self._add_layers(timeline, index)
        except BaseException:
            await timeline.close()
            raise
        return timeline

    async def create(
        self, timeline_id: TimelineId, index: IndexPart, document: SourceDocument | None, ancestor: Timeline | None
    ) -> Timeline:
        """Open a new timeline in a new directory; what an unfinished creation left there is removed. Nothing is
        uploaded.

        A root's index holds its start as `initdb_lsn` and no consistent LSN yet: its first layers, and everything its
        open layer gets, are at that LSN or above.
        """
        metadata = index.metadata
        is_branch = metadata.ancestor_timeline is not None
        start = metadata.ancestor_lsn if is_branch else metadata.initdb_lsn
        await self.drop_directory(timeline_id)
        directory = paths.timeline_directory(self._resources.workdir, self._shard, timeline_id)
        await asyncio.to_thread(make_directory_durable, directory, self._resources.workdir)
        await self._resources.failpoints.fail("after-timeline-dir-creation")
        timeline = await self._open(
            timeline_id,
            index,
            document,
            ancestor,
            last_record_lsn=start,
            prev_record_lsn=metadata.prev_record_lsn or Lsn(0),
            next_open_layer_at=start + 1 if is_branch else start,
            loaded=False,
        )
        try:
            await self._resources.failpoints.pause("timeline-creation-after-uninit")
        except BaseException:
            await timeline.close()
            raise
        return timeline

    async def drop_directory(self, timeline_id: TimelineId) -> None:
        """Remove a timeline's local directory, and what the repository keeps elsewhere, durably."""
        await asyncio.to_thread(self._repository.drop_timeline, timeline_id)
        directory = paths.timeline_directory(self._resources.workdir, self._shard, timeline_id)
        await asyncio.to_thread(remove_tree, directory)

    async def keep_only(self, timeline_ids: Iterable[TimelineId]) -> None:
        """Remove what the repository keeps of other timelines: creations that did not end before a crash."""
        await asyncio.to_thread(self._repository.keep_only, list(timeline_ids))

    async def _open(
        self,
        timeline_id: TimelineId,
        index: IndexPart,
        document: SourceDocument | None,
        ancestor: Timeline | None,
        *,
        last_record_lsn: Lsn,
        prev_record_lsn: Lsn,
        next_open_layer_at: Lsn,
        loaded: bool,
    ) -> Timeline:
        metadata = index.metadata
        directory = paths.timeline_directory(self._resources.workdir, self._shard, timeline_id)
        directory.mkdir(parents=True, exist_ok=True)
        remote = RemoteTimeline(
            self._remote,
            timeline_id=timeline_id,
            directory=directory,
            index=index,
            loaded=loaded,
            rights=self._rights(),
            keeps_layers=self._repository.keeps_layers,
        )
        downloads = None
        if self._resources.stores_layers:
            downloads = LayerDownloads(remote, directory, self._resources.downloads, disk=self._resources.disk)
        store = await self._open_store(
            StoreParameters(
                directory=directory,
                shard=self._shard,
                identity=self._identity,
                timeline_id=timeline_id,
                pg_version=metadata.pg_version,
                traits=(document or SourceDocument()).traits,
                last_record_lsn=last_record_lsn,
                prev_record_lsn=prev_record_lsn,
                disk_consistent_lsn=metadata.disk_consistent_lsn,
                gc_cutoff_lsn=metadata.latest_gc_cutoff_lsn,
                next_open_layer_at=next_open_layer_at,
                ancestor=None if ancestor is None else ancestor.store,
                ancestor_lsn=metadata.ancestor_lsn,
                redo=self._redo,
                download=None if downloads is None else downloads.fetch,
                ancestor_id=metadata.ancestor_timeline,
                is_new=not loaded,
            )
        )
        timeline = Timeline(
            TimelineIdentity(
                tenant_shard_id=self._shard,
                shard_identity=self._identity,
                timeline_id=timeline_id,
                generation=self._generation,
                pg_version=metadata.pg_version,
                initdb_lsn=metadata.initdb_lsn,
                ancestor_lsn=metadata.ancestor_lsn,
                directory=directory,
            ),
            store=store,
            remote=remote,
            downloads=downloads,
            document=document,
            ancestor=ancestor,
            settings=self._settings,
            clock=self._resources.clock,
            log=self._resources.log.bind(tenant=str(self._shard), timeline=str(timeline_id)),
            failpoints=self._resources.failpoints,
            disk=self._resources.disk,
            size_turns=self._resources.size_turns,
        )
        timeline.ingest_pause = self._ingest_pause
        return timeline

    async def _open_store(self, parameters: StoreParameters) -> TimelineStore:
        opening = asyncio.create_task(
            asyncio.to_thread(self._repository.open_timeline, parameters), name=f"open {parameters.timeline_id}"
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on, and what it opens would be nobody's.
            await asyncio.wait((opening,))
            if opening.exception() is None:
                await asyncio.to_thread(opening.result().shutdown)
            raise

    async def _add_layers(self, timeline: Timeline, index: IndexPart) -> None:
        directory = timeline.directory
        plan = plan_load(await asyncio.to_thread(list_directory, directory), index)
        await asyncio.to_thread(tidy_files, directory, plan)
        if plan.elsewhere and not self._resources.stores_layers:
            raise MissingLayerError(timeline_id=timeline.timeline_id, name=plan.elsewhere[0])
        layers = [
            (name, directory / paths.local_layer_name(name, entry.generation), entry.file_size)
            for name in (*plan.resident, *plan.elsewhere)
            if (entry := index.layers[name])
        ]
        await asyncio.to_thread(timeline.store.add_layers, layers)
        if plan.from_the_future:
            # The index without them goes first: the same names may come again with other content (layer-files.md 2.5).
            timeline.remote.schedule_layer_file_deletion(plan.from_the_future)


def check_gc_blocking(timeline_id: TimelineId, index: IndexPart) -> None:
    """Raise CorruptDataError if collection is blocked for no reason (remote-storage.md 5.6)."""
    if index.gc_blocking is not None and not index.gc_blocking.reasons:
        raise CorruptDataError(
            f"index_part for {timeline_id} is malformed: it should not have gc blocking with zero reasons",
            timeline_id=timeline_id,
        )


def remove_tree(directory: Path) -> None:
    """Remove a directory, durably; absence is fine. A program that a killed server has left behind may still be writing
    there, which makes a few attempts necessary.
    """
    for attempt in range(_REMOVALS_MAX):
        if not directory.is_dir():
            return
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == _REMOVALS_MAX - 1:
                raise
            time.sleep(_REMOVAL_PAUSE_SECONDS)
        else:
            sync_directory(directory.parent)
