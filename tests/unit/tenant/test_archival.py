"""Archiving, offloading and coming back (tenants.md 13)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pageserver.config import TenantOverrides
from pageserver.errors import ConflictError, NotFoundError, PreconditionFailedError, UnavailableError
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.remote.generations import find_generationed
from pageserver.remote.tenant_manifest import TenantManifest
from pageserver.tenant import BranchRefusedError, DifferentParametersError, Tenant
from pageserver.tenant.creation_rules import UnknownAncestorError
from pageserver.tenant.tenant_errors import TimelineNotFoundError
from pageserver.timeline.state import TimelineStatus
from tests.unit.recording_store import check_bucket, newest_indices
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

POINT = Lsn(START + 0x188)
TIP = Lsn(START + 0x400)


async def with_branch(tmp_path: Path, storage: LocalStore | None = None) -> tuple[World, Tenant]:
    """A root and a branch of it, each with layers of its own in the bucket."""
    (tmp_path / "work").mkdir(exist_ok=True)
    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket", storage=storage)
    tenant = await attach(world)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()
    await tenant.create_branch(BRANCH, ROOT, POINT)
    branch = tenant.get_timeline(BRANCH)
    store_of(branch).ingest(TIP)
    await branch.freeze_and_flush()
    return world, tenant


def directory_of(world: World, timeline_id: TimelineId) -> Path:
    return paths.timeline_directory(world.workdir, TENANT, timeline_id)


async def listed(world: World, tenant: Tenant) -> list[TimelineId]:
    """Return what the manifest in the store names."""
    base = paths.manifest_base_key(TENANT)
    content, _ = await find_generationed(LocalStore(world.storage.root), base, tenant.generation, extension=".json")
    return [record.timeline_id for record in TenantManifest.decode(content).offloaded_timelines]


async def test_children_are_archived_first_and_come_back_last(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    with pytest.raises(PreconditionFailedError, match=rf"non-archived child timelines: \[{BRANCH}\]"):
        await tenant.archival.archive(ROOT)
    for _ in range(2):
        await tenant.archival.archive(BRANCH)
        await tenant.archival.archive(ROOT)
    assert tenant.detail(ROOT).is_archived
    assert (await newest_indices(world.storage, TENANT))[ROOT].archived_at is not None
    tenant.get_timeline(BRANCH)
    with pytest.raises(BranchRefusedError, match="ancestor timeline is archived"):
        await tenant.create_branch(TimelineId.generate(), ROOT, None)
    with pytest.raises(PreconditionFailedError, match=f"ancestor is archived: {ROOT}"):
        await tenant.archival.unarchive(BRANCH)
    for timeline_id in (ROOT, BRANCH, ROOT, BRANCH):
        await tenant.archival.unarchive(timeline_id)
    assert not any(info.is_archived for info in tenant.details())
    assert all(index.archived_at is None for index in (await newest_indices(world.storage, TENANT)).values())
    for request in (tenant.archival.archive, tenant.archival.unarchive, tenant.archival.offload):
        with pytest.raises(NotFoundError, match="timeline not found"):
            await request(TimelineId.generate())
    await world.stop()


async def test_an_offloaded_timeline_is_gone_from_here_and_comes_back_with_its_data(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    with pytest.raises(PreconditionFailedError, match="check failed: timeline is not archived"):
        await tenant.archival.offload(BRANCH)
    await tenant.archival.archive(BRANCH)
    layers = set(store_of(tenant.get_timeline(BRANCH)).named)
    for _ in range(2):
        await tenant.archival.offload(BRANCH)
        await tenant.archival.archive(BRANCH)
    assert not directory_of(world, BRANCH).exists()
    assert BRANCH not in world.pages.attached
    assert await listed(world, tenant) == [BRANCH]
    record = tenant.archival.offloaded[BRANCH]
    assert (record.ancestor_timeline_id, record.ancestor_retain_lsn) == (ROOT, POINT)
    for look in (tenant.get_timeline, tenant.detail):
        with pytest.raises(TimelineNotFoundError):
            look(BRANCH)
    with pytest.raises(UnknownAncestorError):
        await tenant.create_branch(TimelineId.generate(), BRANCH, None)
    with pytest.raises(DifferentParametersError):
        await tenant.create_branch(BRANCH, ROOT, POINT)
    with pytest.raises(PreconditionFailedError, match=rf"has child timelines: \[{BRANCH}\]"):
        await tenant.delete_timeline(ROOT)
    await world.stop()

    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket")
    tenant = world.manager.get(TENANT)
    assert (list(tenant.timelines), tenant.archival.offloaded) == ([ROOT], {BRANCH: record})
    await tenant.archival.unarchive(BRANCH)
    branch = tenant.get_timeline(BRANCH)
    assert (branch.last_record_lsn, branch.detail().is_archived) == (TIP, False)
    assert set(store_of(branch).named) == layers
    assert branch.ancestor is tenant.get_timeline(ROOT)
    assert BRANCH in world.pages.attached
    assert await listed(world, tenant) == []
    store_of(branch).ingest(TIP + 0x100)
    await branch.freeze_and_flush()
    assert await check_bucket(world.storage, TENANT) == set()
    await world.stop()


async def test_a_parent_leaves_after_its_children_and_returns_before_them(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    await tenant.archival.archive(BRANCH)
    await tenant.archival.archive(ROOT)
    with pytest.raises(PreconditionFailedError, match="timeline has attached children"):
        await tenant.archival.offload(ROOT)
    await tenant.archival.offload(BRANCH)
    await tenant.archival.offload(ROOT)
    assert tenant.timelines == {}
    with pytest.raises(PreconditionFailedError, match=f"ancestor is archived: {ROOT}"):
        await tenant.archival.unarchive(BRANCH)
    await tenant.archival.unarchive(ROOT)
    assert tenant.detail(ROOT).source.text == "streaming", "it follows its primary again"
    await tenant.archival.unarchive(BRANCH)
    await world.stop()


async def test_what_was_not_flushed_is_dropped_and_what_is_not_uploaded_keeps_it_here(tmp_path: Path) -> None:
    """Goal: nothing is given up that is nowhere else. Method: offload while the bucket takes no layers."""

    class Stuck(LocalStore):
        is_stuck = False

        async def upload(self, key: str, source: Path) -> None:
            if self.is_stuck:
                raise UnavailableError("stuck")
            await super().upload(key, source)

    store = Stuck(tmp_path / "bucket")
    world, tenant = await with_branch(tmp_path, store)
    await tenant.archival.archive(BRANCH)
    branch = tenant.get_timeline(BRANCH)
    store.is_stuck = True
    store_of(branch).ingest(TIP + 0x100)
    flushing = asyncio.ensure_future(branch.freeze_and_flush())

    async def is_pending() -> bool:
        return branch.remote.has_pending_work

    await eventually(is_pending)
    with pytest.raises(PreconditionFailedError, match="uploads are pending"):
        await tenant.archival.offload(BRANCH)
    store.is_stuck = False
    await flushing
    store_of(branch).ingest(TIP + 0x200)
    await tenant.archival.offload(BRANCH)
    await tenant.archival.unarchive(BRANCH)
    assert tenant.get_timeline(BRANCH).last_record_lsn == TIP + 0x100
    await world.stop()


async def test_one_request_for_a_timeline_at_a_time_and_a_hang_up_does_not_stop_it(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    await tenant.archival.archive(BRANCH)
    await tenant.archival.offload(BRANCH)
    first = asyncio.ensure_future(tenant.archival.unarchive(BRANCH))
    await asyncio.sleep(0)
    with pytest.raises(ConflictError, match="Timeline archival is already in progress"):
        await tenant.archival.unarchive(BRANCH)
    with pytest.raises(ConflictError):
        await tenant.delete_timeline(BRANCH)
    first.cancel()

    async def is_back() -> bool:
        return BRANCH in tenant.timelines and not tenant.archival.is_moving(BRANCH)

    await eventually(is_back)
    assert not tenant.get_timeline(BRANCH).detail().is_archived
    await world.stop()


async def test_a_stop_in_between_leaves_nothing_running(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    await tenant.archival.archive(BRANCH)
    await tenant.archival.offload(BRANCH)
    coming = asyncio.ensure_future(tenant.archival.unarchive(BRANCH))
    await asyncio.sleep(0)
    await world.stop()
    with pytest.raises(Exception, match="Shutting down"):
        await coming
    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket")
    await world.manager.get(TENANT).archival.unarchive(BRANCH)
    await world.stop()


async def test_an_offloaded_timeline_is_deleted_and_that_survives_a_crash(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    await tenant.archival.archive(BRANCH)
    await tenant.archival.offload(BRANCH)
    await tenant.delete_timeline(BRANCH)
    assert await listed(world, tenant) == []
    await world.kill()
    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket")
    tenant = world.manager.get(TENANT)

    async def is_gone() -> bool:
        return BRANCH not in tenant.timelines

    await eventually(is_gone)
    assert list(await newest_indices(world.storage, TENANT)) == [ROOT]
    with pytest.raises(NotFoundError):
        await tenant.archival.unarchive(BRANCH)
    await world.stop()


async def test_offload_is_refused_where_it_would_lose_the_only_copy(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    await tenant.archival.archive(ROOT)
    with pytest.raises(PreconditionFailedError, match="without remote storage the local disk is the only copy"):
        await tenant.archival.offload(ROOT)
    assert tenant.get_timeline(ROOT).state.status is TimelineStatus.ACTIVE
    await tenant.archival.unarchive(ROOT)
    await world.stop()


async def test_a_server_that_was_overtaken_offloads_nothing(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    await tenant.archival.archive(BRANCH)
    tenant.note_overtaken()
    with pytest.raises(PreconditionFailedError, match="not AttachedSingle"):
        await tenant.archival.offload(BRANCH)
    assert directory_of(world, BRANCH).exists()
    await world.stop()


async def test_a_damaged_index_leaves_the_timeline_offloaded(tmp_path: Path) -> None:
    world, tenant = await with_branch(tmp_path)
    await tenant.archival.archive(BRANCH)
    await tenant.archival.offload(BRANCH)
    key = paths.index_key(TENANT, BRANCH, tenant.generation)
    content = await world.storage.get(key)
    await world.storage.put(key, b"{")
    with pytest.raises(Exception, match="index"):
        await tenant.archival.unarchive(BRANCH)
    assert BRANCH in tenant.archival.offloaded
    await world.storage.put(key, content)
    await tenant.archival.unarchive(BRANCH)
    await world.stop()


async def test_archived_timelines_leave_by_themselves_children_first(tmp_path: Path) -> None:
    """Goal: what is archived and ready goes in one of the next rounds, unless nobody wants it (tenants.md 13.2)."""
    world, tenant = await with_branch(tmp_path)

    async def configure(**settings: object) -> None:
        overrides = TenantOverrides.parse({"compaction_period": "10ms", **settings})
        await world.manager.update_config(tenant, replace(tenant.location, overrides=overrides))

    async def are_offloaded() -> bool:
        return await listed(world, tenant) == [ROOT, BRANCH]

    await configure()
    await world.manager.reset(TENANT, drop_cache=False)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    await tenant.archival.archive(BRANCH)
    await tenant.archival.archive(ROOT)
    await eventually(are_offloaded)
    assert not directory_of(world, BRANCH).exists()
    assert not directory_of(world, ROOT).exists()
    assert list(tenant.archival.offloaded) == [BRANCH, ROOT], "children leave first"
    await tenant.archival.unarchive(ROOT)
    await asyncio.sleep(0.1)
    assert tenant.get_timeline(ROOT).last_record_lsn == START + 0x200
    assert set(tenant.archival.offloaded) == {BRANCH}
    await world.stop()


@pytest.mark.parametrize("off", [{"compaction_period": "0s"}, {"timeline_offloading": False}])
async def test_offloading_can_be_switched_off(tmp_path: Path, off: dict[str, object]) -> None:
    """Goal: with a period of 0, or with both settings off, an archived timeline stays."""
    (tmp_path / "work").mkdir()
    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket", timeline_offloading=False)
    tenant = await attach(world, tenant_conf={"compaction_period": "10ms", **off})
    await follow_primary(tenant)
    await tenant.archival.archive(ROOT)
    await asyncio.sleep(0.2)
    assert tenant.detail(ROOT).is_archived
    await world.stop()


async def test_requests_wait_for_an_offload_that_nobody_asked_for(tmp_path: Path) -> None:
    """Goal: what the server does by itself is no conflict. Method: hold the offload at the manifest, ask meanwhile."""

    class Slow(LocalStore):
        may_go_on: asyncio.Event | None = None
        arrived = asyncio.Event()

        async def put(self, key: str, content: bytes) -> None:
            if self.may_go_on is not None and "tenant-manifest" in key:
                self.arrived.set()
                await self.may_go_on.wait()
            await super().put(key, content)

    store = Slow(tmp_path / "bucket")
    world, tenant = await with_branch(tmp_path, storage=store)
    for request in (tenant.archival.unarchive, tenant.delete_timeline):
        await tenant.archival.archive(BRANCH)
        store.may_go_on = asyncio.Event()
        store.arrived.clear()
        leaving = asyncio.ensure_future(tenant.archival.offload_unasked(BRANCH))
        await store.arrived.wait()
        asked = asyncio.ensure_future(request(BRANCH))
        await asyncio.sleep(0.05)
        assert not asked.done()
        store.may_go_on.set()
        await asyncio.gather(leaving, asked)
        assert BRANCH not in tenant.archival.offloaded

    async def is_gone() -> bool:
        return BRANCH not in tenant.timelines

    await eventually(is_gone)
    await world.stop()
