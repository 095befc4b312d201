"""Points of the conformance checklist of http-api.md that no other test of the API covers; the numbers are its own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pageserver.failpoints import Failpoints
from pageserver.ids import Generation
from pageserver.remote import StoreUnavailableError, paths
from pageserver.tenant.slots import MapState
from pageserver.tenant.state import TenantState, TenantStatus
from pageserver.tenant.utilization import Utilization, evaluate
from pageserver.timeline.state import TimelineState, TimelineStatus
from tests.unit.mgmt.test_http import ATTACH, TL, Api, T, serve, vector
from tests.unit.world import ROOT, START, TENANT, store_of


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path, wait_lsn_timeout="50ms") as served:
        yield served


async def test_answers_without_data_are_null_and_repetitions_may_agree(api: Api) -> None:
    """4, 5, 6: the text `null`, also with 202; one trailing slash; `?a=1&a=1`."""
    await api.follow()
    for method, path in (
        ("PUT", "/v1/deletion_queue/flush?execute=false&execute=false"),
        ("POST", f"{T}/heatmap_upload/"),
        ("PUT", f"{TL}/{ROOT}/checkpoint/?unknown=1"),
        ("DELETE", f"{TL}/{ROOT}"),
    ):
        response = await api.client.request(method, path)
        assert response.status_code == (202 if method == "DELETE" else 200), response.text
        assert response.content == b"null"
        assert response.headers["content-type"] == "application/json"


async def test_with_a_controller_an_attachment_needs_its_generation(tmp_path: Path) -> None:
    """9, 11: 400 without one, 400 for a secondary with one; Detached is fine for what is not here."""
    async with serve(tmp_path, control_plane_api="http://127.0.0.1:1/upcall/v1/") as api:
        assert await api.ask("PUT", f"{T}/location_config", ATTACH) == (
            400,
            {"msg": '"Generation must be set when attaching"'},
        )
        secondary = {"mode": "Secondary", "generation": 1, "tenant_conf": {}}
        assert (await api.ask("PUT", f"{T}/location_config", secondary))[0] == 400
        assert await api.ask("PUT", f"{T}/location_config", {"mode": "Detached", "tenant_conf": {}}) == (200, None)
        assert (await api.ask("GET", f"/v1/location_config/{TENANT}"))[0] == 404


async def test_states_are_told_and_decide_the_answers(api: Api) -> None:
    """13, 27, 28: stopping is 503, broken 500, and both can be looked at; a broken timeline is an object."""
    await api.follow()
    tenant = api.world.manager.get(TENANT)
    timeline = tenant.get_timeline(ROOT)
    active, timeline.state = timeline.state, TimelineState(TimelineStatus.BROKEN, "a layer lies")
    info = (await api.ask("GET", f"{TL}/{ROOT}"))[1]
    assert info["state"] == {"Broken": {"reason": "a layer lies", "backtrace": ""}}
    status, body = await api.ask("GET", f"{TL}/{ROOT}/keyspace")
    assert (status, body["msg"].startswith("NotFound: Timeline ")) == (404, True)
    timeline.state = active

    was = tenant.state
    tenant.state = TenantState(TenantStatus.STOPPING)
    for method, path in (("GET", TL), ("POST", TL), ("DELETE", f"{TL}/{ROOT}"), ("PUT", f"{TL}/{ROOT}/checkpoint")):
        body = {"new_timeline_id": "5" * 32} if method == "POST" else None
        assert await api.ask(method, path, body) == (503, {"msg": "Shutting down"}), path
    found = (await api.ask("GET", T))[1]
    assert (found["state"], found["attachment_status"]) == ({"slug": "Stopping", "data": {}}, {"slug": "maybe"})
    tenant.state = TenantState(TenantStatus.BROKEN, "because")
    assert await api.ask("GET", TL) == (500, {"msg": "tenant is broken: because"})
    found = (await api.ask("GET", T))[1]
    assert found["state"] == {"slug": "Broken", "data": {"reason": "because", "backtrace": ""}}
    assert found["attachment_status"] == {"slug": "failed", "data": {"reason": "because"}}
    metrics = (await api.client.get("/metrics")).text
    assert f'pageserver_broken_tenants_count{{shard_id="0000",tenant_id="{TENANT}"}} 1' in metrics
    tenant.state = TenantState(TenantStatus.ACTIVATING)
    assert (await api.ask("GET", "/v1/tenant"))[1][0]["state"] == {"slug": "Activating", "data": "Attaching"}
    tenant.state = was


async def test_nothing_is_missing_while_a_tenant_attaches(tmp_path: Path) -> None:
    """A 404 says "not here", never "busy" (tenants.md 23.5). Method: an attach that takes its time."""
    async with serve(tmp_path, failpoints=Failpoints(structlog.get_logger())) as api:
        await api.follow()
        api.world.resources.failpoints.configure("before-attaching-tenant", "return(300)")
        wanted = {str(ROOT): "0/1", "timeout": {"secs": 1, "nanos": 0}}
        for path, body, status in (
            (f"{T}/wait_lsn", wanted, 200),
            (f"{TL}/{ROOT}/preserve_initdb_archive", None, 412),
        ):
            assert await api.ask("POST", f"{T}/reset") == (200, None)
            assert (await api.ask("GET", "/v1/tenant"))[1][0]["state"] == {"slug": "Attaching"}
            assert (await api.ask("POST", path, body))[0] == status


async def test_without_a_shard_count_a_location_is_unsharded(api: Api) -> None:
    """tenants.md 4.2: count 0 is unsharded, whatever the number; the stripe size stays."""
    assert (await api.attach(shard_number=3, shard_stripe_size=77))[0] == 200
    found = (await api.ask("GET", f"/v1/location_config/{TENANT}"))[1]
    assert [found[f"shard_{name}"] for name in ("number", "count", "stripe_size")] == [0, 0, 77]


async def test_effective_settings_are_neons(api: Api) -> None:
    """25: durations as Neon writes them; every key that Neon shows is here with the same default."""
    await api.attach(tenant_conf=vector("tenant_config.json")["tenant_specific_overrides"])
    config = (await api.ask("GET", f"{T}/config"))[1]
    assert config == vector("tenant_config.json")
    assert (config["effective_config"]["gc_period"], config["effective_config"]["pitr_interval"]) == ("1h", "7days")


async def test_a_tenant_that_is_not_here_can_be_deleted(api: Api) -> None:
    """18."""
    assert await api.ask("DELETE", f"/v1/tenant/{'7' * 32}") == (200, None)


async def test_a_store_that_fails_makes_the_deletion_of_a_tenant_fail(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, not 503, which is for a busy slot (http-api.md 4.2); the request may be repeated."""

    async def fail(_: object) -> None:
        raise StoreUnavailableError("no answer", operation="delete", key="k")

    await api.follow()
    with monkeypatch.context() as patch:
        patch.setattr(api.world.storage, "delete", fail)
        status, body = await api.ask("DELETE", T)
        assert (status, "no answer" in body["msg"]) == (500, True)
    assert await api.ask("DELETE", T) == (200, None)
    assert [item.key async for item in api.world.storage.list_objects(f"tenants/{TENANT}")] == []


async def test_a_server_that_was_overtaken_says_so(api: Api) -> None:
    """Goal: a refusal of what the newer server decides gives the reason, not that the server is stopping."""
    await api.follow()
    await api.world.storage.put(paths.claim_key(TENANT, Generation(2)), b"{}")
    for path, what in ((f"{TL}/{ROOT}", "nothing is deleted here"), (T, "nothing is deleted here")):
        status, body = await api.ask("DELETE", path)
        assert status == 503
        assert f"attached elsewhere in a newer generation than 00000001: {what}" in body["msg"]
    status, body = await api.ask("PUT", f"{T}/name/main", {"timeline_id": str(ROOT)})
    assert (status, "names are changed there" in body["msg"]) == (503, True)


async def test_failpoints_of_the_whole_api_leave_their_own_route_open(tmp_path: Path) -> None:
    """47."""
    async with serve(tmp_path, failpoints=Failpoints(structlog.get_logger())) as api:
        for name, status in (("api-503", 503), ("api-500", 500)):
            assert await api.ask("PUT", "/v1/failpoints", [{"name": name, "actions": "return"}]) == (200, None)
            assert (await api.ask("GET", "/v1/status"))[0] == status
            assert await api.ask("PUT", "/v1/failpoints", [{"name": name, "actions": "off"}]) == (200, None)
        assert (await api.ask("GET", "/v1/status"))[0] == 200


async def test_a_body_of_a_get_is_ignored(api: Api) -> None:
    """50: Neon's load generator sends `null`."""
    response = await api.client.request("GET", "/v1/status", content=b"null")
    assert response.json() == vector("status.json")
    assert (await api.client.request("GET", "/v1/tenant", content=b"{broken")).status_code == 200


async def test_metrics_have_the_content_type_and_flag_of_the_specification(api: Api) -> None:
    """metrics.md 1, 7: no character set; `use_latest` is `true` or `false`."""
    for query, expected in (("", 200), ("?use_latest=true", 200), ("?use_latest=false", 200), ("?use_latest=1", 400)):
        response = await api.client.get(f"/metrics{query}")
        assert response.status_code == expected
        if expected == 200:
            assert response.headers["content-type"] == "text/plain; version=0.0.4"


async def test_requests_and_errors_are_logged_in_neons_words(api: Api) -> None:
    """2: the words that Neon's tests wait for; expected rejections are no warnings."""
    with capture_logs() as logs:
        await api.ask("GET", "/v1/status")
        await api.ask("PUT", f"{T}/location_config", ATTACH, headers={"x-request-id": "42"})
        await api.ask("GET", f"/v1/tenant/{'9' * 32}")
        await api.ask("PUT", "/v1/tenant/config")
        await api.ask("POST", f"/v1/tenant/{'9' * 32}/reset")
    lines = [(line["log_level"], line["event"], line["spans"][0][1]) for line in logs if "spans" in line]
    put = {"method": "PUT", "path": f"{T}/location_config", "request_id": "42"}
    assert lines[:3] == [
        ("debug", "Request handled, status: 200 OK", lines[0][2]),
        ("info", "Handling request", put),
        ("info", "Request handled, status: 200 OK", put),
    ]
    assert [line[:2] for line in lines[3:]] == [
        ("info", f"Error processing HTTP request: NotFound: tenant {'9' * 32}"),
        ("info", "Request handled, status: 404 Not Found"),
        ("info", "Handling request"),
        ("info", 'Error processing HTTP request: Bad request: "missing request body"'),
        ("info", "Request handled, status: 400 Bad Request"),
        ("info", "Handling request"),
        ("error", "Error processing HTTP request: Tenant not found when trying to reset"),
        ("info", "Request handled, status: 500 Internal Server Error"),
    ]


def test_a_measurement_serialises_byte_for_byte() -> None:
    """31: the example of the specification; the numbers add up as it says."""
    most = (1 << 63) - 1
    example = Utilization(most, 0, most, 90, 100, 200, 13, "2024-02-21T10:02:59.000Z")
    assert example.encode() == (
        b'{"disk_usage_bytes":9223372036854775807,"free_space_bytes":0,"disk_wanted_bytes":9223372036854775807,'
        b'"disk_usable_pct":90,"shard_count":100,"max_shard_count":200,"utilization_score":13,'
        b'"captured_at":"2024-02-21T10:02:59.000Z"}'
    )
    now = datetime(2024, 2, 21, 10, 2, 59, 999_999, UTC)
    found = evaluate(used_bytes=300, free_bytes=700, wanted_bytes=1600, usable_pct=80, shards=5, now=now)
    assert (found.utilization_score, found.max_shard_count, found.captured_at) == (
        2_000_000,
        2500,
        "2024-02-21T10:02:59.999Z",
    )
    by_shards = evaluate(used_bytes=1 << 70, free_bytes=0, wanted_bytes=0, usable_pct=100, shards=2500, now=now)
    assert (by_shards.utilization_score, by_shards.disk_usage_bytes) == (1_000_000, most)
    assert evaluate(used_bytes=1, free_bytes=1, wanted_bytes=1, usable_pct=0, shards=0, now=now).utilization_score > 0


async def test_utilization_is_measured_once_a_second(tmp_path: Path) -> None:
    """31: two calls within a second give identical bytes; `get-utilization-http-handler` makes it 503."""
    async with serve(tmp_path, failpoints=Failpoints(structlog.get_logger())) as api:
        await api.follow()
        first = await api.client.get("/v1/utilization")
        assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
        assert first.content == (await api.client.get("/v1/utilization")).content
        layers = sum(layer.file_size for layer in api.world.manager.get(TENANT).get_timeline(ROOT).store.layers())
        found = first.json()
        assert (found["disk_wanted_bytes"], found["disk_usable_pct"], found["shard_count"]) == (layers, 80, 1)
        assert f"pageserver_utilization_score {found['utilization_score']}" in (await api.client.get("/metrics")).text
        await api.ask("PUT", "/v1/failpoints", [{"name": "get-utilization-http-handler", "actions": "1*return"}])
        assert await api.ask("GET", "/v1/utilization") == (503, {"msg": "failpoint"})
        api.world.manager.map_state = MapState.INITIALIZING
        assert (await api.ask("GET", "/v1/utilization"))[0] == 503
        api.world.manager.map_state = MapState.OPEN


async def test_counts_of_what_has_not_happened_are_zero_from_the_start(api: Api) -> None:
    """metrics.md 3.12, 10, 11: an alert on a rate sees nothing of a series that is born with its first event."""
    lines = (await api.client.get("/metrics")).text.splitlines()
    for name in (
        "unexpected_ondemand_downloads_count",
        "walreceiver_started_connections_total",
        "walreceiver_broker_updates_total",
        'walreceiver_candidates_events_total{event="add"}',
        'walreceiver_candidates_events_total{event="remove"}',
        "walreceiver_active_managers",
        "tokio_epoll_uring_pageserver_thread_local_launch_success_count",
        "tokio_epoll_uring_pageserver_thread_local_launch_failures_count",
        "tokio_epoll_uring_slots_submission_queue_depth_count",
        "remote_ondemand_downloaded_layers_total",
        "remote_ondemand_downloaded_bytes_total",
        "circuit_breaker_broken",
        "circuit_breaker_unbroken",
        "deletion_queue_submitted_total",
        "deletion_queue_unexpected_errors_total",
        "tenant_activation_seconds_count",
        "tenant_startup_scheduled",
        "tenant_manager_slot_writes",
        "tenant_manager_unexpected_errors_total",
        "layer_started_evictions",
        'layer_cancelled_evictions_count{reason="layer_gone"}',
        "disk_usage_based_eviction_evicted_bytes_total",
        'tenant_states_count{state="Active"}',
        'tenant_states_count{state="Broken"}',
        "local_data_loss_suspected",
    ):
        assert f"pageserver_{name} 0" in lines


async def test_evictions_and_heatmaps_are_counted(tmp_path: Path) -> None:
    """3.9, 3.11: what began ended, or is told apart."""
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        await api.follow()
        store_of(api.world.manager.get(TENANT).get_timeline(ROOT)).ingest(START + 0x200)
        await api.ask("PUT", f"{TL}/{ROOT}/checkpoint")
        layers = (await api.ask("GET", f"{TL}/{ROOT}/layer"))[1]["historic_layers"]
        assert await api.ask("DELETE", f"{TL}/{ROOT}/layer/{layers[0]['layer_file_name']}") == (200, None)
        assert await api.ask("POST", f"{T}/heatmap_upload") == (200, None)
        lines = (await api.client.get("/metrics")).text.splitlines()
        for name in (
            "layer_started_evictions",
            "layer_completed_evictions",
            "secondary_upload_heatmap",
            "secondary_upload_heatmap_duration_count",
        ):
            assert f"pageserver_{name} 1" in lines
        assert "pageserver_secondary_upload_heatmap_errors 0" in lines


async def test_evictions_soon_after_a_layer_came_are_counted_by_threshold(tmp_path: Path) -> None:
    """metrics.md 16: a changed threshold replaces the label's value; one series remains, and begins at 0."""
    async with serve(tmp_path / "work", bucket=tmp_path / "bucket") as api:
        await api.follow()
        store_of(api.world.manager.get(TENANT).get_timeline(ROOT)).ingest(START + 0x200)
        await api.ask("PUT", f"{TL}/{ROOT}/checkpoint")
        one, other = (each["layer_file_name"] for each in (await layers(api)))

        async def series() -> list[tuple[str, str]]:
            found = re.findall(
                r'^pageserver_evictions_with_low_residence_duration{low_threshold_secs="(\d+)",'
                rf'residence_duration_data_source="mtime",shard_id="0000",tenant_id="{TENANT}",'
                rf'timeline_id="{ROOT}"}} (\d+)$',
                (await api.client.get("/metrics")).text,
                re.MULTILINE,
            )
            return [(threshold, count) for threshold, count in found]

        assert await series() == [("86400", "0")]
        assert await api.ask("DELETE", f"{TL}/{ROOT}/layer/{one}") == (200, None)
        assert await series() == [("86400", "1")]
        patch = {"tenant_id": str(TENANT), "evictions_low_residence_duration_metric_threshold": "0s"}
        assert await api.ask("PATCH", "/v1/tenant/config", patch) == (200, None)
        assert await series() == [("0", "0")]
        assert await api.ask("DELETE", f"{TL}/{ROOT}/layer/{other}") == (200, None)
        assert await series() == [("0", "0")], "no residence is that short"


async def layers(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.ask("GET", f"{TL}/{ROOT}/layer"))[1]["historic_layers"]
    return found
