"""From a data directory on disk to planned image layers: order, sizes, what is left out."""

from __future__ import annotations

import io
import re
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest

from pageserver import _core
from pageserver.keyspace.aux_files import aux_file_key, decode_aux_files
from pageserver.keyspace.directories import (
    decode_database_directory,
    decode_relation_directory,
    decode_size,
    decode_slru_directory,
    decode_twophase_directory,
)
from pageserver.keyspace.key import MAX_KEY, MIN_KEY, Key, RelTag, SlruKind
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.relation_files import RelationFileNameError
from pageserver.postgres.two_phase import TwoPhaseFileError, TwoPhaseFileIncompleteError
from pageserver.wal.data_directory import DataDirectory, DataDirectoryError, Spool, scan_data_directory
from pageserver.wal.image_import import Piece, pieces_of, plan_layers
from pageserver.wal.tar_stream import Closing, TarReader

PAGE = 8192
CHECKPOINT = bytes(16) + b"\x01" + bytes(range(71))


def control_file() -> bytes:
    raw = bytearray(288)
    raw[0:8] = (42).to_bytes(8, "little")
    raw[12:16] = (202307071).to_bytes(4, "little")
    raw[40:128] = CHECKPOINT
    return (bytes(raw) + _core.crc32c(bytes(raw)).to_bytes(4, "little")).ljust(PAGE, b"\0")


def twophase_file() -> bytes:
    body = (0x57F94534).to_bytes(4, "little") + (24).to_bytes(4, "little") + b"transaction "
    return body + _core.crc32c(body).to_bytes(4, "little")


FILES: dict[str, bytes] = {
    "PG_VERSION": b"16\n",
    "backup_label": b"START WAL LOCATION: 0/2000028\n",
    "tablespace_map": b"16400 /srv/with\\\\slash\n",
    "global/pg_control": control_file(),
    "global/pg_filenode.map": b"shared map",
    "global/1262": b"d" * PAGE,
    "global/pg_internal.init": b"cache",
    "base/5/PG_VERSION": b"16\n",
    "base/5/pg_filenode.map": b"map of 5",
    "base/5/1259": b"c" * 3 * PAGE,
    "base/5/1259_vm": b"v" * PAGE,
    "base/5/16390": b"u" * PAGE,
    "base/5/16390_init": b"",
    "base/5/t3_16391": b"t" * PAGE,
    "base/5/16392": b"",
    "base/pgsql_tmp/pgsql_tmp1.0": b"x",
    "pg_tblspc/16400/PG_16_202307071/5/16393": b"s" * 2 * PAGE,
    "pg_xact/0000": b"x" * 2 * PAGE,
    "pg_multixact/offsets/0000": b"o" * PAGE,
    "pg_multixact/members/0001": b"m" * PAGE,
    "pg_subtrans/0000": b"n" * PAGE,
    "pg_twophase/000002E5": twophase_file(),
    "pg_wal/000000010000000000000002": b"w" * PAGE,
    "pg_replslot/slot/state": b"slot",
    "postgresql.conf": b"port = 1\n",
    "postmaster.pid": b"1\n",
}


def spooled(root: Path, files: dict[str, bytes], *, tolerant: bool = True, strict: bool = False) -> DataDirectory:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    spool = Spool(root, strict=strict)
    spool.take_all(TarReader([out.getvalue()], closing=Closing.ZERO_BLOCKS), tablespace=None)
    return scan_data_directory(root, tablespaces=spool.tablespaces, tolerant=tolerant)


def all_pieces(root: Path, files: dict[str, bytes]) -> list[Piece]:
    directory = spooled(root, files)
    return list(pieces_of(directory, control=ControlFile(directory.control_file), pg_version=16))


def values(pieces: list[Piece]) -> dict[Key, bytes]:
    return {Key(piece[1]): piece[2] for piece in pieces if len(piece) == 3}


def test_only_what_has_a_key_is_spooled(tmp_path: Path) -> None:
    spooled(tmp_path, FILES)
    present = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    left_out = {
        "global/pg_internal.init",
        "base/5/PG_VERSION",
        "base/5/t3_16391",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "pg_subtrans/0000",
        "pg_wal/000000010000000000000002",
        "pg_replslot/slot/state",
        "postgresql.conf",
        "postmaster.pid",
    }
    assert set(FILES) - present == left_out


def test_directories_and_sizes_tell_what_was_found(tmp_path: Path) -> None:
    found = values(all_pieces(tmp_path, FILES))
    assert decode_database_directory(found[Key.database_directory()]) == {
        (1663, 5): True,
        (1664, 0): True,
        (16400, 5): False,
    }
    assert decode_relation_directory(found[Key.relation_directory(1663, 5)]) == {
        (1259, 0),
        (1259, 2),
        (16390, 3),  # Unlogged: only its init fork.
        (16392, 0),
    }
    assert found[Key.relmap(1663, 5)] == b"map of 5"
    assert decode_size(found[Key.relation_size(RelTag(1663, 5, 1259))]) == 3
    assert decode_size(found[Key.relation_size(RelTag(1663, 5, 16390, 3))]) == 0
    assert decode_slru_directory(found[Key.slru_directory(SlruKind.MULTIXACT_MEMBERS)]) == {1}
    assert decode_twophase_directory(found[Key.twophase_directory()], 16) == {0x2E5}
    assert found[Key.twophase_file(0x2E5)] == twophase_file()[:-4]
    assert found[Key.checkpoint()] == CHECKPOINT
    key = aux_file_key("pg_tblspc/16400")
    assert decode_aux_files(found[key]) == [("pg_tblspc/16400", b"/srv/with\\slash")]


def test_pieces_ascend_and_layers_hold_about_one_size(tmp_path: Path) -> None:
    pieces = all_pieces(tmp_path, FILES)
    assert all(left[1] < right[1] for left, right in pairwise(pieces))
    layers = list(plan_layers(pieces, layer_size_bytes=2 * PAGE))
    assert all(layer.size_bytes <= 2 * PAGE or len(layer.pieces) == 1 for layer in layers)
    assert all(left.key_end <= right.key_start for left, right in pairwise(layers))
    blocks = sum(piece[4] for layer in layers for piece in layer.pieces if len(piece) == 5)
    assert blocks == sum(piece[4] for piece in pieces if len(piece) == 5)
    assert layers[-1].key_start.is_sparse()
    assert not layers[-2].key_end.is_sparse()


@pytest.mark.parametrize("size", [PAGE, 2 * PAGE, 1 << 30])
def test_layers_may_cover_the_whole_key_space_without_a_hole(tmp_path: Path, size: int) -> None:
    """Goal: behind a gap no search goes past the images (docs/decisions/0008)."""
    pieces = all_pieces(tmp_path, FILES)
    layers = list(plan_layers(pieces, layer_size_bytes=size, whole_key_space=True))
    assert (layers[0].key_start, layers[-1].key_end) == (MIN_KEY, MAX_KEY)
    assert all(left.key_end == right.key_start for left, right in pairwise(layers))
    usual = list(plan_layers(pieces, layer_size_bytes=size))
    assert [layer.pieces for layer in layers] == [layer.pieces for layer in usual]
    assert all(
        wide.key_start <= narrow.key_start < narrow.key_end <= wide.key_end
        for wide, narrow in zip(layers, usual, strict=True)
    )


def test_a_long_file_is_cut_at_the_right_offsets(tmp_path: Path) -> None:
    (layer,) = {
        layer.key_start: layer
        for layer in plan_layers(all_pieces(tmp_path, FILES), layer_size_bytes=PAGE)
        if layer.key_start == Key.relation_block(RelTag(1663, 5, 1259), 2)
    }.values()
    assert layer.pieces[0][2:] == (str(tmp_path / "base/5/1259"), 2 * PAGE, 1)


def test_segments_behind_a_short_one_do_not_count_while_the_server_ran(tmp_path: Path) -> None:
    files = {**FILES, "base/5/1259.1": b"z" * PAGE}
    directory = spooled(tmp_path, files)
    (database,) = [db for db in directory.databases if (db.tablespace, db.database) == (1663, 5)]
    assert database.relations[1259][0].blocks == 3
    with pytest.raises(DataDirectoryError, match="missing or too short"):
        scan_data_directory(tmp_path, tablespaces={}, tolerant=False)


def test_half_a_block_is_an_error_unless_the_server_ran(tmp_path: Path) -> None:
    files = {**FILES, "base/5/16392": b"z" * (PAGE + 100)}
    directory = spooled(tmp_path, files)
    (database,) = [db for db in directory.databases if (db.tablespace, db.database) == (1663, 5)]
    assert database.relations[16392][0].blocks == 1
    with pytest.raises(DataDirectoryError, match="not a multiple"):
        scan_data_directory(tmp_path, tablespaces={}, tolerant=False)


@pytest.mark.parametrize("kept", [0, 5, 12])
def test_a_two_phase_file_that_was_being_written_is_left_to_its_record(tmp_path: Path, kept: int) -> None:
    files = {**FILES, "pg_twophase/000002E6": twophase_file()[:kept]}
    assert [xid for xid, _ in spooled(tmp_path, files).twophase] == [0x2E5]
    with pytest.raises(TwoPhaseFileIncompleteError, match="000002E6"):
        scan_data_directory(tmp_path, tablespaces={}, tolerant=False)


def test_a_two_phase_file_under_its_temporary_name_is_passed_over(tmp_path: Path) -> None:
    directory = spooled(tmp_path, {**FILES, "pg_twophase/000002E6.tmp": b"half"}, tolerant=False)
    assert [xid for xid, _ in directory.twophase] == [0x2E5]


def test_a_two_phase_file_with_a_wrong_crc_is_an_error_also_if_the_server_ran(tmp_path: Path) -> None:
    damaged = twophase_file()[:-1] + b"?"
    with pytest.raises(TwoPhaseFileError, match="CRC"):
        spooled(tmp_path, {**FILES, "pg_twophase/000002E6": damaged})


def test_half_a_page_of_an_slru_is_left_to_the_wal_unless_the_server_was_stopped(tmp_path: Path) -> None:
    directory = spooled(tmp_path, {**FILES, "pg_xact/0000": b"x" * (PAGE + PAGE // 2)})
    assert [segment.pages for segment in directory.slru_segments if "pg_xact" in segment.path] == [1]
    with pytest.raises(DataDirectoryError, match="invalid length"):
        scan_data_directory(tmp_path, tablespaces={}, tolerant=False)


def test_a_copy_without_control_file_is_refused(tmp_path: Path) -> None:
    files = {name: data for name, data in FILES.items() if name != "global/pg_control"}
    with pytest.raises(DataDirectoryError, match="pg_control file not found"):
        spooled(tmp_path, files)


@pytest.mark.parametrize("name", ["../outside", "base/../../outside"])
def test_members_outside_of_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataDirectoryError, match="outside"):
        spooled(tmp_path / "spool", {name: b"x"})


@pytest.mark.parametrize(
    ("text", "lsn"),
    [
        (b"PREV LSN: 0/1F79038", Lsn(0x1F79038)),
        (b" PREV LSN: 0/1F79038\n", Lsn(0x1F79038)),
        (b"PREV LSN: none", None),
        (b"PREV LSN: invalid", None),
        (b"", DataDirectoryError),
        (b"PREV LSN: 1F79038", DataDirectoryError),
        (b"0/1F79038", DataDirectoryError),
    ],
)
@pytest.mark.parametrize("name", ["neon.signal", "zenith.signal"])
def test_the_signal_file_says_what_came_before(
    tmp_path: Path, name: str, text: bytes, lsn: Lsn | type[Exception] | None
) -> None:
    """tenants.md 10.1, 26.32."""
    if isinstance(lsn, type):
        with pytest.raises(lsn, match="signal"):
            spooled(tmp_path, {**FILES, name: text})
    else:
        assert spooled(tmp_path, {**FILES, name: text}).prev_record_lsn == lsn


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pg_tblspc/16400/PG_16_202307071/5/16393", "Importing pg_tblspc is not implemented"),
        ("pg_tblspc/16400", "Importing pg_tblspc is not implemented"),
        ("global/pg_internal.init", "invalid relation data file name: 'pg_internal.init'"),
        ("base/5/pg_internal.init", "invalid relation data file name: 'pg_internal.init'"),
        ("base/5/t3_16393", "invalid relation data file name: 't3_16393'"),
        ("base/5/16393_odd", "invalid relation fork name: '16393_odd'"),
        ("base/5/odd", "invalid relation data file name: 'odd'"),
    ],
)
def test_a_copy_of_neons_tools_holds_nothing_else(tmp_path: Path, name: str, message: str) -> None:
    """tenants.md 10.1, 26.31: files that are no relations, and tablespaces, fail the import."""
    # Nothing that belongs to a copy of a stock server.
    files = {path: data for path, data in FILES.items() if not path.startswith("pg_tblspc/") and "/t" not in path}
    files = {path: data for path, data in files.items() if not path.endswith("pg_internal.init")}
    files |= {".hidden": b"x", "base/5/.hidden": b"x", "global/PG_VERSION": b"16", "base/5/PG_VERSION": b"16"}
    spooled(tmp_path / "good", files, tolerant=False, strict=True)
    with pytest.raises((DataDirectoryError, RelationFileNameError), match=re.escape(message)):
        spooled(tmp_path / "bad", {**files, name: b""}, tolerant=False, strict=True)
