"""A server of ours with one timeline of a real PostgreSQL, and the run of schemathesis against it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.page_server import PageServerProcess
from tests.postgres.server import PostgresServer

CHECKS = (
    "only_prescribed_server_errors",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
TENANT = "a5" * 16
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Searched:
    """What requests may aim at."""

    server: PageServerProcess
    tenant: str
    timeline: str
    layer: str
    lsn: str


@contextmanager
def searched_server(primary: PostgresServer, folder: Path) -> Iterator[Searched]:
    """Follow `primary` with a server that has remote storage and the interfaces for tests."""
    primary.sql("create table t (id int primary key, text text)")
    primary.sql("insert into t select i, repeat('x', i % 100) from generate_series(1, 5000) i")
    bucket = folder / "bucket"
    settings = {
        "remote_storage": f"{{local_path='{bucket}'}}",
        "testing_apis": "true",
        "wait_lsn_timeout": "'200ms'",
    }
    with PageServerProcess(folder / "searched", settings=settings) as server:
        server.pagectl("tenant", "create", TENANT)
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        path = f"/v1/tenant/{TENANT}/timeline/{timeline}"
        server.wait_for(lambda: server.api("GET", path)["state"] == "Active", 120, "an active timeline")
        server.api("PUT", f"{path}/checkpoint")
        layer = server.api("GET", f"{path}/layer")["historic_layers"][0]["layer_file_name"]
        yield Searched(server, TENANT, timeline, layer, server.api("GET", path)["last_record_lsn"])
        assert server.api("GET", path)["state"] == "Active", "the search lost the timeline that it asked about"


def search(target: Searched, *, examples: int, seed: int, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """Run schemathesis. A status other than 0 means findings; the output tells each with a curl command."""
    options = [
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing",
        "--mode=all",
        "--continue-on-failure",
    ]
    options += [f"--max-examples={examples}", f"--seed={seed}", "--generation-database=none", "--no-color"]
    options += ["--suppress-health-check=all", "--warnings=off", "--request-timeout=30", "--output-truncate=false"]
    return subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{target.server.url}/openapi.json", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
        cwd=target.server.workdir.parent,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "SCHEMATHESIS_HOOKS": "tests.api_search.hooks",
            "API_SEARCH_URL": target.server.url,
            "API_SEARCH_TENANT": target.tenant,
            "API_SEARCH_TIMELINE": target.timeline,
            "API_SEARCH_LAYER": target.layer,
            "API_SEARCH_LSN": target.lsn,
        },
    )
