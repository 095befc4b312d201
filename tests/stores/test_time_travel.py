"""Everything in a bucket is deleted; it travels back, and the tenant is served as if nothing had been (15)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import MakeServer
from tests.integration.test_restore_and_verify import verify
from tests.integration.test_source_changes import end_of_log, make_durable, path_of, wait_for
from tests.page_server import PageServerProcess
from tests.postgres.provision import ProvisionError
from tests.stores.servers import S3Server, s3_server

BUCKET = "travels"


@pytest.fixture
def versioned(server_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server whose bucket keeps versions."""
    try:
        server = s3_server(server_dir / "s3", keeps_versions=True)
    except ProvisionError as error:
        pytest.skip(str(error))
    try:
        os.setxattr(server_dir, "user.tried", b"")
    except OSError as error:
        pytest.skip(f"the file system has no extended attributes: {error}")
    for name, value in S3Server.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with server:
        server.client().create_bucket(Bucket=BUCKET)
        server.keep_versions(BUCKET)
        yield server


def keys(server: S3Server) -> list[str]:
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def travel(server: PageServerProcess, tenant: str, **params: str) -> httpx.Response:
    return httpx.put(f"{server.url}/v1/tenant/{tenant}/time_travel_remote_storage", params=params, timeout=120)


def test_everything_deleted_comes_back(versioned: S3Server, make_server: MakeServer, server_dir: Path) -> None:
    """Goal: timelines and source documents come back, newer objects go, claims stay, damage is undone; the server
    attaches, streams on and has every page. Method: note a moment, write on, overwrite, delete all, travel, compare.
    """
    primary = make_server(16, "primary", settings={"wal_keep_size": "1GB"})
    primary.sql("create table t as select i, repeat('x', 100) as filler from generate_series(1, 3000) i")
    settings = {"remote_storage": versioned.settings(BUCKET), "checkpoint_distance": "1048576"}
    with PageServerProcess(server_dir / "pageserver", settings=settings) as server:
        server.pagectl("tenant", "create")
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        (tenant,) = (each["id"] for each in server.pagectl("tenant", "list"))
        server.api("PUT", f"/v1/tenant/{tenant}/name/main", {"timeline_id": timeline})
        primary.sql("update t set filler = 'second' where i % 3 = 0")
        last = make_durable(server, primary, timeline)
        time.sleep(1.1)  # stores tell seconds
        moment, before = now(), set(keys(versioned))
        time.sleep(1.1)
        refusal = travel(server, tenant, travel_to=moment, done_if_after=now())
        assert refusal.status_code == 400
        assert refusal.json()["msg"] == f'"Tenant {tenant} is already attached at this pageserver"'
        primary.sql("update t set filler = 'third'")
        make_durable(server, primary, timeline)
        assert set(keys(versioned)) - before, "there are newer objects"
        server.api("PUT", f"/v1/tenant/{tenant}/location_config", {"mode": "Detached", "tenant_conf": {}})
        ours = [key for key in keys(versioned) if f"/{tenant}" in key]
        assert len(ours) > 5
        for key in ours:
            versioned.client().delete_object(Bucket=BUCKET, Key=key)
        versioned.correct_version_times(BUCKET)
        later, earlier = now(), "2000-01-01T00:00:00Z"
        assert travel(server, tenant, travel_to=later, done_if_after=earlier).status_code == 400
        assert travel(server, tenant, travel_to=moment).status_code == 400
        server.pagectl("tenant", "time-travel", tenant, "--to", moment)
        back = set(keys(versioned))
        wanted = {key for key in before if "/timelines/" in key or "/sources/" in key}
        assert wanted and wanted <= back
        assert not any("/generations/" in key for key in back - before)
        assert {key for key in back if "/timelines/" in key} == {key for key in wanted if "/timelines/" in key}
        server.pagectl("tenant", "create", tenant)
        info = server.api("GET", path_of(server, timeline))
        assert (info["state"], info["names"]) == ("Active", ["main"])
        primary.sql("checkpoint")
        primary.stop("fast")
        wait_for(server, timeline, end_of_log(primary))
        report = verify(server, timeline, primary.data_dir)
        assert (report["different"], report["missing"], report["extra"]) == (0, 0, 0), report
        assert server.api("GET", f"{path_of(server, timeline)}/keyspace?at_lsn={last}")["keys"]
        samples: dict[str, Any] = server.metrics()
        for kind in ("list_versions", "time_travel_recover"):
            name = f'remote_storage_s3_request_seconds_count{{request_type="{kind}",result="ok"}}'
            assert samples[name] > 0


def test_other_stores_say_that_they_cannot(server_dir: Path) -> None:
    settings = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    with PageServerProcess(server_dir / "pageserver", settings=settings) as server:
        refusal = travel(server, "ab" * 16, travel_to=now(), done_if_after=now())
        assert refusal.status_code == 400
        assert refusal.json()["msg"] == '"unimplemented for the configured remote storage"'
