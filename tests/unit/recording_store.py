"""A local store that writes down every call and can die before or after any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from pageserver.errors import UnavailableError
from pageserver.ids import TenantShardId, TimelineId
from pageserver.remote import FetchedObject, IndexPart, LocalStore, StoredObject, paths
from pageserver.remote.generations import HIGHEST_GENERATION, generation_of_key
from pageserver.remote.tombstones import list_sources


class RecordingStore(LocalStore):
    """`dies_at` counts calls from 0. Dying before a call, it has no effect; after it, it has, and the caller hears of a
    failure all the same. From then on every call fails.
    """

    def __init__(self, root: Path, *, dies_at: int | None = None, after: bool = False) -> None:
        super().__init__(root)
        self.calls: list[str] = []
        self.died = asyncio.Event()
        self._dies_at = dies_at
        self._after = after

    def _before_call(self, what: str) -> bool:
        """Note a call; return whether the store dies after it."""
        self._check_alive()
        dies = len(self.calls) == self._dies_at
        self.calls.append(what)
        if dies and not self._after:
            self._die()
        return dies

    def _check_alive(self) -> None:
        if self.died.is_set():
            raise UnavailableError("the store is gone")

    def _die(self) -> None:
        self.died.set()
        self._check_alive()

    async def get(self, key: str) -> bytes:
        dies = self._before_call(f"get {key}")
        found = await super().get(key)
        if dies:
            self._die()
        return found

    async def fetch(self, key: str, **options: Any) -> FetchedObject | None:
        dies = self._before_call(f"fetch {key}")
        found = await super().fetch(key, **options)
        if dies:
            self._die()
        return found

    async def put(self, key: str, content: bytes) -> None:
        dies = self._before_call(f"put {key}")
        await super().put(key, content)
        if dies:
            self._die()

    async def put_if_absent(self, key: str, content: bytes) -> None:
        dies = self._before_call(f"create {key}")
        await super().put_if_absent(key, content)
        if dies:
            self._die()

    async def upload(self, key: str, source: Path) -> None:
        dies = self._before_call(f"upload {key}")
        await super().upload(key, source)
        if dies:
            self._die()

    async def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        dies = self._before_call(f"delete {' '.join(keys)}")
        await super().delete(keys)
        if dies:
            self._die()

    async def list_objects(self, prefix: str, **options: Any) -> AsyncIterator[StoredObject]:
        dies = self._before_call(f"list {prefix}")
        async for item in super().list_objects(prefix, **options):
            yield item
        if dies:
            self._die()

    async def list_directories(self, prefix: str) -> list[str]:
        dies = self._before_call(f"list directories {prefix}")
        found = await super().list_directories(prefix)
        if dies:
            self._die()
        return found


async def newest_indices(store: LocalStore, shard: TenantShardId) -> dict[TimelineId, IndexPart]:
    """Return the index of every timeline that has one, and has not been deleted since it was written."""
    found: dict[TimelineId, IndexPart] = {}
    sources = await list_sources(store, shard, HIGHEST_GENERATION)
    for name in await store.list_directories(paths.timelines_prefix(shard)):
        base = paths.index_base_key(shard, TimelineId.parse(name))
        keys = [item.key async for item in store.list_objects(base)]
        newest = max(map(generation_of_key, keys), default=None)
        if newest is not None and not sources.is_over(TimelineId.parse(name), newest):
            found[TimelineId.parse(name)] = IndexPart.decode(await store.get(max(keys, key=generation_of_key)))
    return found


async def check_bucket(store: LocalStore, shard: TenantShardId) -> set[str]:
    """Assert that no index names an object that is missing or of another size; return the layers that none names."""
    there = {item.key: item.size_bytes async for item in store.list_objects(paths.timelines_prefix(shard))}
    named: set[str] = set()
    for timeline_id, index in (await newest_indices(store, shard)).items():
        if index.deleted_at is not None:
            continue
        for name, entry in index.layers.items():
            key = paths.layer_key(shard.tenant_id, entry.shard, timeline_id, name, entry.generation)
            assert there.get(key) == entry.file_size, f"{key} is named by an index, but is not there"
            named.add(key)
    return {key for key in there if paths.INDEX_NAME not in key and not key.endswith(paths.INITDB_NAME)} - named
