"""Every step of moves: offloading and coming back, attaching and detaching, switching remote storage on, downloads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pageserver.remote import LocalStore, paths
from pageserver.tenant.slots import LocationRequest, TenantNotFoundError
from tests.steps.disk import TrackedDisk, mixed
from tests.steps.recorder import Recorder, SteppingStore, write_bucket
from tests.steps.scenario import Promises, Restart, Scenario, check_files, crash_everywhere, record, scrub, settle
from tests.steps.test_deletions import prepare
from tests.unit.recording_store import check_bucket
from tests.unit.tenant.test_adopt_local_store import adopt, alone
from tests.unit.tenant.test_lifecycle import active, attach
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, store_of

MANIFEST_POINTS = {"before-upload-manifest", "before-upload-manifest-pausable"}
ATTACH_POINTS = {
    "tenant-config-before-write",
    "before-attaching-tenant",
    "storage-sync-list-remote-timelines",
    "attach-before-activate-sleep",
    "attach-before-activate",
}
DOWNLOAD_POINTS = {"before-downloading-layer-stream-pausable", "remote-storage-download-pre-rename"}

# Offloaded, and back


async def offload_and_return(world: World, promises: Promises) -> None:
    tenant = world.manager.get(TENANT)
    for request, state in (
        (tenant.archival.archive, "archived"),
        (tenant.archival.offload, "offloaded"),
        (tenant.archival.unarchive, "unarchived"),
    ):
        promises["wanted"] = state
        await request(BRANCH)
        promises["told"] = state


async def check_branch_can_return(world: World, promises: Promises, restart: Restart) -> None:
    """What was told last holds, or what was asked for after it; and the branch comes back whole."""
    tenant = world.manager.get(TENANT)
    await active(tenant, ROOT)
    found = "offloaded" if BRANCH in tenant.archival.offloaded else "unarchived"
    if found != "offloaded" and tenant.get_timeline(BRANCH).detail().is_archived:
        found = "archived"
    assert found in {promises.get("told", "unarchived"), promises.get("wanted"), *_between(promises)}
    if found == "offloaded":
        assert not paths.timeline_directory(world.workdir, TENANT, BRANCH).exists()
    await tenant.archival.unarchive(BRANCH)
    branch = await active(tenant, BRANCH)
    assert branch.last_record_lsn == START + 0x400
    assert sorted(store_of(branch).named) == sorted(branch.remote.index.layers)


def _between(promises: Promises) -> set[str]:
    """An offloaded timeline comes back as an archived one first."""
    return {"archived"} if promises.get("wanted") == "unarchived" and promises.get("told") == "offloaded" else set()


async def test_offloading_and_coming_back(tmp_path: Path) -> None:
    scenario = Scenario(prepare, offload_and_return, check_branch_can_return)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= MANIFEST_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 20


# Attached, and detached


async def nothing(world: World) -> None:
    """An empty server."""


async def attach_first(world: World, promises: Promises) -> None:
    tenant = await attach(world)
    promises["attached"] = tenant.generation.number
    await attach(world, tenant_conf={"gc_horizon": 42})
    promises["horizon"] = 42


async def check_attached(world: World, promises: Promises, restart: Restart) -> None:
    """A location that was stored is there at the next start, with its settings and a higher generation."""
    if restart is Restart.ELSEWHERE:
        return
    if "attached" in promises:
        tenant = world.manager.get(TENANT)
        assert tenant.generation.number == promises["attached"] + 1
    if "horizon" in promises:
        assert world.manager.get(TENANT).settings().gc_horizon == 42


@pytest.mark.parametrize("stores_layers", [True, False])
async def test_attaching(tmp_path: Path, stores_layers: bool) -> None:
    scenario = Scenario(nothing, attach_first, check_attached, stores_layers=stores_layers, is_reattached=False)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= ATTACH_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 10


async def detach(world: World, promises: Promises) -> None:
    request = LocationRequest(mode=None, generation=None, location=None)
    await world.manager.put_location(TENANT, request, flush_seconds=None)
    promises["detached"] = True


async def check_detached(world: World, promises: Promises, restart: Restart) -> None:
    """It is attached with all that it had, or gone from this disk; the bucket keeps everything."""
    if "detached" in promises:
        with pytest.raises(TenantNotFoundError):
            world.manager.get(TENANT)
        assert not paths.tenant_directory(world.workdir, TENANT).exists()
    tenant = await attach(world)
    await settle(tenant)
    assert (await active(tenant, ROOT)).last_record_lsn == START + 0x200
    assert (await active(tenant, BRANCH)).last_record_lsn == START + 0x400


async def test_detaching(tmp_path: Path) -> None:
    scenario = Scenario(prepare, detach, check_detached, is_reattached=False)
    recording = await record(scenario, tmp_path / "whole")
    assert any(call.startswith("rename") for call in recording.calls)
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 10


# Downloaded


async def evict(world: World) -> None:
    await prepare(world)
    branch = world.manager.get(TENANT).get_timeline(BRANCH)
    for layer in list(branch.store.layers()):
        await branch.residence.evict(layer.name)


async def download(world: World, promises: Promises) -> None:
    branch = world.manager.get(TENANT).get_timeline(BRANCH)
    for name in sorted(branch.remote.index.layers):
        await branch.residence.download(name)


async def check_downloads(world: World, promises: Promises, restart: Restart) -> None:
    branch = await active(world.manager.get(TENANT), BRANCH)
    assert branch.last_record_lsn == START + 0x400
    for name, entry in branch.remote.index.layers.items():
        await branch.residence.download(name)
        local = branch.directory / paths.local_layer_name(name, entry.generation)
        assert (await asyncio.to_thread(local.read_bytes)) == name.encode()


async def test_downloading(tmp_path: Path) -> None:
    """What lies under a layer's name is the layer: complete, or not there."""
    scenario = Scenario(evict, download, check_downloads)
    recording = await record(scenario, tmp_path / "whole")
    assert recording.failpoints >= DOWNLOAD_POINTS
    assert await crash_everywhere(scenario, recording, tmp_path / "crashes") >= 6


# Remote storage is switched on


async def test_switching_remote_storage_on(tmp_path: Path) -> None:
    """Whatever is lost while everything moves, the next start moves it again, or finds all of it in the bucket."""
    workdir, bucket = tmp_path / "work", tmp_path / "bucket"
    await alone(workdir)
    disk = TrackedDisk(workdir, tmp_path / "graveyard")
    recorder = Recorder(disk, bucket)
    with recorder.patched_disk():
        recorder.start()
        await adopt(workdir, SteppingStore(bucket, recorder))
        recorder.stop()
    disk.close()
    assert any(call.startswith("rename local-storage") for call in recorder.calls)
    assert len(recorder.steps) >= 10
    for number, step in enumerate(recorder.steps):
        for variant, image in enumerate((step.current, step.durable, mixed(step.durable, step.current, str(number)))):
            here = tmp_path / f"{number}-{variant}"
            image.write(here / "work")
            write_bucket(step.bucket, here / "bucket")
            assert len(await check_bucket(LocalStore(here / "bucket"), TENANT)) <= 3
            if (here / "work" / "local-storage" / "tenants").is_dir():
                await adopt(here / "work", LocalStore(here / "bucket"))
            assert await check_bucket(LocalStore(here / "bucket"), TENANT) == set()
            world = await World.start(here / "work", bucket=here / "bucket")
            tenant = world.manager.get(TENANT)
            for timeline_id in (ROOT, BRANCH):
                assert (await active(tenant, timeline_id)).last_record_lsn == START + 0x300, step.what
            await check_files(world, tenant)
            await world.stop()
            await scrub(here / "bucket")
