"""The real server process with a real primary: follow it, stop, crash, come back, branch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.page_server import PageServerProcess
from tests.postgres.server import PostgresServer

UNREACHABLE = "{bucket_name='b', bucket_region='eu-central-1', endpoint='http://127.0.0.1:9'}"


@pytest.fixture
def page_server(server_dir: Path) -> Iterator[PageServerProcess]:
    with PageServerProcess(server_dir / "pageserver") as server:
        yield server


def test_the_process_keeps_its_lock_and_its_exit_codes(page_server: PageServerProcess) -> None:
    """http-api.md 10.1, 10.3: one server a directory; 0 after SIGTERM, 111 after SIGQUIT; the pid file stays; taken
    ports are told before anything else happens (tenants.md 5.1).
    """
    pid_file = page_server.workdir / "pageserver.pid"
    pid = pid_file.read_text()
    second = PageServerProcess(page_server.workdir)
    with pytest.raises(AssertionError, match="already locked"):
        second.start()
    assert pid_file.read_text() == pid
    for conflict in ("listen_http_addr", "listen_pg_addr"):
        # A store that cannot be reached: whoever asks it before looking at the ports waits for it.
        taken = page_server.http_port if conflict == "listen_http_addr" else page_server.pg_port
        settings = {conflict: f"'127.0.0.1:{taken}'", "remote_storage": UNREACHABLE}
        third = PageServerProcess(page_server.workdir.with_name("third"), settings=settings)
        with pytest.raises(AssertionError, match=f"{conflict}: cannot listen on 127.0.0.1:{taken}: .*already in use"):
            third.start()
    assert page_server.stop() == 0
    assert pid_file.exists()
    page_server.start()
    assert page_server.stop(signal.SIGQUIT) == 111


def test_a_primary_is_followed_through_stops_and_crashes(
    make_server: MakeServer, page_server: PageServerProcess
) -> None:
    """Goal: pages equal those of the primary, after a graceful stop and after a crash of the page server."""
    primary = make_server(15, "primary", settings={"autovacuum": "off"})
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) AS filler FROM generate_series(1, 5000) i")
    page_server.pagectl("tenant", "create")
    info = page_server.pagectl("timeline", "create", "--primary", primary.conninfo())
    timeline = info["timeline_id"]
    assert (info["state"], info["flavour"], info["pg_version"]) == ("Active", "stock", 15)

    for round_number, end in enumerate((None, signal.SIGTERM, signal.SIGKILL)):
        if end is not None:
            page_server.stop(end)
            page_server.start()
        primary.sql(f"UPDATE t SET filler = 'round {round_number}' WHERE i % 7 = {round_number}")
        compare_with_primary(page_server, primary, timeline)

    shown = page_server.workdir.with_name("page")
    page_server.pagectl("page", "get", "--timeline", timeline, "--rel", "1664/0/1262", "-o", str(shown))
    assert len(shown.read_bytes()) == 8192
    before = Lsn.parse(primary.value("SELECT pg_current_wal_insert_lsn()"))
    wait_for_lsn(page_server, timeline, before)
    branch = page_server.pagectl("timeline", "branch", "--ancestor", timeline, "--lsn", str(before))
    assert Lsn.parse(branch["ancestor_lsn"]) == before.aligned()
    page_server.stop()
    page_server.start()
    assert {one["timeline_id"] for one in page_server.pagectl("timeline", "list")} == {timeline, branch["timeline_id"]}


def wait_for_lsn(page_server: PageServerProcess, timeline: str, lsn: Lsn) -> None:
    def has_arrived() -> bool:
        info = page_server.pagectl("timeline", "detail", timeline)
        assert info["wal_source_error"] is None, info["wal_source_error"]
        return Lsn.parse(info["last_record_lsn"]) >= lsn

    page_server.wait_for(has_arrived, 60, f"wal up to {lsn}")


def compare_with_primary(page_server: PageServerProcess, primary: PostgresServer, timeline: str) -> None:
    """Compare LSN and header of every tenth block with the primary's file, right after its checkpoint."""
    primary.sql("CHECKPOINT")
    lsn = Lsn.parse(primary.value("SELECT pg_current_wal_insert_lsn()"))
    wait_for_lsn(page_server, timeline, lsn)
    database = primary.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    relation = primary.value("SELECT pg_relation_filenode('t')")
    blocks = int(primary.value("SELECT pg_relation_size('t') / 8192"))
    assert blocks > 50
    tenant = page_server.api("GET", "/v1/tenant")[0]["id"]
    for block in range(0, blocks, 10):
        key = Key.relation_block(RelTag.parse(f"1663/{database}/{relation}"), block)
        path = f"/v1/tenant/{tenant}/timeline/{timeline}/getpage?key={key}&lsn={lsn}"
        ours = bytes(page_server.api("GET", path)["page"])
        offset = block * 8192
        theirs = primary.value(f"SELECT encode(pg_read_binary_file(pg_relation_filepath('t'), {offset}, 8192), 'hex')")
        assert ours[:8] == bytes.fromhex(theirs)[:8], f"block {block}: page LSN differs"
        assert ours[12:24] == bytes.fromhex(theirs)[12:24], f"block {block}: page header differs"
