"""Record an operation, then crash at each of its steps and start again.

What must hold, whatever the operation (remote-storage.md 20):

at the moment of the crash  no index names an object that is not there, the scrubber finds nothing wrong, and there is
                            little that no index names
after the next start        what was promised is there, the local files of each timeline are those that its index names
                            or fewer, nothing else lies in the directories
after the next flush        everything that no index names is listed by the scrubber, which removes it, and lists
                            nothing any more

Four ways to start again: over the disk as a kill leaves it, as a power failure leaves it at least, over one that lies
in between, and over an empty disk elsewhere.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from pageserver.clock import SystemClock
from pageserver.remote import LocalStore, paths
from pageserver.remote.scrub import Scrubber
from pageserver.tenant import Tenant
from pageserver.timeline import Timeline, TimelineStatus
from tests.steps.disk import Image, TrackedDisk, mixed
from tests.steps.recorder import Recorder, Step, SteppingFailpoints, SteppingStore, read_bucket, write_bucket
from tests.unit.recording_store import check_bucket, newest_indices
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.world import TENANT, World, eventually, store_of

Promises = dict[str, Any]
_MIXES = 3


class Restart(Enum):
    KILLED = "killed"
    POWER = "power"
    MIXED = "mixed"
    ELSEWHERE = "elsewhere"


Check = Callable[[World, Promises, Restart], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`prepare` is not recorded, `act` is: it notes in its promises what it was told. `check` sees them after a start.

    `leaks_max` bounds the layers that no index names at any moment. Without `stores_layers` the disk is the only copy.
    """

    prepare: Callable[[World], Awaitable[None]]
    act: Callable[[World, Promises], Awaitable[None]]
    check: Check
    leaks_max: int = 2
    stores_layers: bool = True
    is_reattached: bool = True


@dataclass(frozen=True)
class Recording:
    steps: list[Step]
    calls: list[str]
    failpoints: set[str]


async def record(scenario: Scenario, directory: Path) -> Recording:
    """Run the operation once, to its end."""
    workdir = directory / "work"
    workdir.mkdir(parents=True)
    bucket = directory / "bucket" if scenario.stores_layers else None
    disk = TrackedDisk(workdir, directory / "graveyard")
    recorder = Recorder(disk, bucket)
    failpoints = SteppingFailpoints(recorder)
    storage = None if bucket is None else SteppingStore(bucket, recorder)
    with recorder.patched_disk():
        world = await World.start(workdir, bucket=bucket, storage=storage, failpoints=failpoints)
        await scenario.prepare(world)
        disk.sync_everything()
        recorder.start()
        failpoints.reached.clear()
        await scenario.act(world, recorder.promises)
        recorder.stop()
        await world.kill()
    disk.close()
    return Recording(recorder.steps, recorder.calls, failpoints.reached)


async def record_recovery(scenario: Scenario, step: Step, restart: Restart, directory: Path) -> Recording:
    """Record what a server does by itself when it starts after a crash: that is interrupted as well."""
    image = {Restart.KILLED: step.current, Restart.POWER: step.durable}[restart]
    workdir, bucket = directory / "work", directory / "bucket"
    image.write(workdir)
    write_bucket(step.bucket, bucket)
    disk = TrackedDisk(workdir, directory / "graveyard")
    recorder = Recorder(disk, bucket, promises=copy.deepcopy(step.promises))
    failpoints = SteppingFailpoints(recorder)
    with recorder.patched_disk():
        recorder.start()
        world = await World.start(
            workdir, bucket=bucket, storage=SteppingStore(bucket, recorder), failpoints=failpoints
        )
        for tenant in world.manager.attached():
            await settle(tenant)
        await world.resources.deletions.flush_execute()
        recorder.stop()
        await world.kill()
    disk.close()
    return Recording(recorder.steps, recorder.calls, failpoints.reached)


async def crash_everywhere(scenario: Scenario, recording: Recording, directory: Path) -> int:
    """Start again from every step in every way; return how often that was."""
    seen = set()
    with _without_fsync():
        for number, step in enumerate(recording.steps):
            for restart, image in _images(step, scenario, number):
                listing = () if image is None else image.listing()
                objects = tuple((key, stored.content) for key, stored in step.bucket.items())
                state = (listing, objects, repr(step.promises))
                if state in seen:
                    continue
                seen.add(state)
                where = directory / f"{number}-{restart.value}"
                try:
                    await _start_again(scenario, step, restart, image, where)
                except BaseException as error:
                    error.add_note(f"crash at step {number}, {step.what}, restarted {restart.value}")
                    raise
                shutil.rmtree(where)
    return len(seen)


def _images(step: Step, scenario: Scenario, number: int) -> Iterator[tuple[Restart, Image | None]]:
    yield Restart.KILLED, step.current
    yield Restart.POWER, step.durable
    for variant in range(_MIXES):
        yield Restart.MIXED, mixed(step.durable, step.current, f"{number} {variant}")
    if scenario.stores_layers:
        yield Restart.ELSEWHERE, None


async def _start_again(scenario: Scenario, step: Step, restart: Restart, image: Image | None, directory: Path) -> None:
    workdir, bucket = directory / "work", directory / "bucket"
    if image is None:
        workdir.mkdir(parents=True)
    else:
        image.write(workdir)
    if scenario.stores_layers:
        write_bucket(step.bucket, bucket)
        leaks = await check_bucket(LocalStore(bucket), TENANT)
        assert len(leaks) <= scenario.leaks_max, leaks
        await scrub(bucket)
    world = await World.start(workdir, bucket=bucket if scenario.stores_layers else None)
    if scenario.is_reattached:
        await attach(world)
    await scenario.check(world, step.promises, restart)
    for tenant in world.manager.attached():
        await settle(tenant)
        await check_files(world, tenant)
        for timeline in tenant.open_timelines():
            if timeline.state.status is TimelineStatus.ACTIVE:
                store_of(timeline).ingest(timeline.last_record_lsn + 0x1000)
                await timeline.freeze_and_flush()
    await world.resources.deletions.flush_execute()
    await world.stop()
    if scenario.stores_layers:
        await scrub(bucket, purge=True)
        indices = await newest_indices(LocalStore(bucket), TENANT)
        assert not any(index.deleted_at for index in indices.values()), "deletions that were begun have ended"
        there = set(map(str, indices))
        strangers = [
            key
            for key in read_bucket(bucket)
            if (name := _timeline_of(key)) and name not in there and "/deleted.json-" not in key
        ]
        assert not strangers, "nothing but a tombstone is left of a timeline that does not exist"
        assert await check_bucket(LocalStore(bucket), TENANT) == set(), "everything unnamed was listed"
        assert (await Scrubber(LocalStore(bucket), clock=SystemClock()).scrub([TENANT.tenant_id])).in_flight == []


async def scrub(bucket: Path, *, purge: bool = False) -> None:
    """Assert that the scrubber finds nothing wrong; with `purge`, that it lists nothing after it has removed all."""
    scrubber = Scrubber(LocalStore(bucket), clock=SystemClock())
    report = await scrubber.scrub(await scrubber.tenants(), purge_min_age=timedelta(0) if purge else None)
    assert report.findings == []
    if purge:
        again = await scrubber.scrub(await scrubber.tenants())
        assert again.findings == [] and again.orphans == []


async def settle(tenant: Tenant) -> None:
    """Wait until what a start resumes in the background has ended."""

    async def is_settled() -> bool:
        waits = (TimelineStatus.STOPPING, TimelineStatus.LOADING)
        return all(entry.state.status not in waits for entry in tenant.timelines.values())

    await eventually(is_settled)
    broken = [entry for entry in tenant.timelines.values() if entry.state.status is TimelineStatus.BROKEN]
    assert not broken, [entry.state.reason for entry in broken]


async def check_files(world: World, tenant: Tenant) -> None:
    """Assert that local directories hold what indices name, or less, and nothing else."""
    root = paths.timelines_directory(world.workdir, tenant.shard)
    there = {path.name for path in root.iterdir()}
    assert there <= {str(timeline_id) for timeline_id in tenant.timelines}, there
    assert not [path for path in root.parent.parent.iterdir() if path.name != str(tenant.shard)]
    for timeline in tenant.open_timelines():
        index = timeline.remote.index
        entries = index.layers.items()
        named = {paths.local_layer_name(name, entry.generation): entry.file_size for name, entry in entries}
        files = {path.name: path.stat().st_size for path in timeline.directory.iterdir()}
        assert files.items() <= named.items(), f"{files} is not part of {named}"
        if not world.resources.stores_layers:
            assert files == named, "the disk is the only copy"


def _timeline_of(key: str) -> str | None:
    """Return the timeline that an object belongs to. An archive of initdb may outlive its timeline."""
    parts = key.split("/")
    if parts[0] == "sources":
        return parts[2]
    if parts[-1] == paths.INITDB_NAME:
        return None
    return parts[3] if parts[0] == "tenants" and parts[2] == "timelines" else None


def active_timeline(tenant: Tenant, timeline_id: Any) -> Timeline | None:
    """Return the timeline if it is active."""
    entry = tenant.timelines.get(timeline_id)
    return entry if isinstance(entry, Timeline) and entry.state.status is TimelineStatus.ACTIVE else None


@contextmanager
def _without_fsync() -> Iterator[None]:
    """The second half of a crash test loses nothing any more, and waits for no disk."""
    original = os.fsync
    setattr(os, "fsync", lambda _descriptor: None)  # noqa: B010 - its own parameter has another name
    try:
        yield
    finally:
        os.fsync = original
