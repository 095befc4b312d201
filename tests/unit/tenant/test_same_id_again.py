"""A timeline that is deleted and made again under its id does not lose objects to what was deleted before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.tenant import Tenant
from pageserver.timeline import Timeline
from tests.unit.recording_store import check_bucket
from tests.unit.tenant.test_crash_at_each_call import compact
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

POINT = Lsn(START + 0x188)


class SlowToDelete(LocalStore):
    """Deletions wait until they may go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_delete = asyncio.Event()
        self.may_delete.set()
        self.deleted: list[str] = []

    async def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        await self.may_delete.wait()
        await super().delete(keys)
        self.deleted += keys


async def with_root(directory: Path, storage: LocalStore) -> tuple[World, Tenant]:
    (directory / "work").mkdir()
    world = await World.start(directory / "work", bucket=directory / "bucket", storage=storage)
    tenant = await attach(world)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()
    return world, tenant


async def branch_with_layers(tenant: Tenant) -> Timeline:
    await tenant.create_branch(BRANCH, ROOT, POINT)
    branch = tenant.get_timeline(BRANCH)
    for step in (0x300, 0x400):
        store_of(branch).ingest(START + step)
        await branch.freeze_and_flush()
    return branch


async def gone(tenant: Tenant) -> None:
    async def is_gone() -> bool:
        return BRANCH not in tenant.timelines

    await eventually(is_gone)


async def test_deletions_that_wait_for_validation_do_not_hit_the_next_timeline(tmp_path: Path) -> None:
    """Goal: remote-storage.md 9.5 holds beyond the life of one timeline. Method: compact, so that deletions of layers
    wait in a list; delete the timeline, make it again, write layers of the same names; then let the list be executed.
    """
    world, tenant = await with_root(tmp_path, LocalStore(tmp_path / "bucket"))
    await compact(await branch_with_layers(tenant))
    await tenant.delete_timeline(BRANCH)
    await gone(tenant)
    await branch_with_layers(tenant)
    await world.resources.deletions.flush_execute()
    assert await check_bucket(world.storage, TENANT) == set()
    await world.stop()


async def test_a_timeline_is_forgotten_only_when_its_last_object_is_gone(tmp_path: Path) -> None:
    """Goal: an index that is deleted late is never that of the next timeline, and never outlived by an older one.

    Method: hold deletions back; the id stays taken; the newest index is asked for alone and last.
    """
    storage = SlowToDelete(tmp_path / "bucket")
    world, tenant = await with_root(tmp_path, storage)
    await branch_with_layers(tenant)
    storage.may_delete.clear()
    await tenant.delete_timeline(BRANCH)
    index = paths.index_key(TENANT, BRANCH, tenant.generation)
    for _ in range(5):
        storage.may_delete.clear()
        await asyncio.sleep(0.05)
        assert BRANCH in tenant.timelines
        assert await storage.get(index)
    storage.may_delete.set()
    await gone(tenant)
    assert storage.deleted[-1] == index
    await branch_with_layers(tenant)
    assert await check_bucket(world.storage, TENANT) == set()
    await world.stop()
