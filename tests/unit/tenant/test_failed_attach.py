"""Attaches that do not come to their end (tenants.md 6.1, 6.5, 7.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pageserver.remote import IndexPart, paths
from pageserver.remote.index_part import GcBlocking
from pageserver.tenant.state import TenantStatus
from pageserver.tenant.tenant_errors import TenantBrokenError
from tests.unit.tenant.test_archival import with_branch
from tests.unit.tenant.test_lifecycle import follow_primary
from tests.unit.world import BRANCH, ROOT, TENANT, FakeEngine, World

Damage = Callable[[World], Awaitable[None]]
DIRECTORY = Path("tenants") / str(TENANT) / "timelines" / str(BRANCH)


async def stray_file(world: World) -> None:
    (world.workdir / DIRECTORY / "notes.txt").write_text("of somebody")


async def baseless_block(world: World) -> None:
    key = paths.index_key(TENANT, BRANCH, world.manager.get(TENANT).generation)
    index = IndexPart.decode(await world.storage.get(key))
    await world.storage.put(key, replace(index, gc_blocking=GcBlocking("2024-07-19T09:00:00.123", ())).encode())


def open_stores(world: World) -> int:
    assert isinstance(world.resources.engine, FakeEngine)
    return sum(not store.is_shut_down for store in world.resources.engine.stores)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (stray_file, r'unrecognized files in timeline dir \(total 1\), first 10: \["notes.txt"\]'),
        (baseless_block, "should not have gc blocking with zero reasons"),
    ],
)
async def test_what_puts_the_attach_in_doubt_breaks_the_tenant(tmp_path: Path, damage: Damage, reason: str) -> None:
    """Goal: the tenant is Broken and says why, nothing of it stays open, nothing is removed, and once it is mended it
    attaches. Method: damage the branch, whose ancestor is opened before it.
    """
    world, tenant = await with_branch(tmp_path)
    await follow_primary(tenant, type(ROOT)(b"3" * 16))
    index_key = paths.index_key(TENANT, BRANCH, tenant.generation)
    good = await world.storage.get(index_key)
    layers = {path.name for path in (world.workdir / DIRECTORY).iterdir()}
    await damage(world)
    await world.manager.reset(TENANT, drop_cache=False)
    tenant = world.manager.get(TENANT)
    with pytest.raises(TenantBrokenError, match=reason):
        await tenant.wait_active(5)
    assert open_stores(world) == 0
    assert layers <= {path.name for path in (world.workdir / DIRECTORY).iterdir()}

    (world.workdir / DIRECTORY / "notes.txt").unlink(missing_ok=True)
    await world.storage.put(index_key, good)
    await world.manager.reset(TENANT, drop_cache=False)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(5)
    assert len(tenant.open_timelines()) == 3
    await world.stop()
    assert open_stores(world) == 0


@pytest.mark.parametrize("steps", [*range(40), *range(40, 160, 10)])
async def test_an_attach_that_is_cut_off_leaves_nothing_open(tmp_path: Path, steps: int) -> None:
    """Goal: a detach ends an attach wherever it is, and afterwards nothing of the tenant is open or served. Method:
    detach after a number of steps of the event loop.
    """
    world, _ = await with_branch(tmp_path)
    await world.manager.reset(TENANT, drop_cache=False)
    assert world.manager.get(TENANT).state.status is TenantStatus.ATTACHING
    for _ in range(steps):
        await asyncio.sleep(0.0005)
    await world.manager.detach(TENANT)
    assert open_stores(world) == 0
    assert world.pages.attached == set()
    assert world.pages.tenants == set()
    assert not (world.workdir / DIRECTORY).exists()
    await world.stop()
