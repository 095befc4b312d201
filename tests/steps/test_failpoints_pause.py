"""At every failpoint that can pause, the server waits until it is let go, or until it is stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pageserver.failpoints import Failpoints
from tests.steps import test_creations, test_deletions, test_moves, test_uploads
from tests.steps.scenario import Restart, Scenario, scrub, settle
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.world import World

UPLOAD = Scenario(test_uploads.prepare, test_uploads.upload_and_delete, test_uploads.check)
BRANCH = Scenario(test_creations.prepare_root, test_creations.branch, test_creations.check_branch)
INITDB = Scenario(test_creations.attach_only, test_creations.create_with_initdb, test_creations.check_initdb)
DELETION = Scenario(test_deletions.prepare, test_deletions.delete_branch, test_deletions.check_branch_is_gone)
OFFLOAD = Scenario(test_deletions.prepare, test_moves.offload_and_return, test_moves.check_branch_can_return)
DOWNLOAD = Scenario(test_moves.evict, test_moves.download, test_moves.check_downloads)

PAUSES = {
    "flush-frozen-pausable": UPLOAD,
    "flush-layer-cancel-after-writing-layer-out-pausable": UPLOAD,
    "before-upload-layer-pausable": UPLOAD,
    "before-upload-index-pausable": UPLOAD,
    "before-delete-layer-pausable": UPLOAD,
    "deletion-queue-before-execute-pause": UPLOAD,
    "timeline-creation-after-uninit": BRANCH,
    "before-initdb-upload": INITDB,
    "persist_deleted_index_part": DELETION,
    "in_progress_delete": DELETION,
    "before-upload-manifest-pausable": OFFLOAD,
    "before-downloading-layer-stream-pausable": DOWNLOAD,
}


class Watcher:
    """A log that tells when a failpoint is reached."""

    def __init__(self) -> None:
        self.paused = asyncio.Event()

    def info(self, text: str, **_: Any) -> None:
        if text.startswith("at failpoint "):
            self.paused.set()


@pytest.mark.parametrize("failpoint", PAUSES)
@pytest.mark.parametrize("ends", ["let go", "stopped"])
async def test_a_pause_ends(tmp_path: Path, failpoint: str, ends: str) -> None:
    """Goal: a test can hold the server here, and no stop hangs. Method: pause; let go, or stop and start again."""
    scenario, watcher = PAUSES[failpoint], Watcher()
    failpoints = Failpoints(watcher)
    (tmp_path / "work").mkdir()
    world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket", failpoints=failpoints)
    await scenario.prepare(world)
    failpoints.configure(failpoint, "pause")
    promises: dict[str, Any] = {}
    working = asyncio.ensure_future(scenario.act(world, promises))
    async with asyncio.timeout(10):
        await watcher.paused.wait()
    assert not working.done()
    if ends == "let go":
        failpoints.configure(failpoint, "off")
        await working
    else:
        async with asyncio.timeout(10):
            await world.kill()
        working.cancel()
        await asyncio.wait({working})
        world = await World.start(tmp_path / "work", bucket=tmp_path / "bucket")
        await settle(await attach(world))
    await scenario.check(world, promises, Restart.KILLED)
    await world.stop()
    await scrub(tmp_path / "bucket")
