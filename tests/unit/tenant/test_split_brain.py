"""Two servers believe that they own a tenant: the stale one never makes an object unreadable for the newer one
(standalone.md 1).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from pageserver.clock import SystemClock
from pageserver.errors import StoppedError
from pageserver.ids import TimelineId
from pageserver.remote import GenerationClaim, IndexPart, LocalStore, paths, read_generations
from pageserver.tenant import Tenant
from pageserver.tenant.bucket_generations import BucketGenerations
from pageserver.timeline import Timeline
from tests.unit.recording_store import check_bucket, newest_indices
from tests.unit.tenant.test_crash_at_each_call import acknowledged, compact
from tests.unit.tenant.test_lifecycle import active, attach, follow_primary, make
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of


class Server:
    """One of the two, and how far its WAL is."""

    def __init__(self, world: World, tenant: Tenant, timeline: Timeline) -> None:
        self.world = world
        self.tenant = tenant
        self.timeline = timeline

    async def ingest(self) -> None:
        store_of(self.timeline).ingest(self.timeline.last_record_lsn + 0x100)
        await self.timeline.freeze_and_flush()

    async def compact(self) -> None:
        if sum(len(name.split("__")[1]) > 16 for name in store_of(self.timeline).named) >= 2:
            await compact(self.timeline)

    async def delete(self) -> None:
        await self.world.resources.deletions.flush_execute()


@pytest.mark.parametrize("seed", range(8))
async def test_the_stale_server_breaks_nothing(tmp_path: Path, seed: int) -> None:
    """Goal: any interleaving of ingest, compaction and deletion on both leaves the newer one's bucket whole, and the
    stale one acknowledges nothing. Method: seeded steps, the bucket checked after each.
    """
    chance, bucket = random.Random(seed), tmp_path / "bucket"
    old = await start(tmp_path / "old", bucket, import_first=True)
    for _ in range(chance.randrange(4)):
        await chance.choice([old.ingest, old.compact])()
    told = old.timeline.durable_lsn
    # Whatever the first one decided to delete, but did not validate yet, meets the second one's claim here.
    new = await start(tmp_path / "new", bucket)
    assert new.timeline.last_record_lsn >= told
    told = max(told, old.timeline.durable_lsn)
    for _ in range(12):
        server = chance.choice([old, new])
        steps: list[Callable[[], Awaitable[None]]] = [server.ingest, server.ingest, server.compact, server.delete]
        await chance.choice(steps)()
        await check_bucket(LocalStore(bucket), TENANT)
        index = (await newest_indices(LocalStore(bucket), TENANT))[ROOT]
        if new.timeline.remote.projected_lsn:
            assert index.layers == new.timeline.remote.clean_index.layers, "the newest index is the newer server's"
    assert old.timeline.durable_lsn == told, "a stale server acknowledges nothing new"
    await new.ingest()
    await acknowledged(new.timeline, new.timeline.last_record_lsn)
    await old.world.stop()
    await new.world.stop()
    await check_bucket(LocalStore(bucket), TENANT)


async def test_a_stale_server_deletes_no_timeline(tmp_path: Path) -> None:
    """Also not one that the newer server made anew under the same id."""
    bucket = tmp_path / "bucket"
    old = await start(tmp_path / "old", bucket, import_first=True)
    await old.ingest()
    await old.tenant.create_branch(BRANCH, ROOT, None)
    new = await start(tmp_path / "new", bucket)
    with pytest.raises(StoppedError, match="attached elsewhere in a newer generation"):
        await old.tenant.delete_timeline(BRANCH)
    with pytest.raises(StoppedError):
        await old.world.manager.delete(TENANT)
    assert BRANCH in old.tenant.timelines
    assert location_mode(old.world) == "AttachedStale"
    assert BRANCH in await newest_indices(LocalStore(bucket), TENANT)
    await new.tenant.delete_timeline(BRANCH)
    await eventually(lambda: is_gone(new.tenant, BRANCH))
    await old.world.stop()
    await new.world.stop()


class TakenOverStore(LocalStore):
    """Somebody claims the next generation right before a chosen write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before: Callable[[str, bytes], bool] = lambda key, content: False

    async def put(self, key: str, content: bytes) -> None:
        await self._claim_before(key, content)
        await super().put(key, content)

    async def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        for key in keys:
            await self._claim_before(key, b"")
        await super().delete(keys)

    async def _claim_before(self, key: str, content: bytes) -> None:
        if self.before(key, content):
            self.before = lambda key, content: False
            await super().put_if_absent(f"generations/{TENANT}/00000002.json", b"{}")


async def test_a_deletion_that_meets_a_newer_claim_takes_its_mark_back(tmp_path: Path) -> None:
    """Goal: who claimed between the first question and the mark keeps the timeline, also if it writes no index of its
    own before the next attach.
    """
    old, store = await start_taken_over(tmp_path)
    await old.tenant.create_branch(BRANCH, ROOT, None)
    store.before = lambda key, content: b'"deleted_at":"' in content
    with pytest.raises(StoppedError, match="attached elsewhere in a newer generation"):
        await old.tenant.delete_timeline(BRANCH)
    assert (await newest_indices(LocalStore(tmp_path / "bucket"), TENANT))[BRANCH].deleted_at is None
    third = await start(tmp_path / "third", tmp_path / "bucket")
    assert third.tenant.generation.number == 3
    await active(third.tenant, BRANCH)
    await third.world.stop()
    await old.world.stop()


async def test_the_deletion_of_a_tenant_that_meets_a_newer_claim_puts_its_indices_back(tmp_path: Path) -> None:
    old, store = await start_taken_over(tmp_path)
    await old.tenant.create_branch(BRANCH, ROOT, None)
    before = await newest_indices(LocalStore(tmp_path / "bucket"), TENANT)
    store.before = lambda key, content: "index_part.json" in key
    with pytest.raises(StoppedError, match="attached elsewhere in a newer generation"):
        await old.world.manager.delete(TENANT)
    assert await newest_indices(LocalStore(tmp_path / "bucket"), TENANT) == before
    assert before.keys() == {ROOT, BRANCH}
    await check_bucket(LocalStore(tmp_path / "bucket"), TENANT)
    third = await start(tmp_path / "third", tmp_path / "bucket")
    await active(third.tenant, BRANCH)
    await third.world.stop()
    await old.world.stop()


async def test_a_mark_on_a_timeline_with_branches_is_ignored(tmp_path: Path) -> None:
    """A stale server marked it and crashed; the newer one, which had read it before, had made a branch meanwhile."""
    bucket = tmp_path / "bucket"
    old = await start(tmp_path / "old", bucket, import_first=True)
    await old.ingest()
    new = await start(tmp_path / "new", bucket)
    await new.tenant.create_branch(BRANCH, ROOT, None)
    await new.world.stop()
    key = paths.index_key(TENANT, ROOT, old.tenant.generation)
    index = IndexPart.decode(await LocalStore(bucket).get(key))
    await LocalStore(bucket).put(key, replace(index, deleted_at="2026-01-01T00:00:00").encode())
    third = await start(tmp_path / "third", bucket)
    await active(third.tenant, BRANCH)
    await third.ingest()
    assert (await newest_indices(LocalStore(bucket), TENANT))[ROOT].deleted_at is None
    await check_bucket(LocalStore(bucket), TENANT)
    await third.world.stop()
    await old.world.stop()


async def start_taken_over(tmp_path: Path) -> tuple[Server, TakenOverStore]:
    make(tmp_path / "old")
    store = TakenOverStore(tmp_path / "bucket")
    world = await World.start(tmp_path / "old", bucket=tmp_path / "bucket", storage=store)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    await acknowledged(timeline, START)
    server = Server(world, tenant, timeline)
    await server.ingest()
    return server, store


async def test_a_stale_server_takes_the_tenant_back_only_when_told(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    old = await start(tmp_path / "old", bucket, import_first=True)
    new = await start(tmp_path / "new", bucket)
    await old.ingest()

    async def is_stale() -> bool:
        return location_mode(old.world) == "AttachedStale"

    await eventually(is_stale)
    await old.world.manager.update_config(old.tenant, old.tenant.location)
    again = await attach(old.world)
    assert again is not old.tenant
    assert again.generation.number == 3
    assert location_mode(old.world) == "AttachedSingle"
    await new.ingest()
    await eventually(lambda: is_overtaken(new.tenant))
    await old.world.stop()
    await new.world.stop()


async def test_a_location_that_was_made_stale_restarts_as_secondary(tmp_path: Path) -> None:
    """A claim at its restart would take the tenant back from the server that it was handed over to."""
    bucket = tmp_path / "bucket"
    old = await start(tmp_path / "old", bucket, import_first=True)
    await attach(old.world, mode="AttachedStale", generation=1)
    new = await start(tmp_path / "new", bucket)
    await old.world.stop()
    again = await World.start(tmp_path / "old", bucket=bucket)
    assert location_mode(again) == "Secondary"
    await new.ingest()
    await acknowledged(new.timeline, new.timeline.last_record_lsn)
    await again.stop()
    await new.world.stop()


async def start(workdir: Path, bucket: Path, *, import_first: bool = False) -> Server:
    make(workdir)
    world = await World.start(workdir, bucket=bucket)
    tenant = await attach(world)
    timeline = await (follow_primary(tenant) if import_first else active(tenant, ROOT))
    if import_first:
        await acknowledged(timeline, START)
    return Server(world, tenant, timeline)


def location_mode(world: World) -> str:
    location = world.manager.location(TENANT)
    assert location is not None
    return str(location.to_api()["mode"])


async def is_overtaken(tenant: Tenant) -> bool:
    return tenant.is_overtaken


async def is_gone(tenant: Tenant, timeline_id: TimelineId) -> bool:
    return timeline_id not in tenant.timelines


async def test_a_bucket_that_does_not_know_the_tenant_costs_no_file(tmp_path: Path) -> None:
    """Goal: a server that is started over another bucket, or over a directory where none is mounted, keeps what it has
    (remote-storage.md 4.2: a generation that went backwards).
    """
    bucket = tmp_path / "bucket"
    (tmp_path / "work").mkdir()
    world = await World.start(tmp_path / "work", bucket=bucket)
    timeline = await follow_primary(await attach(world, generation=5))
    files = set(timeline.directory.iterdir())
    await world.stop()
    world = await World.start(tmp_path / "work", bucket=tmp_path / "empty")
    assert location_mode(world) == "Secondary"
    assert set(timeline.directory.iterdir()) == files
    await world.stop()
    world = await World.start(tmp_path / "work", bucket=bucket)
    tenant = await attach(world)
    assert (await active(tenant, ROOT)).last_record_lsn == timeline.last_record_lsn
    assert tenant.generation.number == 6
    await world.stop()


async def test_a_claim_tells_when_it_was_made(tmp_path: Path) -> None:
    """Goal: who looks at the claims sees when a server took over, not when it was started."""

    class Later(SystemClock):
        seconds = 0

        def now(self) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    store, clock = LocalStore(tmp_path), Later()
    claim = GenerationClaim(1, "instance", "host", "when the process began")
    generations = BucketGenerations(store, claim, clock=clock, log=structlog.get_logger())
    for clock.seconds in (1, 2):
        await generations.claim(TENANT, None)
    record = await read_generations(store, TENANT, claims_max=2)
    times = {number: found and found.claimed_at for number, found in record.claims.items()}
    assert times == {1: "2026-01-01T00:00:01Z", 2: "2026-01-01T00:00:02Z"}
