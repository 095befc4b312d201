"""Creating timelines: crashes at every call to the store, and tenants that stop meanwhile (tenants.md 9.3)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pageserver.errors import PreconditionFailedError, StoppedError
from pageserver.ids import TimelineId
from pageserver.remote import IndexPart, LocalStore, paths
from pageserver.tenant import BranchRefusedError, Tenant
from pageserver.timeline import TimelineInfo
from tests.unit.recording_store import RecordingStore, check_bucket
from tests.unit.tenant.test_crash_at_each_call import scrub_and_check
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, store_of


async def bootstrap(tenant: Tenant, timeline_id: TimelineId = ROOT, *, seed: TimelineId | None = None) -> TimelineInfo:
    return await tenant.bootstrap(timeline_id, pg_version=16, existing=seed, flavour=None)


async def make(directory: Path, store: LocalStore) -> None:
    """Make one timeline by initdb, a second one of its archive, and a branch."""
    (directory / "work").mkdir(parents=True)
    world = await World.start(directory / "work", bucket=directory / "bucket", storage=store)
    try:
        tenant = await attach(world)
        await bootstrap(tenant)
        await bootstrap(tenant, BRANCH, seed=ROOT)
        await tenant.create_branch(TimelineId(bytes(16)), ROOT, START + 0x78)
    finally:
        await world.kill()


async def test_a_creation_that_a_crash_cut_short_can_be_repeated(tmp_path: Path) -> None:
    """Goal: a crash leaves a whole timeline or none, and the same request then succeeds (tenants.md 26.24, 25).

    Method: record the calls to the store; die before and after each; start again over the same disk, or an empty one,
    look at the bucket, and make everything again.
    """
    whole = RecordingStore(tmp_path / "whole" / "bucket")
    await make(tmp_path / "whole", whole)
    assert sum(f"upload {paths.initdb_key(TENANT.tenant_id, ROOT)}" == call for call in whole.calls) == 1
    documents = [number for number, call in enumerate(whole.calls) if call.startswith(f"put sources/{TENANT}/{ROOT}")]
    indices = [number for number, call in enumerate(whole.calls) if f"{ROOT}/index_part.json" in call and "put" in call]
    assert documents[0] < indices[0]
    assert len(indices) == 1, "one index names the images and the checkpoint record"
    for dies_at in range(len(whole.calls)):
        for after in (False, True):
            directory = tmp_path / f"{dies_at}-{after}"
            dying = asyncio.ensure_future(
                make(directory, store := RecordingStore(directory / "bucket", dies_at=dies_at, after=after))
            )
            died = asyncio.ensure_future(store.died.wait())
            await asyncio.wait({dying, died}, return_when=asyncio.FIRST_COMPLETED)
            dying.cancel()
            died.cancel()
            await asyncio.wait({dying, died})
            await check_bucket(LocalStore(directory / "bucket"), TENANT)
            workdir = directory / "work"
            if dies_at % 2:
                workdir = directory / "empty"
                workdir.mkdir()
            world = await World.start(workdir, bucket=directory / "bucket")
            tenant = await attach(world)
            known = {info.timeline_id: info for info in tenant.details()}
            assert all(info.last_record_lsn == START + 0x78 for info in known.values())
            assert all(info.flavour == "stock" for info in known.values())
            first = await bootstrap(tenant)
            assert (first.last_record_lsn, first.flavour) == (START + 0x78, "stock")
            await bootstrap(tenant, BRANCH, seed=ROOT)
            await tenant.create_branch(TimelineId(bytes(16)), ROOT, START + 0x78)
            names = await asyncio.to_thread(
                lambda place: {path.name for path in place.iterdir()}, paths.timelines_directory(workdir, TENANT)
            )
            assert names == {str(ROOT), str(BRANCH), "0" * 32}
            await world.stop()
            await scrub_and_check(directory / "bucket", set(), purge=True)


async def test_a_tenant_that_stops_waits_for_the_creation_it_cuts_off(tmp_path: Path) -> None:
    """Goal: after a detach nothing of the tenant writes any more (tenants.md 7.5). Method: detach while initdb runs."""
    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    tenant = await attach(world)
    world.way_in.initdb_may_end = asyncio.Event()
    creation = asyncio.ensure_future(bootstrap(tenant))
    await world.way_in.initdb_began.wait()
    await world.manager.detach(TENANT)
    with pytest.raises(StoppedError):
        await creation
    assert not await asyncio.to_thread(paths.tenant_directory(tmp_path, TENANT).exists)
    assert not [key async for key in world.storage.list_objects(f"tenants/{TENANT}/timelines/")]
    with pytest.raises(StoppedError):
        await bootstrap(tenant)
    await world.stop()


async def test_a_branch_pins_its_ancestor_before_it_is_durable(tmp_path: Path) -> None:
    """Goal: while a branch's index is on its way, the ancestor is neither archived nor deleted, and other branches are
    made. Method: hold the index back.
    """

    class Slow(LocalStore):
        held: asyncio.Event | None = None

        async def put(self, key: str, content: bytes) -> None:
            if self.held is not None and f"{BRANCH}/index_part" in key:
                await self.held.wait()
            await super().put(key, content)

    store = Slow(tmp_path / "bucket")
    world = await World.start(tmp_path, bucket=tmp_path / "bucket", storage=store)
    tenant = await attach(world)
    await bootstrap(tenant)
    store.held = asyncio.Event()
    branching = asyncio.ensure_future(tenant.create_branch(BRANCH, ROOT, START + 0x78))
    other = await tenant.create_branch(TimelineId(bytes(16)), ROOT, START + 0x78)
    assert other.ancestor_timeline_id == ROOT
    assert BRANCH in tenant.timelines
    for refused in (tenant.archival.archive(ROOT), tenant.delete_timeline(ROOT)):
        with pytest.raises(Exception, match=str(BRANCH)):
            await refused
    store.held.set()
    assert (await branching).ancestor_lsn == START + 0x78
    await world.stop()


async def test_branches_of_branches_and_of_what_is_put_away(tmp_path: Path) -> None:
    world = await World.start(tmp_path, bucket=tmp_path / "bucket", wait_lsn_timeout="50ms")
    tenant = await attach(world)
    await bootstrap(tenant)
    await tenant.create_branch(BRANCH, ROOT, START + 0x78)
    branch = tenant.get_timeline(BRANCH)
    store_of(branch).ingest(START + 0x200)
    third = TimelineId(bytes(16))
    info = await tenant.create_branch(third, BRANCH, None)
    assert (info.ancestor_timeline_id, info.ancestor_lsn) == (BRANCH, START + 0x200)
    index = IndexPart.decode(await world.storage.get(paths.index_key(TENANT, third, tenant.generation)))
    assert index.metadata.prev_record_lsn == START + 0x78
    with pytest.raises(BranchRefusedError, match=f"less than timeline ancestor lsn {START + 0x78}"):
        await tenant.create_branch(TimelineId(bytes(15) + b"1"), BRANCH, START + 0x70)
    await tenant.archival.archive(third)
    with pytest.raises(BranchRefusedError, match="archived"):
        await tenant.create_branch(TimelineId(bytes(15) + b"1"), third, None)
    await world.stop()


async def test_a_read_only_branch_takes_no_wal(tmp_path: Path) -> None:
    """Goal: nobody writes to a read-only branch, also after a restart."""

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    world = await World.start(tmp_path, bucket=tmp_path / "bucket")
    tenant = await attach(world)
    await bootstrap(tenant)
    info = await tenant.create_branch(BRANCH, ROOT, START + 0x78, read_only=True)
    assert info.to_json()["read_only"]
    await world.kill()
    again = await World.start(tmp_path, bucket=tmp_path / "bucket")
    tenant = again.manager.get(TENANT)
    assert tenant.detail(BRANCH).is_read_only
    with pytest.raises(PreconditionFailedError, match="read-only"):
        await tenant.import_wal(BRANCH, nothing(), start_lsn=START, end_lsn=START)
    await again.stop()


async def test_a_read_only_branch_of_what_neon_wrote_takes_no_wal_either(tmp_path: Path) -> None:
    """Goal: that a branch is read-only is remembered also where its ancestor has no source document. Method: take the
    document of a timeline away, as if Neon's server had made it.
    """
    bucket = tmp_path / "bucket"
    world = await World.start(tmp_path, bucket=bucket)
    await bootstrap(await attach(world))
    await world.stop()
    shutil.rmtree(bucket / "sources")
    again = await World.start(tmp_path, bucket=bucket)
    tenant = again.manager.get(TENANT)
    assert tenant.get_timeline(ROOT).document is None
    assert (await tenant.create_branch(BRANCH, ROOT, START + 0x78, read_only=True)).to_json()["read_only"]
    await again.kill()
    third = await World.start(tmp_path, bucket=bucket)
    detail = third.manager.get(TENANT).detail(BRANCH)
    assert (detail.is_read_only, detail.flavour) == (True, "neon")
    await third.stop()


async def test_a_server_that_was_overtaken_makes_no_cluster(tmp_path: Path) -> None:
    """Goal: an archive, which has no generation in its name, is never written over by a stale server. Method: attach
    elsewhere while initdb runs here, and make the same timeline there.
    """
    worlds = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        worlds.append(await World.start(tmp_path / name, bucket=tmp_path / "bucket"))
    one, two = worlds
    old = await attach(one)
    one.way_in.initdb_may_end = asyncio.Event()
    creation = asyncio.ensure_future(bootstrap(old))
    await one.way_in.initdb_began.wait()
    new = await attach(two)
    await bootstrap(new)
    key = paths.initdb_key(TENANT.tenant_id, ROOT)
    before = await two.storage.head(key)
    one.way_in.initdb_may_end.set()
    with pytest.raises(StoppedError, match="no cluster is made here"):
        await creation
    assert await two.storage.head(key) == before
    assert ROOT not in old.timelines
    await one.kill()
    await two.stop()
