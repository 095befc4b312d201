"""Every failpoint that can fail does so in the middle of an operation: its error is told, and a repeat ends the work
(remote-storage.md, conformance 49).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from pageserver.failpoints import FailpointError, Failpoints
from pageserver.remote import LocalStore, paths
from pageserver.tenant.tenant_errors import TenantBrokenError
from pageserver.timeline import TimelineStatus
from tests.steps import test_creations, test_deletions, test_moves, test_uploads
from tests.steps.scenario import Restart, scrub, settle
from tests.unit.recording_store import check_bucket
from tests.unit.tenant.test_lifecycle import active, attach
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of


def registry() -> Failpoints:
    return Failpoints(structlog.get_logger())


async def start(directory: Path, failpoints: Failpoints) -> World:
    (directory / "work").mkdir(exist_ok=True)
    return await World.start(directory / "work", bucket=directory / "bucket", failpoints=failpoints)


async def state_of(world: World) -> TimelineStatus | None:
    entry = world.manager.get(TENANT).timelines.get(BRANCH)
    return None if entry is None else entry.state.status


@pytest.mark.parametrize("failpoint", ["timeline-delete-before-index-deleted-at", "timeline-delete-before-schedule"])
async def test_a_deletion_that_fails_before_the_answer_is_asked_for_again(tmp_path: Path, failpoint: str) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_deletions.prepare(world)
    failpoints.configure(failpoint, "1*return")
    with pytest.raises(FailpointError, match=f"^failpoint: {failpoint}$"):
        await world.manager.get(TENANT).delete_timeline(BRANCH)
    await world.manager.get(TENANT).delete_timeline(BRANCH)
    await test_deletions.gone(world)
    await test_deletions.check_branch_is_gone(world, {"accepted": True}, Restart.KILLED)
    await world.stop()
    await scrub(tmp_path / "bucket")


@pytest.mark.parametrize(
    "failpoint",
    [
        "timeline-delete-before-rm",
        "timeline-delete-after-rm",
        "timeline-delete-before-index-delete",
        "timeline-delete-after-index-delete",
    ],
)
@pytest.mark.parametrize("continues", ["by a repeat", "by a restart", "elsewhere"])
async def test_a_deletion_that_fails_in_the_background_can_be_ended(
    tmp_path: Path, failpoint: str, continues: str
) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_deletions.prepare(world)
    failpoints.configure(failpoint, "1*return")
    await world.manager.get(TENANT).delete_timeline(BRANCH)

    async def is_broken() -> bool:
        return await state_of(world) is TimelineStatus.BROKEN

    await eventually(is_broken)
    assert world.manager.get(TENANT).detail(BRANCH).state.reason == f"failpoint: {failpoint}"
    if continues == "by a repeat":
        await world.manager.get(TENANT).delete_timeline(BRANCH)
        await test_deletions.gone(world)
    else:
        await world.stop()
        if continues == "elsewhere":
            (tmp_path / "work").rename(tmp_path / "gone")
        world = await start(tmp_path, failpoints)
        await attach(world)
    await test_deletions.check_branch_is_gone(world, {"accepted": True}, Restart.KILLED)
    await world.stop()
    await scrub(tmp_path / "bucket")


@pytest.mark.parametrize(
    "failpoint",
    [
        "before-upload-layer",
        "before-upload-index",
        "deletion-queue-before-execute",
        "flush-layer-before-update-remote-consistent-lsn",
        "checkpoint-before-saving-metadata",
    ],
)
async def test_uploads_flushes_and_deletions_are_repeated(tmp_path: Path, failpoint: str) -> None:
    """The queues repeat by themselves; a flush that failed is repeated by the next one, and its layer is not lost."""
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_uploads.prepare(world)
    root = world.manager.get(TENANT).get_timeline(ROOT)
    failpoints.configure(failpoint, "2*return")
    store_of(root).ingest(START + 0x280)
    for _ in range(3):
        try:
            await root.freeze_and_flush()
        except FailpointError as error:
            assert str(error) == f"failpoint {failpoint}"
    promises = {"durable": START + 0x280}
    await test_uploads.upload_and_delete(world, promises)
    assert sorted(store_of(root).named) == sorted(root.remote.index.layers)
    if failpoint == "deletion-queue-before-execute":
        counters = world.resources.deletions.counters
        assert (counters.failpoint_errors, counters.remote_errors) == (2, 0)
    await world.kill()
    world = await start(tmp_path, failpoints)
    await test_uploads.check(world, promises, Restart.KILLED)
    await world.stop()
    assert await check_bucket(LocalStore(tmp_path / "bucket"), TENANT) == set()


async def test_a_creation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_creations.prepare_root(world)
    tenant = world.manager.get(TENANT)
    failpoints.configure("after-timeline-dir-creation", "1*return")
    with pytest.raises(FailpointError, match=r"^failpoint after-timeline-dir-creation$"):
        await tenant.create_branch(BRANCH, ROOT, test_creations.POINT)
    assert not paths.timeline_directory(world.workdir, TENANT, BRANCH).exists()
    assert BRANCH not in tenant.timelines
    await test_creations.check_branch(world, {}, Restart.KILLED)
    await world.stop()


async def test_a_manifest_is_uploaded_again(tmp_path: Path) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_deletions.prepare(world)
    failpoints.configure("before-upload-manifest", "3*return")
    promises: dict[str, object] = {}
    await test_moves.offload_and_return(world, promises)
    await world.stop()
    await scrub(tmp_path / "bucket")


async def test_a_download_is_repeated_by_the_next_reader(tmp_path: Path) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_moves.evict(world)
    failpoints.configure("remote-storage-download-pre-rename", "1*return")
    with pytest.raises(FailpointError):
        await test_moves.download(world, {})
    await test_moves.check_downloads(world, {}, Restart.KILLED)
    await world.stop()


@pytest.mark.parametrize(
    "failpoint, reason",
    [
        ("storage-sync-list-remote-timelines", "storage-sync-list-remote-timelines"),
        ("attach-before-activate", "failpoint attach-before-activate"),
    ],
)
async def test_an_attach_that_fails_breaks_the_tenant_until_the_next_one(
    tmp_path: Path, failpoint: str, reason: str
) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    await test_deletions.prepare(world)
    await world.stop()
    (tmp_path / "work").rename(tmp_path / "gone")
    world = await start(tmp_path, failpoints)
    failpoints.configure(failpoint, "1*return")
    with pytest.raises(TenantBrokenError, match=f"tenant is broken: {reason}$"):
        await attach(world)
    await world.stop()
    world = await start(tmp_path, failpoints)
    await settle(world.manager.get(TENANT))
    assert (await active(world.manager.get(TENANT), BRANCH)).last_record_lsn == START + 0x400
    await world.stop()


async def test_a_location_that_cannot_be_stored_is_not_taken(tmp_path: Path) -> None:
    failpoints = registry()
    world = await start(tmp_path, failpoints)
    failpoints.configure("tenant-config-before-write", "1*return")
    with pytest.raises(FailpointError, match=r"^tenant-config-before-write$"):
        await attach(world)
    assert world.manager.locations() == []
    await attach(world)
    await world.stop()
