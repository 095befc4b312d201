"""A deleted timeline stays deleted, whatever a server that was overtaken writes of it (`remote/tombstones.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.clock import SystemClock
from pageserver.ids import Generation
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.remote.scrub import Scrubber
from pageserver.tenant import Tenant
from tests.unit.tenant.test_lifecycle import active, attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

OLD = Generation(1)


async def prepare(directory: Path) -> tuple[World, dict[str, bytes]]:
    """A server that took a tenant over in generation 2, and what the one of generation 1 wrote of a branch."""
    old = await World.start(directory / "old", bucket=directory / "bucket")
    tenant = await attach(old)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()
    await branch_off(tenant)
    written = {item.key: await old.storage.get(item.key) async for item in old.storage.list_objects("")}
    ours = {key: content for key, content in written.items() if str(BRANCH) in key}
    assert paths.index_key(TENANT, BRANCH, OLD) in ours
    await old.kill()
    new = await World.start(directory / "new", bucket=directory / "bucket")
    assert (await attach(new)).generation.number == 2
    return new, ours


async def branch_off(tenant: Tenant) -> None:
    await tenant.create_branch(BRANCH, ROOT, Lsn(START + 0x188))
    branch = tenant.get_timeline(BRANCH)
    store_of(branch).ingest(START + 0x300)
    await branch.freeze_and_flush()


async def delete(world: World) -> None:
    tenant = world.manager.get(TENANT)
    await tenant.delete_timeline(BRANCH)

    async def is_gone() -> bool:
        return BRANCH not in tenant.timelines

    await eventually(is_gone)


async def keys_of_branch(store: LocalStore) -> list[str]:
    return [item.key async for item in store.list_objects("") if str(BRANCH) in item.key]


async def test_what_a_stale_server_writes_again_is_removed_by_the_next_attach(tmp_path: Path) -> None:
    world, old = await prepare(tmp_path)
    await delete(world)
    tombstone = paths.tombstone_key(TENANT, BRANCH, Generation(2))
    assert await keys_of_branch(world.storage) == [tombstone]
    for key, content in old.items():
        if "__" not in key:
            await world.storage.put(key, content)
    report = await Scrubber(LocalStore(tmp_path / "bucket"), clock=SystemClock()).scrub([TENANT.tenant_id])
    assert (report.findings, report.orphans, report.in_flight, report.relics) == ([], [], [], [])
    await world.stop()
    third = await World.start(tmp_path / "third", bucket=tmp_path / "bucket")
    tenant = await attach(third)
    assert tenant.get_timeline(ROOT).last_record_lsn == START + 0x200

    async def is_clean() -> bool:
        return BRANCH not in tenant.timelines and all(
            "deleted.json" in key for key in await keys_of_branch(third.storage)
        )

    await eventually(is_clean)
    await third.stop()


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_same_id_may_be_used_again(tmp_path: Path, restarted: bool) -> None:
    """Goal: a tombstone never buries the next timeline of its id, made in the same generation or in a later one."""
    world, _ = await prepare(tmp_path)
    await delete(world)
    if restarted:
        await world.stop()
        world = await World.start(tmp_path / "new", bucket=tmp_path / "bucket")
    await branch_off(world.manager.get(TENANT))
    await world.kill()
    again = await World.start(tmp_path / "again", bucket=tmp_path / "bucket")
    branch = await active(await attach(again), BRANCH)
    assert branch.last_record_lsn == START + 0x300
    report = await Scrubber(LocalStore(tmp_path / "bucket"), clock=SystemClock()).scrub([TENANT.tenant_id])
    assert report.findings == []
    assert report.timelines == 2
    await delete(again)
    await again.stop()


async def test_without_a_bucket_nothing_stays(tmp_path: Path) -> None:
    """There nobody can take over."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()
    await branch_off(tenant)
    await delete(world)
    assert await keys_of_branch(world.storage) == []
    await world.stop()
