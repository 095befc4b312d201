"""Split brain: two servers believe that they own a tenant, and work at the same time (standalone.md 1).

Both run in this process, with the product's own tenants, upload queues and deletion queues over one bucket; only the
engine is a fake. A seed draws what each of them does (ingest, exchange layers as compaction does, create and delete
branches, execute deletions), when the second one claims its generation, and how long every request to the store and
every answer travels (`tangled_store`), so claims, listings, index uploads and deletions of the two overlap in any way.
In every third seed the first one takes the tenant back later. After each step, and all the time in between:

* every object that the newer one's index names is there, whole, and so is what the newest index in the bucket names;
* what a generation ever told its WAL source, the next one found when it attached;

and at the end: the stale one knows that it is stale; the newer one acknowledges; a third server, with an empty disk,
finds all that the newer one had; `scrub` finds no error, lists what is orphaned, purges it.

`split_brain_servers` does a few of these with real processes and a real primary.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from pageserver.clock import SystemClock
from pageserver.errors import PageServerError
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.remote.scrub import Scrubber
from pageserver.tenant import Tenant
from pageserver.timeline import Timeline
from pageserver.timeline.state import TimelineStatus
from tests.survival.follower import Say
from tests.survival.tangled_store import TangledStore, Traffic
from tests.unit.recording_store import check_bucket, newest_indices
from tests.unit.tenant.test_crash_at_each_call import compact
from tests.unit.tenant.test_lifecycle import attach, make
from tests.unit.world import ROOT, START, TENANT, World, store_of

_WAIT_SECONDS: Final = 120.0
_STEPS_ALONE_MAX: Final = 6
_STEPS: Final = 14
_CHECK_PAUSE_SECONDS: Final = 0.002
_BRANCHES_MAX: Final = 5


class SplitBrainError(AssertionError):
    """The stale server did harm."""


class Side:
    """One server: its world, and what it does when a seed says so."""

    def __init__(self, name: str, world: World, tenant: Tenant) -> None:
        self.name = name
        self.world = world
        self.tenant = tenant
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def timelines(self) -> list[Timeline]:
        """Those that are open and that nobody deletes."""
        return [one for one in self.tenant.open_timelines() if one.state.status is TimelineStatus.ACTIVE]

    async def step(self, rng: random.Random) -> None:
        """Do one thing; what a server refuses, because it is overtaken or because of the state of a timeline, is
        counted.
        """
        choices: dict[str, int] = {"ingest": 6, "compact": 4, "branch": 2, "delete": 3, "execute": 3}
        (what,) = rng.choices(list(choices), list(choices.values()))
        try:
            await self._do(what, rng)
            self.done[what] += 1
        except PageServerError as error:
            self.refused[f"{what}: {type(error).__name__}"] += 1

    async def _do(self, what: str, rng: random.Random) -> None:
        timelines = self.timelines()
        match what:
            case "execute":
                await self.world.resources.deletions.flush_execute()
            case "branch" if timelines and len(timelines) < _BRANCHES_MAX:
                await self.tenant.create_branch(TimelineId(rng.randbytes(16)), rng.choice(timelines).timeline_id, None)
            case "delete":
                doomed = [one for one in timelines if one.timeline_id != ROOT]
                if doomed:
                    await self.tenant.delete_timeline(rng.choice(doomed).timeline_id)
            case _ if timelines:
                timeline = rng.choice(timelines)
                deltas = sum(len(name.split("__")[1]) > 16 for name in store_of(timeline).named)
                if what == "compact" and deltas >= 2:
                    await compact(timeline)
                else:
                    store_of(timeline).ingest(timeline.last_record_lsn + 0x100)
                    await timeline.freeze_and_flush()

    @property
    def mode(self) -> str:
        return str(self.tenant.effective_location().to_api()["mode"])


@dataclass(frozen=True)
class Kept:
    """What the newer server had of a timeline. Without an index of its own it had what it read of an older generation;
    whoever comes next may find more, since the stale one goes on writing there.
    """

    lsn: Lsn
    layers: list[str]
    has_own_index: bool

    @classmethod
    def of(cls, timeline: Timeline) -> Kept:
        index = timeline.remote.clean_index
        return cls(index.disk_consistent_lsn, sorted(index.layers), timeline.remote.queue.has_uploaded_index)


class Watch:
    """What must hold, checked while all traffic is stopped."""

    def __init__(self, bucket: Path, traffic: Traffic, log: Any) -> None:
        self._store = LocalStore(bucket)
        self._bucket = bucket
        self._traffic = traffic
        self.log = log
        self.sides: list[Side] = []
        self.owner: Side | None = None
        self.checks = 0
        self._told: dict[tuple[TimelineId, int], Lsn] = {}
        self._found: dict[tuple[TimelineId, int], Lsn] = {}

    def note_attached(self, side: Side) -> None:
        """A side has read what there was, in its generation; nothing was ingested yet."""
        generation = side.tenant.generation.number
        assert generation is not None
        for timeline in side.timelines():
            self._found[timeline.timeline_id, generation] = timeline.last_record_lsn
        self.owner = side

    async def check(self) -> None:
        """Raises SplitBrainError."""
        async with self._traffic.stopped():
            self._note_told()
            await check_bucket(self._store, TENANT)
            if self.owner is not None:
                for timeline in self.owner.timelines():
                    self._check_named(timeline)
        self.checks += 1

    def check_told(self) -> None:
        """What a generation told, every later one that has the timeline found."""
        self._note_told()
        for (timeline_id, generation), told in self._told.items():
            for (other_id, later), found in self._found.items():
                if other_id == timeline_id and later > generation and found < told:
                    raise SplitBrainError(
                        f"{timeline_id}: generation {generation} acknowledged {told}, generation {later} found {found}"
                    )

    def told(self, timeline_id: TimelineId) -> Lsn:
        """Return the highest position that anybody was told of a timeline."""
        return max((lsn for (one, _), lsn in self._told.items() if one == timeline_id), default=Lsn(0))

    def _note_told(self) -> None:
        for side in self.sides:
            generation = side.tenant.generation.number
            assert generation is not None
            for timeline in side.tenant.open_timelines():
                key = timeline.timeline_id, generation
                self._told[key] = max(self._told.get(key, Lsn(0)), timeline.durable_lsn)

    def _check_named(self, timeline: Timeline) -> None:
        """The newer one's index, as it is in the store or as it was read from an older generation."""
        for name, entry in timeline.remote.clean_index.layers.items():
            key = paths.layer_key(TENANT.tenant_id, entry.shard, timeline.timeline_id, name, entry.generation)
            path = self._bucket / key
            if not path.exists() or path.read_bytes() != name.encode():
                raise SplitBrainError(f"{key} is named by the newer server, but is not there or is something else")


def run(
    folder: Path, *, seeds: int, kind: str, first_seed: int, major: int | None, say: Say, deep: bool
) -> dict[str, Any]:
    """Run `seeds` interleavings; return figures. The store is a directory whatever `kind` says, as both servers are in
    this process. Raises AssertionError.
    """
    figures: dict[str, Any] = {"interleavings": 0, "checks": 0, "operations": 0, "orphans_purged": 0}
    done: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + seeds):
        began = time.monotonic()
        (folder / f"seed-{seed}").mkdir()
        with (folder / f"seed-{seed}" / "log").open("w") as log:
            found = asyncio.run(
                run_one(folder / f"seed-{seed}", seed, structlog.wrap_logger(structlog.PrintLogger(log)))
            )
        shutil.rmtree(folder / f"seed-{seed}")
        for key in ("checks", "operations", "orphans_purged"):
            figures[key] += found[key]
        done.update(found["steps"])
        figures["interleavings"] += 1
        say(f"seed {seed}: {time.monotonic() - began:.1f} s, {json.dumps(found)}")
    return {**figures, "steps": dict(sorted(done.items()))}


async def run_one(folder: Path, seed: int, log: Any) -> dict[str, Any]:
    """Run one interleaving in an empty folder; return its figures. Raises SplitBrainError, AssertionError."""
    rng, bucket = random.Random(f"split brain {seed}"), folder / "bucket"
    traffic = Traffic(random.Random(f"traffic {seed}"))
    watch = Watch(bucket, traffic, log)
    old = await _start("old", folder / "old", bucket, traffic, watch, import_first=True)
    async with _checked_all_the_time(watch):
        # The second one claims while the first one is in the middle of something.
        alone = asyncio.create_task(_work(old, rng, rng.randint(1, _STEPS_ALONE_MAX), watch))
        await asyncio.sleep(rng.uniform(0, 0.1))
        new = await _start("new", folder / "new", bucket, traffic, watch)
        await asyncio.gather(_work(old, rng, _STEPS, watch, after=alone), _work(new, rng, _STEPS, watch))
        took_back = seed % 3 == 0
        if took_back:
            await _until(lambda: old.mode == "AttachedStale", lambda: _ingest(old))
            old.tenant = await attach(old.world)
            watch.note_attached(old)
            await asyncio.gather(_work(old, rng, _STEPS, watch), _work(new, rng, _STEPS, watch))
        newer, stale = (old, new) if took_back else (new, old)
        await _until(lambda: stale.mode == "AttachedStale", lambda: _ingest(stale))
        assert newer.mode == "AttachedSingle"
        # Not into its branches: of those that it has not written to, the index is still one of an older generation.
        root = newer.tenant.get_timeline(ROOT)
        store_of(root).ingest(root.last_record_lsn + 0x100)
        await root.freeze_and_flush()
        await _until(lambda: root.durable_lsn >= root.last_record_lsn)
    watch.check_told()
    kept = {one.timeline_id: Kept.of(one) for one in newer.timelines()}
    for side in (stale, newer):
        await side.world.stop()
    await watch.check()
    watch.sides, watch.owner = [], None
    await _third_server(folder / "third", bucket, traffic, watch, kept)
    purged = await _scrub(bucket)
    steps = {f"{side.name} {what}": count for side in (old, new) for what, count in side.done.items()}
    steps.update({f"{side.name} {what}": count for side in (old, new) for what, count in side.refused.items()})
    return {
        "checks": watch.checks,
        "operations": traffic.operations,
        "orphans_purged": purged,
        "took_back": took_back,
        "steps": steps,
    }


async def _start(
    name: str, workdir: Path, bucket: Path, traffic: Traffic, watch: Watch, *, import_first: bool = False
) -> Side:
    make(workdir)
    storage = TangledStore(bucket, traffic)
    world = await World.start(workdir, bucket=bucket, storage=storage, log=watch.log.bind(server=name))
    tenant = await attach(world)
    side = Side(name, world, tenant)
    watch.note_attached(side)
    watch.sides.append(side)
    if import_first:
        await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
        await _until(lambda: any(one.durable_lsn >= START for one in side.timelines()))
    return side


async def _work(
    side: Side, rng: random.Random, steps: int, watch: Watch, *, after: asyncio.Task[None] | None = None
) -> None:
    if after is not None:
        await after
    for _ in range(steps):
        await side.step(rng)
        await watch.check()
        watch.check_told()


async def _ingest(side: Side) -> None:
    for timeline in side.timelines():
        store_of(timeline).ingest(timeline.last_record_lsn + 0x100)
        await timeline.freeze_and_flush()


async def _until(condition: Callable[[], bool], again: Callable[[], Awaitable[None]] | None = None) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while not condition():
            if again is not None:
                await again()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _checked_all_the_time(watch: Watch) -> AsyncIterator[None]:
    async def check_again_and_again() -> None:
        while True:
            await watch.check()
            await asyncio.sleep(_CHECK_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        checking = group.create_task(check_again_and_again())
        yield
        checking.cancel()


async def _third_server(
    workdir: Path, bucket: Path, traffic: Traffic, watch: Watch, kept: dict[TimelineId, Kept]
) -> None:
    """All that the newer one had is found by whoever comes next."""
    third = await _start("third", workdir, bucket, traffic, watch)
    found = {one.timeline_id: one for one in third.timelines()}
    for timeline_id, had in kept.items():
        if timeline_id not in found:
            raise SplitBrainError(f"{timeline_id} was there, and is not any more")
        index = found[timeline_id].remote.index
        if had.has_own_index and sorted(index.layers) != had.layers:
            raise SplitBrainError(f"{timeline_id} has other layers than its last owner left")
        if index.disk_consistent_lsn < had.lsn:
            raise SplitBrainError(f"{timeline_id} went back from {had.lsn} to {index.disk_consistent_lsn}")
        if found[timeline_id].last_record_lsn < watch.told(timeline_id):
            raise SplitBrainError(f"{timeline_id}: {watch.told(timeline_id)} was acknowledged and is lost")
    watch.check_told()
    await _until(lambda: all(one.state.status is not TimelineStatus.STOPPING for one in third.tenant.details()))
    await third.world.stop()


async def _scrub(bucket: Path) -> int:
    """Demand a whole bucket; return how many orphans were purged."""
    scrubber = Scrubber(LocalStore(bucket), clock=SystemClock())
    tenants = await scrubber.tenants()
    report = await scrubber.scrub(tenants, purge_min_age=timedelta(0))
    assert report.findings == [], report.findings
    assert (await scrubber.scrub(tenants)).orphans == []
    assert ROOT in await newest_indices(LocalStore(bucket), TENANT)
    return len(report.purged)
