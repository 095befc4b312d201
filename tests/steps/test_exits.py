"""A real server with the compiled engine ends at failpoints, and goes on where it was.

Around each rename and fsync of the engine lies a failpoint before it (`flush-frozen-exit`) and one after it
(`flush-layer-before-update-remote-consistent-lsn`). What a power failure would lose in between is tested with the
engine of `tests/unit/world.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.integration.test_on_demand_download import get_page, layer_files
from tests.page_server import PageServerProcess
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer

FLUSH_POINTS = (
    "walreceiver-after-ingest",
    "flush-frozen-exit",
    "flush-layer-before-update-remote-consistent-lsn",
    "before-upload-layer",
    "before-upload-index",
)
INITDB_POINTS = ("before-initdb-upload", "before-checkpoint-new-timeline")
DELETION_POINTS = (
    "timeline-delete-before-index-deleted-at",
    "timeline-delete-before-schedule",
    "timeline-delete-after-rm",
    "deletion-queue-before-execute",
    "timeline-delete-after-index-delete",
)


class Doomed:
    """A server that is told to end somewhere, and is started again after it has."""

    def __init__(self, server: PageServerProcess) -> None:
        self.server = server

    def ends_at(self, failpoint: str, work: Callable[[], object]) -> None:
        """Do `work`, which does not come to its end, and start again."""
        self.server.api("PUT", "/v1/failpoints", [{"name": failpoint, "actions": "exit"}])
        try:
            work()
        except (httpx.TransportError, AssertionError):
            assert self.server.wait_for_end(30) == 1, failpoint
        else:
            assert self.server.wait_for_end(30) == 1, f"nothing reached {failpoint}"
        assert f"failpoint {failpoint}: exit" in self.server.log_path.read_text(errors="replace")
        self.server.start()

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return httpx.request(method, f"{self.server.url}{path}", json=body, timeout=60)


@pytest.mark.slow
def test_a_server_that_ends_at_failpoints_goes_on(
    make_server: MakeServer,
    postgres_installation: Callable[[int], Installation],
    server_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: after each end the work is done by itself, or by repeating the request; nothing is lost or damaged.

    Method: import, flush, run initdb, branch, configure, evict, download, offload, delete; end at failpoints; compare
    pages; scrub.
    """
    bucket = f"{{local_path='{server_dir / 'bucket'}'}}"
    settings = {
        "remote_storage": bucket,
        "testing_apis": "true",
        "pg_installations": f"{{16='{postgres_installation(16).bin.parent}'}}",
    }
    primary = make_server(16, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) AS filler FROM generate_series(1, 2000) i")
    with PageServerProcess(server_dir / "one", settings=settings) as server:
        doomed = Doomed(server)
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        path, root = f"/v1/tenant/{tenant['id']}/timeline/", "11" * 16
        follow = {"new_timeline_id": root, "primary": {"conninfo": primary.conninfo()}}

        def import_from_primary() -> None:
            server.api("POST", path, follow)
            server.wait_for(lambda: is_active(server, path + root), 60, "the import")

        # The import begins again by itself, and ends once more, by what the environment says.
        monkeypatch.setenv("FAILPOINTS", "before-upload-layer=1*sleep(3000);before-upload-index=exit")
        doomed.ends_at("before-upload-index", import_from_primary)
        assert server.wait_for_end(60) == 1
        monkeypatch.delenv("FAILPOINTS")
        server.start()
        server.wait_for(lambda: is_active(server, path + root), 60, "the import")
        key = first_block(primary)
        for number, failpoint in enumerate(FLUSH_POINTS):
            written: list[Lsn] = []

            def write_and_upload(number: int = number, written: list[Lsn] = written) -> None:
                primary.sql(f"UPDATE t SET filler = 'number {number}'")
                written.append(Lsn.parse(primary.value("SELECT pg_switch_wal()")))
                wait_until_uploaded(server, path + root, written[0])

            doomed.ends_at(failpoint, write_and_upload)
            wait_until_uploaded(server, path + root, written[0])
        tip = written[0]
        page = get_page(server, path + root, key, str(tip))

        made = {"new_timeline_id": "33" * 16, "pg_version": 16}
        for failpoint in INITDB_POINTS:
            doomed.ends_at(failpoint, lambda: server.api("POST", path, made))
            server.wait_for(lambda: is_active(server, path + root), 30, "the root")
            assert doomed.ask("GET", path + "33" * 16).status_code == 404
        server.api("POST", path, made)
        assert is_active(server, path + "33" * 16)

        branch = "22" * 16
        body = {"new_timeline_id": branch, "ancestor_timeline_id": root, "ancestor_start_lsn": str(tip)}
        for failpoint in ("after-timeline-dir-creation", "before-upload-index"):
            doomed.ends_at(failpoint, lambda: server.api("POST", path, body))
            server.wait_for(lambda: is_active(server, path + root), 30, "the root")
        assert server.api("POST", path, body)["timeline_id"] == branch
        assert get_page(server, path + branch, key, str(tip)) == page

        config = {"tenant_id": tenant["id"], "gc_horizon": 12345}
        doomed.ends_at("tenant-config-before-write", lambda: server.api("PATCH", "/v1/tenant/config", config))
        server.api("PATCH", "/v1/tenant/config", config)
        assert server.api("GET", f"/v1/tenant/{tenant['id']}/config")["tenant_specific_overrides"] == {
            "gc_horizon": 12345
        }

        def read_what_is_elsewhere() -> None:
            for name in layer_files(server_dir / "one" / "tenants" / tenant["id"] / "timelines" / root):
                doomed.ask("DELETE", f"{path}{root}/layer/{name.rpartition('-v1-')[0]}")
            get_page(server, path + root, key, str(tip))

        doomed.ends_at("remote-storage-download-pre-rename", read_what_is_elsewhere)
        server.wait_for(lambda: is_active(server, path + root), 30, "the root")
        assert get_page(server, path + root, key, str(tip)) == page

        server.pagectl("timeline", "archive", branch)
        doomed.ends_at("before-upload-manifest", lambda: doomed.ask("PUT", f"{path}{branch}/offload"))
        for failpoint in DELETION_POINTS:
            doomed.ends_at(failpoint, lambda: delete(doomed, path + branch))
            if failpoint == DELETION_POINTS[0]:
                assert doomed.ask("GET", path + branch).status_code == 200, "nothing was promised"
                continue
            # The deletion goes on by itself. Here, it is asked for again and ends elsewhere.
            server.wait_for(lambda: doomed.ask("GET", path + branch).status_code == 404, 30, "the end of the deletion")
            assert not list((server_dir / "bucket" / "tenants" / tenant["id"] / "timelines" / branch).iterdir())
            server.api("POST", path, body)
        assert get_page(server, path + root, key, str(tip)) == page
        primary.sql("UPDATE t SET filler = 'the end'")
        wait_until_uploaded(server, path + root, Lsn.parse(primary.value("SELECT pg_switch_wal()")))
        server.stop()
        report = server.pagectl("scrub", "--remote-storage", bucket, "--deep")
        assert report["errors"] == report["warnings"] == [], json.dumps(report)


def wait_until_uploaded(server: PageServerProcess, path: str, lsn: Lsn) -> None:
    def is_uploaded() -> bool:
        if not is_active(server, path) or Lsn.parse(server.api("GET", path)["last_record_lsn"]) < lsn:
            return False
        server.api("PUT", f"{path}/checkpoint")
        return Lsn.parse(server.api("GET", path)["remote_consistent_lsn"]) >= lsn

    server.wait_for(is_uploaded, 60, f"upload up to {lsn}")


def is_active(server: PageServerProcess, path: str) -> bool:
    answer = httpx.get(f"{server.url}{path}", timeout=60)
    return answer.status_code == 200 and answer.json()["state"] == "Active"


def delete(doomed: Doomed, path: str) -> None:
    """Ask for the deletion until it has ended."""
    doomed.server.wait_for(lambda: doomed.ask("DELETE", path).status_code == 404, 30, "the end of the deletion")


def first_block(primary: PostgresServer) -> Key:
    database = int(primary.value("SELECT oid FROM pg_database WHERE datname = 'postgres'"))
    return Key.relation_block(RelTag(1663, database, int(primary.value("SELECT pg_relation_filenode('t')")), 0), 0)
