"""Replication slots at primaries go with their timelines, and what cannot be dropped is reported (standalone.md 3)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pageserver.errors import RequestError, StoppedError, UnavailableError
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.tenant.test_split_brain import start_taken_over
from tests.unit.world import ROOT, TENANT, World, eventually


async def deleted(world: World) -> None:
    async def is_gone() -> bool:
        return ROOT not in world.manager.get(TENANT).timelines

    await eventually(is_gone)


async def test_the_slot_goes_with_the_timeline(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    await tenant.delete_timeline(ROOT)
    await deleted(world)
    assert world.way_in.dropped_slots == ["host=primary"]
    await world.stop()


async def test_the_slot_of_an_import_that_failed_goes_too(tmp_path: Path) -> None:
    """Its document is deleted with the mark, so it must have been read before."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    world.way_in.fail_import = RequestError("the base backup is refused")
    await tenant.create_from_primary(ROOT, {"conninfo": "host=primary"})
    await tenant.delete_timeline(ROOT)
    await deleted(world)
    assert world.way_in.dropped_slots == ["host=primary"]
    await world.stop()


async def test_a_deletion_that_a_crash_interrupted_drops_the_slot(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    await follow_primary(tenant)
    world.way_in.drop_may_go = asyncio.Event()
    await tenant.delete_timeline(ROOT)
    await world.kill()
    assert world.way_in.dropped_slots == []
    again = await World.start(tmp_path)
    await deleted(again)
    assert again.way_in.dropped_slots == ["host=primary"]
    await again.stop()


async def test_a_primary_that_does_not_answer_is_reported_and_keeps_nothing_from_being_deleted(tmp_path: Path) -> None:
    with capture_logs() as lines:
        world = await World.start(tmp_path)
        tenant = await attach(world)
        await follow_primary(tenant)
        world.way_in.fail_drop = UnavailableError("cannot connect to the primary")
        await tenant.delete_timeline(ROOT)
        await deleted(world)
        await world.stop()
    (reported,) = [line for line in lines if "could not be dropped" in line["event"]]
    assert (reported["log_level"], reported["timeline"]) == ("error", str(ROOT))
    assert (reported["connection"], reported["error"]) == ("host=primary", "cannot connect to the primary")


async def test_the_slots_go_with_the_tenant(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    await follow_primary(await attach(world))
    await world.manager.delete(TENANT)
    assert world.way_in.dropped_slots == ["host=primary"]
    await world.manager.delete(TENANT)
    assert world.way_in.dropped_slots == ["host=primary"], "nothing is left of it"
    await world.stop()


async def test_a_server_that_was_overtaken_leaves_the_slots(tmp_path: Path) -> None:
    """The newer one follows the primary with them."""
    old, store = await start_taken_over(tmp_path)
    store.before = lambda key, content: "index_part.json" in key
    with pytest.raises(StoppedError, match="attached elsewhere in a newer generation"):
        await old.world.manager.delete(TENANT)
    assert old.world.way_in.dropped_slots == []
    await old.world.stop()
