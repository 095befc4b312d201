"""Who may change a location, and what a change that lands late must not do (tenants.md 3, 4, 8)."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from pageserver.errors import InternalError, PreconditionFailedError
from pageserver.mgmt.models import LocationConfigBody
from pageserver.remote import paths
from pageserver.tenant.local_tenants import LocalTenants
from pageserver.tenant.slots import SlotBusyError
from pageserver.tenant.state import TenantStatus
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.tenant.test_timeline_creations import bootstrap
from tests.unit.world import ROOT, START, TENANT, World, store_of


async def put(world: World, flush_seconds: float | None = None, **body: object) -> None:
    request = LocationConfigBody.model_validate({"mode": "AttachedSingle", "tenant_conf": {}, **body})
    located = request.to_request(claims_generations=True)
    await world.manager.put_location(TENANT, located, flush_seconds=flush_seconds)


async def test_a_configuration_that_is_being_written_does_not_outlive_a_detach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: after a detach no `config-v1` comes back, which the next start would attach from. Method: hold the thread
    that writes a changed configuration, detach meanwhile.
    """
    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    await attach(world)
    may_write, is_writing = threading.Event(), asyncio.Event()
    write, loop = LocalTenants._write, asyncio.get_running_loop()

    def write_late(self: LocalTenants, *arguments: object) -> None:
        loop.call_soon_threadsafe(is_writing.set)
        assert may_write.wait(5)
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTenants, "_write", write_late)
    changing = asyncio.ensure_future(put(world, tenant_conf={"gc_horizon": 1}))
    await is_writing.wait()
    detaching = asyncio.ensure_future(world.manager.detach(TENANT))
    await asyncio.sleep(0.05)
    assert not detaching.done()
    with pytest.raises(SlotBusyError):
        await put(world, tenant_conf={"gc_horizon": 2})
    may_write.set()
    await asyncio.gather(changing, detaching)
    assert not await asyncio.to_thread(paths.tenant_directory(tmp_path, TENANT).exists)
    await world.stop()


async def test_without_remote_storage_a_tenant_that_could_not_be_loaded_is_not_detached(tmp_path: Path) -> None:
    """Goal: the only copy is never purged. Method: damage `config-v1`, so that the slot is empty after a start."""
    world = await World.start(tmp_path)
    await bootstrap(await attach(world))
    await world.stop()
    config = paths.location_config_path(tmp_path, TENANT)
    await asyncio.to_thread(config.write_text, "damaged")
    (tmp_path / "tenants" / "file").touch()
    again = await World.start(tmp_path)
    with pytest.raises(PreconditionFailedError, match="only copy"):
        await again.manager.detach(TENANT)
    assert await asyncio.to_thread(config.exists)
    await again.stop()


async def test_a_hand_over_flushes_what_can_be_flushed(tmp_path: Path) -> None:
    """Goal: with `flush_ms` everything ingested is durable when a location is stale, and a timeline that is broken is
    no obstacle; a flush that fails is a 500 (tenants.md 4.3).
    """
    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    tenant = await attach(world)
    await bootstrap(tenant)
    await tenant.create_branch(broken := type(ROOT)(bytes(16)), ROOT, START + 0x78)
    tenant.get_timeline(broken).break_because("a test")
    root = tenant.get_timeline(ROOT)
    store_of(root).ingest(START + 0x200)
    generation = tenant.generation.number
    await put(world, 5.0, mode="AttachedStale", generation=generation)
    assert root.remote.projected_lsn == START + 0x200
    store_of(root).ingest(START + 0x300)
    store_of(root).fail_flush = OSError(errno.ENOSPC, "no room")
    with pytest.raises(InternalError, match=r"Failed to flush: .*no room"):
        await put(world, 5.0, mode="AttachedStale", generation=generation)
    await world.kill()


async def test_a_broken_tenant_can_be_attached_anew_and_detached(tmp_path: Path) -> None:
    """Goal: a tenant whose attach failed stays visible and can be helped (tenants.md 25.13). Method: a manifest that
    does not decode.
    """
    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    await bootstrap(await attach(world))
    key = f"{paths.manifest_base_key(TENANT)}-00000001.json"
    good = await world.storage.get(key)

    async def become_broken() -> None:
        await world.storage.put(key, b"damaged")
        await world.manager.reset(TENANT, drop_cache=False)
        tenant = world.manager.get(TENANT)
        with pytest.raises(InternalError, match="tenant is broken: tenant manifest is malformed"):
            await tenant.wait_active(5)
        assert tenant.state.status is TenantStatus.BROKEN
        await put(world, tenant_conf={"gc_horizon": 1})
        assert tenant.settings().gc_horizon == 1

    await become_broken()
    await world.storage.put(key, good)
    await world.manager.reset(TENANT, drop_cache=True)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    assert tenant.get_timeline(ROOT).last_record_lsn == START + 0x78
    await become_broken()
    await world.manager.detach(TENANT)
    assert world.manager.locations() == []
    await world.stop()


async def test_a_location_that_cannot_be_written_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a full disk costs a change of the location, not the location. Method: attach anew while config-v1 cannot be
    written.
    """
    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    await bootstrap(await attach(world))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    changes: tuple[dict[str, object], ...] = ({"generation": 7}, {"mode": "Secondary"})
    with monkeypatch.context() as patch:
        patch.setattr(LocalTenants, "_write", fail)
        for change in changes:
            with pytest.raises(OSError, match="no room"):
                await put(world, None, **change)
            assert world.manager.get(TENANT).state.status is TenantStatus.ACTIVE
    await put(world, generation=8)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    assert (tenant.generation.number, tenant.get_timeline(ROOT).last_record_lsn) == (8, START + 0x78)
    await world.stop()


async def test_a_tenant_whose_files_cannot_be_removed_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: what is on this disk is never "not here" (tenants.md 3.1, 8.1), and can be reset, attached and detached
    again. Method: the rename of the directory fails.
    """
    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    await bootstrap(await attach(world))

    def fail(*_: object) -> None:
        raise OSError(errno.EBUSY, "cannot rename")

    async def fail_to_detach() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(LocalTenants, "purge", fail)
            with pytest.raises(OSError, match="cannot rename"):
                await world.manager.detach(TENANT)

    for _ in range(2):
        await fail_to_detach()
        tenant = world.manager.get(TENANT)
        with pytest.raises(InternalError, match=r"tenant is broken: .*cannot rename"):
            await tenant.wait_active(5)
    assert world.pages.attached == set()
    await world.manager.reset(TENANT, drop_cache=False)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    assert tenant.get_timeline(ROOT).last_record_lsn == START + 0x78
    await fail_to_detach()
    await put(world, generation=8)
    await world.manager.get(TENANT).wait_active(5)
    await fail_to_detach()
    await world.manager.detach(TENANT)
    assert world.manager.locations() == []
    await world.stop()
