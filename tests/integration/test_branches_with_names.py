"""Branches at moments, called by names, of a real primary; on another machine as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.page_server import PageServerProcess
from tests.postgres.server import PostgresServer, unprivileged_user


def test_a_branch_at_a_moment_is_what_was_then_and_keeps_its_name(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: a moment finds the right LSN, and names do what ids do, also after the machine is lost.

    Method: two states with a moment between them; branch at that moment and branch the branch; lose the directory;
    attach elsewhere, restore by name and look.
    """
    settings = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    primary = make_server(16, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    with PageServerProcess(server_dir / "one", settings=settings) as server:
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        server.pagectl("timeline", "create", "--primary", primary.conninfo(), "--name", "main")
        primary.sql("INSERT INTO t SELECT generate_series(1, 500)")
        moment = primary.value(
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
        primary.sql("DELETE FROM t")
        end = Lsn.parse(primary.value("SELECT pg_switch_wal()"))

        def is_durable() -> bool:
            detail = server.pagectl("timeline", "detail", "main")
            return Lsn.parse(detail["remote_consistent_lsn_visible"]) >= end

        server.api("PATCH", "/v1/tenant/config", {"tenant_id": tenant["id"], "checkpoint_timeout": "1s"})
        server.wait_for(is_durable, 60, "the end of the WAL in the bucket")
        past = server.pagectl("timeline", "branch", "--ancestor", "main", "--time", moment, "--name", "past")
        assert Lsn.parse(past["ancestor_lsn"]) < end
        second = server.pagectl("timeline", "branch", "--ancestor", "past", "--name", "copy", "--read-only")
        assert (second["ancestor_timeline_id"], second["read_only"]) == (past["timeline_id"], True)
        with pytest.raises(AssertionError, match="is called 'past' already"):
            server.pagectl("timeline", "branch", "--ancestor", "main", "--name", "past")
        with pytest.raises(AssertionError, match="the oldest is that of lsn"):
            server.pagectl("timeline", "branch", "--ancestor", "main", "--time", "2020-01-01T00:00:00Z")
        server.kill()
    with PageServerProcess(server_dir / "two", settings=settings) as server:
        server.pagectl("tenant", "create", tenant["id"])
        names = {one["name"]: one["timeline_id"] for one in server.pagectl("timeline", "names")}
        assert names["past"] == past["timeline_id"]
        assert set(names) == {"main", "past", "copy"}
        server.pagectl("timeline", "rename", "copy", "twin")
        restored = server_dir / "restored"
        server.pagectl(
            *("restore", "--timeline", "twin", "--lsn", past["ancestor_lsn"], "--to", str(restored)),
            *("--run-as", unprivileged_user() or "postgres"),
        )
        with PostgresServer(16, restored, installation=primary.installation) as copy:
            assert copy.value("SELECT count(*) || ' ' || sum(i) FROM t") == "1500 625750"
        store = f"{{local_path='{server_dir / 'bucket'}'}}"
        report = server.pagectl("scrub", "--remote-storage", store)
        assert (report["errors"], report["warnings"]) == ([], [])
