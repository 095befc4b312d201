"""Every step of the deletion of a timeline and of a tenant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.tenant.slots import TenantNotFoundError
from pageserver.timeline import Timeline
from tests.steps.recorder import read_bucket
from tests.steps.scenario import Promises, Restart, Scenario, crash_everywhere, record, settle
from tests.unit.tenant.test_lifecycle import active, attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

DELETION_POINTS = {
    "timeline-delete-before-index-deleted-at",
    "persist_deleted_index_part",
    "timeline-delete-before-schedule",
    "timeline-delete-before-rm",
    "timeline-delete-after-rm",
    "timeline-delete-before-index-delete",
    "timeline-delete-after-index-delete",
    "in_progress_delete",
    "deletion-queue-before-execute",
    "deletion-queue-before-execute-pause",
}


async def prepare(world: World) -> None:
    """A root and a branch, both with layers."""
    tenant = await attach(world)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()
    await tenant.create_branch(BRANCH, ROOT, Lsn(START + 0x188))
    await tenant.names.give("work", BRANCH)
    branch = tenant.get_timeline(BRANCH)
    for step in (0x300, 0x400):
        store_of(branch).ingest(START + step)
        await branch.freeze_and_flush()


# One timeline


async def delete_branch(world: World, promises: Promises) -> None:
    tenant = world.manager.get(TENANT)
    await tenant.delete_timeline(BRANCH)
    promises["accepted"] = True
    await gone(world)
    promises["gone"] = True


async def gone(world: World) -> None:
    async def is_gone() -> bool:
        return BRANCH not in world.manager.get(TENANT).timelines

    await eventually(is_gone)


async def check_branch_is_gone(world: World, promises: Promises, restart: Restart) -> None:
    """What was accepted goes on by itself; what was not is whole, or goes on as well."""
    tenant = world.manager.get(TENANT)
    await active(tenant, ROOT)
    await settle(tenant)
    if "accepted" in promises:
        assert BRANCH not in tenant.timelines
    if BRANCH in tenant.timelines:
        branch = await active(tenant, BRANCH)
        assert tenant.names.get("work") == BRANCH
        assert branch.last_record_lsn == START + 0x400
        assert sorted(store_of(branch).named) == sorted(branch.remote.index.layers)
        await tenant.delete_timeline(BRANCH)
        await gone(world)
    assert tenant.names.all() == {}
    store = LocalStore(world.storage.root)
    for prefix in (paths.timeline_prefix(TENANT, BRANCH), f"{paths.sources_prefix(TENANT)}{BRANCH}/source"):
        assert [item.key async for item in store.list_objects(prefix)] == []


async def test_of_a_timeline(tmp_path: Path) -> None:
    scenario = Scenario(prepare, delete_branch, check_branch_is_gone)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= DELETION_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 15


async def test_of_a_timeline_without_remote_storage(tmp_path: Path) -> None:
    scenario = Scenario(prepare, delete_branch, check_branch_is_gone, stores_layers=False)
    recording = await record(scenario, tmp_path / "whole")
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 10


# One that was offloaded


async def prepare_offloaded(world: World) -> None:
    await prepare(world)
    archival = world.manager.get(TENANT).archival
    await archival.archive(BRANCH)
    await archival.offload(BRANCH)


async def check_offloaded_branch_is_gone(world: World, promises: Promises, restart: Restart) -> None:
    """Until it is marked, it stays offloaded, with its name."""
    tenant = world.manager.get(TENANT)
    await settle(tenant)
    if BRANCH in tenant.archival.offloaded:
        assert "accepted" not in promises
        assert tenant.names.get("work") == BRANCH
        await tenant.delete_timeline(BRANCH)
        await gone(world)
    await check_branch_is_gone(world, {"accepted": True}, restart)


async def test_of_an_offloaded_timeline(tmp_path: Path) -> None:
    scenario = Scenario(prepare_offloaded, delete_branch, check_offloaded_branch_is_gone)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= DELETION_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 10


# One whose import runs


async def prepare_importing(world: World) -> None:
    """An import that has begun, and published its layers, and does not come to its end."""
    world.way_in.die_before_finish = True
    tenant = await attach(world)
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})

    async def is_published() -> bool:
        return isinstance(entry := tenant.timelines[ROOT], Timeline) and bool(entry.remote.clean_index.layers)

    await eventually(is_published)


async def delete_importing(world: World, promises: Promises) -> None:
    tenant = world.manager.get(TENANT)
    await tenant.delete_timeline(ROOT)
    promises["accepted"] = True

    async def is_gone() -> bool:
        return ROOT not in tenant.timelines

    await eventually(is_gone)


async def check_import_is_gone(world: World, promises: Promises, restart: Restart) -> None:
    """A deletion that was accepted is not undone by an import that begins again."""
    tenant = world.manager.get(TENANT)
    await settle(tenant)
    if "accepted" in promises:
        assert ROOT not in tenant.timelines
    if ROOT in tenant.timelines:
        await active(tenant, ROOT)
        await delete_importing(world, {})
    left = [key for key in read_bucket(world.storage.root) if str(ROOT) in key]
    assert all("/deleted.json-" in key for key in left), left


async def test_of_a_timeline_whose_import_runs(tmp_path: Path) -> None:
    scenario = Scenario(prepare_importing, delete_importing, check_import_is_gone)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= DELETION_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 8


# A whole tenant


async def delete_tenant(world: World, promises: Promises) -> None:
    await world.manager.delete(TENANT)
    promises["gone"] = True


async def check_tenant_is_gone(world: World, promises: Promises, restart: Restart) -> None:
    """A request that was not answered is repeated until it succeeds; nobody who attaches in between sees half of it."""
    if "gone" in promises:
        assert not paths.tenant_directory(world.workdir, TENANT).exists()
    elif restart is Restart.ELSEWHERE or not world.resources.stores_layers:
        await settle(await attach(world))
    await world.manager.delete(TENANT)
    try:
        world.manager.get(TENANT)
        raise AssertionError("it is still attached")
    except TenantNotFoundError:
        left = [key for key in read_bucket(world.storage.root) if not key.startswith("generations/")]
    assert left == []
    assert not paths.tenant_directory(world.workdir, TENANT).exists()


@pytest.mark.parametrize("stores_layers", [True, False])
async def test_of_a_tenant(tmp_path: Path, stores_layers: bool) -> None:
    scenario = Scenario(
        prepare,
        delete_tenant,
        check_tenant_is_gone,
        leaks_max=10,
        stores_layers=stores_layers,
        is_reattached=False,
    )
    recording = await record(scenario, tmp_path / "whole")
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 10
