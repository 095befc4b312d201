"""The management API as its clients see it (http-api.md, conformance checklist), without sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from pageserver.clock import SystemClock
from pageserver.config import BuildInfo, ServerConfig
from pageserver.failpoints import Failpoints
from pageserver.mgmt import ApiContext, create_app
from pageserver.observe import ScrapeCounts, Scrapes, render_metrics
from pageserver.remote.tenant_manifest import TenantManifest
from pageserver.tenant.slots import InProgress, MapState
from tests.unit.world import BRANCH, ROOT, START, TENANT, World, eventually, store_of

VECTORS = Path(__file__).parents[4] / "shared" / "vectors" / "neon-pg16" / "http"
T = f"/v1/tenant/{TENANT}"
TL = f"{T}/timeline"
ATTACH: dict[str, Any] = {"mode": "AttachedSingle", "generation": None, "tenant_conf": {}}


def vector(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


class Api:
    def __init__(self, world: World, client: httpx.AsyncClient) -> None:
        self.world = world
        self.client = client

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        content = None if body is None else json.dumps(body).encode()
        response = await self.client.request(method, path, content=content, **more)
        return response.status_code, response.json()

    async def attach(self, **more: Any) -> tuple[int, Any]:
        return await self.ask("PUT", f"{T}/location_config", {**ATTACH, **more})

    async def follow(self) -> None:
        await self.attach()
        status, _ = await self.ask("POST", TL, {"new_timeline_id": str(ROOT), "primary": {"conninfo": "x"}})
        assert status == 201

        async def is_active() -> bool:
            return bool((await self.ask("GET", f"{TL}/{ROOT}"))[1]["state"] == "Active")

        await eventually(is_active)


@asynccontextmanager
async def serve(
    workdir: Path, *, bucket: Path | None = None, failpoints: Failpoints | None = None, **settings: Any
) -> AsyncIterator[Api]:
    failpoints = failpoints or Failpoints.off()
    world = await World.start(workdir, bucket=bucket, failpoints=failpoints, **settings)
    config = ServerConfig(workdir=workdir, node_id=1234, settings=world.resources.settings, ignored_items=("foo",))
    context = ApiContext(
        config=config,
        manager=world.manager,
        clock=SystemClock(),
        launch_timestamp="2026-01-01 00:00:00.000000000 UTC",
        scrapes=Scrapes(
            lambda: render_metrics(world.manager, config.ignored_items, BuildInfo.find()),
            collects_each_time=config.settings.force_metric_collection_on_scrape,
            counts=ScrapeCounts(),
            clock=SystemClock(),
            log=structlog.get_logger(),
        ),
        log=structlog.get_logger(),
        failpoints=failpoints,
    )
    transport = httpx.ASGITransport(app=create_app(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://pageserver") as client:
        yield Api(world, client)
    await world.stop()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path, wait_lsn_timeout="50ms") as served:
        yield served


async def test_status_headers_and_unknown_paths(api: Api) -> None:
    response = await api.client.get("/v1/status", headers={"x-request-id": "42"})
    assert (response.status_code, response.json()) == (200, vector("status.json"))
    assert response.headers["x-request-id"] == "42"
    assert response.headers["PAGESERVER_LAUNCH_TIMESTAMP"].endswith("UTC")
    response = await api.client.get("/v1/status/")
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 36
    for method, path in (("GET", "/v1/nothing"), ("DELETE", "/v1/status"), ("POST", "/v1/tenant"), ("GET", "/")):
        assert await api.ask(method, path) == (404, vector("not_found_route.json"))


async def test_unknown_and_misspelt_ids_answer_as_neon_does(api: Api) -> None:
    unknown = "9" * 32
    assert await api.ask("GET", f"/v1/tenant/{unknown}") == (404, vector("unknown_tenant.json"))
    assert await api.ask("GET", "/v1/tenant/xyz") == (400, vector("bad_id.json"))
    await api.attach()
    assert await api.ask("GET", f"{TL}/{unknown}") == (404, vector("unknown_timeline.json"))
    assert await api.ask("GET", f"{T}/timeline/{unknown}/") == (404, vector("unknown_timeline.json"))


async def test_location_config_follows_its_rules(api: Api) -> None:
    assert await api.attach(unknown_key=1) == (
        400,
        {"msg": '"Failed to parse json request: unknown_key: Extra inputs are not permitted"'},
    )
    for bad in (
        {"mode": "Secondary", "generation": 1},
        {"shard_count": 2, "shard_number": 2},
        {"generation": "1"},
        {"mode": "Odd"},
    ):
        assert (await api.attach(**bad))[0] == 400
    assert (await api.ask("PUT", f"{T}/location_config"))[1] == {"msg": '"missing request body"'}
    assert await api.ask("PUT", f"{T}/location_config", {"mode": "Detached", "tenant_conf": {}}) == (200, None)
    conf = vector("location_config.json")["tenant_conf"]
    answer = await api.attach(tenant_conf={**conf, "unknown_inside": 1})
    assert answer == (200, {"shards": [{"shard_id": str(TENANT), "node_id": 1234}], "stripe_size": None})
    assert await api.ask("GET", f"/v1/location_config/{TENANT}") == (200, vector("location_config.json"))
    assert (await api.ask("GET", "/v1/location_config"))[1] == {
        "tenant_shards": [[str(TENANT), vector("location_config.json")]]
    }
    assert await api.attach(generation=0) == (400, {"msg": '"Generation 00000000 is less than existing 00000001"'})
    status, body = await api.attach(tenant_conf={"checkpoint_distance": "20000"})
    assert (status, "checkpoint_distance" in body["msg"]) == (400, True)


async def test_a_busy_slot_and_a_starting_server_are_no_404(api: Api) -> None:
    await api.attach()
    tenant = api.world.manager.get(TENANT)
    slots = api.world.manager._slots
    slots[TENANT] = InProgress()
    assert await api.ask("GET", T) == (503, {"msg": "Tenant not yet active"})
    assert await api.attach() == (409, {"msg": "Conflict: Tenant is already being modified"})
    assert (await api.ask("GET", f"/v1/location_config/{TENANT}")) == (200, None)
    slots[TENANT] = tenant
    api.world.manager.map_state = MapState.INITIALIZING
    assert await api.ask("GET", "/v1/tenant") == (503, {"msg": "tenant map is still initializing"})
    api.world.manager.map_state = MapState.OPEN


async def test_tenants_and_their_settings(api: Api) -> None:
    await api.attach(tenant_conf={"checkpoint_distance": 28, "gc_horizon": 100, "compaction_target_size": 1024})
    status, tenants = await api.ask("GET", "/v1/tenant")
    assert (status, list(tenants[0])) == (
        200,
        ["id", "state", "current_physical_size", "attachment_status", "generation"],
    )
    status, tenant = await api.ask("GET", T)
    assert list(tenant) == list(vector("tenant.json"))
    assert tenant["state"] == {"slug": "Active"}
    patch = {"tenant_id": str(TENANT), "checkpoint_distance": 42, "gc_horizon": None}
    assert await api.ask("PATCH", "/v1/tenant/config", patch) == (200, None)
    overrides = (await api.ask("GET", f"{T}/config"))[1]["tenant_specific_overrides"]
    assert overrides == {"checkpoint_distance": 42, "compaction_target_size": 1024}
    for bad in ({"gc_period": "soon"}, {"unheard_of": 1}, {"checkpoint_distance": "1"}):
        assert (await api.ask("PATCH", "/v1/tenant/config", {"tenant_id": str(TENANT), **bad}))[0] == 400
    assert await api.ask("PUT", "/v1/tenant/config", {"tenant_id": str(TENANT), "gc_horizon": 1}) == (200, None)
    assert (await api.ask("GET", f"{T}/config"))[1]["tenant_specific_overrides"] == {"gc_horizon": 1}


async def test_timelines_are_created_described_and_branched(api: Api) -> None:
    await api.follow()
    root = api.world.manager.get(TENANT).get_timeline(ROOT)
    store_of(root).ingest(START + 0x200)
    status, info = await api.ask("GET", f"{TL}/{ROOT}")
    assert status == 200
    assert list(info)[: len(vector("timeline.json"))] == list(vector("timeline.json"))
    assert (info["last_record_lsn"], info["ancestor_lsn"], info["flavour"]) == ("0/2000228", None, "stock")
    branch = {"new_timeline_id": str(BRANCH), "ancestor_timeline_id": str(ROOT), "ancestor_start_lsn": "0/2000200"}
    first = await api.ask("POST", TL, branch)
    assert first[0] == 201
    assert first[1]["ancestor_lsn"] == "0/2000200"
    assert await api.ask("POST", TL, branch) == first
    conflict = await api.ask("POST", TL, {**branch, "ancestor_start_lsn": "0/2000208"})
    assert conflict == (409, {"msg": "timeline already exists with different parameters"})
    other = {**branch, "new_timeline_id": "5" * 32}
    assert (await api.ask("POST", TL, {**other, "ancestor_start_lsn": "0/8"}))[0] == 406
    assert (await api.ask("POST", TL, {**other, "ancestor_timeline_id": "6" * 32}))[0] == 500
    imported = {"new_timeline_id": "5" * 32, "import_pgdata": {"location": {}, "idempotency_key": "x"}}
    assert (await api.ask("POST", TL, imported))[0] == 501
    assert [one["timeline_id"] for one in (await api.ask("GET", TL))[1]] == [str(ROOT), str(BRANCH)]
    status, body = await api.ask("DELETE", f"{TL}/{ROOT}")
    assert (status, body["msg"]) == (
        412,
        f"Precondition failed: Cannot delete timeline which has child timelines: [{BRANCH}]",
    )
    assert await api.ask("DELETE", f"{TL}/{BRANCH}") == (202, None)

    async def is_gone() -> bool:
        return (await api.ask("DELETE", f"{TL}/{BRANCH}"))[0] == 404

    await eventually(is_gone)
    status, body = await api.ask("DELETE", f"/v1/tenant/{'7' * 32}/timeline/{ROOT}")
    assert (status, "Requested tenant is missing" in body["msg"]) == (412, True)


async def test_deletions_are_flushed_and_heatmaps_uploaded_on_request(api: Api) -> None:
    await api.follow()
    for query in ("", "?execute=false", "?execute=true"):
        assert await api.ask("PUT", f"/v1/deletion_queue/flush{query}") == (200, None)
    assert (await api.ask("PUT", "/v1/deletion_queue/flush?execute=maybe"))[0] == 400
    assert await api.ask("POST", f"{T}/heatmap_upload") == (200, None)
    assert (api.world.workdir / "local-storage" / "tenants" / str(TENANT) / "heatmap-v1.json").is_file()
    assert (await api.ask("POST", f"/v1/tenant/{'7' * 32}/heatmap_upload"))[0] == 404
    metrics = (await api.client.get("/metrics")).text
    assert "pageserver_deletion_queue_submitted_total 0" in metrics
    assert 'pageserver_deletion_queue_remote_errors_total{op_kind="execute"} 0' in metrics
    assert "pageserver_local_data_loss_suspected 0" in metrics


async def test_a_primary_that_cannot_be_followed_is_explained(api: Api) -> None:
    await api.attach()
    status, body = await api.ask("POST", TL, {"new_timeline_id": str(ROOT), "primary": {"conninfo": "minimal"}})
    assert (status, "wal_level is minimal" in body["msg"]) == (400, True)


async def test_query_parameters_are_read_strictly(api: Api) -> None:
    await api.follow()
    page = f"{TL}/{ROOT}/getpage"
    key = "00" * 18
    assert (await api.ask("GET", page))[1] == {"msg": "\"missing 'key' query parameter\""}
    assert (await api.ask("GET", f"{page}?key={key}&key=11"))[1] == {"msg": '"param key specified more than once"'}
    status, body = await api.ask("GET", f"{page}?key=zz")
    assert (status, body["msg"].startswith('"cannot parse query param key: ')) == (400, True)
    flag = f"{TL}/{ROOT}?include-non-incremental-logical-size="
    assert (await api.ask("GET", f"{flag}True"))[0] == 400
    assert (await api.ask("GET", f"{TL}/{ROOT}/get_lsn_by_timestamp"))[1] == {
        "msg": '"no timestamp specified in query parameters"'
    }
    assert (await api.ask("GET", f"{TL}/{ROOT}/get_lsn_by_timestamp?timestamp=2024-02-21T10:02:59%2B00:00"))[0] == 400


async def test_a_page_can_be_fetched_raw(api: Api) -> None:
    await api.follow()
    root = api.world.manager.get(TENANT).get_timeline(ROOT)
    store_of(root).ingest(START + 0x200)
    store_of(root).values[bytes(18)] = b"page"
    accept = {"accept": "application/octet-stream"}
    response = await api.client.get(f"{TL}/{ROOT}/getpage?key={'00' * 18}", headers=accept)
    assert (response.content, response.headers["x-lsn"]) == (b"page", "0/2000228")
    status, body = await api.ask("GET", f"{TL}/{ROOT}/getpage?key={'11' * 18}")
    assert (status, "could not find data for key" in body["msg"]) == (500, True)
    assert (await api.ask("GET", f"{TL}/{ROOT}/getpage?key={'00' * 18}&lsn=0/8"))[0] == 400


async def test_waiting_for_an_lsn(api: Api) -> None:
    await api.follow()
    timeout = {"timeout": {"secs": 0, "nanos": 1000000}}
    assert await api.ask("POST", f"{T}/wait_lsn", {str(ROOT): str(START), **timeout}) == (200, None)
    assert await api.ask("POST", f"{T}/wait_lsn", {str(ROOT): "1/0", **timeout}) == (202, None)
    assert await api.ask("POST", f"{T}/wait_lsn", {str(BRANCH): "1/0", **timeout}) == (404, None)
    status, body = await api.ask("POST", f"{T}/wait_lsn", {str(ROOT): "1/0"})
    assert (status, body["msg"].startswith('"Failed to parse json request: timeout: ')) == (400, True)


async def test_histories_come_as_files(api: Api) -> None:
    await api.attach()
    query = "?base_lsn=0/2000028&end_lsn=0/2000028&pg_version=16&flavour=stock"
    one = f"{TL}/{ROOT}"
    response = await api.client.put(f"{one}/import_basebackup{query}", content=b"bad")
    assert (response.status_code, response.json()) == (500, {"msg": "invalid tar EOF marker"})
    response = await api.client.put(f"{one}/import_basebackup{query}", content=b"good")
    assert (response.status_code, response.content) == (200, b"null")
    assert (await api.client.put(f"{one}/import_basebackup{query}", content=b"good")).status_code == 500
    response = await api.client.put(f"{one}/import_wal?start_lsn=0/2000028&end_lsn=0/2000030", content=b"")
    assert response.status_code == 200
    assert (await api.ask("GET", one))[1]["disk_consistent_lsn"] == "0/2000030"
    assert (await api.ask("PUT", f"{one}/checkpoint"))[0] == 200
    assert len((await api.ask("GET", f"{one}/layer"))[1]["historic_layers"]) == 2


async def test_what_is_not_built_says_so(api: Api) -> None:
    await api.follow()
    for method, path in (("PUT", f"{TL}/{ROOT}/do_gc"), ("PUT", f"{T}/shard_split"), ("POST", "/v1/top_tenants")):
        status, body = await api.ask(method, path)
        assert (status, "not implemented" in body["msg"]) == (501, True)


async def test_metrics_name_what_was_ignored(api: Api) -> None:
    await api.follow()
    text = (await api.client.get("/metrics")).text
    assert 'pageserver_config_ignored_items{item="foo"} 1' in text
    assert (
        f'pageserver_last_record_lsn{{shard_id="0000",tenant_id="{TENANT}",timeline_id="{ROOT}"}} {int(START)}' in text
    )


async def test_a_tenant_is_deleted_with_its_timelines(api: Api) -> None:
    await api.follow()
    status, body = await api.ask("GET", f"{T}/timeline_and_offloaded")
    assert (status, [one["timeline_id"] for one in body["timelines"]], body["offloaded"]) == (200, [str(ROOT)], [])
    status, _ = await api.ask("DELETE", T)
    assert status == 200
    assert (await api.ask("GET", T))[0] == 404


async def test_scan_remote_storage_tells_what_a_bucket_has_of_a_tenant(tmp_path: Path) -> None:
    """Goal: every shard with its newest generation and the stripe size that its manifest knew then, attached or not."""
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        scan = f"{T}/scan_remote_storage"
        assert await api.ask("GET", scan) == (404, {"msg": f"NotFound: No shards found for tenant ID {TENANT}"})
        await api.follow()
        expected = {"tenant_shard_id": str(TENANT), "generation": 1, "stripe_size": 32768}
        status, answer = await api.ask("GET", scan)
        assert (status, [{**one, "stripe_size": 32768} for one in answer["shards"]]) == (200, [expected])
        store, shard = api.world.storage, f"tenants/{TENANT}-0102"
        await store.put(f"{shard}/tenant-manifest-00000003.json", TenantManifest(stripe_size=2048).encode())
        await store.put(f"{shard}/tenant-manifest-00000007.json", TenantManifest(stripe_size=4096).encode())
        expected = {"tenant_shard_id": f"{TENANT}-0102", "generation": None, "stripe_size": None}
        assert (await api.ask("GET", scan))[1]["shards"][1:] == [expected]
        await store.put(f"{shard}/timelines/{ROOT}/index_part.json-00000002", b"{}")
        await store.put(f"{shard}/timelines/{BRANCH}/index_part.json-00000005", b"{}")
        expected = {"tenant_shard_id": f"{TENANT}-0102", "generation": 5, "stripe_size": 2048}
        assert (await api.ask("GET", scan))[1]["shards"][1:] == [expected]
        assert (await api.ask("GET", f"{T}-0102/scan_remote_storage"))[0] == 400
