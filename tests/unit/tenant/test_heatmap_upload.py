"""What a heatmap says and when it goes out (tenants.md 17.3)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pageserver.remote import LocalStore, ObjectNotFoundError, paths
from pageserver.remote.heatmap import Heatmap
from pageserver.tenant import Tenant
from pageserver.tenant.heatmap_upload import HeatmapNotReadyError
from pageserver.timeline.state import LOADING
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.world import ROOT, START, TENANT, World, eventually, store_of


async def heatmap_of(store: LocalStore) -> Heatmap:
    return Heatmap.decode(await store.get(paths.heatmap_key(TENANT)))


async def test_a_heatmap_names_what_is_on_the_disk(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world, tenant_conf={"heatmap_period": "60s"})
    timeline = await follow_primary(tenant)
    store_of(timeline).ingest(START + 0x200)
    await timeline.freeze_and_flush()
    assert await world.manager.heatmaps.upload(tenant, only_if_changed=True)
    heatmap = await heatmap_of(world.storage)
    assert (heatmap.generation, heatmap.upload_period_ms) == (1, 60_000)
    assert [each.timeline_id for each in heatmap.timelines] == [ROOT]
    layers = heatmap.timelines[0].layers
    assert {layer.name: layer.metadata for layer in layers} == timeline.remote.index.layers
    local = paths.heatmap_path(tmp_path, TENANT).read_bytes()
    assert local == await world.storage.get(paths.heatmap_key(TENANT))
    assert not await world.manager.heatmaps.upload(tenant, only_if_changed=True)
    assert await world.manager.heatmaps.upload(tenant, only_if_changed=False)
    timeline.state = LOADING
    with pytest.raises(HeatmapNotReadyError):
        await world.manager.heatmaps.upload(tenant, only_if_changed=False)
    await world.stop()


async def test_a_restart_does_not_forget_when_layers_were_used(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    await world.manager.heatmaps.upload(tenant, only_if_changed=False)
    content = paths.heatmap_path(tmp_path, TENANT).read_text()
    times = {layer.access_time for layer in Heatmap.decode(content.encode()).timelines[0].layers}
    await world.stop()
    for time in times:
        content = content.replace(f'"access_time":{time}', '"access_time":1000')
    paths.heatmap_path(tmp_path, TENANT).write_text(content)
    again = await World.start(tmp_path)
    await again.manager.heatmaps.upload(again.manager.get(TENANT), only_if_changed=False)
    assert {layer.access_time for layer in (await heatmap_of(again.storage)).timelines[0].layers} == {1000}
    await again.stop()


async def test_what_is_not_here_after_a_restart_stays_in_the_heatmap_until_it_is_evicted(tmp_path: Path) -> None:
    """tenants.md 17.3: the previous heatmap's layers, but for those evicted since."""
    (tmp_path / "work").mkdir()
    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket")
    await follow_primary(tenant := await attach(world))

    async def named() -> set[str]:
        await world.manager.heatmaps.upload(tenant, only_if_changed=False)
        return {layer.name for layer in (await heatmap_of(world.storage)).timelines[0].layers}

    (name,) = await named()
    await world.manager.reset(TENANT, drop_cache=True)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    timeline = tenant.get_timeline(ROOT)
    assert not any(layer.is_resident for layer in timeline.store.layers())
    assert await named() == {name}
    await timeline.residence.download(name)
    assert await named() == {name}
    assert await timeline.residence.evict(name)
    assert await named() == set()
    await timeline.residence.download(name)
    assert await named() == {name}
    await world.stop()


async def test_uploads_come_by_themselves_but_never_from_a_stale_location(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world, mode="AttachedStale", tenant_conf={"heatmap_period": "10ms"})
    await follow_primary(tenant)

    async def is_uploaded() -> bool:
        world.manager.heatmaps.start_due()
        try:
            await heatmap_of(world.storage)
        except ObjectNotFoundError:
            return False
        return True

    for _ in range(5):
        assert not await is_uploaded()
        await asyncio.sleep(0.01)
    with pytest.raises(HeatmapNotReadyError, match="stale"):
        await world.manager.heatmaps.upload(tenant, only_if_changed=False)
    await attach(world, generation=1, tenant_conf={"heatmap_period": "10ms"})
    await eventually(is_uploaded)
    await world.stop()


async def test_a_deleted_tenant_gets_no_late_heatmap(tmp_path: Path) -> None:
    """Goal: nothing of a deleted tenant comes back. Method: delete while a heatmap is on its way, slowly."""

    class Slow(LocalStore):
        putting = asyncio.Event()

        async def put(self, key: str, content: bytes) -> None:
            if key.endswith(paths.HEATMAP_NAME):
                self.putting.set()
                await asyncio.sleep(0.1)
            await super().put(key, content)

    store = Slow(tmp_path / "local-storage")
    world = await World.start(tmp_path, storage=store)
    tenant: Tenant = await attach(world)
    await follow_primary(tenant)

    async def upload() -> None:
        await world.manager.heatmaps.upload(tenant, only_if_changed=False)

    tenant.spawn(upload(), name="heatmap")
    await store.putting.wait()
    await world.manager.delete(TENANT)
    await asyncio.sleep(0.2)
    assert [item.key async for item in store.list_objects(f"tenants/{TENANT}")] == []
    await world.stop()
