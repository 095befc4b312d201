"""Every step of uploads, of deletions of layers, and of the documents written beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.lsn import Lsn
from tests.steps.scenario import Promises, Restart, Scenario, crash_everywhere, record
from tests.unit.recording_store import check_bucket
from tests.unit.tenant.test_crash_at_each_call import acknowledged, compact
from tests.unit.tenant.test_lifecycle import active, attach, follow_primary
from tests.unit.world import ROOT, START, TENANT, World, store_of

FLUSH_POINTS = {
    "flush-frozen-pausable",
    "flush-frozen-exit",
    "flush-layer-cancel-after-writing-layer-out-pausable",
    "flush-layer-before-update-remote-consistent-lsn",
    "checkpoint-before-saving-metadata",
    "before-upload-index",
    "before-upload-index-pausable",
    "before-delete-layer-pausable",
}
STORE_POINTS = {
    "before-upload-layer",
    "before-upload-layer-pausable",
    "deletion-queue-before-execute",
    "deletion-queue-before-execute-pause",
}


async def prepare(world: World) -> None:
    tenant = await attach(world)
    root = await follow_primary(tenant)
    store_of(root).ingest(START + 0x200)
    await root.freeze_and_flush()


async def upload_and_delete(world: World, promises: Promises) -> None:
    """Flush twice, put one layer in the place of all as compaction does, delete the objects, move the cutoff, tell a
    heatmap.
    """
    tenant = world.manager.get(TENANT)
    root = tenant.get_timeline(ROOT)
    for step in (0x300, 0x400):
        store_of(root).ingest(START + step)
        await root.freeze_and_flush()
        await acknowledged(root, START + step)
        promises["durable"] = root.durable_lsn
    await compact(root)
    promises["compacted"] = True
    await world.resources.deletions.flush()
    promises["listed"] = True
    await world.resources.deletions.flush_execute()
    await root.advance_gc_cutoff(Lsn(START + 0x300))
    promises["cutoff"] = Lsn(START + 0x300)
    await world.manager.heatmaps.upload(tenant, only_if_changed=False)


async def check(world: World, promises: Promises, restart: Restart) -> None:
    root = await active(world.manager.get(TENANT), ROOT)
    assert root.last_record_lsn >= promises.get("durable", START + 0x200)
    assert sorted(store_of(root).named) == sorted(root.remote.index.layers)
    if "compacted" in promises:
        assert len([name for name in root.remote.index.layers if "-" in name.split("__")[1]]) == 1
    assert root.gc_cutoff_lsn >= promises.get("cutoff", 0)
    if "listed" in promises and world.resources.stores_layers and restart is not Restart.ELSEWHERE:
        # What lies in a list on this disk goes without the scrubber.
        await world.resources.deletions.flush_execute()
        assert await check_bucket(world.storage, TENANT) == set()


@pytest.mark.parametrize("stores_layers", [True, False])
async def test_uploads_and_deletions(tmp_path: Path, stores_layers: bool) -> None:
    scenario = Scenario(prepare, upload_and_delete, check, leaks_max=4, stores_layers=stores_layers)
    recording = await record(scenario, tmp_path / "whole")
    starts = await crash_everywhere(scenario, recording, tmp_path / "crashes")
    assert starts > 15
    synced = [call for call in recording.calls if call.startswith("fsync")]
    assert len(synced) > 10 and any(call.endswith("01.list.tmp") for call in synced) == stores_layers
    assert recording.failpoints >= FLUSH_POINTS
    assert (recording.failpoints >= STORE_POINTS) == stores_layers
