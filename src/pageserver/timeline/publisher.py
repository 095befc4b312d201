"""Making a timeline's state durable: layers before the index that names them, the index before what it no longer names
goes.

Invariants (remote-storage.md 20): one index upload at a time, in order; every layer named by an uploaded index was
fully uploaded before it; an object is deleted only after an index without it was uploaded and a consistent listing
showed that no newer generation exists.

Where the store *is* the local disk (no `[remote_storage]`), layer files stay where the engine wrote them and only
indices go through the store (standalone.md 2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pageserver.errors import CorruptDataError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.remote import IndexPart, LayerEntry, ObjectStorage, TimelineMetadata, paths
from pageserver.remote.generations import is_newest_generation


class MissingLayerError(CorruptDataError):
    """The index names a layer that is neither on local disk nor in a store."""

    def __init__(self, *, timeline_id: TimelineId, name: str) -> None:
        super().__init__(
            f"layer {name} of timeline {timeline_id} is named by the index but is not on disk",
            hint="there is no remote storage to fetch it from",
            timeline_id=timeline_id,
            name=name,
        )


class Publisher:
    """The durable half of one open timeline."""

    def __init__(
        self,
        *,
        storage: ObjectStorage,
        stores_layers: bool,
        shard: TenantShardId,
        timeline_id: TimelineId,
        generation: Generation,
        directory: Path,
        index: IndexPart,
        loaded: bool,
        keeps_layers: bool = True,
    ) -> None:
        """`keeps_layers` is false where another repository keeps the values, and the index the rest."""
        self._storage = storage
        self._stores_layers = stores_layers
        self._shard = shard
        self._timeline_id = timeline_id
        self._generation = generation
        self._directory = directory
        self.keeps_layers = keeps_layers
        self._lock = asyncio.Lock()
        self._uploaded: set[str] = set(index.layers)
        self.index = index
        """What shall be true: the next upload writes it."""
        self.projected_lsn = INVALID_LSN
        """`disk_consistent_lsn` of the last index that this object uploaded (remote-storage.md 10)."""
        self.visible_lsn = index.disk_consistent_lsn if loaded else INVALID_LSN
        """What a WAL source may be told: the same, after the generation was validated."""
        self.is_fenced = False
        """A newer generation exists: nothing more is deleted or acknowledged."""

    def add_layer(self, name: str, file_size: int) -> None:
        """Name a new local layer file in the next index."""
        layers = {**self.index.layers, name: LayerEntry(file_size, self._generation, self._shard.shard_index)}
        self.index = replace(self.index, layers=layers)

    def change_metadata(self, metadata: TimelineMetadata) -> None:
        """Replace the metadata in the next index."""
        self.index = replace(self.index, metadata=metadata)

    async def publish(self, removed: Iterable[str] = ()) -> Lsn:
        """Upload new layers, then the index without `removed`, then delete those. Returns the LSN that is durable now.

        Cancellation: an index may or may not have been replaced; publishing again repairs it. Call it from the
        timeline's own task.
        """
        async with self._lock:
            gone = {name: self.index.layers[name] for name in removed if name in self.index.layers}
            layers = {name: entry for name, entry in self.index.layers.items() if name not in gone}
            index = self.index = replace(self.index, layers=layers)
            if self.keeps_layers:
                index.check_before_upload()
            await self._upload_layers(index)
            await self._storage.put(paths.index_key(self._shard, self._timeline_id, self._generation), index.encode())
            self.projected_lsn = index.disk_consistent_lsn
            if await is_newest_generation(self._storage, self._shard, self._generation):
                self.visible_lsn = max(self.visible_lsn, index.disk_consistent_lsn)
                await self._delete_objects(gone)
            else:
                self.is_fenced = True
            return index.disk_consistent_lsn

    async def download_layer(self, name: str, entry: LayerEntry, temporary_number: int) -> Path:
        """Fetch a layer into the timeline's directory. Raises MissingLayerError, CorruptDataError (wrong size),
        UnavailableError.
        """
        if not self._stores_layers:
            raise MissingLayerError(timeline_id=self._timeline_id, name=name)
        target = self._directory / paths.local_layer_name(name, entry.generation)
        temporary = target.with_name(f"{target.name}.{temporary_number:x}.temp_download")
        size = await self._storage.download(self._key(name, entry), temporary)
        if size != entry.file_size:
            raise CorruptDataError(
                f"According to layer file metadata should have downloaded {entry.file_size} bytes "
                f"but downloaded {size} bytes",
                name=name,
                expected=entry.file_size,
                got=size,
            )
        await asyncio.to_thread(temporary.rename, target)
        return target

    async def _upload_layers(self, index: IndexPart) -> None:
        for name in [name for name in index.layers if name not in self._uploaded]:
            if self._stores_layers:
                entry = index.layers[name]
                source = self._directory / paths.local_layer_name(name, entry.generation)
                await self._storage.upload(self._key(name, entry), source)
            self._uploaded.add(name)

    async def _delete_objects(self, gone: Mapping[str, LayerEntry]) -> None:
        self._uploaded.difference_update(gone)
        if self._stores_layers:
            ours = {name: entry for name, entry in gone.items() if entry.shard == self._shard.shard_index}
            await self._storage.delete([self._key(name, entry) for name, entry in ours.items()])

    def _key(self, name: str, entry: LayerEntry) -> str:
        return paths.layer_key(self._shard.tenant_id, entry.shard, self._timeline_id, name, entry.generation)
