"""A tenant that holds all it may, with a real primary that goes on (setting stored_bytes_max)."""

from __future__ import annotations

from pathlib import Path

from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.page_server import PageServerProcess


def test_ingest_pauses_at_the_limit_and_goes_on_when_it_is_raised(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: at the limit nothing is lost and nobody hangs: the primary works, stops and starts; the reason is told;
    once the limit is raised the timeline catches up.

    Method: import, write more than the limit, watch status, metric and log; write, stop and start the primary; raise
    the limit and compare LSNs.
    """
    primary = make_server(16, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE t (i int, filler text)")
    with PageServerProcess(server_dir / "one") as server:
        server.pagectl("tenant", "create", "-c", "checkpoint_distance=1048576")
        (tenant,) = server.api("GET", "/v1/tenant")
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo(), "--name", "main")
        limit = timeline["current_physical_size"] + 4 * 1024 * 1024

        def detail() -> dict[str, object]:
            found: dict[str, object] = server.pagectl("timeline", "detail", "main")
            return found

        def set_limit(limit: int | None) -> None:
            server.api("PATCH", "/v1/tenant/config", {"tenant_id": tenant["id"], "stored_bytes_max": limit})

        set_limit(limit)
        assert "wal_source_paused" not in detail()
        for _ in range(4):
            primary.sql("INSERT INTO t SELECT i, md5(i::text) || md5((i + 1)::text) FROM generate_series(1, 40000) i")
        server.wait_for(lambda: "wal_source_paused" in detail(), 60, "the pause")
        paused = detail()
        assert f"may hold {limit}" in str(paused["wal_source_paused"])
        assert "paused" in str(paused["walreceiver_status"])
        assert paused["state"] == "Active"
        labels = f'shard_id="0000",tenant_id="{tenant["id"]}",timeline_id="{timeline["timeline_id"]}"'
        assert server.metrics()[f"pageserver_wal_source_paused{{{labels}}}"] == 1
        assert "ingest is paused" in server.log_path.read_text()

        def is_all_durable() -> bool:
            now = detail()
            return now["disk_consistent_lsn"] == now["last_record_lsn"] == now["remote_consistent_lsn_visible"]

        server.wait_for(is_all_durable, 30, "everything that was ingested to be durable")
        primary.stop()
        primary.start()
        primary.sql("UPDATE t SET i = i + 1 WHERE i < 100")
        end = Lsn.parse(primary.value("SELECT pg_switch_wal()"))
        assert Lsn.parse(str(detail()["last_record_lsn"])) < end
        server.restart()
        server.wait_for(lambda: "wal_source_paused" in detail(), 60, "the pause after a restart")
        set_limit(None)
        server.wait_for(lambda: Lsn.parse(str(detail()["last_record_lsn"])) >= end, 60, "the timeline to catch up")
        assert "wal_source_paused" not in detail()
        assert "ingest goes on" in server.log_path.read_text()
