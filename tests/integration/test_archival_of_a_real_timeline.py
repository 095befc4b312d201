"""A branch is put away and brought back under a real server, with a primary that goes on meanwhile."""

from __future__ import annotations

from pathlib import Path

import httpx

from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.integration.test_on_demand_download import get_page, layer_files, wait_until_uploaded
from tests.page_server import PageServerProcess


def test_an_offloaded_timeline_comes_back_with_its_pages_and_follows_its_primary(
    make_server: MakeServer, server_dir: Path
) -> None:
    """Goal: offloading gives up the machine's part and nothing else, in the same process and over a kill.

    Method: offload a branch and then its parent, write to the primary, kill the server, bring both back, compare pages.
    """
    settings = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    primary = make_server(16, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) AS filler FROM generate_series(1, 2000) i")
    with PageServerProcess(server_dir / "one", settings=settings) as server:
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        root = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        primary.sql("UPDATE t SET filler = 'before'")
        before = Lsn.parse(primary.value("SELECT pg_switch_wal()"))
        wait_until_uploaded(server, root, before)
        branch = server.pagectl("timeline", "branch", "--ancestor", root, "--lsn", str(before))["timeline_id"]
        database = int(primary.value("SELECT oid FROM pg_database WHERE datname = 'postgres'"))
        key = Key.relation_block(RelTag(1663, database, int(primary.value("SELECT pg_relation_filenode('t')")), 0), 0)
        path = f"/v1/tenant/{tenant['id']}/timeline/"
        page = get_page(server, path + branch, key, str(before))

        def put_away(timeline: str) -> None:
            server.pagectl("timeline", "archive", timeline)
            # An upload may be under way, for the primary goes on.
            server.wait_for(lambda: offload(server, path + timeline), 30, "the timeline to be offloaded")

        for timeline in (branch, root):
            put_away(timeline)
            assert httpx.get(f"{server.url}{path}{timeline}/getpage?key={key}&lsn={before}").status_code == 404
            assert not (server_dir / "one" / "tenants" / tenant["id"] / "timelines" / timeline).exists()
        for timeline in (root, branch):
            server.pagectl("timeline", "unarchive", timeline)
        assert get_page(server, path + branch, key, str(before)) == page

        for timeline in (branch, root):
            put_away(timeline)
        primary.sql("UPDATE t SET filler = 'meanwhile'")
        after = Lsn.parse(primary.value("SELECT pg_switch_wal()"))
        server.kill()
        server.start()
        listed = {info["timeline_id"]: info["state"] for info in server.pagectl("timeline", "list")}
        assert listed == {root: "Offloaded", branch: "Offloaded"}
        for timeline in (root, branch):
            server.pagectl("timeline", "unarchive", timeline)
        assert get_page(server, path + branch, key, str(before)) == page
        wait_until_uploaded(server, root, after)
        assert get_page(server, path + root, key, str(after)) != page
        assert get_page(server, path + root, key, str(before)) == page
        assert layer_files(server_dir / "one" / "tenants" / tenant["id"] / "timelines" / root)


def offload(server: PageServerProcess, path: str) -> bool:
    """Ask for an offload; return whether it was done. The only refusal that passes is a pending upload."""
    answer = httpx.put(f"{server.url}{path}/offload", timeout=60)
    assert answer.status_code == 200 or "uploads are pending" in answer.text, answer.text
    return answer.status_code == 200
