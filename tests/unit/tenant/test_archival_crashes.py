"""Wherever a server dies while timelines are offloaded and come back, repeating the request ends it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from pageserver.ids import TimelineId
from pageserver.remote import LocalStore, paths
from pageserver.tenant import Tenant
from pageserver.timeline.state import TimelineStatus
from tests.unit.recording_store import RecordingStore, check_bucket
from tests.unit.tenant.test_archival import POINT, TIP, listed, with_branch
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

DOOMED = TimelineId(bytes.fromhex("33" * 16))

MAY_BE = {
    "created": {"unarchived", "archived"},
    "archived": {"archived", "offloaded"},
    "offloaded": {"offloaded", "archived", "unarchived"},
    "unarchived": {"unarchived"},
}
"""What a restart may find after what was acknowledged last; the rest belongs to the request that was under way."""


@dataclass
class Told:
    """What the client was told last of each timeline."""

    states: dict[TimelineId, str] = field(default_factory=dict)
    is_deletion_begun: bool = False
    is_deleted: bool = False
    first_call: int = 0


async def live(directory: Path, store: RecordingStore, told: Told, worlds: list[World]) -> None:
    world, tenant = await with_branch(directory, store)
    worlds.append(world)
    await tenant.create_branch(DOOMED, ROOT, POINT)
    told.first_call = len(store.calls)
    told.states = {ROOT: "created", BRANCH: "created"}
    await tenant.archival.archive(DOOMED)
    await tenant.archival.offload(DOOMED)
    told.is_deletion_begun = True
    await tenant.delete_timeline(DOOMED)
    told.is_deleted = True

    async def is_gone() -> bool:
        return DOOMED not in tenant.timelines

    await eventually(is_gone)
    for request, state in ((tenant.archival.archive, "archived"), (tenant.archival.offload, "offloaded")):
        for timeline_id in (BRANCH, ROOT):
            await request(timeline_id)
            told.states[timeline_id] = state
    for timeline_id in (ROOT, BRANCH):
        await tenant.archival.unarchive(timeline_id)
        told.states[timeline_id] = "unarchived"


async def crash(directory: Path, told: Told, *, dies_at: int | None, after: bool) -> list[str]:
    store = RecordingStore(directory / "bucket", dies_at=dies_at, after=after)
    worlds: list[World] = []
    living = asyncio.ensure_future(live(directory, store, told, worlds))
    dying = asyncio.ensure_future(store.died.wait())
    await asyncio.wait({living, dying}, return_when=asyncio.FIRST_COMPLETED)
    if dies_at is None:
        await living
    for task in (living, dying):
        task.cancel()
    await asyncio.wait({living, dying})
    store.died.set()
    await worlds[0].kill()
    return store.calls


async def test_every_crash_can_be_repeated_to_the_end(tmp_path: Path) -> None:
    """Method: as in test_crash_at_each_call, from the first archival to the last unarchival; restarted over the same
    disk, or over an empty one.
    """
    whole = Told()
    (tmp_path / "whole").mkdir()
    calls = await crash(tmp_path / "whole", whole, dies_at=None, after=False)
    assert sum("manifest" in call for call in calls[whole.first_call :]) >= 6
    for dies_at in range(whole.first_call, len(calls)):
        for after in (False, True):
            directory, told = tmp_path / f"{dies_at}-{after}", Told()
            directory.mkdir()
            await crash(directory, told, dies_at=dies_at, after=after)
            workdir = directory / ("work" if dies_at % 2 else "empty")
            workdir.mkdir(exist_ok=True)
            await check_restart(workdir, directory / "bucket", told, f"{calls[dies_at]} after={after}")


async def check_restart(workdir: Path, bucket: Path, told: Told, where: str) -> None:
    world = await World.start(workdir, bucket=bucket)
    tenant = await attach(world)
    for timeline_id, state in told.states.items():
        assert state_of(tenant, timeline_id) in MAY_BE[state], (where, timeline_id, state)
    record = tenant.archival.offloaded.get(BRANCH)
    assert record is None or (record.ancestor_timeline_id, record.ancestor_retain_lsn) == (ROOT, POINT)
    for timeline_id in tenant.archival.offloaded:
        assert not paths.timeline_directory(workdir, TENANT, timeline_id).exists()
    await end_deletion(tenant, told)
    for timeline_id, lsn in ((ROOT, START + 0x200), (BRANCH, TIP)):
        await tenant.archival.unarchive(timeline_id)
        timeline = tenant.get_timeline(timeline_id)
        assert timeline.last_record_lsn >= lsn, where
        assert sorted(store_of(timeline).named) == sorted(timeline.remote.index.layers)
        assert not timeline.detail().is_archived
    assert await check_bucket(LocalStore(bucket), TENANT) == set()
    assert await listed(world, tenant) == [] or DOOMED in tenant.archival.offloaded
    await world.stop()


def state_of(tenant: Tenant, timeline_id: TimelineId) -> str:
    if timeline_id in tenant.archival.offloaded:
        return "offloaded"
    return "archived" if tenant.get_timeline(timeline_id).detail().is_archived else "unarchived"


async def end_deletion(tenant: Tenant, told: Told) -> None:
    """A deletion that was acknowledged, or marked, is resumed; one that was only asked for can be asked for again."""
    if told.is_deleted:
        assert DOOMED not in tenant.archival.offloaded
    if told.is_deletion_begun and DOOMED in tenant.archival.offloaded:
        await tenant.delete_timeline(DOOMED)

    async def is_settled() -> bool:
        entry = tenant.timelines.get(DOOMED)
        return entry is None or (not told.is_deleted and entry.state.status is TimelineStatus.ACTIVE)

    await eventually(is_settled)
