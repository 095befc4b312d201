"""A timeline whose slot is lost is resynchronised, and one whose primary failed over goes on (docs/decisions/0008)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from tests.conftest import MakeServer
from tests.integration.test_restore_and_verify import verify
from tests.page_server import PageServerProcess
from tests.ports import free_port
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer, unprivileged_user
from tests.torture.acceptance import empty_directory_for_server

MAJOR = 16


def end_of_log(server: PostgresServer) -> str:
    """Return where the log of a stopped server ends: behind its shutdown checkpoint."""
    control = ControlFile((server.data_dir / "global/pg_control").read_bytes())
    return str(Lsn(control.check_point + 1).aligned())


def path_of(server: PageServerProcess, timeline: str) -> str:
    (tenant,) = server.api("GET", "/v1/tenant")
    return f"/v1/tenant/{tenant['id']}/timeline/{timeline}"


def detail(server: PageServerProcess, timeline: str) -> dict[str, Any]:
    info: dict[str, Any] = server.api("GET", path_of(server, timeline))
    return info


def wait_for(server: PageServerProcess, timeline: str, lsn: str) -> None:
    """Wait until WAL up to `lsn` was ingested."""
    server.wait_for(lambda: Lsn.parse(detail(server, timeline)["last_record_lsn"]) >= Lsn.parse(lsn), 60, lsn)


def settings(bucket: Path) -> dict[str, str]:
    return {"remote_storage": f"{{local_path='{bucket}'}}"}


def follow(server: PageServerProcess, primary: PostgresServer) -> str:
    server.pagectl("tenant", "create")
    timeline: str = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
    return timeline


def make_durable(server: PageServerProcess, primary: PostgresServer, timeline: str) -> str:
    """Wait for all that the primary wrote, flush it, and return where the log is."""
    lsn = primary.value("select pg_current_wal_flush_lsn()")
    wait_for(server, timeline, lsn)
    server.api("PUT", f"{path_of(server, timeline)}/checkpoint")
    return str(detail(server, timeline)["last_record_lsn"])


def lose_slot(primary: PostgresServer, timeline: str, *, by_size: bool) -> None:
    """Have the slot dropped, or invalidated because it keeps more WAL than the primary allows."""
    slot = f"pageserver_{timeline}"
    if by_size:
        primary.sql("alter system set max_slot_wal_keep_size = '1MB'")
        primary.sql("select pg_reload_conf()")
        for _ in range(4):
            primary.sql("select pg_switch_wal(); create table if not exists pad (i int); insert into pad values (1)")
        primary.sql("checkpoint")
        assert primary.value(f"select wal_status from pg_replication_slots where slot_name = '{slot}'") == "lost"
        primary.sql("alter system reset max_slot_wal_keep_size")
        primary.sql("select pg_reload_conf()")
    else:
        primary.sql(f"select pg_drop_replication_slot('{slot}')")


def restored_value(
    server: PageServerProcess, primary: PostgresServer, timeline: str, directory: Path, lsn: str, query: str
) -> Any:
    port = free_port()
    run_as = ["--run-as", user] if (user := unprivileged_user()) is not None else []
    start = ["--start", str(port), "--pg-bin", str(primary.installation.bin), *run_as]
    server.pagectl("restore", "--timeline", timeline, "--to", str(directory), "--lsn", lsn, *start)
    restored = PostgresServer(primary.major, directory, installation=primary.installation, port=port)
    try:
        with psycopg.connect(restored.conninfo(), autocommit=True) as session:
            row = session.execute(query.encode()).fetchone()
            assert row is not None
            return row[0]
    finally:
        restored.program("pg_ctl", "-D", str(directory), "-m", "fast", "-w", "stop")


def refused(server: PageServerProcess, path: str) -> str:
    """Return why a GET is refused."""
    response = httpx.get(f"{server.url}{path}", timeout=60)
    assert response.status_code == 400, response.text
    return response.text


@pytest.mark.parametrize(("major", "by_size"), [pytest.param(14, False, marks=pytest.mark.slow), (MAJOR, True)])
def test_a_lost_slot_is_named_and_a_resync_goes_on_behind_a_gap(
    major: int, by_size: bool, make_server: MakeServer, server_dir: Path
) -> None:
    """Goal: old history readable, the gap refused everywhere, the new history right, over a restart and an attach from
    the bucket. Method: while the page server is away tables are dropped, truncated, rewritten and made, a database
    vanishes, a tablespace comes; then the slot is lost. After the resync every page is compared.
    """
    primary = make_server(major, "primary", settings={"autovacuum": "off", "min_wal_size": "32MB"})
    primary.sql("create table kept as select i, repeat('x', 300) as filler from generate_series(1, 4000) i")
    primary.sql("create table dropped as select i from generate_series(1, 3000) i")
    primary.sql("create table shrunk as select i, repeat('y', 300) as filler from generate_series(1, 4000) i")
    primary.sql("create database gone")
    primary.sql("vacuum kept, shrunk")
    server = PageServerProcess(server_dir / "pageserver", settings=settings(server_dir / "bucket"))
    with server:
        timeline = follow(server, primary)
        primary.sql("insert into kept select i, 'second' from generate_series(4001, 5000) i")
        last = make_durable(server, primary, timeline)
        moment = primary.value('select to_char(clock_timestamp(), \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')')
        dropped = primary.value("select pg_relation_filenode('dropped')")
        with pytest.raises(AssertionError, match="not known to be lost"):
            server.pagectl("timeline", "resync", timeline)
        server.stop()
        change_everything(primary)
        lose_slot(primary, timeline, by_size=by_size)
        server.start()
        server.wait_for(lambda: bool(detail(server, timeline)["wal_source_error"]), 30, "a refusal")
        assert "pagectl timeline resync" in detail(server, timeline)["wal_source_error"]
        described = server.pagectl("timeline", "source", "show", timeline)
        assert described["slot_lost"]
        assert described["slot_state"] is None or described["slot_state"]["wal_status"] == "lost"
        samples = {name: value for name, value in server.metrics().items() if "slot_lost" in name}
        assert list(samples.values()) == [1.0]
        if by_size:
            # Its WAL is gone, and `source set` says so; where only the slot was dropped it would do.
            with pytest.raises(AssertionError, match="pagectl timeline resync"):
                server.pagectl("timeline", "source", "set", timeline, "--primary", primary.conninfo())
        before = detail(server, timeline)
        gap = resync(server, timeline, is_killed=not by_size)
        assert gap["from_lsn"] == before["last_record_lsn"]
        assert Lsn.parse(gap["from_lsn"]) >= Lsn.parse(last)
        primary.sql("insert into kept select i, 'third' from generate_series(9001, 9500) i")
        primary.sql("insert into shrunk select i, repeat('z', 300) from generate_series(1, 3000) i")
        primary.sql("vacuum shrunk")
        check_history(server, timeline, gap, dropped, moment)
        newest = make_durable(server, primary, timeline)
        assert server.logical_size(path_of(server, timeline)) > 0
        query = "select count(*) || ' ' || (to_regclass('dropped') is not null) from kept"
        assert restored_value(server, primary, timeline, server_dir / "old", last, query) == "5000 true"
        expected = primary.value(query)
        assert restored_value(server, primary, timeline, server_dir / "new", newest, query) == expected
        server.restart()
        check_history(server, timeline, gap, dropped, moment)
        primary.sql("checkpoint")
        primary.stop("fast")
        wait_for(server, timeline, end_of_log(primary))
        server.stop()
    (tenant,) = [path.name for path in (server_dir / "bucket" / "tenants").iterdir()]
    with PageServerProcess(server_dir / "other", settings=settings(server_dir / "bucket")) as other:
        other.pagectl("tenant", "create", tenant)
        check_history(other, timeline, gap, dropped, moment)
        report = verify(other, timeline, primary.data_dir)
        assert (report["different"], report["missing"], report["extra"], report["unsupported"]) == (0, 0, 0, 0), report
        assert other.pagectl("timeline", "source", "show", timeline)["gaps"] == [gap]
    report = other.pagectl("scrub", "--remote-storage", f"{{local_path='{server_dir / 'bucket'}'}}", "--deep")
    assert report["errors"] == [] and report["warnings"] == [], report


def resync(server: PageServerProcess, timeline: str, *, is_killed: bool) -> dict[str, str]:
    """Resynchronise a timeline, perhaps over a crash, and return its gap."""
    if is_killed:
        server.pagectl("timeline", "resync", timeline, "--no-wait")
        server.kill()
        server.start()

        def has_gap() -> bool:
            with contextlib.suppress(httpx.HTTPStatusError):  # the tenant is being loaded
                return bool(detail(server, timeline).get("gaps"))
            return False

        server.wait_for(has_gap, 60, "a gap")
        (gap,) = detail(server, timeline)["gaps"]
        wait_for(server, timeline, gap["to_lsn"])
    else:
        (gap,) = server.pagectl("timeline", "resync", timeline)["gaps"]
    return {str(key): str(value) for key, value in gap.items()}


def change_everything(primary: PostgresServer) -> None:
    primary.sql("drop table dropped")
    primary.sql("delete from shrunk where i > 100")
    primary.sql("vacuum shrunk")
    primary.sql("drop database gone")
    primary.sql("create database came")
    primary.sql("delete from kept where i between 10 and 2000")
    primary.sql("update kept set filler = 'in the gap' where i > 4500")
    primary.sql("create table fresh as select i from generate_series(1, 2000) i")


def check_history(server: PageServerProcess, timeline: str, gap: dict[str, str], dropped: str, moment: str) -> None:
    """The ends of a gap can be read; between them every way in refuses, naming both."""
    path = path_of(server, timeline)
    database = 5 if detail(server, timeline)["pg_version"] >= 15 else None
    key = None if database is None else Key.relation_block(RelTag(1663, database, int(dropped), 0), 0)
    inside = str(Lsn.parse(gap["from_lsn"]) + 8)
    checkpoint = Key.checkpoint()
    for lsn in (gap["from_lsn"], gap["to_lsn"]):
        server.api("GET", f"{path}/getpage?key={checkpoint}&lsn={lsn}")
        server.api("GET", f"{path}/keyspace?at_lsn={lsn}")
    if key is not None:
        server.api("GET", f"{path}/getpage?key={key}&lsn={gap['from_lsn']}")
        with contextlib.suppress(httpx.HTTPStatusError):
            server.api("GET", f"{path}/getpage?key={key}&lsn={gap['to_lsn']}")
            raise AssertionError("a page of a table that was dropped in the gap is there behind it")
    for ask in (
        f"getpage?key={checkpoint}&lsn={inside}",
        f"keyspace?at_lsn={inside}",
        f"get_timestamp_of_lsn?lsn={inside}",
        f"data_directory?lsn={inside}",
        f"get_lsn_by_timestamp?timestamp={moment}",
    ):
        answer = refused(server, f"{path}/{ask}")
        assert "gap of the timeline's history" in answer and gap["from_lsn"] in answer, answer
    branches = path.rpartition("/")[0]
    body = {"new_timeline_id": "b0" * 16, "ancestor_timeline_id": timeline, "ancestor_start_lsn": inside}
    refusal = httpx.post(f"{server.url}{branches}", json=body, timeout=60)
    assert refusal.status_code == 400 and "gap of the timeline's history" in refusal.text, refusal.text
    for number, lsn in enumerate((gap["from_lsn"], gap["to_lsn"])):
        at = f"b{number + 1}" * 16
        branch = server.api("POST", branches, {**body, "new_timeline_id": at, "ancestor_start_lsn": lsn})
        assert branch.get("gaps", []) == ([] if lsn == gap["from_lsn"] else [gap])
        server.api("GET", f"{path_of(server, at)}/keyspace?at_lsn={lsn}")
        server.api("DELETE", path_of(server, at))


def test_a_timeline_goes_on_from_a_promoted_standby_and_refuses_strangers(
    make_server: MakeServer, server_dir: Path, postgres_installation: Callable[[int], Installation]
) -> None:
    """Goal: `source set` after a fail-over; another cluster is refused, and then the old source runs again."""
    primary = make_server(MAJOR, "primary")
    primary.sql("create table t as select i from generate_series(1, 1000) i")
    stranger = make_server(MAJOR, "stranger")
    with PageServerProcess(server_dir / "pageserver", settings=settings(server_dir / "bucket")) as server:
        timeline = follow(server, primary)
        standby = make_standby(primary, server_dir / "standby", postgres_installation(MAJOR))
        try:
            with pytest.raises(AssertionError, match="system identifier"):
                server.pagectl("timeline", "source", "set", timeline, "--primary", stranger.conninfo())
            assert stranger.value("select count(*) from pg_replication_slots") == "0"
            primary.sql("insert into t values (2000)")
            make_durable(server, primary, timeline)
            lsn = primary.value("select pg_current_wal_flush_lsn()")
            standby_has = f"select pg_last_wal_replay_lsn() >= '{lsn}'"
            server.wait_for(lambda: standby.value(standby_has) == "True", 30, "the standby to catch up")
            primary.stop("immediate")
            standby.sql("select pg_promote()")
            standby.sql("insert into t values (3000)")
            described = server.pagectl("timeline", "source", "set", timeline, "--primary", standby.conninfo())
            assert described["error"] is None
            wait_for(server, timeline, standby.value("select pg_current_wal_flush_lsn()"))
            described = server.pagectl("timeline", "source", "show", timeline)
            assert (described["pg_tli"], described["flavour"]) == (2, "stock")
            retained = [value for name, value in server.metrics().items() if "slot_retained_bytes" in name]
            assert len(retained) == 1
            standby.sql("checkpoint")
            standby.stop("fast")
            wait_for(server, timeline, end_of_log(standby))
            report = verify(server, timeline, standby.data_dir)
            assert (report["different"], report["missing"], report["extra"]) == (0, 0, 0), report
        finally:
            if standby.is_running():
                standby.stop("immediate")


def make_standby(primary: PostgresServer, directory: Path, installation: Installation) -> PostgresServer:
    """Copy the primary and follow it."""
    empty_directory_for_server(directory)
    primary.program("pg_basebackup", "-D", str(directory), "-R", "-X", "stream", "-d", primary.conninfo())
    standby = PostgresServer(primary.major, directory, installation=installation)
    standby.settings["hot_standby"] = "on"
    standby.start()
    return standby


def test_the_slot_of_a_deleted_timeline_retains_nothing(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: a deletion does not fill the primary's disk later. Method: delete a timeline, and a tenant with another
    one, and look at the primary; then delete one whose primary is stopped.
    """
    count = "select count(*) from pg_replication_slots"
    primary = make_server(MAJOR)
    with PageServerProcess(server_dir / "pages") as server:
        first = follow(server, primary)
        assert primary.value(count) == "1"
        server.pagectl("timeline", "delete", first, "--yes")
        server.wait_for(lambda: primary.value(count) == "0", 30, "slot that was dropped")

        server.pagectl("timeline", "create", "--primary", primary.conninfo())
        (tenant,) = server.api("GET", "/v1/tenant")
        assert primary.value(count) == "1"
        server.pagectl("tenant", "delete", tenant["id"], "--yes")
        assert primary.value(count) == "0"

        last = follow(server, primary)
        primary.stop("immediate")
        server.pagectl("timeline", "delete", last, "--yes")
        (tenant,) = server.api("GET", "/v1/tenant")
        server.wait_for(lambda: server.api("GET", f"/v1/tenant/{tenant['id']}/timeline") == [], 30, "end of it")
        assert f"pageserver_{last}" in server.log_path.read_text()
        assert "could not be dropped" in server.log_path.read_text()
