"""Our facts about PostgreSQL, checked on real servers of all five majors (spec stock.md 3; wal.md 10)."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.timeline_history import branch_history, encode_history, history_file_name
from pageserver.postgres.two_phase import decode_twophase_file, encode_twophase_file, parse_twophase_file_name
from pageserver.postgres.versions import VERSIONS
from pageserver.postgres.wal_segment import restore_checkpoint, restore_segments
from tests.conftest import MakeServer
from tests.postgres.server import PostgresServer

MAJORS = sorted(VERSIONS)


def control_of(data_dir: Path) -> ControlFile:
    return ControlFile((data_dir / "global/pg_control").read_bytes())


@pytest.mark.parametrize("major", MAJORS)
def test_initdb_agrees_with_the_table_of_versions(major: int, make_server: MakeServer) -> None:
    version = VERSIONS[major]
    server = make_server(major, checksums=major == 18, start=False)
    control = control_of(server.data_dir)
    assert control.version == version
    assert control.control_version == version.control_version
    assert control.has_data_checksums == (major == 18)
    assert control.check_point == control.checkpoint.redo
    assert (server.data_dir / "PG_VERSION").read_bytes() == version.version_file
    assert (server.data_dir / "base/1/PG_VERSION").read_bytes() == version.version_file
    assert (server.data_dir / "global/pg_filenode.map").stat().st_size == version.relmap_size
    existing = {str(path.relative_to(server.data_dir)) for path in server.data_dir.rglob("*") if path.is_dir()}
    expected = set(version.data_directories) | {"pg_wal"}
    assert {path for path in existing if not path.startswith("base/")} == {p for p in expected if p != "base/1"}
    segment = (server.data_dir / "pg_wal/000000010000000000000001").read_bytes()
    magic, _, timeline_id, address = struct.unpack_from("<HHIQ", segment)
    assert (magic, timeline_id, address) == (version.wal_magic, 1, WAL_SEGMENT_SIZE)


def page_split(lsn: Lsn) -> Lsn:
    """A position from which the record runs over the end of a page, its header split."""
    return Lsn(lsn.page_start() + 3 * 8192 - 8)


def segment_split(lsn: Lsn) -> Lsn:
    """A position from which the record runs over the end of a segment."""
    return Lsn(lsn.segment_start() + WAL_SEGMENT_SIZE - 40)


def page_boundary(lsn: Lsn) -> Lsn:
    return Lsn(lsn.page_start() + 2 * 8192)


POSITIONS = {14: page_split, 15: segment_split, 16: page_boundary, 17: page_split, 18: segment_split}


@pytest.mark.parametrize("major", MAJORS)
def test_an_unmodified_server_starts_at_a_made_up_checkpoint(major: int, make_server: MakeServer) -> None:
    """Goal: stock.md 3. Method: replace the WAL of a cleanly stopped server with one record somewhere else, start, use
    it.
    """
    server = make_server(major, checksums=major >= 17, start=False)
    with server:
        server.sql("create table t as select g from generate_series(1, 1000) g")
        with server.connect() as connection:
            connection.execute("begin")
            connection.execute("insert into t values (1001)")
            connection.execute("prepare transaction 'left open'")
    check_twophase_files(server)
    start_elsewhere(server, POSITIONS[major])
    with server:
        assert server.value("select count(*) from t") == "1000"
        server.sql("commit prepared 'left open'")
        assert server.value("select count(*) from t") == "1001"
        server.sql("insert into t select g from generate_series(1002, 2000) g; checkpoint; insert into t values (2001)")
        server.crash()
        server.start()
        assert server.value("select count(*) from t") == "2001"
        assert server.value("select timeline_id from pg_control_checkpoint()") == "2"


def check_twophase_files(server: PostgresServer) -> None:
    (path,) = (server.data_dir / "pg_twophase").iterdir()
    content = path.read_bytes()
    value = decode_twophase_file(content, path.name)
    assert encode_twophase_file(value) == content
    assert len(path.name) == (16 if server.major >= 17 else 8)
    assert parse_twophase_file_name(path.name) > 2


def start_elsewhere(server: PostgresServer, position: Callable[[Lsn], Lsn]) -> None:
    control = control_of(server.data_dir)
    lsn = position(Lsn(control.check_point))
    assert lsn > control.check_point
    checkpoint = restore_checkpoint(control.checkpoint, lsn, timeline_id=2)
    owner = server.data_dir.stat()
    wal = server.data_dir / "pg_wal"
    for path in wal.iterdir():
        if path.is_file():
            path.unlink()
    files = {
        f"pg_wal/{segment.name}": segment.content
        for segment in restore_segments(
            checkpoint, system_identifier=control.system_identifier, version=control.version
        )
    }
    history = branch_history([], 1, lsn, reason="restored")
    files[f"pg_wal/{history_file_name(2)}"] = encode_history(history).encode()
    files["global/pg_control"] = control.for_restore(checkpoint).raw
    for name, content in files.items():
        path = server.data_dir / name
        path.write_bytes(content)
        path.chmod(0o600)
        shutil.chown(path, owner.st_uid, owner.st_gid)
