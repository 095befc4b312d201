"""Tenants and timelines through their lives, over a fake engine and a real store on disk."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
import structlog

from pageserver.config import BuildInfo
from pageserver.errors import PreconditionFailedError, RequestError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.mgmt.models import LocationConfigBody
from pageserver.observe import render_metrics
from pageserver.remote import IndexPart, paths
from pageserver.tenant import BranchRefusedError, DifferentParametersError, Tenant
from pageserver.tenant.local_tenants import LocalTenants
from pageserver.tenant.location import LocationConfig
from pageserver.tenant.slots import GenerationDecreaseError, SlotBusyError, TenantNotFoundError
from pageserver.tenant.tenant_errors import TenantBrokenError
from pageserver.timeline import Timeline
from pageserver.timeline.state import TimelineStatus
from tests.unit.world import BRANCH, ROOT, START, TENANT, FakeWayIn, World, eventually, store_of


async def attach(world: World, **body: object) -> Tenant:
    request = LocationConfigBody.model_validate({"mode": "AttachedSingle", "tenant_conf": {}, **body})
    await world.manager.put_location(TENANT, request.to_request(claims_generations=True), flush_seconds=None)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    return tenant


async def follow_primary(tenant: Tenant, timeline_id: TimelineId = ROOT) -> Timeline:
    await tenant.create_from_primary(timeline_id, {"conninfo": "host=primary"})
    return await active(tenant, timeline_id)


async def active(tenant: Tenant, timeline_id: TimelineId) -> Timeline:
    async def is_active() -> bool:
        return tenant.detail(timeline_id).state.status is TimelineStatus.ACTIVE

    await eventually(is_active)
    return tenant.get_timeline(timeline_id)


async def index_of(world: World, timeline_id: TimelineId, tenant: Tenant) -> IndexPart:
    return IndexPart.decode(await world.storage.get(paths.index_key(TENANT, timeline_id, tenant.generation)))


async def test_a_primary_is_imported_flushed_and_found_again(tmp_path: Path) -> None:
    """Goal: what was acknowledged is there after a kill. Method: import, ingest, flush, open a second world over the
    files.
    """
    world = await World.start(tmp_path)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    assert timeline.flavour == "stock"
    assert timeline.gc_cutoff_lsn == START + 0x100
    assert timeline.durable_lsn == START
    store_of(timeline).ingest(START + 0x200)
    store_of(timeline).ingest(START + 0x300)
    await timeline.freeze_and_flush()
    assert timeline.durable_lsn == START + 0x300
    index = await index_of(world, ROOT, tenant)
    assert index.metadata.prev_record_lsn == START + 0x200
    assert len(index.layers) == 2
    store_of(timeline).ingest(START + 0x400)

    again = await World.start(tmp_path)
    reloaded = again.manager.get(TENANT)
    assert reloaded.generation.number == 2
    timeline = await active(reloaded, ROOT)
    assert timeline.last_record_lsn == timeline.disk_consistent_lsn == START + 0x300
    assert len(timeline.store.layers()) == 2
    assert timeline.detail().source.connection == "host=primary"
    await again.stop()
    await world.stop()


async def test_a_graceful_stop_flushes_what_is_open(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    timeline = await follow_primary(await attach(world))
    store_of(timeline).ingest(START + 0x200)
    await world.stop()
    assert store_of(timeline).is_shut_down
    assert world.pages.attached == set()
    again = await World.start(tmp_path)
    assert again.manager.get(TENANT).get_timeline(ROOT).last_record_lsn == START + 0x200
    await again.stop()


async def test_an_import_that_was_cut_short_starts_again(tmp_path: Path) -> None:
    way_in = FakeWayIn()
    way_in.die_before_finish = True
    world = await World.start(tmp_path, way_in=way_in)
    tenant = await attach(world)
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})

    async def is_published() -> bool:
        return bool(await world.storage.list_directories(paths.timelines_prefix(TENANT)))

    await eventually(is_published)
    assert tenant.detail(ROOT).state.status is TimelineStatus.LOADING
    await world.stop()

    again = await World.start(tmp_path)
    timeline = await active(again.manager.get(TENANT), ROOT)
    assert len(timeline.store.layers()) == 1
    await again.stop()


async def test_a_failing_source_stops_only_its_timeline(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    good = await follow_primary(tenant)
    world.way_in.fail_import = RequestError("the slot is gone")
    await tenant.create_from_primary(BRANCH, {"conninfo": "host=other"})

    async def has_failed() -> bool:
        return tenant.detail(BRANCH).source.error is not None

    await eventually(has_failed)
    assert tenant.detail(BRANCH).source.error == "the slot is gone"
    assert good.state.status is TimelineStatus.ACTIVE
    with pytest.raises(RequestError, match="wal_level"):
        await tenant.create_from_primary(TimelineId(bytes(16)), {"conninfo": "minimal"})
    assert TimelineId(bytes(16)) not in tenant.timelines
    with pytest.raises(DifferentParametersError):
        await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    await world.stop()


async def test_branches_are_durable_idempotent_and_checked(tmp_path: Path) -> None:
    world = await World.start(tmp_path, wait_lsn_timeout="50ms")
    tenant = await attach(world)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x1000)
    at = Lsn(0x2000800)
    first = await tenant.create_branch(BRANCH, ROOT, Lsn(at - 1))
    assert (first.ancestor_lsn, first.last_record_lsn, first.flavour) == (at, at, "stock")
    assert (await index_of(world, BRANCH, tenant)).layers == {}
    assert await tenant.create_branch(BRANCH, ROOT, at) == first
    with pytest.raises(DifferentParametersError):
        await tenant.create_branch(BRANCH, ROOT, None)
    for lsn, reason in ((Lsn(8), "GC cutoff"), (Lsn(0x9000000), "did not arrive")):
        with pytest.raises(BranchRefusedError, match=reason):
            await tenant.create_branch(TimelineId(bytes(16)), ROOT, lsn)
    with pytest.raises(PreconditionFailedError, match=str(BRANCH)):
        await tenant.delete_timeline(ROOT)
    await world.stop()

    again = await World.start(tmp_path)
    branch = again.manager.get(TENANT).get_timeline(BRANCH)
    assert branch.ancestor is again.manager.get(TENANT).get_timeline(ROOT)
    assert branch.last_record_lsn == at
    assert store_of(branch).parameters.next_open_layer_at == at + 1
    await again.stop()


async def test_a_damaged_index_harms_only_its_timeline_and_its_branches(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    store_of(await follow_primary(tenant)).ingest(START + 0x200)
    await tenant.create_branch(BRANCH, ROOT, None)
    other = TimelineId(bytes.fromhex("33" * 16))
    await follow_primary(tenant, other)
    await world.stop()
    await world.storage.put(paths.index_key(TENANT, ROOT, tenant.generation), b"{")

    again = await World.start(tmp_path)
    reloaded = again.manager.get(TENANT)
    assert reloaded.detail(ROOT).state.status is TimelineStatus.BROKEN
    assert reloaded.detail(BRANCH).state.status is TimelineStatus.BROKEN
    assert reloaded.get_timeline(other).state.status is TimelineStatus.ACTIVE
    assert paths.timeline_directory(tmp_path, TENANT, ROOT).is_dir(), "evidence is kept"
    await again.stop()


async def broken_reason(world: World) -> str:
    """Attach again in the same generation, and return why that failed."""
    await world.manager.reset(TENANT, drop_cache=False)
    with pytest.raises(TenantBrokenError) as caught:
        await world.manager.get(TENANT).wait_active(5)
    return str(caught.value)


async def test_collection_that_is_blocked_for_no_reason_fails_the_attach(tmp_path: Path) -> None:
    """remote-storage.md 5.6: what one timeline's index says about collection is said of the whole tenant."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    key = paths.index_key(TENANT, ROOT, tenant.generation)
    index = json.loads(await world.storage.get(key))
    index["gc_blocking"] = {"started_at": "2024-07-19T09:00:00.123", "reasons": []}
    await world.storage.put(key, json.dumps(index).encode())
    reason = await broken_reason(world)
    assert reason.endswith(f"index_part for {ROOT} is malformed: it should not have gc blocking with zero reasons")
    await world.stop()


async def test_an_old_index_beside_a_newer_one_fails_the_attach(tmp_path: Path) -> None:
    """remote-storage.md 4.5: the generation went backwards. A newer index alone is somebody's who has taken over."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    key = paths.index_key(TENANT, ROOT, tenant.generation)
    await world.storage.put(paths.index_key(TENANT, ROOT, Generation(9)), await world.storage.get(key))
    await world.manager.reset(TENANT, drop_cache=False)
    await world.manager.get(TENANT).wait_active(5)
    long_ago = time.time() - 15 * 86400
    os.utime(world.storage.root / key, (long_ago, long_ago))
    assert await broken_reason(world) == "tenant is broken: Index age exceeds threshold and a newer index exists"
    await world.stop()


async def test_an_index_that_is_consistent_nowhere_loses_no_layer(tmp_path: Path) -> None:
    """remote-storage.md 5.9: every layer would count as one of the future, which a load removes."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    store_of(await follow_primary(tenant)).ingest(START + 0x200)
    await tenant.create_branch(BRANCH, ROOT, None)
    branch = tenant.get_timeline(BRANCH)
    store_of(branch).ingest(START + 0x300)
    await branch.freeze_and_flush()
    key = paths.index_key(TENANT, BRANCH, tenant.generation)
    index = json.loads(await world.storage.get(key))
    assert index["layer_metadata"]
    index["metadata_bytes"]["disk_consistent_lsn"] = "0/0"
    damaged = json.dumps(index).encode()
    await world.storage.put(key, damaged)
    files = set(branch.directory.iterdir())
    await world.manager.reset(TENANT, drop_cache=False)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    state = tenant.detail(BRANCH).state
    assert (state.status, state.reason) == (TimelineStatus.BROKEN, "Timeline has invalid disk_consistent_lsn")
    assert await world.storage.get(key) == damaged
    assert set(branch.directory.iterdir()) == files
    await world.stop()


async def test_a_missing_layer_breaks_the_timeline_when_the_disk_is_the_only_copy(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    await follow_primary(await attach(world))
    await world.stop()
    remove_layers(paths.timeline_directory(tmp_path, TENANT, ROOT))
    again = await World.start(tmp_path)
    state = again.manager.get(TENANT).detail(ROOT).state
    assert state.status is TimelineStatus.BROKEN
    assert "not on disk" in state.reason
    await again.stop()


async def test_another_server_takes_over_from_the_bucket(tmp_path: Path) -> None:
    """Goal: layers live in the bucket, and the older generation learns that it is stale."""
    bucket = tmp_path / "bucket"
    first = await World.start(make(tmp_path / "one"), bucket=bucket)
    timeline = await follow_primary(await attach(first))
    second = await World.start(make(tmp_path / "two"), bucket=bucket)
    taken_over = await active(await attach(second), ROOT)
    assert taken_over.generation.number == 2
    assert len(taken_over.store.layers()) == 1

    store_of(timeline).ingest(START + 0x200)
    await timeline.freeze_and_flush()

    async def is_stale() -> bool:
        location = first.manager.location(TENANT)
        return location is not None and location.to_api()["mode"] == "AttachedStale"

    await eventually(is_stale)
    assert timeline.durable_lsn == START, "a stale server acknowledges nothing"
    store_of(taken_over).ingest(START + 0x200)
    await taken_over.freeze_and_flush()

    async def is_acknowledged() -> bool:
        return taken_over.durable_lsn == START + 0x200

    await eventually(is_acknowledged)
    await first.stop()
    await second.stop()


async def test_a_failed_flush_is_told_and_tried_again(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    timeline = await follow_primary(await attach(world))
    store = store_of(timeline)
    store.ingest(START + 0x200)
    store.fail_flush = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        await timeline.freeze_and_flush()
    assert timeline.durable_lsn == START
    assert timeline.detail().to_json()["ingest_stalled"] == "[Errno 28] No space left on device"
    labels = f'{{shard_id="0000",tenant_id="{TENANT}",timeline_id="{ROOT}"}}'
    metrics = render_metrics(world.manager, [], BuildInfo.find()).decode()
    assert f"pageserver_ingest_stalled{labels} 1" in metrics
    assert f"pageserver_flush_failures_total{labels} 1" in metrics
    store.fail_flush = None
    await timeline.freeze_and_flush()
    assert timeline.durable_lsn == START + 0x200
    assert timeline.detail().to_json()["ingest_stalled"] is None
    assert f"pageserver_ingest_stalled{labels} 0" in render_metrics(world.manager, [], BuildInfo.find()).decode()
    await world.stop()


async def test_a_start_waits_for_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that ended would claim another generation at every restart."""
    world = await World.start(tmp_path)
    await follow_primary(await attach(world))
    await world.stop()
    failures = [OSError(28, "No space left on device")] * 2
    whole = LocalTenants.write

    async def write(local: LocalTenants, shard: TenantShardId, location: LocationConfig) -> None:
        if failures:
            raise failures.pop()
        await whole(local, shard, location)

    monkeypatch.setattr(LocalTenants, "write", write)
    again = await World.start(tmp_path)
    assert not failures
    assert again.manager.get(TENANT).generation.number == 2
    await again.stop()


async def test_generations_do_not_go_back(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world, generation=5)
    assert (await attach(world, tenant_conf={"gc_horizon": 7})) is tenant
    assert tenant.settings().gc_horizon == 7
    with pytest.raises(GenerationDecreaseError, match="Generation 00000004 is less than existing 00000005"):
        await attach(world, generation=4)
    newer = await attach(world, generation=9)
    assert newer is not tenant
    assert tenant.is_stopped
    await world.stop()


async def test_a_busy_slot_is_a_conflict(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    results = await asyncio.gather(*(attach(world, generation=i) for i in (3, 4)), return_exceptions=True)
    assert sum(isinstance(result, SlotBusyError) for result in results) == 1
    await world.stop()


async def test_detach_is_refused_where_it_would_lose_data_and_delete_is_for_good(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    await follow_primary(await attach(world))
    with pytest.raises(PreconditionFailedError, match="only copy"):
        await world.manager.detach(TENANT)
    await world.manager.delete(TENANT)
    with pytest.raises(TenantNotFoundError):
        world.manager.get(TENANT)
    assert await world.storage.list_directories(f"tenants/{TENANT}/") == []
    assert not paths.tenant_directory(tmp_path, TENANT).exists()
    await world.stop()


async def test_a_branch_that_is_being_made_keeps_its_ancestor(tmp_path: Path) -> None:
    """Goal: no branch loses its ancestor. Method: hold a creation before the branch is known, delete the ancestor."""
    failpoints = Failpoints(structlog.get_logger())
    world = await World.start(tmp_path, failpoints=failpoints)
    tenant = await attach(world)
    store_of(await follow_primary(tenant)).ingest(START + 0x200)
    failpoints.configure("timeline-creation-after-uninit", "pause")
    creating = asyncio.ensure_future(tenant.create_branch(BRANCH, ROOT, None))

    async def is_held() -> bool:
        return paths.timeline_directory(tmp_path, TENANT, BRANCH).exists()

    await eventually(is_held)
    deleting = asyncio.ensure_future(tenant.delete_timeline(ROOT))
    await asyncio.wait([deleting], timeout=0.2)
    failpoints.configure("timeline-creation-after-uninit", "off")
    await creating
    with pytest.raises(PreconditionFailedError, match=f"child timelines: .{BRANCH}"):
        await deleting
    assert tenant.get_timeline(BRANCH).ancestor is tenant.get_timeline(ROOT)
    await world.stop()


async def test_a_timeline_is_deleted_in_the_end(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    await tenant.delete_timeline(ROOT)

    async def is_gone() -> bool:
        return ROOT not in tenant.timelines

    await eventually(is_gone)
    await world.stop()
    again = await World.start(tmp_path)
    assert again.manager.get(TENANT).timelines == {}
    await again.stop()


async def test_an_unfinished_import_that_was_deleted_does_not_begin_again(tmp_path: Path) -> None:
    """Goal: a deletion that was answered survives a crash. Method: kill at the moment of the answer."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    world.way_in.fail_import = RequestError("the slot is gone")
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    await tenant.delete_timeline(ROOT)
    await world.kill()
    again = await World.start(tmp_path)
    assert again.manager.get(TENANT).timelines == {}
    await again.stop()


async def test_a_failed_import_from_files_leaves_nothing(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)

    async def body(content: bytes):  # type: ignore[no-untyped-def]
        yield content

    arguments = {"base_lsn": START, "end_lsn": START, "pg_version": 16, "flavour": "stock"}
    with pytest.raises(RequestError, match="EOF marker"):
        await tenant.import_base_backup(ROOT, body(b"bad"), **arguments)  # type: ignore[arg-type]
    assert ROOT not in tenant.timelines
    assert not paths.timeline_directory(tmp_path, TENANT, ROOT).exists()
    await tenant.import_base_backup(ROOT, body(b"good"), **arguments)  # type: ignore[arg-type]
    await tenant.import_wal(ROOT, body(b""), start_lsn=START, end_lsn=START + 8)
    assert tenant.get_timeline(ROOT).durable_lsn == START + 8
    await world.stop()


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def remove_layers(directory: Path) -> None:
    for name in os.listdir(directory):
        (directory / name).unlink()
