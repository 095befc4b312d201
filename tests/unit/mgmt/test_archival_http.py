"""Archiving and offloading as clients of the management API see it (http-api.md 3.2, 4.3; tenants.md 13)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pageserver.remote.remote_timeline import ArchivalTimeoutError, RemoteTimeline
from tests.unit.mgmt.test_http import TL, Api, T, serve
from tests.unit.world import BRANCH, ROOT, START, TENANT

POINT = f"0/{int(START) + 0x188:X}"
ARCHIVED = {"state": "Archived"}
UNARCHIVED = {"state": "Unarchived"}
OK = (200, None)


async def put(api: Api, timeline_id: Any, what: str, body: Any = None) -> tuple[int, Any]:
    return await api.ask("PUT", f"{TL}/{timeline_id}/{what}", body)


async def with_branch(api: Api) -> None:
    await api.follow()
    root = api.world.manager.get(TENANT).get_timeline(ROOT)
    root.store.ingest(START + 0x200)  # type: ignore[attr-defined]
    body = {"new_timeline_id": str(BRANCH), "ancestor_timeline_id": str(ROOT), "ancestor_start_lsn": POINT}
    assert (await api.ask("POST", TL, body))[0] == 201


async def test_archival_and_offload_answer_as_specified(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        await with_branch(api)
        assert await put(api, ROOT, "archival_config", ARCHIVED) == (
            412,
            {"msg": f"Precondition failed: Cannot archive timeline which has non-archived child timelines: [{BRANCH}]"},
        )
        assert await put(api, BRANCH, "offload") == (
            412,
            {"msg": "Precondition failed: Timeline::can_offload() check failed: timeline is not archived"},
        )
        for timeline_id in (BRANCH, ROOT, ROOT):
            assert await put(api, timeline_id, "archival_config", ARCHIVED) == OK
        assert (await api.ask("GET", f"{TL}/{ROOT}"))[1]["is_archived"] is True
        body = {"new_timeline_id": "3" * 32, "ancestor_timeline_id": str(ROOT)}
        assert await api.ask("POST", TL, body) == (406, {"msg": "ancestor timeline is archived"})
        assert await put(api, ROOT, "offload") == (
            412,
            {"msg": "Precondition failed: timeline has attached children"},
        )
        for _ in range(2):
            assert await put(api, BRANCH, "offload") == OK
        assert await put(api, BRANCH, "archival_config", ARCHIVED) == OK
        assert (await api.ask("GET", f"{TL}/{BRANCH}"))[0] == 404
        assert [info["timeline_id"] for info in (await api.ask("GET", TL))[1]] == [str(ROOT)]
        status, both = await api.ask("GET", f"{T}/timeline_and_offloaded")
        assert (status, [info["timeline_id"] for info in both["timelines"]]) == (200, [str(ROOT)])
        (record,) = both["offloaded"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(\d{3}){1,3})?Z", record.pop("archived_at"))
        assert list(record.items()) == [
            ("tenant_id", str(TENANT)),
            ("timeline_id", str(BRANCH)),
            ("ancestor_timeline_id", str(ROOT)),
            ("ancestor_retain_lsn", POINT),
        ]
        labels = f'{{shard_id="0000",tenant_id="{TENANT}"}}'
        assert f"pageserver_tenant_offloaded_timelines{labels} 1" in (await api.client.get("/metrics")).text
        assert await put(api, BRANCH, "archival_config", UNARCHIVED) == (
            412,
            {"msg": f"Precondition failed: ancestor is archived: {ROOT}"},
        )
        for timeline_id in (ROOT, BRANCH, BRANCH):
            assert await put(api, timeline_id, "archival_config", UNARCHIVED) == OK
        assert (await api.ask("GET", f"{TL}/{BRANCH}"))[1]["state"] == "Active"
        assert (await api.ask("GET", f"{T}/timeline_and_offloaded"))[1]["offloaded"] == []


async def test_what_archival_refuses(tmp_path: Path) -> None:
    async with serve(tmp_path) as api:
        await with_branch(api)
        for unknown in (
            await put(api, "9" * 32, "archival_config", ARCHIVED),
            await put(api, "9" * 32, "archival_config", UNARCHIVED),
        ):
            assert unknown == (404, {"msg": "NotFound: timeline not found"})
        for bad in ({}, {"state": "Offloaded"}, {"state": 1}):
            assert (await put(api, BRANCH, "archival_config", bad))[0] == 400
        assert (await put(api, BRANCH, "archival_config"))[1] == {"msg": '"missing request body"'}
        assert (await put(api, "xyz", "offload"))[0] == 400
        assert await put(api, BRANCH, "archival_config", ARCHIVED) == OK
        status, body = await put(api, BRANCH, "offload")
        assert status == 412
        assert "without remote storage the local disk is the only copy" in body["msg"]


async def test_a_slow_bucket_is_a_timeout(tmp_path: Path, monkeypatch: Any) -> None:
    async def never(self: RemoteTimeline, now: str | None) -> None:
        raise ArchivalTimeoutError(timeline_id=ROOT)

    async with serve(tmp_path) as api:
        await api.follow()
        monkeypatch.setattr(RemoteTimeline, "set_archived", never)
        assert await put(api, ROOT, "archival_config", ARCHIVED) == (
            408,
            {"msg": "hit pageserver internal timeout"},
        )
