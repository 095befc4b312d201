"""Nothing acknowledged is lost, whichever write to the store was the last one before a crash (design.md 7)."""

from __future__ import annotations

from pathlib import Path

from pageserver.errors import PageServerError, UnavailableError
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore
from pageserver.tenant import Tenant
from pageserver.timeline import Timeline
from pageserver.timeline.state import TimelineStatus
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.world import BRANCH, ROOT, START, World, eventually, store_of


class DyingStore(LocalStore):
    """Fails every write after the first `writes_left`, as if the process had been killed there."""

    def __init__(self, root: Path, writes_left: int) -> None:
        super().__init__(root)
        self.writes_left = writes_left
        self.writes = 0

    def _count(self) -> None:
        if self.writes_left == 0:
            raise UnavailableError("the store is gone")
        self.writes_left -= 1
        self.writes += 1

    async def put(self, key: str, content: bytes) -> None:
        self._count()
        await super().put(key, content)

    async def upload(self, key: str, source: Path) -> None:
        self._count()
        await super().upload(key, source)


async def live(tenant: Tenant, acknowledged: dict[TimelineId, Lsn]) -> None:
    """Import, ingest, flush, branch, flush; note in `acknowledged` what the source of WAL may forget."""
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    acknowledged[ROOT] = Lsn(0)

    async def has_ended() -> bool:
        info = tenant.detail(ROOT)
        return info.state.status is TimelineStatus.ACTIVE or info.source.error is not None

    await eventually(has_ended)
    root = tenant.get_timeline(ROOT)
    acknowledged[ROOT] = root.durable_lsn
    for step in (0x200, 0x300):
        store_of(root).ingest(START + step)
        try:
            await root.freeze_and_flush()
        finally:
            acknowledged[ROOT] = root.durable_lsn
    await tenant.create_branch(BRANCH, ROOT, START + 0x288)
    acknowledged[BRANCH] = tenant.get_timeline(BRANCH).durable_lsn


async def test_every_stop_leaves_what_was_acknowledged(tmp_path: Path) -> None:
    """Goal: a restart finds every acknowledged LSN and branch, and an import that was answered goes on by itself.

    Method: let the store die after each single write, over a shared bucket, then start another world over the files.
    """
    writes = await run_until(tmp_path / "whole", writes_left=1000)
    assert writes > 5
    for writes_left in range(writes):
        await run_until(tmp_path / f"after-{writes_left}", writes_left=writes_left)


async def run_until(directory: Path, *, writes_left: int) -> int:
    (directory / "work").mkdir(parents=True)
    bucket = directory / "bucket"
    dying = DyingStore(bucket, writes_left)
    world = await World.start(directory / "work", bucket=bucket, storage=dying)
    acknowledged: dict[TimelineId, Lsn] = {}
    try:
        await live(await attach(world), acknowledged)
    except PageServerError:
        assert dying.writes_left == 0
    dying.writes_left = 0
    await world.manager.shut_down()

    again = await World.start(directory / "work", bucket=bucket)
    tenant = again.manager.attached()[0]
    for timeline_id, lsn in acknowledged.items():

        async def is_active(timeline_id: TimelineId = timeline_id) -> bool:
            return tenant.detail(timeline_id).state.status is TimelineStatus.ACTIVE

        await eventually(is_active)
        timeline = tenant.timelines[timeline_id]
        assert isinstance(timeline, Timeline)
        assert timeline.last_record_lsn >= lsn
        assert sorted(store_of(timeline).named) == sorted(timeline.publisher.index.layers)
    await again.manager.shut_down()
    return dying.writes
