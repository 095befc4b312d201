"""Nothing acknowledged is lost, and no index names what is not there, wherever a server dies (remote-storage.md 20)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pageserver.clock import SystemClock
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore
from pageserver.remote.scrub import Scrubber
from pageserver.tenant import Tenant
from pageserver.timeline import Timeline
from pageserver.timeline.state import TimelineStatus
from tests.unit.recording_store import RecordingStore, check_bucket, newest_indices
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

DOOMED = TimelineId(bytes.fromhex("33" * 16))


@dataclass
class Promises:
    """What a client or a WAL source was told."""

    durable: dict[TimelineId, Lsn] = field(default_factory=dict)
    deleted: set[TimelineId] = field(default_factory=set)


async def live(world: World, promises: Promises) -> None:
    """Attach, import, flush, branch, exchange layers as compaction does, delete: every kind of write to the store."""
    tenant = await attach(world)
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    promises.durable[ROOT] = Lsn(0)
    await eventually(lambda: is_active(tenant, ROOT))
    root = tenant.get_timeline(ROOT)
    for step in (0x200, 0x300):
        store_of(root).ingest(START + step)
        await root.freeze_and_flush()
        await acknowledged(root, START + step)
        promises.durable[ROOT] = root.durable_lsn
    await tenant.create_branch(BRANCH, ROOT, START + 0x288)
    promises.durable[BRANCH] = Lsn(START + 0x288)
    await tenant.create_branch(DOOMED, ROOT, START + 0x288)
    promises.durable[DOOMED] = Lsn(START + 0x288)
    await compact(root)
    await world.resources.deletions.flush_execute()
    promises.durable.pop(DOOMED)
    await tenant.delete_timeline(DOOMED)
    promises.deleted.add(DOOMED)

    async def is_gone() -> bool:
        return DOOMED not in tenant.timelines

    await eventually(is_gone)


async def compact(timeline: Timeline) -> None:
    """Put one delta layer in the place of two."""
    store = store_of(timeline)
    old = sorted(name for name in store.named if len(name.split("__")[1]) > 16)
    keys = old[0].split("__")[0]
    start, end = old[0].split("__")[1].split("-")[0], old[-1].rsplit("-", 1)[1]
    merged = store.write_layer(f"{keys}__{start}-{end}", timeline.generation.number)
    await timeline.publish_layers([merged], removed=old)
    store.remove_layers(old)


async def is_active(tenant: Tenant, timeline_id: TimelineId) -> bool:
    return tenant.detail(timeline_id).state.status is TimelineStatus.ACTIVE


async def acknowledged(timeline: Timeline, lsn: int) -> None:
    async def is_acknowledged() -> bool:
        return timeline.durable_lsn >= lsn

    await eventually(is_acknowledged)


async def test_every_crash_leaves_what_was_promised(tmp_path: Path) -> None:
    """Goal: the invariants of remote-storage.md 20, also on another machine that has only the bucket.

    Method: record the calls of one whole life; then live it again for each call, dying before it or after it; start
    again over an empty disk, and every other time over the same one before.
    """
    calls = await crash(tmp_path / "whole", dies_at=None, after=False)
    assert sum(call.startswith("upload") for call in calls) == 4
    assert sum("delete" in call for call in calls) >= 3
    for dies_at in range(len(calls)):
        for after in (False, True):
            directory = tmp_path / f"{dies_at}-{after}"
            promises = Promises()
            await crash(directory, dies_at=dies_at, after=after, promises=promises)
            leaks = await check_bucket(LocalStore(directory / "bucket"), TENANT)
            assert len(leaks) <= 3, leaks
            await scrub_and_check(directory / "bucket", leaks)
            if dies_at % 2:
                await restart_and_check(directory / "work", directory / "bucket", promises)
            (directory / "empty").mkdir()
            await restart_and_check(directory / "empty", directory / "bucket", promises)


async def crash(directory: Path, *, dies_at: int | None, after: bool, promises: Promises | None = None) -> list[str]:
    (directory / "work").mkdir(parents=True)
    store = RecordingStore(directory / "bucket", dies_at=dies_at, after=after)
    world = await World.start(directory / "work", bucket=directory / "bucket", storage=store)
    living = asyncio.ensure_future(live(world, promises or Promises()))
    dying = asyncio.ensure_future(store.died.wait())
    await asyncio.wait({living, dying}, return_when=asyncio.FIRST_COMPLETED)
    if dies_at is None:
        await living
    for task in (living, dying):
        task.cancel()
    await asyncio.wait({living, dying})
    store.died.set()
    await world.kill()
    return store.calls


async def restart_and_check(workdir: Path, bucket: Path, promises: Promises) -> None:
    world = await World.start(workdir, bucket=bucket)
    tenant = await attach(world)
    for timeline_id, lsn in promises.durable.items():
        await eventually(lambda timeline_id=timeline_id: is_active(tenant, timeline_id))  # type: ignore[misc]
        timeline = tenant.get_timeline(timeline_id)
        assert timeline.last_record_lsn >= lsn
        assert sorted(store_of(timeline).named) == sorted(timeline.remote.index.layers)
    for timeline_id in promises.deleted:

        async def is_gone(timeline_id: TimelineId = timeline_id) -> bool:
            return timeline_id not in tenant.timelines

        await eventually(is_gone)

    async def is_settled() -> bool:
        return all(entry.state.status is not TimelineStatus.STOPPING for entry in tenant.timelines.values())

    # A deletion that was begun and not acknowledged is resumed in the background; it takes away what is looked at.
    await eventually(is_settled)
    await check_bucket(LocalStore(bucket), TENANT)
    await world.stop()
    await scrub_and_check(bucket, set(), purge=True)


async def scrub_and_check(bucket: Path, leaks: set[str], *, purge: bool = False) -> None:
    """Assert that the scrubber finds no damage and lists all that was left behind, but for what a deletion that was
    begun still has to delete; purge it, and see that nothing is listed any more.
    """
    store = LocalStore(bucket)
    scrubber = Scrubber(store, clock=SystemClock())
    report = await scrubber.scrub(await scrubber.tenants(), purge_min_age=timedelta(0) if purge else None)
    assert report.findings == []
    doomed = {timeline_id for timeline_id, index in (await newest_indices(store, TENANT)).items() if index.deleted_at}
    left_to_deletion = {key for key in leaks for timeline_id in doomed if str(timeline_id) in key}
    assert leaks - left_to_deletion <= {*(orphan.key for orphan in report.orphans), *report.in_flight}
    if purge:
        await check_bucket(store, TENANT)
        assert (await scrubber.scrub(await scrubber.tenants())).orphans == []
