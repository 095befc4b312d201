"""`current_logical_size` follows what a real primary does to its relations, and agrees with a count of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.page_server import PageServerProcess

CHANGES = {
    "a table grows": "INSERT INTO kept SELECT i, repeat('x', 100) FROM generate_series(1, 30000) i",
    "a table, its index and its TOAST table come": "CREATE TABLE gone (id int PRIMARY KEY, note text)",
    "they grow": "INSERT INTO gone SELECT i, repeat(md5(i::text), 200) FROM generate_series(1, 2000) i",
    "maps come": "VACUUM gone",
    "a table loses its end": "DELETE FROM kept WHERE id > 1000",
    "and gives it back": "VACUUM (TRUNCATE) kept",
    "a table is rewritten": "VACUUM FULL kept",
    "a table is emptied": "TRUNCATE gone",
    "it comes again": "INSERT INTO gone VALUES (1, 'one')",
    "a transaction takes back what it made": "BEGIN; CREATE TABLE never AS SELECT generate_series(1, 9999); ROLLBACK",
    "a database is copied block by block": "CREATE DATABASE logged STRATEGY wal_log",
    "a database is copied as files": "CREATE DATABASE copied STRATEGY file_copy",
    "many tables go": "DROP TABLE gone, kept",
    "a database goes": "DROP DATABASE logged",
}


@pytest.mark.parametrize("repository", ["layered", "rocksdb"])
def test_the_size_follows_every_change_and_survives_a_kill(
    repository: str, make_server: MakeServer, server_dir: Path
) -> None:
    """Goal: the number that ingest keeps up to date is the one that a count of all relations gives.

    Method: changes of every kind, one after the other; after each of them both numbers are asked for. Then the server
    is killed and counts again, also for a branch.
    """
    primary = make_server(16, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE kept (id int, note text)")
    settings = {} if repository == "rocksdb" else {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    with PageServerProcess(server_dir / "pageserver", settings=settings) as server:
        tenant = server.pagectl("tenant", "create", "-c", f'repository="{repository}"')["id"]
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        path = f"/v1/tenant/{tenant}/timeline"
        sizes = {"the beginning": exact_size(server, f"{path}/{timeline}", primary.value("SELECT pg_switch_wal()"))}
        assert sizes["the beginning"] > 20 << 20, "three databases of templates"
        for change, statement in CHANGES.items():
            for part in statement.split("; "):
                primary.sql(part)
            lsn = primary.value("SELECT pg_current_wal_insert_lsn()")
            primary.sql("SELECT pg_switch_wal()")
            sizes[change] = exact_size(server, f"{path}/{timeline}", lsn)
        assert sizes["a table grows"] - sizes["the beginning"] > 30_000 * 100
        assert sizes["and gives it back"] < sizes["a table loses its end"] - 20_000 * 100
        assert sizes["a database is copied as files"] - sizes["a database is copied block by block"] > 5 << 20
        assert sizes["a database goes"] < sizes["many tables go"] - (5 << 20)
        labels = f'{{shard_id="0000",tenant_id="{tenant}",timeline_id="{timeline}"}}'
        assert server.metrics()[f"pageserver_current_logical_size{labels}"] == sizes["a database goes"]

        server.api("PUT", f"{path}/{timeline}/checkpoint")
        primary.sql("CREATE TABLE unflushed AS SELECT generate_series(1, 10000)")
        lsn = primary.value("SELECT pg_current_wal_insert_lsn()")
        primary.sql("SELECT pg_switch_wal()")
        size = exact_size(server, f"{path}/{timeline}", lsn)
        branch = server.pagectl("timeline", "branch", "--ancestor", timeline)["timeline_id"]
        server.kill()
        server.start()
        assert exact_size(server, f"{path}/{timeline}", lsn) == size
        assert exact_size(server, f"{path}/{branch}", lsn) == size


def exact_size(server: PageServerProcess, path: str, lsn: str) -> int:
    """Wait for `lsn` and the size there; both ways to it must agree."""
    server.wait_for(lambda: Lsn.parse(server.api("GET", path)["last_record_lsn"]) >= Lsn.parse(lsn), 60, lsn)
    return server.logical_size(path)
