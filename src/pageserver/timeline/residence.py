"""Which layers of a timeline are on this disk: may one leave it, bring one, bring all.

    resident ──evict (the uploaded index names it)──▶ remote ──download, or a read──▶ resident

Invariants: a file leaves the disk only while an index in remote storage names the same object, so that there is
something to bring back; the layer itself stays in the map, and who reads it meanwhile either has the file open already
or brings it again. Bringing all goes on when single layers fail, and counts them; there is one such task at a time.
Source: http-api.md 4.3, 5.6; standalone.md 2.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from pageserver.errors import ConflictError, NotFoundError, PageServerError, PreconditionFailedError, StoppedError
from pageserver.ids import TenantShardId, TimelineId
from pageserver.remote import IndexPart, LayerName, LayerNameError
from pageserver.remote.remote_timeline import MissingLayerError
from pageserver.remote.upload_operations import is_same_object
from pageserver.timeline.downloads import LayerDownloads
from pageserver.timeline.engine import LayerFacts, TimelineStore


def _is_file_of(layer: str, file: str) -> bool:
    """Return whether a file's name is that of a layer, with or without a generation."""
    try:
        return file.startswith(layer) and str(LayerName.parse(file)) == layer
    except LayerNameError:
        return False


class LayerNotFoundError(NotFoundError):
    """The timeline has no such layer."""

    def __init__(self, *, shard: TenantShardId, timeline_id: TimelineId, name: str) -> None:
        super().__init__(f"Layer {shard}/{timeline_id}/{name} not found", timeline_id=timeline_id, name=name)


class EvictionRefusedError(PreconditionFailedError):
    """The file is the only copy of the layer."""

    def __init__(self, *, name: str, reason: str, hint: str) -> None:
        super().__init__(f"layer {name} cannot be evicted: {reason}", hint=hint, name=name)


class DownloadTaskRunsError(ConflictError):
    """All layers are being brought already; `status` says how far that is."""

    def __init__(self, status: DownloadTaskStatus) -> None:
        super().__init__(f"download task {status.task_id} is running", task_id=status.task_id)
        self.status = status


class DownloadTaskState(Enum):
    """How it stands with bringing all layers; the values are those of the API."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    SHUT_DOWN = "ShutDown"


@dataclass(slots=True)
class DownloadTaskStatus:
    """What bringing all layers has done so far."""

    task_id: str
    total: int
    state: DownloadTaskState = DownloadTaskState.RUNNING
    successful: int = 0
    failed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a DownloadTask (http-api.md 5.6)."""
        return {
            "task_id": self.task_id,
            "state": self.state.value,
            "total_layer_count": self.total,
            "successful_download_count": self.successful,
            "failed_download_count": self.failed,
        }


def check_may_evict(name: str, *, wanted: IndexPart, uploaded: IndexPart, has_remote_storage: bool) -> None:
    """Raise EvictionRefusedError unless the store has what the file holds.

    `wanted` is the index as it shall be, `uploaded` the one in the store: they may name objects of different
    generations under the same layer name, and only the wanted one is read.
    """
    if not has_remote_storage:
        raise EvictionRefusedError(
            name=name,
            reason="without remote storage the local disk is the only copy",
            hint="configure [remote_storage]",
        )
    entry, stored = wanted.layers.get(name), uploaded.layers.get(name)
    if entry is None or stored is None or not is_same_object(entry, stored):
        raise EvictionRefusedError(
            name=name, reason="the index in remote storage does not name it yet", hint="try again after its upload"
        )


class Indices(Protocol):
    """What the index shall say, and what it says in the store."""

    @property
    def index(self) -> IndexPart: ...
    @property
    def clean_index(self) -> IndexPart: ...


class LayerResidence:
    """Of one timeline; `downloads` is None where the local disk is the only copy."""

    def __init__(
        self,
        store: TimelineStore,
        remote: Indices,
        downloads: LayerDownloads | None,
        *,
        shard: TenantShardId,
        timeline_id: TimelineId,
        log: Any,
        directory: Path | None = None,
        low_residence_seconds: Callable[[], float] = lambda: 86400.0,
    ) -> None:
        self._directory = directory
        self._low_residence_seconds = low_residence_seconds
        self._early = (low_residence_seconds(), 0)
        self._store = store
        self._remote = remote
        self._downloads = downloads
        self._shard = shard
        self._timeline_id = timeline_id
        self._log = log
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.evictions = 0
        """How many layers were evicted since the timeline was opened."""
        self.evicted: set[str] = set()
        """Which ones; some may be on this disk again."""
        self.download_task: DownloadTaskStatus | None = None
        """The last task that brought, or brings, all layers."""

    async def evict(self, name: str) -> bool:
        """Remove a layer's file; False if it is not on this disk. Raises LayerNotFoundError, EvictionRefusedError."""
        if not await asyncio.to_thread(self._is_resident, name):
            return False
        check_may_evict(
            name,
            wanted=self._remote.index,
            uploaded=self._remote.clean_index,
            has_remote_storage=self._downloads is not None,
        )
        assert self._downloads is not None, "checked above"
        counts = self._downloads.counts
        counts.evictions_started += 1
        residence = await asyncio.to_thread(self._residence_seconds, name)
        try:
            await asyncio.to_thread(self._store.evict_layers, [name])
        except NotFoundError as error:  # gone from the map meanwhile
            counts.evictions_cancelled["layer_gone"] += 1
            raise self._not_found(name) from error
        except BaseException:
            counts.evictions_cancelled["remove_failed"] += 1
            raise
        counts.evictions += 1
        self.evictions += 1
        threshold, early = self.early_evictions()
        if residence is not None and residence < threshold:
            self._early = (threshold, early + 1)
        self.evicted.add(name)
        self._log.info("evicted", layer=name)
        return True

    async def download(self, name: str) -> bool:
        """Bring a layer; False if it is on this disk already. Raises LayerNotFoundError, and what a download raises.

        Cancellation: a download that has begun goes on.
        """
        if await asyncio.to_thread(self._is_resident, name):
            return False
        await self._bring(name)
        return True

    async def start_downloading_all(self, concurrency: int) -> DownloadTaskStatus:
        """Begin to bring all layers that are not on this disk. Raises DownloadTaskRunsError, StoppedError."""
        names = await asyncio.to_thread(self._remote_layers)
        if self._is_closed:
            raise StoppedError("timeline shutting down")
        if self._task is not None and not self._task.done():
            assert self.download_task is not None, "set together with the task"
            raise DownloadTaskRunsError(self.download_task)
        status = self.download_task = DownloadTaskStatus(str(next(self._numbers)), len(names))
        self._task = asyncio.create_task(
            self._download_all(names, status, concurrency), name=f"download layers of {self._timeline_id}"
        )
        return status

    async def close(self) -> None:
        """Stop bringing all layers, for good."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.download_task is not None and self.download_task.state is DownloadTaskState.RUNNING:
            self.download_task.state = DownloadTaskState.SHUT_DOWN  # it was stopped before its first step

    async def _download_all(self, names: list[str], status: DownloadTaskStatus, concurrency: int) -> None:
        waiting = iter(names)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(names))):
                    group.create_task(self._download_some(waiting, status))
        except BaseException:
            status.state = DownloadTaskState.SHUT_DOWN
            raise
        status.state = DownloadTaskState.COMPLETED
        self._log.info("brought all layers", layers=status.successful, failed=status.failed)

    async def _download_some(self, waiting: Iterator[str], status: DownloadTaskStatus) -> None:
        for name in waiting:
            try:
                await self._bring(name)
            except (PageServerError, OSError) as error:
                status.failed += 1
                self._log.warning("a layer could not be brought", layer=name, error=str(error))
            else:
                status.successful += 1

    async def _bring(self, name: str) -> None:
        if self._downloads is None:
            raise MissingLayerError(timeline_id=self._timeline_id, name=name)
        await self._downloads.download(name)

    def _remote_layers(self) -> list[str]:
        return [layer.name for layer in self._store.layers() if not layer.is_resident]

    def early_evictions(self) -> tuple[float, int]:
        """Return the tenant's threshold in seconds, and how many layers were evicted after a shorter residence since it
        is what it is.
        """
        threshold = self._low_residence_seconds()
        if threshold != self._early[0]:
            self._early = (threshold, 0)
        return self._early

    def _residence_seconds(self, name: str) -> float | None:
        """Return for how long a layer's file has been here, None if that cannot be told. A file is complete before it
        gets its name, so its time is that of its coming.
        """
        if self._directory is None:
            return None
        try:
            modified = [entry.stat().st_mtime for entry in os.scandir(self._directory) if _is_file_of(name, entry.name)]
        except OSError:
            return None
        return time.time() - max(modified) if modified else None

    def _is_resident(self, name: str) -> bool:
        return self._facts(name).is_resident

    def _facts(self, name: str) -> LayerFacts:
        for layer in self._store.layers():
            if layer.name == name:
                return layer
        raise self._not_found(name)

    def _not_found(self, name: str) -> LayerNotFoundError:
        return LayerNotFoundError(shard=self._shard, timeline_id=self._timeline_id, name=name)
