"""Switching remote storage on moves everything there, and a crash in between loses nothing (standalone.md 2)."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import structlog

from pageserver.config import InvalidSettingError
from pageserver.errors import CorruptDataError, PageServerError
from pageserver.remote import LocalStore, paths
from pageserver.remote.adopt_local import adopt_local_store
from tests.unit.recording_store import RecordingStore, check_bucket, newest_indices
from tests.unit.tenant.test_lifecycle import active, attach, follow_primary, remove_layers
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, store_of


async def alone(workdir: Path) -> None:
    """Leave a directory as a server without remote storage does: a root of three layers, a branch, two generations."""
    await asyncio.to_thread(workdir.mkdir, parents=True)
    world = await World.start(workdir)
    root = await follow_primary(await attach(world))
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()
    await world.stop()
    again = await World.start(workdir)
    tenant = again.manager.get(TENANT)
    store_of(tenant.get_timeline(ROOT)).ingest(START + 0x300)
    await tenant.get_timeline(ROOT).freeze_and_flush()
    await tenant.create_branch(BRANCH, ROOT, None)
    await again.stop()


async def adopt(workdir: Path, storage: LocalStore) -> None:
    await adopt_local_store(workdir / "local-storage", workdir=workdir, storage=storage, log=structlog.get_logger())


async def test_each_crash_while_moving_is_repaired_by_the_next_start(tmp_path: Path) -> None:
    """Goal: at no moment does the bucket's index name a missing layer, and in the end everything is there.

    Method: record the calls, then die before and after each of them, look at the bucket, and move again.
    """
    await alone(tmp_path / "original")
    recorder = RecordingStore(tmp_path / "bucket")
    await asyncio.to_thread(shutil.copytree, tmp_path / "original", tmp_path / "whole")
    await adopt(tmp_path / "whole", recorder)
    assert sum(call.startswith("upload") for call in recorder.calls) == 3
    for dies_at in range(len(recorder.calls)):
        for after in (False, True):
            here = tmp_path / f"{dies_at}-{after}"
            await asyncio.to_thread(shutil.copytree, tmp_path / "original", here / "work")
            dying = RecordingStore(here / "bucket", dies_at=dies_at, after=after)
            with pytest.raises(PageServerError):
                await adopt(here / "work", dying)
            await check_bucket(LocalStore(here / "bucket"), TENANT)
            await adopt(here / "work", LocalStore(here / "bucket"))
            assert await check_bucket(LocalStore(here / "bucket"), TENANT) == set()
    world = await World.start(tmp_path / "whole", bucket=tmp_path / "bucket")
    tenant = world.manager.get(TENANT)
    assert tenant.generation.number == 3
    assert (await active(tenant, ROOT)).last_record_lsn == START + 0x300
    assert (await active(tenant, BRANCH)).last_record_lsn == START + 0x300
    await world.stop()
    assert not (tmp_path / "whole" / "local-storage").exists()


async def test_what_cannot_be_moved_stays_and_is_named(tmp_path: Path) -> None:
    await alone(tmp_path / "work")
    taken = LocalStore(tmp_path / "taken")
    await taken.put(f"generations/{TENANT}/00000001.json", b'{"instance":"somebody else"}')
    with pytest.raises(InvalidSettingError, match="claimed by another server"):
        await adopt(tmp_path / "work", taken)
    assert await newest_indices(taken, TENANT) == {}
    remove_layers(paths.timeline_directory(tmp_path / "work", TENANT, ROOT))
    bucket = LocalStore(tmp_path / "bucket")
    with pytest.raises(CorruptDataError, match="cannot be moved to remote storage"):
        await adopt(tmp_path / "work", bucket)
    assert await newest_indices(bucket, TENANT) == {}
    assert (tmp_path / "work" / "local-storage").is_dir()
