"""Routes about layers and generations as their clients see them (http-api.md 4.3, 5.4, 5.6; standalone.md 1, 2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pageserver.ids import Generation
from pageserver.remote import paths
from tests.unit.mgmt.test_http import ATTACH, TL, Api, T, serve
from tests.unit.world import ROOT, START, TENANT, eventually, store_of

ONE = f"{TL}/{ROOT}"
TASK = f"{ONE}/download_remote_layers"
UNKNOWN = f"{'0' * 36}-{'F' * 36}__0000000000000001"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path / "server", bucket=tmp_path / "bucket") as served:
        yield served


async def layers_of(api: Api) -> dict[str, bool]:
    """Return the layers' names, and whether each is remote."""
    status, body = await api.ask("GET", f"{ONE}/layer")
    assert status == 200
    return {one["layer_file_name"]: one["remote"] for one in body["historic_layers"]}


async def make_layers(api: Api) -> list[str]:
    """Follow a primary until there are two uploaded layers."""
    await api.follow()
    store_of(api.world.manager.get(TENANT).get_timeline(ROOT)).ingest(START + 0x200)
    assert await api.ask("PUT", f"{ONE}/checkpoint") == (200, None)
    return sorted(await layers_of(api))


async def test_a_layer_is_evicted_and_downloaded_again(api: Api) -> None:
    one, other = await make_layers(api)
    path = f"{ONE}/layer/{one}"
    for method, expected in (("GET", 304), ("DELETE", 200), ("DELETE", 304)):
        response = await api.client.request(method, path)
        assert (response.status_code, response.content) == (expected, b"" if expected == 304 else b"null")
    assert await layers_of(api) == {one: True, other: False}
    assert await api.ask("GET", path) == (200, None)
    assert await layers_of(api) == {one: False, other: False}
    assert (await api.client.delete(f"{path}-v1-00000001/")).status_code == 200, "a generation's suffix is dropped"
    labels = f'shard_id="0000",tenant_id="{TENANT}",timeline_id="{ROOT}"'
    assert f"pageserver_evictions{{{labels}}} 2\n" in (await api.client.get("/metrics")).text


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_and_misspelt_layers_are_400(api: Api, method: str) -> None:
    await make_layers(api)
    missing = f"Layer {TENANT}/{ROOT}/{UNKNOWN} not found"
    assert await api.ask(method, f"{ONE}/layer/{UNKNOWN}") == (400, missing)
    assert await api.ask(method, f"{ONE}/layer/nonsense") == (400, {"msg": '"failed to parse layer_file_name"'})
    assert (await api.ask(method, f"{TL}/{'9' * 32}/layer/{UNKNOWN}"))[0] == 404


async def test_a_layer_whose_upload_is_under_way_is_not_evicted(api: Api) -> None:
    (name, *_) = await make_layers(api)
    timeline = api.world.manager.get(TENANT).get_timeline(ROOT)
    entry = timeline.remote.index.layers[name]
    newer = replace(entry, generation=Generation(7))
    timeline.remote.keep_for_next_index(lambda index: replace(index, layers={**index.layers, name: newer}))
    status, body = await api.ask("DELETE", f"{ONE}/layer/{name}")
    assert (status, "does not name it yet" in body["msg"]) == (412, True)


async def test_all_layers_are_downloaded_by_a_task(api: Api) -> None:
    one, other = await make_layers(api)
    never = {"msg": "NotFound: task never started since last pageserver process start"}
    assert await api.ask("GET", TASK) == (404, never)
    for bad in ({}, {"max_concurrent_downloads": 0}, {"max_concurrent_downloads": "1"}):
        assert (await api.ask("POST", TASK, bad))[0] == 400
    for name in (one, other):
        assert (await api.ask("DELETE", f"{ONE}/layer/{name}"))[0] == 200
    status, begun = await api.ask("POST", TASK, {"max_concurrent_downloads": 1})
    assert status == 202
    assert begun == {
        "task_id": "1",
        "state": "Running",
        "total_layer_count": 2,
        "successful_download_count": 0,
        "failed_download_count": 0,
    }
    status, running = await api.ask("POST", TASK, {"max_concurrent_downloads": 1})
    assert (status, running["task_id"]) in ((409, "1"), (202, "2")), (
        "the second one joins, or finds the first at its end"
    )

    async def is_completed() -> bool:
        return bool((await api.ask("GET", TASK))[1]["state"] == "Completed")

    await eventually(is_completed)
    assert await layers_of(api) == {one: False, other: False}


async def test_without_remote_storage_nothing_leaves_the_disk(tmp_path: Path) -> None:
    async with serve(tmp_path) as api:
        one, _ = await make_layers(api)
        status, body = await api.ask("DELETE", f"{ONE}/layer/{one}")
        assert (status, "the local disk is the only copy" in body["msg"]) == (412, True)
        assert (await api.client.get(f"{ONE}/layer/{one}")).status_code == 304
        status, task = await api.ask("POST", TASK, {"max_concurrent_downloads": 1})
        assert (status, task["total_layer_count"]) == (202, 0)


async def test_the_listing_takes_the_resets_of_the_specification(api: Api) -> None:
    await make_layers(api)
    for query, expected in (("NoReset", 200), ("AllStats", 200), ("Some", 400)):
        assert (await api.ask("GET", f"{ONE}/layer?reset={query}"))[0] == expected


async def test_claims_of_generations_are_listed_newest_first(api: Api) -> None:
    empty = {"claims": [], "claims_total": 0, "highest_claim": 0, "highest_object": 0, "next_generation": 1}
    assert await api.ask("GET", f"{T}/generations") == (200, empty), "a tenant need not be attached"
    await api.ask("PUT", f"{T}/location_config", {**ATTACH, "generation": 3})
    await api.world.storage.put(paths.claim_key(TENANT, Generation(2)), b"{}")
    await api.world.storage.put(f"{paths.tenant_prefix(TENANT)}tenant-manifest-00000009.json", b"{}")
    _, record = await api.ask("GET", f"{T}/generations")
    ours, damaged = record["claims"]
    assert (ours["generation"], ours["node_id"], ours["host"]) == (3, 1234, "host")
    assert damaged == {"generation": 2, "node_id": None, "instance": None, "host": None, "claimed_at": None}
    del record["claims"]
    assert record == {"claims_total": 2, "highest_claim": 3, "highest_object": 9, "next_generation": 10}
    assert len((await api.ask("GET", f"{T}/generations?limit=1"))[1]["claims"]) == 1
    assert (await api.ask("GET", f"{T}/generations?limit=-1"))[0] == 400
