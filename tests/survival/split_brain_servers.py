"""Split brain with real processes: two page servers under one torture load, the stale one fed by a second slot.

The first server is stopped, the document of the timeline's source is changed to a copy of its slot, the server started
again on that (it has read the document then), and the document put back. A second server attaches on another disk, and
takes the first slot. Both ingest, both are told to create, delete and flush, by the seed. The stale one refuses every
deletion, shows AttachedStale, and its slot does not move beyond what the second server found.

At the end `verify` is clean, the bucket is whole, and a third server with an empty disk restores what was held while
both were at work: it has to fetch every layer for that.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx
import structlog

from pageserver.clock import SystemClock
from pageserver.config import parse_override, parse_settings
from pageserver.ids import TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import open_object_storage, paths
from tests.page_server import PageServerProcess
from tests.survival.bucket import Bucket, each_seed, scrub
from tests.survival.follower import Follower, FollowerPlan, Say

_STEPS: Final = 14
_SECOND_SLOT: Final = "second"
_BRANCHES_MAX: Final = 4


def run(
    folder: Path, *, seeds: int, kind: str, first_seed: int, major: int | None, say: Say, deep: bool
) -> dict[str, Any]:
    """Run `seeds` of them; return figures. Raises AssertionError, and what the servers raise."""

    def run_one(place: Path, bucket: Bucket, seed: int) -> dict[str, Any]:
        return _run_one(place, bucket, seed, major or 16, say)

    numbers = range(first_seed, first_seed + seeds)
    return {"runs": each_seed(folder, run_one, seeds=numbers, kind=kind, deep=deep, say=say)}


def _run_one(folder: Path, bucket: Bucket, seed: int, major: int, say: Say) -> dict[str, Any]:
    with Follower(folder, FollowerPlan(major=major, seed=seed), bucket, say) as follower:
        follower.begin()
        follower.wait_for_acknowledgements(2)
        stale = follower.machine
        for _ in range(2):
            assert not _do(stale, follower, "branch", "stale")
        _follow_second_slot(follower, bucket)
        with _Stopped(stale):
            found = follower.attach_new_machine()
            begun_at = Lsn.parse(found["disk_consistent_lsn"])
            done = _work(follower, stale, bucket)
            with follower.load.paused():
                follower.wait_until_followed()
                follower.wait_for(lambda: _mode(stale, follower.tenant) == "AttachedStale", "the stale one to notice")
            assert _mode(follower.machine, follower.tenant) == "AttachedSingle"
            told = Lsn.parse(
                follower.primary.value(
                    f"SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{_SECOND_SLOT}'"
                )
            )
            assert told <= begun_at, f"the stale one acknowledged {told}, the newer one began at {begun_at}"
        follower.primary.sql(f"SELECT pg_drop_replication_slot('{_SECOND_SLOT}')")
        moment = follower.hold()
        follower.end()
        follower.machine.kill()
        follower.attach_new_machine()
        for one in (follower.moments[0], moment):
            follower.check_restored(Lsn.parse(one.lsn), one)
        return {"steps": dict(sorted(done.items())), "verify": follower.verified}


class _Stopped:
    """Stops a server at the end of the block, if it runs."""

    def __init__(self, server: PageServerProcess) -> None:
        self._server = server

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._server.is_running():
            self._server.stop()


def _follow_second_slot(follower: Follower, bucket: Bucket) -> None:
    """Have the running server follow a copy of its slot, while the bucket says as before."""
    follower.machine.stop()
    follower.primary.sql(
        f"SELECT pg_copy_physical_replication_slot('pageserver_{follower.timeline}', '{_SECOND_SLOT}')"
    )
    original = asyncio.run(_exchange_slot(follower, bucket, _SECOND_SLOT))
    follower.machine.start()
    active = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{_SECOND_SLOT}'"
    follower.wait_for(lambda: follower.primary.value(active) == "True", "the second slot to be used")
    asyncio.run(_exchange_slot(follower, bucket, original))


async def _exchange_slot(follower: Follower, bucket: Bucket, slot: str) -> str:
    """Write another slot's name into the newest source document in its place; return the one that was there."""
    settings = parse_settings(parse_override(f"remote_storage={bucket.settings()}")).remote_storage
    assert settings is not None
    storage = open_object_storage(settings, workdir=Path(), clock=SystemClock(), log=structlog.get_logger())
    base = paths.source_base_key(TenantShardId.parse(follower.tenant), TimelineId.parse(follower.timeline))
    key = max([item.key async for item in storage.list_objects(base)])
    body = json.loads(await storage.get(key))
    before = str(body["slot"])
    await storage.put(key, json.dumps({**body, "slot": slot}).encode())
    return before


def _work(follower: Follower, stale: PageServerProcess, bucket: Bucket) -> Counter[str]:
    """Do what the seed says on both, with a look at the bucket after each step."""
    done: Counter[str] = Counter()
    rng = follower.rng
    for number in range(_STEPS):
        name, server = rng.choice((("stale", stale), ("newer", follower.machine)))
        what = rng.choice(("flush", "flush", "branch", "branch", "delete", "delete", "execute"))
        follower.load.run_for(rng.uniform(0.1, 1.0))
        done[f"{name} {what}{_do(server, follower, what, name)}"] += 1
        if number == _STEPS // 2:
            follower.hold()
        scrub(bucket)
    return done


def _do(server: PageServerProcess, follower: Follower, what: str, name: str) -> str:
    """Do one thing; return how it ended, if not well."""
    path = f"/v1/tenant/{follower.tenant}/timeline"
    branches = [one["timeline_id"] for one in server.api("GET", path) if one["timeline_id"] != follower.timeline]
    try:
        match what:
            case "flush":
                server.api("PUT", f"{path}/{follower.timeline}/checkpoint")
            case "execute":
                server.api("PUT", "/v1/deletion_queue/flush?execute=true")
            case "branch" if len(branches) < _BRANCHES_MAX:
                new = {"new_timeline_id": follower.rng.randbytes(16).hex(), "ancestor_timeline_id": follower.timeline}
                server.api("POST", path, new)
            case "delete" if branches:
                answer = httpx.delete(f"{server.url}{path}/{follower.rng.choice(branches)}", timeout=60)
                answer.raise_for_status()
                assert name == "newer", "a stale server deleted a timeline"
            case _:
                return ": nothing to do"
    except httpx.HTTPStatusError as error:
        return f": {error.response.status_code}"
    return ""


def _mode(server: PageServerProcess, tenant: str) -> str:
    return str(server.api("GET", f"/v1/location_config/{tenant}")["mode"])
