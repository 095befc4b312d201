"""Creating timelines over HTTP: bootstrap, archives of initdb (http-api.md 4.3.1, tenants.md 9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pageserver.errors import InternalError
from tests.unit.mgmt.test_http import ATTACH, TL, Api, T, serve
from tests.unit.world import BRANCH, ROOT, START, TENANT, eventually

BOOT = {"new_timeline_id": str(ROOT), "pg_version": 16}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path, wait_lsn_timeout="50ms") as served:
        await served.attach()
        yield served


async def delete(api: Api, timeline: object) -> None:
    assert await api.ask("DELETE", f"{TL}/{timeline}") == (202, None)

    async def is_gone() -> bool:
        return (await api.ask("DELETE", f"{TL}/{timeline}"))[0] == 404

    await eventually(is_gone)


async def test_a_bootstrap_answers_as_specified(api: Api) -> None:
    status, info = await api.ask("POST", TL, BOOT)
    assert (status, info["state"], info["pg_version"], info["flavour"]) == (201, "Active", 16, "stock")
    assert (info["initdb_lsn"], info["last_record_lsn"]) == (str(START), str(START + 0x78))
    assert info["remote_consistent_lsn"] == info["last_record_lsn"]
    # The archive that it came from is not compared; the version is (tenants.md 9.2).
    assert await api.ask("POST", TL, {**BOOT, "existing_initdb_timeline_id": str(BRANCH)}) == (201, info)
    conflict = (409, {"msg": "timeline already exists with different parameters"})
    assert await api.ask("POST", TL, {**BOOT, "pg_version": 17}) == conflict
    assert await api.ask("POST", TL, {"new_timeline_id": str(ROOT)}) == conflict
    default = await api.ask("POST", TL, {"new_timeline_id": str(BRANCH), "read_only": True})
    assert (default[0], default[1]["pg_version"]) == (201, 17)
    for version in (13, 16.0, "16", True, 19):
        assert (await api.ask("POST", TL, {**BOOT, "pg_version": version}))[0] == 400
    assert (await api.ask("POST", TL, {"new_timeline_id": str(ROOT), "ancestor_timeline_id": str(BRANCH)}))[0] == 409


async def test_an_imported_timeline_is_not_taken_for_a_bootstrap(api: Api) -> None:
    query = "?base_lsn=0/2000028&end_lsn=0/2000028&pg_version=16&flavour=stock"
    await api.client.put(f"{TL}/{ROOT}/import_basebackup{query}", content=b"good")
    assert (await api.ask("POST", TL, BOOT))[0] == 409


async def test_a_creation_that_runs_is_429_and_goes_on_without_its_client(api: Api) -> None:
    """Goal: hanging up does not leave half a timeline. Method: hold initdb, cancel the request, repeat it."""
    going_on = asyncio.Event()
    api.world.way_in.initdb_may_end = going_on
    request = asyncio.ensure_future(api.ask("POST", TL, BOOT))
    await asyncio.wait_for(api.world.way_in.initdb_began.wait(), 5)
    assert await api.ask("POST", TL, BOOT) == (429, {"msg": "creation of timeline with the given ID is in progress"})
    assert (await api.ask("DELETE", f"{TL}/{ROOT}"))[0] == 404
    request.cancel()
    await asyncio.wait([request])
    going_on.set()

    async def is_made() -> bool:
        return (await api.ask("POST", TL, BOOT))[0] == 201

    await eventually(is_made)


async def test_a_bootstrap_that_fails_leaves_the_id_free(api: Api) -> None:
    api.world.way_in.fail_import = InternalError("initdb failed (1): no space")
    assert await api.ask("POST", TL, BOOT) == (500, {"msg": "initdb failed (1): no space"})
    assert await api.ask("GET", TL) == (200, [])
    root = api.world.workdir / "tenants" / str(TENANT) / "timelines"
    assert await asyncio.to_thread(lambda: list(root.iterdir())) == []
    api.world.way_in.fail_import = None
    assert (await api.ask("POST", TL, BOOT))[0] == 201


async def test_a_preserved_archive_seeds_the_same_cluster_again(api: Api) -> None:
    await api.ask("POST", TL, BOOT)
    keep = f"{TL}/{ROOT}/preserve_initdb_archive"
    for _ in range(2):
        assert await api.ask("POST", keep) == (200, None)
    branch = {"new_timeline_id": str(BRANCH), "ancestor_timeline_id": str(ROOT)}
    assert (await api.ask("POST", TL, branch))[0] == 201
    status, body = await api.ask("POST", f"{TL}/{BRANCH}/preserve_initdb_archive")
    assert (status, "no initdb archive" in body["msg"]) == (412, True)
    assert (await api.ask("POST", f"{TL}/{'9' * 32}/preserve_initdb_archive"))[0] == 404
    await delete(api, BRANCH)
    await delete(api, ROOT)
    seeded = {"new_timeline_id": str(BRANCH), "existing_initdb_timeline_id": str(ROOT)}
    # The version must be that of the archive: a failure leaves it where it is, also if it is the timeline's own.
    assert (await api.ask("POST", TL, {**seeded, "pg_version": 17}))[0] == 400
    own = {**BOOT, "existing_initdb_timeline_id": str(ROOT)}
    assert (await api.ask("POST", TL, {**own, "pg_version": 17}))[0] == 400
    assert (await api.ask("POST", TL, {**seeded, "pg_version": 16}))[0] == 201
    assert (await api.ask("POST", TL, own))[0] == 201
    status, body = await api.ask(
        "POST", TL, {**own, "new_timeline_id": "5" * 32, "existing_initdb_timeline_id": "6" * 32}
    )
    assert (status, "no initdb archive" in body["msg"]) == (412, True)


async def test_a_sharded_tenant_is_told_that_it_is_not_built(tmp_path: Path) -> None:
    async with serve(tmp_path) as api:
        shard = f"{TENANT}-0002"
        body = {**ATTACH, "shard_count": 2, "shard_stripe_size": 8}
        await api.ask("PUT", f"/v1/tenant/{shard}/location_config", body)
        status, answer = await api.ask("POST", f"/v1/tenant/{shard}/timeline", BOOT)
        assert (status, "sharded" in answer["msg"]) == (501, True)


async def set_limits(api: Api, **limits: int | None) -> None:
    assert await api.ask("PATCH", "/v1/tenant/config", {"tenant_id": str(TENANT), **limits}) == (200, None)


async def test_limits_of_a_tenant_refuse_creations_until_they_are_raised(api: Api) -> None:
    await set_limits(api, timelines_max=1)
    assert (await api.ask("GET", f"{T}/config"))[1]["effective_config"]["timelines_max"] == 1
    assert (await api.ask("POST", TL, BOOT))[0] == 201
    assert (await api.ask("POST", TL, BOOT))[0] == 201, "a repeat adds nothing"
    branch = {
        "new_timeline_id": str(BRANCH),
        "ancestor_timeline_id": str(ROOT),
        "ancestor_start_lsn": str(START + 0x78),
    }
    other = {**BOOT, "new_timeline_id": str(BRANCH)}
    for body in (branch, other, {**other, "primary": {"conninfo": "x"}}):
        status, answer = await api.ask("POST", TL, body)
        assert (status, "has 1 timelines, and may have 1" in answer["msg"]) == (412, True)
    await set_limits(api, timelines_max=2, stored_bytes_max=10)
    status, answer = await api.ask("POST", TL, other)
    assert (status, "may hold 10" in answer["msg"]) == (412, True)
    assert (await api.ask("POST", TL, branch))[0] == 201, "a branch brings no bytes"
    await set_limits(api, timelines_max=None, stored_bytes_max=None)
    assert "stored_bytes_max" not in (await api.ask("GET", f"{T}/config"))[1]["effective_config"]
    assert (await api.ask("POST", TL, {**BOOT, "new_timeline_id": "5" * 32}))[0] == 201


async def test_a_limit_counts_timelines_in_the_making_and_offloaded_ones(tmp_path: Path) -> None:
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        await api.attach(tenant_conf={"timelines_max": 1})
        api.world.way_in.initdb_may_end = asyncio.Event()
        making = asyncio.ensure_future(api.ask("POST", TL, BOOT))
        await asyncio.wait_for(api.world.way_in.initdb_began.wait(), 5)
        other = {**BOOT, "new_timeline_id": str(BRANCH)}
        assert (await api.ask("POST", TL, other))[0] == 412
        api.world.way_in.initdb_may_end.set()
        assert (await making)[0] == 201
        assert (await api.ask("PUT", f"{TL}/{ROOT}/archival_config", {"state": "Archived"}))[0] == 200
        assert (await api.ask("PUT", f"{TL}/{ROOT}/offload"))[0] == 200
        assert (await api.ask("POST", TL, other))[0] == 412
        await delete(api, ROOT)
        assert (await api.ask("POST", TL, other))[0] == 201


async def test_a_reset_attaches_anew_in_the_same_generation(tmp_path: Path) -> None:
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        await api.attach()
        await api.ask("POST", TL, BOOT)
        before = api.world.manager.get(TENANT)
        for query in ("", "?drop_cache=true"):
            assert await api.ask("POST", f"{T}/reset{query}") == (200, None)
            tenant = api.world.manager.get(TENANT)
            assert (tenant is before, tenant.generation, before.is_stopped) == (False, before.generation, True)
            assert (await api.ask("GET", f"{TL}/{ROOT}"))[1]["last_record_lsn"] == str(START + 0x78)
            before = tenant
        for _ in range(3):
            assert await api.ask("POST", f"{T}/reset?drop_cache=true") == (200, None), "the directory may be gone"
        status, body = await api.ask("POST", f"/v1/tenant/{'7' * 32}/reset")
        assert (status, body) == (500, {"msg": "Tenant not found when trying to reset"})
        await api.attach(mode="Secondary", generation=None)
        assert (await api.ask("POST", f"{T}/reset"))[1] == {"msg": "Tenant is not in attached state"}
    async with serve(tmp_path / "local") as api:
        await api.attach()
        assert (await api.ask("POST", f"{T}/reset?drop_cache=true"))[0] == 412
        assert (await api.ask("POST", f"{T}/reset"))[0] == 200


async def test_a_slot_that_is_held_is_503_but_for_location_config(tmp_path: Path) -> None:
    """Goal: callers repeat a 503 at once, and a 409 slowly (http-api.md 3.3). Method: hold the slot as an operation
    would.
    """
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        await api.attach()
        held = (503, {"msg": "Tenant is being modified concurrently"})
        async with api.world.manager._changing(TENANT):
            assert await api.ask("DELETE", T) == held
            assert await api.ask("POST", f"{T}/reset") == held
            detached = {"mode": "Detached", "tenant_conf": {}}
            assert await api.ask("PUT", f"{T}/location_config", detached) == held
            assert await api.attach() == (409, {"msg": "Conflict: Tenant is already being modified"})
            assert await api.ask("GET", T) == (503, {"msg": "Tenant not yet active"})
        assert (await api.attach())[0] == 200
