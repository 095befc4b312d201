"""What leaves the server as a data directory: restores that start, comparisons that notice, full backups."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import MakeServer
from tests.page_server import PageServerProcess
from tests.ports import free_port
from tests.postgres.server import PostgresServer, unprivileged_user

MAJOR = 16


@pytest.fixture
def followed(make_server: MakeServer, server_dir: Path) -> Iterator[tuple[PostgresServer, PageServerProcess, str]]:
    """A small primary with checksums and a tablespace, followed by a page server: (primary, server, timeline id)."""
    primary = make_server(MAJOR, "primary", checksums=True)
    space = server_dir / "space"
    space.mkdir()
    if (user := unprivileged_user()) is not None:
        subprocess.run(["chown", user, str(space)], check=True)
    primary.sql(f"create tablespace elsewhere location '{space}'")
    primary.sql("create table t (id int primary key, text text)")
    primary.sql("create unlogged table u (id int primary key)")
    primary.sql("create table far (id int) tablespace elsewhere")
    primary.sql("insert into t select i, repeat('x', i % 100) from generate_series(1, 5000) i")
    with PageServerProcess(server_dir / "pageserver") as server:
        server.pagectl("tenant", "create")
        info = server.pagectl("timeline", "create", "--primary", primary.conninfo())
        yield primary, server, info["timeline_id"]


def wait_for(server: PageServerProcess, timeline: str, lsn: str) -> None:
    def number(text: str) -> int:
        high, low = text.split("/")
        return int(high, 16) << 32 | int(low, 16)

    server.wait_for(
        lambda: number(server.pagectl("timeline", "detail", timeline)["last_record_lsn"]) >= number(lsn), 60, lsn
    )


def verify(server: PageServerProcess, timeline: str, pgdata: Path) -> dict[str, int]:
    command = [sys.executable, "-m", "pageserver.cli.pagectl", "--url", server.url, "verify", "--json"]
    done = subprocess.run(
        [*command, "--timeline", timeline, "--pgdata", str(pgdata)], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    report: dict[str, int] = json.loads(done.stdout)
    return report


def test_an_unmodified_server_starts_in_the_past_and_checksums_hold(
    followed: tuple[PostgresServer, PageServerProcess, str], server_dir: Path
) -> None:
    """Goal: restore at an LSN and at a moment. Method: change the table afterwards; the restored servers have the old
    rows, also those of a mapped tablespace, unlogged tables are empty, and page checksums are right.
    """
    primary, server, timeline = followed
    primary.sql("insert into far values (1), (2)")
    primary.sql("insert into u values (1)")
    lsn = primary.value("select pg_current_wal_insert_lsn()")
    moment = primary.value("select clock_timestamp()::text")
    primary.sql("delete from t where id > 10")
    primary.sql("insert into far values (3)")
    wait_for(server, timeline, primary.value("select pg_current_wal_flush_lsn()"))
    location = primary.value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'")
    run_as = ["--run-as", user] if (user := unprivileged_user()) is not None else []
    mapping = ["--tablespace-mapping", f"{location}={server_dir / 'mapped'}"]
    for name, at in (("by-lsn", ["--lsn", lsn, *mapping]), ("by-time", ["--time", moment.replace(" ", "T")])):
        directory, port = server_dir / name, free_port()
        start = ["--start", str(port), "--pg-bin", str(primary.installation.bin), *run_as]
        server.pagectl("restore", "--timeline", timeline, "--to", str(directory), *at, *start)
        restored = PostgresServer(MAJOR, directory, installation=primary.installation, port=port)
        try:
            with psycopg.connect(restored.conninfo(), autocommit=True) as session:
                counts = [session.execute(f"select count(*) from {table}").fetchone() for table in ("t", "far", "u")]
                assert counts == [(5000,), (2,), (0,)], name
                session.execute("insert into u values (7)")
                session.execute("insert into far values (9)")
        finally:
            restored.program("pg_ctl", "-D", str(directory), "-m", "fast", "-w", "stop")
        restored.program("pg_checksums", "--check", "-D", str(directory))


def test_a_restore_that_breaks_off_leaves_nothing(
    followed: tuple[PostgresServer, PageServerProcess, str], server_dir: Path
) -> None:
    """Goal: no half-written directory can be started. Method: an unknown tablespace mapping, a non-empty target, and an
    LSN that is not readable are refused and leave no directory behind.
    """
    _, server, timeline = followed
    occupied = server_dir / "occupied"
    occupied.mkdir()
    (occupied / "file").write_text("mine")
    before = sorted(server_dir.iterdir())
    lsn = server.pagectl("timeline", "detail", timeline)["last_record_lsn"]
    for arguments, complaint in (
        (["--lsn", lsn, "--to", str(occupied)], "not an empty directory"),
        (["--lsn", lsn, "--to", str(server_dir / "new"), "--tablespace-mapping", "/no=/tmp/x"], "no tablespace has"),
        (["--lsn", "0/100", "--to", str(server_dir / "new")], "the first one that can be read"),
        (["--lsn", lsn, "--tli", "1", "--to", str(server_dir / "new")], "not above"),
    ):
        with pytest.raises(AssertionError, match=complaint):
            server.pagectl("restore", "--timeline", timeline, *arguments)
    assert sorted(server_dir.iterdir()) == before
    assert (occupied / "file").read_text() == "mine"


def test_verify_counts_one_flipped_tuple_byte(followed: tuple[PostgresServer, PageServerProcess, str]) -> None:
    """Goal: a comparison that cannot be fooled. Method: clean at first; then one byte of a tuple, a missing file and an
    extra one are each found.
    """
    primary, server, timeline = followed
    primary.sql("checkpoint")
    path = primary.data_dir / primary.value("select pg_relation_filepath('t')")
    primary.stop("fast")
    clean = verify(server, timeline, primary.data_dir)
    assert (clean["different"], clean["missing"], clean["extra"], clean["unsupported"]) == (0, 0, 0, 0)
    assert clean["equal"] > 500
    content = bytearray(path.read_bytes())
    content[2 * 8192 - 1 - content[8192:16384][::-1].index(ord("x"))] ^= 0x01
    path.write_bytes(content)
    assert verify(server, timeline, primary.data_dir)["different"] == 1
    path.write_bytes(content[:-8192])
    assert verify(server, timeline, primary.data_dir)["missing"] == 1
    path.with_name("99999").write_bytes(content[:8192])
    assert verify(server, timeline, primary.data_dir)["extra"] == 1


def test_a_full_backup_starts_after_pg_resetwal(
    followed: tuple[PostgresServer, PageServerProcess, str], server_dir: Path
) -> None:
    """Goal: checklist 56 of page-service.md. Method: take it over the page service, reset the WAL, start, count."""
    primary, server, timeline = followed
    primary.sql("drop table far")
    primary.sql("drop tablespace elsewhere")
    wait_for(server, timeline, primary.value("select pg_current_wal_flush_lsn()"))
    (tenant,) = server.api("GET", "/v1/tenant")
    with (
        psycopg.connect(f"host=127.0.0.1 port={server.pg_port} user=x", autocommit=True) as session,
        session.cursor().copy(f"fullbackup {tenant['id']} {timeline}") as copy,
    ):
        archive = b"".join(bytes(piece) for piece in copy)
    directory = server_dir / "full"
    with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
        names = reader.getnames()
        reader.extractall(directory)
    assert names[-2:] == ["global/pg_control", names[-1]]
    assert names[-1].startswith("pg_wal/0000000100000000")
    (directory / "postgresql.conf").write_text("")
    directory.chmod(0o700)
    if (user := unprivileged_user()) is not None:
        subprocess.run(["chown", "-R", user, str(directory)], check=True)
    restored = PostgresServer(MAJOR, directory, installation=primary.installation)
    tools = restored.program("pg_controldata", "-D", str(directory)).stdout
    assert "shut down" in tools
    restored.program("pg_resetwal", "-D", str(directory))
    with restored:
        assert restored.value("select count(*) from t") == "5000"
