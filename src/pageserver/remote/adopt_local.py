"""Switching remote storage on: everything that a server kept on its own disk moves into the bucket (standalone.md 2).

    claims ─▶ layers that indices name ─▶ everything else, indices last ─▶ local store renamed

Done before anything is attached, so nobody writes meanwhile and nothing is acknowledged by the new rule before it
holds. Every step may be repeated: layers are immutable, the other objects are put under the keys that they have, and
the local store stays as it is until all of it is in the bucket. A crash begins again. Of a timeline's indices only the
newest goes: older ones may name layers that are gone.

Invariant: the bucket's indices name only layers that are in the bucket. An object that is in the bucket already with
another content under a claim of somebody else is never overwritten: claims go first, and one that is taken stops it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pageserver.config import InvalidSettingError
from pageserver.errors import CorruptDataError
from pageserver.ids import TenantShardId, TimelineId
from pageserver.remote import paths
from pageserver.remote.index_part import IndexPart
from pageserver.remote.local_store import LocalStore, sync_directory
from pageserver.remote.storage import ObjectExistsError, ObjectStorage

ADOPTED_SUFFIX = ".moved-to-remote-storage"
_UPLOADS_MAX = 16


async def adopt_local_store(root: Path, *, workdir: Path, storage: ObjectStorage, log: Any) -> None:
    """Move what the store in `root` holds into `storage`, then rename `root`. Raises InvalidSettingError (somebody else
    has these tenants in the bucket), CorruptDataError (a layer is missing or has another size), UnavailableError.
    """
    local = LocalStore(root)
    keys = [item.key async for item in local.list_objects("")]
    log.warning("remote storage was switched on: moving everything there", objects=len(keys))
    for key in (key for key in keys if key.startswith("generations/") and "/probe-" not in key):
        await _claim(local, storage, key)
    indices = [key for key in keys if paths.INDEX_NAME in key]
    newest = _newest(indices)
    for key in newest:
        await _upload_layers(key, await local.get(key), workdir=workdir, storage=storage)
    others = [key for key in keys if not key.startswith("generations/") and key not in indices]
    for key in (*others, *newest):
        await storage.put(key, await local.get(key))
    await asyncio.to_thread(_rename, root)
    log.info("everything is in remote storage now", objects=len(keys))


async def _claim(local: LocalStore, storage: ObjectStorage, key: str) -> None:
    content = await local.get(key)
    try:
        await storage.put_if_absent(key, content)
    except ObjectExistsError as error:
        if await storage.get(key) != content:
            raise InvalidSettingError(
                f"remote_storage: {key} is claimed by another server; the timelines on this disk are other ones than "
                "those in the bucket, choose another prefix"
            ) from error


def _newest(indices: list[str]) -> list[str]:
    """Return the index of the highest generation of each timeline: keys sort by generation."""
    newest: dict[str, str] = {}
    for key in sorted(indices):
        newest[key.rpartition("/")[0]] = key
    return list(newest.values())


async def _upload_layers(index_key: str, content: bytes, *, workdir: Path, storage: ObjectStorage) -> None:
    """Upload the layers of one index. One that is marked as deleted needs none."""
    index = IndexPart.decode(content)
    if index.deleted_at is not None:
        return
    _, shard_text, _, timeline_text, _ = index_key.split("/")
    shard, timeline_id = TenantShardId.parse(shard_text), TimelineId.parse(timeline_text)
    if index.metadata.ancestor_timeline is None and not index.layers:
        raise InvalidSettingError(
            f'remote_storage: timeline {timeline_id} of tenant {shard} has no layers (repository = "rocksdb") '
            "and can be kept on the local disk only"
        )
    directory = paths.timeline_directory(workdir, shard, timeline_id)
    permits = asyncio.Semaphore(_UPLOADS_MAX)

    async def upload(name: str) -> None:
        entry = index.layers[name]
        file = directory / paths.local_layer_name(name, entry.generation)
        async with permits:
            size = (await asyncio.to_thread(file.stat)).st_size if await asyncio.to_thread(file.is_file) else None
            if size != entry.file_size:
                raise CorruptDataError(
                    f"layer {name} of timeline {timeline_id} cannot be moved to remote storage: its file has {size} "
                    f"bytes, the index says {entry.file_size}",
                    path=str(file),
                )
            await storage.upload(
                paths.layer_key(shard.tenant_id, entry.shard, timeline_id, name, entry.generation), file
            )

    for result in await asyncio.gather(*map(upload, index.layers), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _rename(root: Path) -> None:
    root.rename(root.with_name(root.name + ADOPTED_SUFFIX))
    sync_directory(root.parent)
