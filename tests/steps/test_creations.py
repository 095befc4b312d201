"""Every step of the creation of a timeline: from a primary, from files, as a branch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pageserver.errors import ConflictError, NotFoundError
from pageserver.lsn import Lsn
from pageserver.remote import paths
from pageserver.tenant import Tenant
from tests.steps.scenario import Check, Promises, Restart, Scenario, active_timeline, crash_everywhere, record, settle
from tests.unit.tenant.test_lifecycle import active, attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, store_of

CREATION_POINTS = {"after-timeline-dir-creation", "timeline-creation-after-uninit", "before-upload-index"}
INITDB_POINTS = {"before-initdb-upload"}
POINT = Lsn(START + 0x188)


async def base_backup() -> AsyncIterator[bytes]:
    yield b"good"


async def attach_only(world: World) -> None:
    await attach(world)


# From a primary


async def create_from_primary(world: World, promises: Promises) -> None:
    tenant = world.manager.get(TENANT)
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    promises["accepted"] = True
    await active(tenant, ROOT)
    promises["active"] = True


async def check_primary(world: World, promises: Promises, restart: Restart) -> None:
    tenant = world.manager.get(TENANT)
    if "accepted" in promises:
        assert ROOT in tenant.timelines
    if ROOT not in tenant.timelines:
        await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    root = await active(tenant, ROOT)
    assert root.flavour == "stock"
    assert sorted(store_of(root).named) == sorted(root.remote.index.layers)
    assert root.disk_consistent_lsn == START


async def test_from_a_primary(tmp_path: Path) -> None:
    """An import that was accepted begins again; a document without anything else begins it as well."""
    scenario = Scenario(attach_only, create_from_primary, check_primary)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= CREATION_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 14


# From files


async def create_from_files(world: World, promises: Promises) -> None:
    await import_files(world.manager.get(TENANT))
    promises["imported"] = True


async def import_files(tenant: Tenant) -> None:
    await tenant.import_base_backup(ROOT, base_backup(), base_lsn=START, end_lsn=START, pg_version=16, flavour="stock")


async def check_files_import(world: World, promises: Promises, restart: Restart) -> None:
    """It is there as a whole, or not at all."""
    tenant = world.manager.get(TENANT)
    await settle(tenant)
    root = active_timeline(tenant, ROOT)
    if root is None:
        assert "imported" not in promises
        assert ROOT not in tenant.timelines
    else:
        assert root.flavour == "stock", "the document says how pages are to be read"
        assert root.disk_consistent_lsn == START


async def repeat_files_import(world: World, promises: Promises, restart: Restart) -> None:
    """Where it is not there, the client may send the files again."""
    await check_files_import(world, promises, restart)
    tenant = world.manager.get(TENANT)
    if ROOT not in tenant.timelines:
        await import_files(tenant)
    await check_files_import(world, {"imported": True}, restart)


@pytest.mark.parametrize("check", [check_files_import, repeat_files_import])
async def test_from_files(tmp_path: Path, check: Check) -> None:
    scenario = Scenario(attach_only, create_from_files, check)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= CREATION_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 14


# With initdb


async def create_with_initdb(world: World, promises: Promises) -> None:
    await world.manager.get(TENANT).bootstrap(ROOT, pg_version=16, existing=None, flavour=None)
    promises["created"] = True


async def check_initdb(world: World, promises: Promises, restart: Restart) -> None:
    """A repeat of the request finds the timeline, or makes it."""
    tenant = world.manager.get(TENANT)
    if "created" in promises:
        assert ROOT in tenant.timelines
    await tenant.bootstrap(ROOT, pg_version=16, existing=None, flavour=None)
    root = await active(tenant, ROOT)
    assert root.flavour == "stock"
    assert root.last_record_lsn >= START + 0x78
    assert await world.storage.head(paths.initdb_key(TENANT.tenant_id, ROOT))


async def check_initdb_alone(world: World, promises: Promises, restart: Restart) -> None:
    """Without a repeat the archive may stay, since a timeline of this id must begin with it, and nothing else."""
    tenant = world.manager.get(TENANT)
    await settle(tenant)
    assert "created" not in promises or ROOT in tenant.timelines


@pytest.mark.parametrize("check", [check_initdb, check_initdb_alone])
async def test_with_initdb(tmp_path: Path, check: Check) -> None:
    scenario = Scenario(attach_only, create_with_initdb, check)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= CREATION_POINTS | INITDB_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 20


# As a branch


async def prepare_root(world: World) -> None:
    root = await follow_primary(await attach(world))
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()


async def branch(world: World, promises: Promises) -> None:
    tenant = world.manager.get(TENANT)
    await tenant.create_branch(BRANCH, ROOT, POINT)
    promises["created"] = True
    await tenant.names.give("work", BRANCH)
    promises["name"] = "work"
    await tenant.names.rename("work", "play")
    promises["name"] = "play"
    timeline = tenant.get_timeline(BRANCH)
    store_of(timeline).ingest(START + 0x500)
    await timeline.freeze_and_flush()
    promises["durable"] = Lsn(START + 0x500)


async def check_branch(world: World, promises: Promises, restart: Restart) -> None:
    """A repeat of the request finds the branch or makes it."""
    tenant = world.manager.get(TENANT)
    await active(tenant, ROOT)
    if "created" in promises:
        assert BRANCH in tenant.timelines
    await tenant.create_branch(BRANCH, ROOT, POINT)
    names = tenant.names.of(BRANCH)
    assert names in ([], ["work"], ["play"])
    assert "name" not in promises or names
    assert promises.get("name") != "play" or names == ["play"]
    timeline = await active(tenant, BRANCH)
    assert timeline.ancestor_lsn == POINT
    assert timeline.last_record_lsn >= promises.get("durable", POINT)
    assert timeline.flavour == "stock"
    try:
        await tenant.delete_timeline(ROOT)
        raise AssertionError("a parent is not deleted")
    except (NotFoundError, ConflictError) as error:
        raise AssertionError("the parent is there, and idle") from error
    except Exception as error:
        assert "child timelines" in str(error)


async def test_as_a_branch(tmp_path: Path) -> None:
    scenario = Scenario(prepare_root, branch, check_branch)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= CREATION_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 14


async def test_a_branch_without_remote_storage(tmp_path: Path) -> None:
    """The store on the local disk is the only place where timelines exist."""
    scenario = Scenario(prepare_root, branch, check_branch, stores_layers=False)
    recording = await record(scenario, tmp_path / "whole")
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 14
