"""Names of timelines over HTTP, and in routes of ours (standalone.md 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.mgmt.test_creation_http import delete
from tests.unit.mgmt.test_http import ATTACH, TL, Api, T, serve
from tests.unit.world import BRANCH, ROOT, TENANT

NAMES = f"{T}/name"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path) as served:
        await served.attach()
        for timeline in (ROOT, BRANCH):
            await served.ask("POST", TL, {"new_timeline_id": str(timeline), "pg_version": 16})
        yield served


def pair(name: str, timeline: object = ROOT) -> dict[str, str]:
    return {"name": name, "timeline_id": str(timeline)}


async def give(api: Api, name: str, timeline: object = ROOT) -> tuple[int, object]:
    return await api.ask("PUT", f"{NAMES}/{name}", {"timeline_id": str(timeline)})


async def test_names_are_given_changed_and_taken_away(api: Api) -> None:
    assert await api.ask("GET", NAMES) == (200, {"names": []})
    for _ in range(2):
        assert await give(api, "main") == (200, pair("main"))
    assert await give(api, "v1.2-rc_1", BRANCH) == (200, pair("v1.2-rc_1", BRANCH))
    assert await give(api, "main", BRANCH) == (409, {"msg": f"Conflict: timeline {ROOT} is called 'main' already"})
    assert await api.ask("GET", f"{NAMES}/main") == (200, pair("main"))
    assert await api.ask("GET", NAMES) == (200, {"names": [pair("main"), pair("v1.2-rc_1", BRANCH)]})
    rename = f"{NAMES}/main/rename"
    assert (await api.ask("POST", rename, {"new_name": "v1.2-rc_1"}))[0] == 409
    assert await api.ask("POST", rename, {"new_name": "trunk"}) == (200, pair("trunk"))
    assert await api.ask("POST", rename, {"new_name": "other"}) == (
        404,
        {"msg": "NotFound: no timeline is called 'main'"},
    )
    assert (await api.ask("GET", f"{TL}/{ROOT}"))[1]["names"] == ["trunk"]
    listed = (await api.ask("GET", f"{T}/timeline_and_offloaded"))[1]["timelines"]
    assert [one["names"] for one in listed] == [["trunk"], ["v1.2-rc_1"]]
    assert await api.ask("DELETE", f"{NAMES}/trunk") == (200, None)
    assert (await api.ask("DELETE", f"{NAMES}/trunk"))[0] == 404
    assert "names" not in (await api.ask("GET", f"{TL}/{ROOT}"))[1]


async def test_what_cannot_be_a_name_is_refused(api: Api) -> None:
    for bad in ("-x", ".x", "a b", "a%2Fb", "ä", "5" * 32, "x" * 64):
        assert (await give(api, bad))[0] in (400, 404), bad
    assert (await give(api, "x" * 63))[0] == 200
    assert (await give(api, "nobody", "9" * 32))[0] == 404
    assert (await api.ask("PUT", f"{NAMES}/main", {"timeline_id": "main"}))[0] == 400
    assert (await api.ask("POST", f"{NAMES}/{'x' * 63}/rename", {"new_name": "5" * 32}))[0] == 400
    async with serve(api.world.workdir / "sharded") as other:
        shard = f"{TENANT}-0102"
        body = {**ATTACH, "shard_number": 1, "shard_count": 2, "shard_stripe_size": 8}
        await other.ask("PUT", f"/v1/tenant/{shard}/location_config", body)
        assert (await other.ask("GET", f"/v1/tenant/{shard}/name"))[0] == 400


async def test_a_timeline_gets_its_name_when_it_is_made_and_loses_it_when_it_goes(api: Api) -> None:
    await give(api, "main")
    body = {"new_timeline_id": "5" * 32, "ancestor_timeline_id": str(ROOT), "name": "main"}
    assert (await api.ask("POST", TL, body))[0] == 409
    assert (await api.ask("GET", f"{TL}/{'5' * 32}"))[0] == 404
    assert (await api.ask("POST", TL, {**body, "name": "not a name"}))[0] == 400
    for _ in range(2):
        status, info = await api.ask("POST", TL, {**body, "ancestor_start_lsn": "0/20000A0", "name": "feature"})
        assert (status, info["names"]) == (201, ["feature"])
    await delete(api, "5" * 32)
    assert await api.ask("GET", NAMES) == (200, {"names": [pair("main")]})


async def test_routes_of_ours_take_names_and_those_of_neon_do_not(api: Api) -> None:
    await give(api, "main")
    assert (await api.ask("GET", f"{TL}/main"))[0] == 400
    status, body = await api.ask("GET", f"{TL}/main/data_directory?lsn=0/8")
    assert (status, "before" in body["msg"]) == (400, True)
    assert (await api.ask("GET", f"{TL}/nothing/data_directory"))[0] == 404
