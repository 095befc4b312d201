"""Names of timelines: durable, fenced, gone with their tenant (standalone.md 4)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from pageserver.clock import SystemClock
from pageserver.errors import UnavailableError
from pageserver.ids import Generation, TimelineId
from pageserver.remote import LocalStore, paths
from pageserver.remote.names import NamesDecodeError, decode_names, encode_names, read_names
from pageserver.remote.scrub import Scrubber
from pageserver.tenant.names import NameNotFoundError, NameTakenError, StaleNamesError
from tests.unit.recording_store import RecordingStore
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.tenant.test_timeline_creations import bootstrap
from tests.unit.world import BRANCH, ROOT, TENANT, World, eventually

KEY = f"names/{TENANT}.json"


async def open_world(directory: Path, name: str, store: LocalStore | None = None) -> World:
    workdir = directory / name
    workdir.mkdir(parents=True, exist_ok=True)
    return await World.start(workdir, bucket=directory / "bucket", storage=store)


def test_a_document_is_read_as_it_was_written() -> None:
    names = {"b": ROOT, "a": BRANCH}
    content = encode_names(names)
    assert content == f'{{"version":1,"names":{{"a":"{BRANCH}","b":"{ROOT}"}}}}'.encode()
    assert decode_names(content) == names
    for damaged in (b"", b"{}", b"[]", content[:-1], content.replace(b'"a"', b'"-a"'), content.replace(b"1,", b"2,")):
        with pytest.raises(NamesDecodeError):
            decode_names(damaged)


async def test_names_survive_the_machine_and_the_newest_generation_rules(tmp_path: Path) -> None:
    """Goal: what was answered is there elsewhere, and a server that was overtaken changes nothing that anybody reads.

    Method: name, attach on a second machine, rename there, try on the first; attach on a third.
    """
    one = await open_world(tmp_path, "one")
    old = await attach(one)
    await bootstrap(old)
    await bootstrap(old, BRANCH)
    await old.names.give("main", ROOT)
    await old.names.give("work", BRANCH)
    two = await open_world(tmp_path, "two")
    new = await attach(two)
    assert new.names.all() == {"main": ROOT, "work": BRANCH}
    assert f"{KEY}-00000002" in [item.key async for item in one.storage.list_objects("names/")]
    assert await new.names.rename("main", "trunk") == ROOT
    with pytest.raises(StaleNamesError):
        await old.names.rename("main", "lost")
    assert old.is_overtaken
    assert old.names.all() == {"main": ROOT, "work": BRANCH}
    await two.kill()
    three = await open_world(tmp_path, "three")
    newest = await attach(three)
    assert newest.names.all() == {"trunk": ROOT, "work": BRANCH}
    with pytest.raises(NameTakenError):
        await newest.names.rename("trunk", "work")
    await newest.names.remove("work")
    with pytest.raises(NameNotFoundError):
        newest.names.resolve("work")
    assert newest.names.resolve(str(BRANCH)) == BRANCH
    scrubber = Scrubber(LocalStore(tmp_path / "bucket"), clock=SystemClock())
    report = await scrubber.scrub(await scrubber.tenants(), purge_min_age=timedelta(0))
    assert report.findings == []
    assert f"{KEY}-00000001" in [orphan.key for orphan in report.purged]
    assert (await scrubber.scrub(await scrubber.tenants())).orphans == []
    await newest.names.give("again", ROOT)
    await three.manager.delete(TENANT)
    assert [item.key async for item in three.storage.list_objects("names/")] == []
    await one.kill()
    await three.stop()


async def test_a_crash_at_any_call_keeps_what_was_answered(tmp_path: Path) -> None:
    """Method: name, rename and delete a timeline, dying before and after each call to the store."""

    async def live(store: RecordingStore, directory: Path, answered: list[dict[str, TimelineId]]) -> None:
        world = await open_world(directory, "work", store)
        try:
            tenant = await attach(world)
            await bootstrap(tenant)
            await bootstrap(tenant, BRANCH)
            await tenant.names.give("a", ROOT)
            answered.append({"a": ROOT})
            await tenant.names.give("b", BRANCH)
            answered.append({"a": ROOT, "b": BRANCH})
            await tenant.names.rename("a", "c")
            answered.append({"c": ROOT, "b": BRANCH})
            await tenant.delete_timeline(BRANCH)

            async def is_gone() -> bool:
                return BRANCH not in tenant.timelines

            await eventually(is_gone)
            answered.append({"c": ROOT})
        finally:
            await world.kill()

    states: list[dict[str, TimelineId]] = []
    whole = RecordingStore(tmp_path / "whole" / "bucket")
    await live(whole, tmp_path / "whole", states)
    first = next(number for number, call in enumerate(whole.calls) if call.startswith(f"put {KEY}"))
    for dies_at in range(first - 3, len(whole.calls)):
        for after in (False, True):
            directory = tmp_path / f"{dies_at}-{after}"
            answered: list[dict[str, TimelineId]] = []
            store = RecordingStore(directory / "bucket", dies_at=dies_at, after=after)
            living = asyncio.ensure_future(live(store, directory, answered))
            died = asyncio.ensure_future(store.died.wait())
            await asyncio.wait({living, died}, return_when=asyncio.FIRST_COMPLETED)
            for task in (living, died):
                task.cancel()
            await asyncio.wait({living, died})
            world = await open_world(directory, "other")
            names = (await attach(world)).names.all()
            # The next state may have come about without having been answered; a deletion takes its name on the way.
            assert names in [{}, *states][len(answered) : len(answered) + 2], (dies_at, after)
            await world.stop()


async def test_damaged_names_are_reported_and_kept(tmp_path: Path) -> None:
    world = await open_world(tmp_path, "one")
    await bootstrap(await attach(world))
    await world.storage.put(f"{KEY}-00000001", b"damaged")
    await world.kill()
    again = await open_world(tmp_path, "one")
    tenant = again.manager.get(TENANT)
    assert ROOT in tenant.timelines
    with pytest.raises(NamesDecodeError):
        tenant.names.all()
    with pytest.raises(NamesDecodeError):
        await tenant.names.give("main", ROOT)
    assert tenant.names.resolve(str(ROOT)) == ROOT
    scrubber = Scrubber(LocalStore(tmp_path / "bucket"), clock=SystemClock())
    report = await scrubber.scrub(await scrubber.tenants())
    assert [(one.where, one.message.split(":")[0]) for one in report.errors] == [
        (f"{KEY}-00000001", "document of names does not decode")
    ]
    await again.stop()


async def test_names_of_timelines_that_are_nowhere_are_not_shown(tmp_path: Path) -> None:
    """Goal: a bucket that travelled in time may name what is gone. Method: put such a document before the attach."""
    world = await open_world(tmp_path, "one")
    await bootstrap(await attach(world))
    await world.kill()
    await world.storage.put(f"{KEY}-00000001", encode_names({"gone": BRANCH, "main": ROOT}))
    again = await open_world(tmp_path, "one")
    names = again.manager.get(TENANT).names
    assert names.all() == {"main": ROOT}
    await names.give("gone", ROOT)
    assert await read_names(again.storage, TENANT.tenant_id, Generation(9)) == (
        {"gone": ROOT, "main": ROOT},
        Generation(2),
    )
    await again.stop()


async def test_a_store_that_is_away_leaves_names_as_they_were(tmp_path: Path) -> None:
    class Away(LocalStore):
        is_away = False

        async def put(self, key: str, content: bytes) -> None:
            if self.is_away and key.startswith("names/"):
                raise UnavailableError("away")
            await super().put(key, content)

    store = Away(tmp_path / "bucket")
    world = await open_world(tmp_path, "one", store)
    tenant = await attach(world)
    await bootstrap(tenant)
    store.is_away = True
    with pytest.raises(UnavailableError):
        await tenant.names.give("main", ROOT)
    assert tenant.names.all() == {}
    store.is_away = False
    await tenant.names.give("main", ROOT)
    assert paths.names_base_key(TENANT.tenant_id) == KEY
    await world.stop()
