"""The whole server with its layers in S3: follow a primary, stop, crash, lose layer files, come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import MakeServer
from tests.integration.test_server_process import compare_with_primary
from tests.page_server import PageServerProcess
from tests.stores.conftest import Bucket


@pytest.mark.slow
async def test_a_server_follows_a_primary_into_a_bucket_that_fails(
    make_bucket: Callable[[str], Bucket], make_server: MakeServer, server_dir: Path
) -> None:
    """Goal: import, restart and crash with every first attempt of each operation failing (remote-storage.md 19); after
    the crash the layer files are gone too, and come back from the bucket.
    """
    bucket = make_bucket("s3")
    assert bucket.service is not None
    primary = make_server(15, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) AS filler FROM generate_series(1, 5000) i")
    settings = {"remote_storage": bucket.service.settings(bucket.name), "test_remote_failures": "1"}
    with PageServerProcess(server_dir / "pageserver", settings=settings) as server:
        server.pagectl("tenant", "create")
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        compare_with_primary(server, primary, timeline)
        server.stop()
        store = bucket.open()
        found = [item.key async for item in store.list_objects("tenants/")]
        indices = [key for key in found if "index_part.json-" in key]
        assert indices
        layers = [key for key in found if "__" in key]
        named = json.loads(await store.get(max(indices)))["layer_metadata"]
        assert len(layers) >= len(named) > 0
        for key in layers:
            assert (await store.head(key)).crc32c is not None, "layers carry a checksum"
        server.start()
        primary.sql("UPDATE t SET filler = 'second' WHERE i % 7 = 1")
        compare_with_primary(server, primary, timeline)
        server.kill()
        local = [path for path in server.workdir.rglob("*__*") if path.is_file()]
        assert local
        for path in local:
            path.unlink()
        server.start()
        compare_with_primary(server, primary, timeline)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            metrics = (await client.get("/metrics")).text
        counted = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
        for kind in ("get_object", "put_object", "list_objects"):
            labels = f'request_type="{kind}",result="ok"'
            whole = int(counted[f"remote_storage_s3_request_seconds_count{{{labels}}}"])
            assert whole > 0, f"{kind} was counted"
            assert int(counted[f'remote_storage_s3_request_seconds_bucket{{{labels},le="+Inf"}}']) == whole
        assert counted['remote_storage_s3_cancelled_waits_total{request_type="head_object"}'] == "0"
        assert "Simulating remote failures for first 1 attempts of each op" in server.log_path.read_text()
        assert "simulated failure of remote operation Upload(" in server.log_path.read_text()
