"""Scheduling calls of one timeline: what they make of the index, the store and the deletion queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pageserver.errors import CorruptDataError, PreconditionFailedError
from pageserver.ids import Generation, ShardCount, ShardIndex, ShardNumber
from pageserver.lsn import Lsn
from pageserver.remote import IndexDecodeError, IndexPart, LayerEntry, LocalStore, index_changes, paths
from pageserver.remote.remote_timeline import RemoteContext, RemoteTimeline, UploadRights
from pageserver.remote.upload_operations import UploadPolicy
from pageserver.remote.upload_queue import QueueStoppedError
from tests.unit.recording_store import RecordingStore
from tests.unit.remote.fakes import SHARD, TIMELINE, FakeValidator, QuickClock, deletion_queue, until
from tests.unit.remote.test_upload_operations import METADATA, index, name

NOW = "2026-01-02T03:04:05"


class World:
    """A timeline over a store in a directory."""

    def __init__(self, directory: Path, *, store: LocalStore | None = None, newest: int = 1) -> None:
        self.directory = directory / "timeline"
        self.directory.mkdir()
        self.store = store or LocalStore(directory / "bucket")
        self.validator = FakeValidator({SHARD: newest})
        self.deletions = deletion_queue(directory, self.store, self.validator)

    def open(self, start: IndexPart | None = None, *, loaded: bool = False, **options: Any) -> RemoteTimeline:
        context = RemoteContext(
            storage=self.store,
            stores_layers=options.pop("stores_layers", True),
            deletions=self.deletions,
            shard=SHARD,
            generation=Generation(1),
            uploads=UploadPolicy(),
            clock=QuickClock(),
            log=structlog.get_logger(),
        )
        return RemoteTimeline(
            context,
            timeline_id=TIMELINE,
            directory=self.directory,
            index=start or index(),
            loaded=loaded,
            **options,
        )

    def write(self, number: int, size: int = 10) -> dict[str, int]:
        (self.directory / paths.local_layer_name(name(number), Generation(1))).write_bytes(bytes(size))
        return {name(number): size}

    async def stored_index(self) -> IndexPart:
        return IndexPart.decode(await self.store.get(paths.index_key(SHARD, TIMELINE, Generation(1))))

    async def layers(self) -> set[str]:
        prefix = paths.timeline_prefix(SHARD, TIMELINE)
        keys = {item.key.removeprefix(prefix) async for item in self.store.list_objects(prefix)}
        return {key for key in keys if not key.startswith(paths.INDEX_NAME)}

    async def close(self, *timelines: RemoteTimeline) -> None:
        for timeline in timelines:
            await timeline.close()
        await self.deletions.close()


def stored(*numbers: int) -> set[str]:
    return {f"{name(number)}-00000001" for number in numbers}


def at(lsn: int):  # type: ignore[no-untyped-def]
    return replace(METADATA, disk_consistent_lsn=Lsn(lsn))


async def test_a_flush_is_projected_and_then_visible(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open()
    assert (timeline.projected_lsn, timeline.visible_lsn) == (0, 0)
    timeline.schedule_layers(world.write(0))
    timeline.schedule_metadata(at(0x200))
    await timeline.wait_completion()
    assert (timeline.projected_lsn, timeline.visible_lsn) == (0x200, 0)
    assert timeline.remote_size_bytes() == 10
    assert (await world.stored_index()).layers == {name(0): LayerEntry(10, Generation(1))}
    timeline.hurry_visible()
    await until(lambda: timeline.visible_lsn == 0x200)
    await world.close(timeline)


async def test_a_loaded_timeline_projects_nothing_until_it_uploads(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open(index(0), loaded=True)
    assert (timeline.projected_lsn, timeline.visible_lsn) == (0, 0x100)
    timeline.schedule_metadata(at(0x80))
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert (timeline.projected_lsn, timeline.visible_lsn) == (0x80, 0x100), "what was told stays told"
    await world.close(timeline)


async def test_a_stale_generation_projects_only(tmp_path: Path) -> None:
    world = World(tmp_path, newest=2)
    timeline = world.open(index(0), loaded=True)
    timeline.schedule_metadata(at(0x200))
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert (timeline.projected_lsn, timeline.visible_lsn) == (0x200, 0x100)
    assert world.deletions.counters.dropped_lsn_updates == 1
    timeline.set_rights(UploadRights(deletes=False, publishes_lsn=False))
    timeline.schedule_metadata(at(0x300))
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert world.deletions.counters.dropped_lsn_updates == 1, "a stale location does not even ask"
    await world.close(timeline)


async def test_without_remote_storage_an_index_is_enough(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open(stores_layers=False)
    timeline.schedule_layers({name(0): 10})
    timeline.schedule_metadata(at(0x200))
    await timeline.wait_completion()
    assert (timeline.projected_lsn, timeline.visible_lsn) == (0x200, 0x200)
    assert await world.layers() == set()
    timeline.schedule_layers({name(1): 10})
    timeline.schedule_layer_file_deletion([name(0)])
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert world.deletions.counters.submitted == 0
    await world.close(timeline)


async def test_compaction_deletes_in_two_steps(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open()
    timeline.schedule_layers(world.write(0) | world.write(1))
    timeline.schedule_metadata(at(0x200))
    await timeline.wait_completion()
    old = dict(timeline.index.layers)
    timeline.schedule_compaction(world.write(2), old)
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert set((await world.stored_index()).layers) == {name(2)}
    assert await world.layers() == stored(0, 1, 2), "readers may still hold them"
    timeline.schedule_deletion(old)
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert await world.layers() == stored(2)
    timeline.schedule_file_changes()
    assert timeline.queue.stats().queued == 0, "nothing changed, so nothing is uploaded"
    await world.close(timeline)


async def test_layers_of_an_ancestor_shard_are_unlinked_only(tmp_path: Path) -> None:
    world = World(tmp_path)
    foreign = LayerEntry(10, Generation(1), ShardIndex(ShardNumber(0), ShardCount(1)))
    start = replace(index(0), layers={**index(0).layers, name(9): foreign})
    timeline = world.open(start, loaded=True)
    timeline.schedule_layer_file_deletion([name(9), name(77)])
    await timeline.wait_completion()
    await world.deletions.flush()
    assert set((await world.stored_index()).layers) == {name(0)}
    assert world.deletions.counters.submitted == 0
    await world.close(timeline)


async def test_deletions_wait_for_a_mode_that_may_delete(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open(rights=UploadRights(deletes=False))
    timeline.schedule_layers(world.write(0) | world.write(1))
    timeline.schedule_metadata(at(0x200))
    timeline.schedule_layer_file_deletion([name(0)])
    await timeline.wait_completion()
    await world.deletions.flush_execute()
    assert await world.layers() == stored(0, 1)
    assert timeline.blocked_deletions == 1
    timeline.set_rights(UploadRights())
    await world.deletions.flush_execute()
    assert await world.layers() == stored(1)
    assert timeline.blocked_deletions == 0
    await world.close(timeline)


@pytest.mark.parametrize("deletes", [True, False])
async def test_a_file_that_comes_back_waits_for_its_deletion(tmp_path: Path, deletes: bool) -> None:
    """Goal: 9.5: the old deletion must not hit the new object. Method: delete and upload the same name at once."""
    world = World(tmp_path)
    timeline = world.open(rights=UploadRights(deletes=deletes))
    timeline.schedule_layers(world.write(0) | world.write(1))
    timeline.schedule_metadata(at(0x200))
    await timeline.wait_completion()
    timeline.schedule_layer_file_deletion([name(0)])
    with capture_logs() as logs:
        timeline.schedule_layers(world.write(0, 20))
        timeline.schedule_file_changes()
        await timeline.wait_completion()
    flushed = any("waiting for deletion queue flush to complete" in entry["event"] for entry in logs)
    assert flushed == deletes
    timeline.set_rights(UploadRights())
    await world.deletions.flush_execute()
    assert await world.layers() == stored(0, 1)
    head = await world.store.head(paths.timeline_prefix(SHARD, TIMELINE) + f"{name(0)}-00000001")
    assert head.size_bytes == 20
    await world.close(timeline)


async def test_a_vanished_file_counts_as_uploaded_but_another_size_does_not(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open()
    timeline.schedule_layers(world.write(0) | {name(1): 10})
    await timeline.wait_completion()
    assert await world.layers() == stored(0)
    world.write(2, size=9)
    timeline.schedule_layers({name(2): 10})
    await until(lambda: timeline.queue.stats().failures >= 3)
    assert await world.layers() == stored(0)
    world.write(2, size=10)
    await timeline.wait_completion()
    assert await world.layers() == stored(0, 2)
    await world.close(timeline)


async def test_an_object_of_another_size_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    """Goal: clients that read a truncated layer again and again do not fill the disk."""
    world = World(tmp_path)
    entry = LayerEntry(10, Generation(1))
    await world.store.put(paths.layer_key(SHARD.tenant_id, entry.shard, TIMELINE, name(0), Generation(1)), b"short")
    timeline = world.open(index(0), loaded=True)
    for number in (1, 2):
        with pytest.raises(CorruptDataError, match="should have downloaded 10 bytes but downloaded 5 bytes"):
            await timeline.download_layer(name(0), entry, number)
    assert list(world.directory.iterdir()) == []
    await world.close(timeline)


async def test_an_index_that_could_not_be_loaded_is_not_uploaded(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open()
    with pytest.raises(IndexDecodeError, match="Index has no ancestor and no layers"):
        timeline.schedule_metadata(at(0x200))
    await timeline.wait_completion()
    assert await world.store.list_directories("tenants/") == []
    await world.close(timeline)


async def test_single_facts_are_durable_when_their_calls_return(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open(index(0), loaded=True)
    await timeline.set_archived(NOW)
    assert (await world.stored_index()).archived_at == NOW
    await timeline.block_gc("Manual", NOW)
    assert (await world.stored_index()).gc_blocking is not None
    await timeline.unblock_gc("Manual")
    assert (await world.stored_index()).gc_blocking is None
    timeline.keep_for_next_index(lambda now: replace(now, rel_size_migration="migrated"))
    assert (await world.stored_index()).rel_size_migration is None
    timeline.schedule_change(lambda now: index_changes.invisible(now, NOW))
    await timeline.wait_completion()
    assert (await world.stored_index()).rel_size_migration == "migrated"
    await world.close(timeline)


async def test_only_an_archived_timeline_is_shut_down_for_offloading(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open(index(0), loaded=True)
    with pytest.raises(PreconditionFailedError, match="timeline is not archived"):
        await timeline.shutdown_if_archived()
    await timeline.set_archived(NOW)
    await timeline.shutdown_if_archived()
    with pytest.raises(QueueStoppedError):
        await timeline.set_archived(None)
    await world.close(timeline)


async def test_the_mark_of_a_deletion_goes_on_what_is_in_the_store(tmp_path: Path) -> None:
    """Goal: no index names what never got there. Method: mark while an upload is stuck."""

    class Stuck(RecordingStore):
        async def upload(self, key: str, source: Path) -> None:
            raise OSError("stuck")

    world = World(tmp_path, store=Stuck(tmp_path / "bucket"))
    fresh = world.open()
    assert not await fresh.upload_deleted_index(NOW), "no index, no timeline"
    timeline = world.open(index(0), loaded=True)
    timeline.schedule_layers(world.write(1))
    timeline.schedule_metadata(at(0x200))
    await until(lambda: timeline.queue.stats().failures >= 1)
    assert await timeline.upload_deleted_index(NOW)
    marked = await world.stored_index()
    assert (marked.deleted_at, set(marked.layers)) == (NOW, {name(0)})
    await world.close(timeline)


async def test_nothing_reaches_the_store_after_close(tmp_path: Path) -> None:
    class Slow(LocalStore):
        async def upload(self, key: str, source: Path) -> None:
            await asyncio.sleep(0.05)
            await super().upload(key, source)

    world = World(tmp_path, store=Slow(tmp_path / "bucket"))
    timeline = world.open()
    timeline.schedule_layers(world.write(0))
    timeline.schedule_metadata(at(0x200))
    await asyncio.sleep(0.01)
    await timeline.close()
    before = await world.layers()
    await asyncio.sleep(0.1)
    assert await world.layers() == before == stored(0)
    assert timeline.projected_lsn == 0
    with pytest.raises(QueueStoppedError):
        timeline.schedule_layers(world.write(1))
    await world.close()


async def test_what_the_index_names_cannot_be_deleted(tmp_path: Path) -> None:
    world = World(tmp_path)
    timeline = world.open(index(0), loaded=True)

    def deletes(names: Iterable[str]) -> None:
        timeline.schedule_deletion({each: timeline.index.layers[each] for each in names})

    with pytest.raises(AssertionError):
        deletes([name(0)])
    await world.close(timeline)
