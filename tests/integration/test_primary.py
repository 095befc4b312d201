"""A real primary over the replication protocol: facts, refusals, slots, base backups, the stream of WAL."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pageserver.keyspace.key import INIT_FORK
from pageserver.lsn import Lsn
from pageserver.wal.base_backup_stream import BaseBackupStream
from pageserver.wal.data_directory import DataDirectory, Spool, scan_data_directory
from pageserver.wal.primary import PrimaryConnection, check_conninfo
from pageserver.wal.source_errors import (
    PrimaryBehindError,
    SlotInUseError,
    SlotMissingError,
    SourceRefusedError,
    SourceSettingError,
    SourceUnavailableError,
    UnknownTimelineError,
)
from pageserver.wal.wal_stream import WalStream
from tests.postgres.server import PostgresServer

MAJORS = (14, 15, 16, 17, 18)


def connect(server: PostgresServer, **more: str) -> PrimaryConnection:
    return PrimaryConnection.connect(server.conninfo(**more), application_name="test", timeout_seconds=5)


def take_backup(connection: PrimaryConnection, root: Path) -> tuple[BaseBackupStream, DataDirectory]:
    spool = Spool(root)
    backup = BaseBackupStream(connection, label="it's a test", on_bytes=lambda _: None)
    for archive in backup.archives():
        spool.take_all(archive.members, tablespace=archive.tablespace.oid)
        if archive.tablespace.oid is not None:
            spool.tablespaces[archive.tablespace.oid] = archive.tablespace.location
    return backup, scan_data_directory(root, tablespaces=spool.tablespaces, tolerant=True)


@pytest.mark.parametrize("major", MAJORS)
def test_a_base_backup_brings_everything_that_has_a_key(major: int, server_dir: Path) -> None:
    """Goal: nothing of a cluster is lost or wrongly kept. Method: one of everything, backup, scan, compare."""
    with PostgresServer(major, server_dir / "data") as server:
        space = server_dir / "data" / "space_outside"
        space.mkdir()
        server._own(space)
        space.chmod(0o700)
        server.sql(f"CREATE TABLESPACE space LOCATION '{space}'")
        server.sql("CREATE TABLE in_space TABLESPACE space AS SELECT generate_series(1, 5000) AS a")
        server.sql("CREATE UNLOGGED TABLE unlogged (a int); INSERT INTO unlogged VALUES (1)")
        server.sql("CREATE DATABASE other")
        server.psql("BEGIN; CREATE TABLE prepared (a int); PREPARE TRANSACTION 'open';")
        node = {name: int(server.value(f"SELECT pg_relation_filenode('{name}')")) for name in ("in_space", "unlogged")}
        space_oid = int(server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'"))
        database_oid = int(server.value("SELECT oid FROM pg_database WHERE datname = 'postgres'"))
        blocks = int(server.value("SELECT pg_relation_size('in_space') / 8192"))
        with connect(server) as connection:
            assert connection.read_facts().major == major
            backup, found = take_backup(connection, server_dir / "spool")
        assert backup.end is not None and backup.start.lsn < backup.end.lsn

        by_id = {(db.tablespace, db.database): db for db in found.databases}
        assert len([key for key in by_id if key[0] == 1663]) == 4
        assert by_id[1664, 0].relmap is not None
        assert by_id[space_oid, database_oid].relations[node["in_space"]][0].blocks == blocks
        assert set(by_id[1663, database_oid].relations[node["unlogged"]]) == {INIT_FORK}
        assert dict(found.tablespaces) == {space_oid: str(space)}
        assert len(found.twophase) == 1
        assert found.twophase[0][1][:4] == (0x57F94534).to_bytes(4, "little")
        assert int.from_bytes(found.twophase[0][1][4:8], "little") == len(found.twophase[0][1]) + 4
        assert f"START WAL LOCATION: {backup.start.lsn}" in (found.backup_label or "")
        assert list(found.databases) == sorted(found.databases, key=lambda db: (db.tablespace, db.database))


@pytest.mark.parametrize("major", [14, 15, 18])
def test_slots_are_made_kept_and_dropped(major: int, server_dir: Path) -> None:
    with PostgresServer(major, server_dir / "data") as server, connect(server) as connection:
        assert connection.create_physical_slot("ours")
        assert not connection.create_physical_slot("ours")
        if major >= 15:
            slot = connection.read_slot("ours")
            assert slot is not None and slot.restart_lsn is not None
            assert connection.read_slot("theirs") is None
        assert connection.drop_slot("ours")
        assert not connection.drop_slot("ours")
        with pytest.raises(SlotMissingError):
            connection.start_replication(slot="ours", start=Lsn(0x1000028), pg_tli=1)
        with pytest.raises(UnknownTimelineError):
            connection.timeline_history(9)


async def test_a_stream_brings_wal_and_its_status_moves_the_slot(server_dir: Path) -> None:
    """Goal: restart_lsn follows the flush position only. Method: report, then look at pg_replication_slots."""
    with PostgresServer(16, server_dir / "data") as server, connect(server) as connection:
        connection.create_physical_slot("ours")
        slot = connection.read_slot("ours")
        assert slot is not None and slot.restart_lsn is not None
        start = slot.restart_lsn
        server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a")
        end = Lsn.parse(server.value("SELECT pg_current_wal_flush_lsn()"))
        assert connection.start_replication(slot="ours", start=start, pg_tli=1) is None
        stream = WalStream(connection, start=start, now_microseconds=lambda: round(time.time() * 1e6))
        wal = b""
        while stream.received_lsn < end:
            wal += (await stream.receive(timeout_seconds=10)).wal
        assert start + len(wal) == stream.received_lsn

        await stream.send_status(write=end, flush=Lsn(0), apply=end, reply_requested=True)
        assert (await stream.receive(timeout_seconds=10)).server_end is not None
        assert server.value("SELECT restart_lsn FROM pg_replication_slots") == str(start)
        await stream.send_status(write=end, flush=end, apply=end, reply_requested=True)
        assert (await stream.receive(timeout_seconds=10)).server_end is not None
        assert server.value("SELECT restart_lsn FROM pg_replication_slots") == str(end)

        with connect(server) as second, pytest.raises(SlotInUseError):
            second.start_replication(slot="ours", start=end, pg_tli=1)
        assert await stream.finish(timeout_seconds=10) is None


async def test_a_start_ahead_of_the_primary_is_refused(server_dir: Path) -> None:
    with PostgresServer(15, server_dir / "data") as server, connect(server) as connection:
        connection.start_replication(slot=None, start=Lsn(0x500000028), pg_tli=1)
        stream = WalStream(connection, start=Lsn(0x500000028), now_microseconds=lambda: 0)
        with pytest.raises(PrimaryBehindError):
            await stream.receive(timeout_seconds=10)


def test_wal_level_minimal_is_named(server_dir: Path) -> None:
    """The replication login itself fails there, so the reason is looked up over an ordinary connection."""
    settings = {"wal_level": "minimal", "max_wal_senders": "0"}
    with (
        PostgresServer(16, server_dir / "data", settings=settings) as server,
        pytest.raises(SourceRefusedError, match=r"wal_level = minimal and max_wal_senders = 0"),
    ):
        connect(server)


def test_another_segment_size_is_named(server_dir: Path) -> None:
    server = PostgresServer(16, server_dir / "data")
    server.initdb("--wal-segsize=64")
    with server, connect(server) as connection, pytest.raises(SourceSettingError, match="wal_segment_size = 64MB"):
        connection.read_facts()


def test_a_role_without_replication_is_named(server_dir: Path) -> None:
    with PostgresServer(16, server_dir / "data") as server:
        server.sql("CREATE ROLE plain LOGIN")
        with pytest.raises(SourceRefusedError, match="role plain has no right to replicate"):
            connect(server, user="plain")


@pytest.mark.parametrize("more", [{}, {"password": "wrong"}])
def test_a_password_that_is_missing_or_wrong_is_asked_for_at_the_page_server(
    more: dict[str, str], server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(server_dir / "absent"))
    server = PostgresServer(16, server_dir / "data")
    server.initdb()
    lines = ("host all postgres 127.0.0.1/32 trust", "host all,replication locked 127.0.0.1/32 scram-sha-256")
    (server.data_dir / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))
    with server:
        server.sql("CREATE ROLE locked LOGIN REPLICATION PASSWORD 'right'")
        with pytest.raises(SourceUnavailableError, match=r"password.*PGPASSFILE"):
            connect(server, user="locked", **more)


def test_a_primary_that_is_away_is_not_refused_for_good() -> None:
    with pytest.raises(SourceUnavailableError):
        PrimaryConnection.connect("host=127.0.0.1 port=1", application_name="test", timeout_seconds=2)


def test_connection_strings_are_stored_without_secrets() -> None:
    assert conninfo_to_dict(check_conninfo("host=a  user=b replication=true")) == {"host": "a", "user": "b"}
    assert conninfo_to_dict(check_conninfo("postgresql://b@a:5433/db"))["port"] == "5433"
    for secret in ("password=x", "sslpassword=x"):
        with pytest.raises(SourceRefusedError, match="holds a"):
            check_conninfo(f"host=a {secret}")
    with pytest.raises(SourceRefusedError, match="does not parse"):
        check_conninfo("host")
    with pytest.raises(SourceRefusedError, match="zero byte"):
        check_conninfo("host=a\0 port=1")
