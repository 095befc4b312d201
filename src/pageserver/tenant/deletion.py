"""Removing a timeline's objects so that a crash in between is resumed by whoever attaches next (remote-storage.md 14).

The index with `deleted_at` is the durable decision; it is removed last, so as long as anything is left, the deletion
can be found.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote import IndexPart, ObjectNotFoundError, ObjectStorage, find_generationed, paths


async def mark_deleted(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, generation: Generation
) -> None:
    """Put the index with `deleted_at` set. A timeline that has no index yet needs no mark: without one it does not
    exist.
    """
    try:
        content, _ = await find_generationed(storage, paths.index_base_key(shard, timeline_id), generation)
    except ObjectNotFoundError:
        return
    index = IndexPart.decode(content)
    if index.deleted_at is None:
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        index = replace(index, deleted_at=now)
        await storage.put(paths.index_key(shard, timeline_id, generation), index.encode())


async def delete_timeline_objects(storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId) -> None:
    """Delete everything below the timeline's prefix, the newest index last."""
    keys = [item.key async for item in storage.list_objects(paths.timeline_prefix(shard, timeline_id))]
    base = paths.index_base_key(shard, timeline_id)
    indices = sorted(key for key in keys if key.startswith(base))
    await storage.delete([key for key in keys if key not in indices[-1:]])
    await storage.delete(indices[-1:])
