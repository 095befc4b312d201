"""Removing a timeline so that a crash in between is resumed by whoever attaches next (remote-storage.md 14).

    mark      index with `deleted_at` uploaded          from here on the deletion is durable
    files     local directory removed
    source    document of the WAL source removed        before the index: as long as that is there, all of this repeats
    layers    everything below the prefix but the newest index and the preserved initdb archive
    tombstone put where there is a bucket (`tombstones`) whoever was overtaken may write the timeline's index again
    index     the newest one, last                      afterwards there is no timeline

Deleting objects of a timeline is not validated like single layers are, since its end is ordered and repeated. Only
where generations come from the bucket, a server must still hold the newest one *after* its mark is uploaded: whoever
claims a higher one later reads the mark, and whoever claimed it before keeps the timeline. To keep it also across its
next attach, before it has written an index of its own, it needs the mark to be taken back; who crashes before that
leaves a mark that the next attach ignores if the timeline has got branches meanwhile (`loading`), and follows if not.

A tenant goes the same way: without its indices it has no timelines. They go first, then the generation is asked for
again, and only then the rest goes; if somebody has taken over in between, the indices are put back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from pageserver.errors import CorruptDataError, NotFoundError, PageServerError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote import (
    IndexPart,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStorage,
    find_generationed,
    paths,
)
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.generations import HIGHEST_GENERATION, generation_of_key
from pageserver.remote.index_changes import naive_time
from pageserver.remote.retry import pause_seconds
from pageserver.remote.source_document import delete_source_documents
from pageserver.remote.tombstones import write_tombstone
from pageserver.tenant.resources import TenantResources
from pageserver.tenant.tenant_errors import FencedError
from pageserver.timeline import Timeline

_MARK_ATTEMPTS = 3
_READS_MAX = 32
_FLUSH_TELL_SECONDS = 10.0


class StaleDeletionError(FencedError):
    """Another server has the tenant in a newer generation: it decides what is deleted."""

    def __init__(self, *, shard: TenantShardId, generation: Generation) -> None:
        super().__init__("nothing is deleted here", shard=shard, generation=generation)


async def mark_deleted(
    resources: TenantResources,
    shard: TenantShardId,
    timeline_id: TimelineId,
    generation: Generation,
    open_timeline: Timeline | None,
) -> None:
    """Make the deletion durable. A timeline that has no index yet needs no mark, without one it does not exist; but the
    document of its import must go.

    Raises StaleDeletionError, and what the store raised at the last of three attempts.
    """
    now = naive_time(resources.clock.now())
    for attempt in range(1, _MARK_ATTEMPTS + 1):
        try:
            if open_timeline is not None:
                is_marked = await open_timeline.remote.upload_deleted_index(now)
            else:
                await resources.failpoints.pause("persist_deleted_index_part")
                is_marked = await _mark_stored_index(resources.storage, shard, timeline_id, generation, now)
            break
        except PageServerError as error:
            if attempt == _MARK_ATTEMPTS:
                raise
            resources.log.info("marking a timeline as deleted failed, will retry", error=str(error))
            await resources.clock.sleep(pause_seconds(attempt - 1))
    try:
        await check_may_delete(resources, shard, generation)
    except StaleDeletionError:
        if is_marked:
            await _take_mark_back(resources, shard, timeline_id, generation, now)
        raise
    if not is_marked:
        # What would begin again at the next start is the import that the document describes.
        await delete_source_documents(resources.storage, shard, timeline_id, not_above=_limit(resources, generation))


async def check_may_delete(resources: TenantResources, shard: TenantShardId, generation: Generation) -> None:
    """Raise StaleDeletionError where generations come from the bucket and ours is not the newest."""
    if not await holds_newest_generation(resources, shard, generation):
        raise StaleDeletionError(shard=shard, generation=generation)


async def holds_newest_generation(resources: TenantResources, shard: TenantShardId, generation: Generation) -> bool:
    """Return whether nobody has taken over, as far as the bucket can tell: a storage controller orders by itself what
    must not happen on two servers.
    """
    if not resources.generations.fences_deletions:
        return True
    valid = await resources.generations.validate({shard: generation})
    if valid.get(shard, False):
        return True
    resources.generations.found_stale(shard, generation)
    return False


async def delete_timeline_objects(
    resources: TenantResources,
    shard: TenantShardId,
    timeline_id: TimelineId,
    generation: Generation,
    *,
    keeps_initdb: bool = False,
    leaves_tombstone: bool = False,
) -> None:
    """Delete everything that a timeline has in the store, the newest index last. With `keeps_initdb` the archive of
    initdb stays, like the preserved one always does.

    Where no controller orders it, objects above our generation stay: somebody has made the timeline anew.
    """
    storage, deletions = resources.storage, resources.deletions
    limit = _limit(resources, generation)
    await delete_source_documents(storage, shard, timeline_id, not_above=limit)
    prefix = paths.timeline_prefix(shard, timeline_id)
    keys = [item.key async for item in storage.list_objects(prefix) if generation_of_key(item.key) <= limit]
    newest = _newest_index(keys, paths.index_base_key(shard, timeline_id))
    archive = paths.initdb_key(shard.tenant_id, timeline_id)
    kept = {newest, prefix + paths.PRESERVED_INITDB_NAME}
    if keeps_initdb:
        kept.add(archive)
    doomed = [key for key in keys if key not in kept]
    for key in doomed:
        resources.log.info(f"deleting a file not referenced from index_part.json name={key.removeprefix(prefix)}")
    if shard.is_shard_zero() and not keeps_initdb:
        doomed.append(archive)
    await deletions.push_immediate(doomed)
    await _flush(deletions, resources)
    await resources.failpoints.fail("timeline-delete-before-index-delete", text="failpoint: {}")
    if leaves_tombstone:
        now = naive_time(resources.clock.now())
        await write_tombstone(storage, shard, timeline_id, generation, deleted_at=now)
    if newest is not None:
        await deletions.push_immediate([newest])
        await _flush(deletions, resources)
    await resources.failpoints.fail("timeline-delete-after-index-delete", text="failpoint: {}")


async def delete_tenant_objects(
    storage: ObjectStorage,
    shard: TenantShardId,
    *,
    check: Callable[[], Awaitable[None]],
    let_go: Callable[[Mapping[str, bytes]], Awaitable[None]],
) -> None:
    """Delete everything that a tenant shard has in the store, but for the claims. What a crash in between leaves is
    not half of a timeline: the indices go first, of each timeline the newest one last and of a branch before its
    ancestor's, and without an index the rest is garbage. Repeat until it succeeds.

    `check` raises StaleDeletionError if somebody has taken over; then the indices are put back. If not, `let_go` gets
    the newest source document of each timeline by key, before they are deleted. Of an unsharded id all
    shards go with it (remote-storage.md 14). Raises what the store raises.
    """
    prefixes = [f"tenants/{shard}", f"sources/{shard}"]
    if shard.is_unsharded():
        prefixes.append(paths.names_base_key(shard.tenant_id))
    keys = [item.key for prefix in prefixes async for item in storage.list_objects(prefix)]
    newest: dict[str, str] = {}
    for key in sorted((key for key in keys if f"/{paths.INDEX_NAME}" in key), key=generation_of_key):
        newest[key.rpartition("/")[0]] = key
    last = set(newest.values())
    indices = [key for key in keys if f"/{paths.INDEX_NAME}" in key]
    contents = await _read_present(storage, newest.values())
    await storage.delete([key for key in indices if key not in last])
    groups = _descendants_first(newest, contents)
    for group in groups:
        await storage.delete(group)
    try:
        await check()
    except StaleDeletionError:
        for key in (key for group in reversed(groups) for key in group if key in contents):
            with contextlib.suppress(ObjectExistsError):
                await storage.put_if_absent(key, contents[key])
        raise
    documents = sorted((key for key in keys if f"/{paths.SOURCE_NAME}" in key), key=generation_of_key)
    sources = {key.rpartition("/")[0]: key for key in documents}
    await let_go(await _read_present(storage, sources.values()))
    await storage.delete(sorted(set(keys) - set(indices)))


async def _read_present(storage: ObjectStorage, keys: Iterable[str]) -> dict[str, bytes]:
    """Read objects, several at once; those that are gone are left out."""
    permits = asyncio.Semaphore(_READS_MAX)
    found: dict[str, bytes] = {}

    async def read(key: str) -> None:
        async with permits:
            with contextlib.suppress(NotFoundError):
                found[key] = await storage.get(key)

    await asyncio.gather(*(read(key) for key in keys))
    return found


def _descendants_first(newest: Mapping[str, str], contents: Mapping[str, bytes]) -> list[list[str]]:
    """Return the keys of indices, given by their timelines' prefixes, in groups: no timeline's ancestor is in the same
    group or in one before it. An index that cannot be read counts as a root's.
    """

    def ancestor_of(prefix: str, key: str) -> str | None:
        try:
            ancestor = IndexPart.decode(contents[key]).metadata.ancestor_timeline
        except (CorruptDataError, KeyError):
            return None
        return None if ancestor is None else f"{prefix.rpartition('/')[0]}/{ancestor}"

    ancestors = {prefix: ancestor_of(prefix, key) for prefix, key in newest.items()}
    groups: list[list[str]] = []
    waiting = set(newest)
    while waiting:
        # Damaged indices may name each other: then all of them go at once.
        leaves = waiting - {ancestors[prefix] for prefix in waiting} or waiting
        groups.append(sorted(newest[prefix] for prefix in leaves))
        waiting = waiting - leaves
    return groups


async def _flush(deletions: DeletionQueue, resources: TenantResources) -> None:
    """Wait until everything is deleted, however long that takes, unlike Neon (remote-storage.md 11.5: at most 10 s).
    An older index must not outlive the newest one, which says that the timeline is deleted; and once the id is free
    again, a deletion that comes late would hit the next timeline of that id.
    """
    while True:
        try:
            async with asyncio.timeout(_FLUSH_TELL_SECONDS):
                await deletions.flush_immediate()
            return
        except TimeoutError:
            resources.log.warning("Timed out waiting for deletion queue flush, waiting on")


def _limit(resources: TenantResources, generation: Generation) -> Generation:
    """Return the highest generation of objects that may be deleted with a timeline."""
    return generation if resources.generations.fences_deletions else HIGHEST_GENERATION


async def _take_mark_back(
    resources: TenantResources, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, now: str
) -> None:
    """Say in our generation's index again that the timeline exists; a mark that is older than `now` stays."""
    key = paths.index_key(shard, timeline_id, generation)
    try:
        index = IndexPart.decode(await resources.storage.get(key))
        if index.deleted_at == now:
            await resources.storage.put(key, replace(index, deleted_at=None).encode())
    except PageServerError as error:
        resources.log.error(
            "a timeline stays marked as deleted in a generation that is not the newest",
            timeline=str(timeline_id),
            error=str(error),
        )


async def _mark_stored_index(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, now: str
) -> bool:
    try:
        content, _ = await find_generationed(storage, paths.index_base_key(shard, timeline_id), generation)
    except ObjectNotFoundError:
        return False
    index = IndexPart.decode(content)
    if index.deleted_at is None:
        await storage.put(paths.index_key(shard, timeline_id, generation), replace(index, deleted_at=now).encode())
    return True


def _newest_index(keys: list[str], base: str) -> str | None:
    """Return the key of the index with the highest generation; the one without a suffix is the oldest."""
    indices = [key for key in keys if key.startswith(base)]
    return max(indices, key=generation_of_key, default=None)
