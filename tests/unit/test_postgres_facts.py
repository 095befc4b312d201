"""Control file, checkpoint, WAL segments, file names (spec wal.md 6, 10, 11; page-service.md 6; stock.md 3)."""

from __future__ import annotations

import struct

import pytest

from pageserver import _core
from pageserver.errors import CorruptDataError
from pageserver.keyspace.key import RelTag
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.checkpoint import Checkpoint, CheckpointDecodeError
from pageserver.postgres.control_file import ClusterState, ControlFile, ControlFileError
from pageserver.postgres.relation_files import (
    RelationFile,
    RelationFileNameError,
    is_temporary,
    parse_file_name,
    parse_relation_path,
    parse_slru_file_name,
    relation_path,
    slru_file_name,
)
from pageserver.postgres.replication_origins import (
    OriginCheckpointError,
    decode_origin_checkpoint,
    encode_origin_checkpoint,
)
from pageserver.postgres.timeline_history import (
    HistoryEntry,
    TimelineHistoryError,
    branch_history,
    encode_history,
    parse_history,
    timeline_at,
)
from pageserver.postgres.two_phase import (
    TwoPhaseFileError,
    decode_twophase_file,
    encode_twophase_file,
    parse_twophase_file_name,
    twophase_file_name,
)
from pageserver.postgres.versions import (
    VERSIONS,
    UnsupportedVersionError,
    postgres_version,
    version_of_catalog,
)
from pageserver.postgres.wal_segment import (
    LsnInPageHeaderError,
    basebackup_segment,
    restore_checkpoint,
    restore_position,
    restore_segments,
    segment_file_name,
    shutdown_checkpoint_record,
)

CONTROL_15 = bytes.fromhex(
    "67e36782600b6665 14050000 25770d0c 01000000 00000000 610b666500000000 90eb4a0100000000"
    "90eb4a0100000000 01000000 01000000 01 00000000000000 d402000000000000 80320000 01000000 00000000 cc020000"
    "01000000 01000000 01000000 00000000 610b666500000000 00000000 00000000 00000000 00000000"
    "e803000000000000 0000000000000000 00000000 00000000 0000000000000000 0000000000000000 00 000000 01000000 00 000000"
    "64000000 08000000 0a000000 00000000 40000000 00 000000 08000000 0000000087d63241 00200000 00000200"
    "00200000 00000001"
    "40000000 20000000 cc070000 00080000 01 000000 00000000"
    "c75572206d51b84e8a9b5db8a897a937b029e351a2eba357d90a696ae3d12a05 a85818ef 00000000"
)
SYSTEM_IDENTIFIER = 0x6543210FEDCBA987


def control_18() -> bytes:
    """A control file of 18 as ``initdb`` makes it, with the CRC at 292."""
    raw = bytearray(CONTROL_15.ljust(8192, b"\0"))
    struct.pack_into("<II", raw, 8, 1800, 202506291)
    raw[256] = 1
    struct.pack_into("<I", raw, 252, 1)
    struct.pack_into("<I", raw, 292, _core.crc32c(bytes(raw[:292])))
    return bytes(raw)


def test_a_real_control_file_is_read() -> None:
    control = ControlFile(CONTROL_15)
    assert control.version.major == 15
    assert control.system_identifier == 0x65660B608267E367
    assert control.state == ClusterState.SHUTDOWNED
    assert control.check_point == control.checkpoint.redo == 0x14AEB90
    assert (control.max_connections, control.wal_level, control.wal_segment_size) == (100, 1, WAL_SEGMENT_SIZE)
    assert not control.has_data_checksums and not control.logs_hint_bits
    checkpoint = control.checkpoint
    assert (checkpoint.next_xid, checkpoint.next_oid, checkpoint.oldest_xid) == (724, 12928, 716)
    assert len(control.raw) == 8192
    assert ControlFile(control.raw + b"more") == control


def test_a_control_file_of_18_has_its_crc_later() -> None:
    control = ControlFile(control_18())
    assert control.version.major == 18 and control.logs_hint_bits
    again = control.replaced(state=ClusterState.IN_PRODUCTION)
    assert ControlFile(again.raw).state == ClusterState.IN_PRODUCTION
    assert again.raw[296:] == bytes(8192 - 296)


def test_a_damaged_control_file_is_refused() -> None:
    with pytest.raises(ControlFileError, match="too short"):
        ControlFile(CONTROL_15[:295])
    damaged = bytearray(CONTROL_15)
    damaged[100] ^= 1
    with pytest.raises(ControlFileError, match=r"invalid CRC in control file: expected [0-9A-F]{8}, was EF1858A8"):
        ControlFile(bytes(damaged))
    with pytest.raises(UnsupportedVersionError, match="unrecognized catalog version 7"):
        version_of_catalog(7)
    with pytest.raises(UnsupportedVersionError, match="13"):
        postgres_version(13)


def test_a_base_backup_gets_a_control_file_without_checkpoint_pointer() -> None:
    control = ControlFile(CONTROL_15)
    tracked = control.checkpoint.replaced(next_xid=2048)
    exported = control.for_basebackup(tracked, Lsn(0x1FFE000))
    assert exported.check_point == 0 and exported.state == 1
    assert exported.checkpoint == tracked.replaced(redo=0x1FFE018)
    assert exported.raw[:16] == control.raw[:16] and exported.raw[128:288] == control.raw[128:288]
    assert struct.unpack_from("<I", exported.raw, 288)[0] == _core.crc32c(exported.raw[:288])


def test_a_restore_gets_a_control_file_of_a_clean_shutdown() -> None:
    control = ControlFile(CONTROL_15).replaced(state=6, min_recovery_point=7, backup_end_required=1)
    checkpoint = restore_checkpoint(control.checkpoint, Lsn(0x14AEC08), timeline_id=2)
    restored = control.for_restore(checkpoint)
    assert restored.check_point == restored.checkpoint.redo == 0x14AEC08
    assert (restored.state, restored.min_recovery_point, restored.backup_end_required) == (1, 0, 0)
    assert restored.unlogged_lsn == 1000
    assert restored.checkpoint.this_timeline_id == restored.checkpoint.previous_timeline_id == 2


def test_structures_change_only_what_is_named() -> None:
    checkpoint = ControlFile(CONTROL_15).checkpoint
    changed = checkpoint.replaced(next_oid=24576)
    assert [at for at in range(88) if changed.raw[at] != checkpoint.raw[at]] == [32, 33]
    with pytest.raises(AttributeError):
        checkpoint.replaced(nextOid=1)
    with pytest.raises(AttributeError, match="immutable"):
        checkpoint.raw = b""
    with pytest.raises(struct.error):
        checkpoint.replaced(next_oid=-1)


def test_checkpoint_must_have_88_bytes() -> None:
    assert Checkpoint(bytes(88)).next_xid == 0
    for size in (0, 87, 89):
        with pytest.raises(CheckpointDecodeError):
            Checkpoint(bytes(size))
    with pytest.raises(CheckpointDecodeError):
        Checkpoint(bytes(16) + b"\x02" + bytes(71))


def test_next_xid_moves_forward_in_steps() -> None:
    """Vectors of wal.md 6."""
    checkpoint = Checkpoint(bytes(88)).replaced(next_xid=10)
    seen = []
    for xid in (100, 500, 1023, 1024):
        checkpoint = checkpoint.with_xid(xid)
        seen.append(checkpoint.next_xid)
    assert seen == [1024, 1024, 1024, 2048]
    wrapping = Checkpoint(bytes(88)).replaced(next_xid=0x5_FFFF_FC00).with_xid(0xFFFF_FFF0)
    assert wrapping.next_xid == 0x6_0000_0000
    assert wrapping.with_xid(3).next_xid == 0x6_0000_0400


def test_next_multixact_moves_forward_only() -> None:
    """Vectors of wal.md 6."""

    def step(start: tuple[int, int], *moves: tuple[int, int]) -> tuple[int, int]:
        checkpoint = Checkpoint(bytes(88)).replaced(next_multi=start[0], next_multi_offset=start[1])
        for move in moves:
            checkpoint = checkpoint.with_multixact(*move)
        return checkpoint.next_multi, checkpoint.next_multi_offset

    assert step((20, 20), (1000, 2000)) == step((20, 20), (1000, 2000), (500, 900)) == (1000, 2000)
    assert step((0xFFFF0000, 0xFFFE0000), (1, 900)) == (1, 900)
    assert step((0xFFFF0000, 0xFFFE0000), (0, 0xFFFE00FF)) == (0, 0xFFFE00FF)


def test_full_xid_takes_the_epoch_of_next_xid() -> None:
    checkpoint = Checkpoint(bytes(88)).replaced(next_xid=0x5_0000_0400)
    assert checkpoint.full_xid(0x3FF) == 0x5_0000_03FF
    assert checkpoint.full_xid(0xFFFF_FFF0) == 0x4_FFFF_FFF0
    with pytest.raises(CheckpointDecodeError, match=r"apparent XID wraparound .* XID 1000, nextXid is 500"):
        Checkpoint(bytes(88)).replaced(next_xid=500).full_xid(1000)


def test_base_backup_segment_of_15() -> None:
    segment = basebackup_segment(Lsn(0x16B9188), system_identifier=SYSTEM_IDENTIFIER, version=VERSIONS[15])
    assert segment.name == "000000010000000000000001"
    assert len(segment.content) == WAL_SEGMENT_SIZE
    first = bytes.fromhex("10d10200 01000000 0000000100000000 00000000 00000000 87a9cbed0f214365 00000001 00200000")
    second = bytes.fromhex("10d1 0100 01000000 00806b0100000000 70110000 00000000")
    assert segment.content[:40] == first
    assert segment.content[0x6B8000 : 0x6B8000 + 24] == second
    assert not any(segment.content[40:0x6B8000]) and not any(segment.content[0x6B8018:])


def test_base_backup_segment_with_the_lsn_on_its_first_page() -> None:
    segment = basebackup_segment(Lsn(0x1000150), system_identifier=SYSTEM_IDENTIFIER, version=VERSIONS[17])
    want = bytes.fromhex("16d1 0300 01000000 0000000100000000 28010000 00000000 87a9cbed0f214365 00000001 00200000")
    assert segment.content[:40] == want and not any(segment.content[40:])
    at_start = basebackup_segment(Lsn(0x1000000), system_identifier=SYSTEM_IDENTIFIER, version=VERSIONS[17])
    assert at_start.content[2:4] == b"\x02\x00" and at_start.content[16:20] == bytes(4)
    at_page = basebackup_segment(Lsn(0x1002000), system_identifier=SYSTEM_IDENTIFIER, version=VERSIONS[17])
    assert at_page.content[0x2002:0x2004] == bytes(2) and at_page.content[0x2010:0x2014] == bytes(4)
    for inside in (0x1000001, 0x1000027, 0x1002001, 0x1002017):
        with pytest.raises(LsnInPageHeaderError):
            basebackup_segment(Lsn(inside), system_identifier=SYSTEM_IDENTIFIER, version=VERSIONS[17])


def read_record(segments: list[bytes], start: Lsn) -> bytes:
    """Read the record at ``start`` as PostgreSQL does: skip page headers, check their flags and remaining lengths."""
    base, log = start.segment_start(), b"".join(segments)
    at, record, total = start, b"", 0
    while not total or len(record) < total:
        if at % 8192 == 0:
            info, address, rest = struct.unpack_from("<2xH4xQI", log, at - base)
            assert address == at
            assert info & 1 and rest == total - len(record) if total else True
            at += 40 if at % WAL_SEGMENT_SIZE == 0 else 24
            assert bool(info & 2) == (address % WAL_SEGMENT_SIZE == 0)
        room = 8192 - at % 8192
        piece = log[at - base : at - base + room]
        if not total:
            total = int.from_bytes(piece[:4], "little")
        piece = piece[: total - len(record)]
        record, at = record + piece, at + len(piece)
    return record


@pytest.mark.parametrize("offset", [0x2000, 0x0, 0x3FF8, 0x3FE8, 0x3F90, 0x3F88, 0xFFFFF8, 0xFFFF90, 0xFFFFA0, 0x5A18])
def test_restore_segments_hold_one_checkpoint_wherever_it_lies(offset: int) -> None:
    """Goal: the record can be read back at any position. Method: positions that split pages, segments and headers."""
    lsn = Lsn(0x7000000 + offset)
    checkpoint = restore_checkpoint(ControlFile(CONTROL_15).checkpoint, lsn, timeline_id=3)
    segments = restore_segments(checkpoint, system_identifier=SYSTEM_IDENTIFIER, version=VERSIONS[15])
    position = Lsn(checkpoint.redo)
    record = read_record([segment.content for segment in segments], position)
    assert record == shutdown_checkpoint_record(checkpoint)
    assert len(record) == 114 and record[24:26] == b"\xff\x58" and record[26:] == checkpoint.raw
    assert record[20:24] == _core.crc32c(record[:20], _core.crc32c(record[24:])).to_bytes(4, "little")
    crosses = position + 114 > position.segment_start() + WAL_SEGMENT_SIZE
    names = ["000000030000000000000007", "000000030000000000000008"]
    assert [segment.name for segment in segments] == names[: 1 + crosses]
    for segment in segments:
        assert segment.content[4:8] == bytes((3, 0, 0, 0))


def test_restore_position_counts_page_headers_as_the_page_start() -> None:
    assert restore_position(Lsn(0x7000000)) == restore_position(Lsn(0x7000010)) == 0x7000028
    assert restore_position(Lsn(0x7002000)) == restore_position(Lsn(0x7002017)) == restore_position(Lsn(0x7002018))
    assert restore_position(Lsn(0x7002018)) == 0x7002018
    assert restore_position(Lsn(0x7002019)) == 0x7002020


def test_segment_names() -> None:
    assert segment_file_name(1, 1) == "000000010000000000000001"
    assert segment_file_name(0x1A, 0x1FF) == "0000001A00000001000000FF"


def test_versions_differ_where_they_should() -> None:
    assert [version.relmap_size for version in VERSIONS.values()] == [512, 512, 524, 524, 524]
    assert [len(version.data_directories) for version in VERSIONS.values()] == [22, 22, 22, 23, 23]
    assert VERSIONS[17].data_directories[2] == "pg_wal/summaries"
    assert [version.neon_version_file for version in VERSIONS.values()][:3] == [b"14", b"15", b"16\n"]
    assert VERSIONS[14].version_file == b"14\n"


@pytest.mark.parametrize(
    ("path", "rel", "segment"),
    [
        ("global/1262", RelTag(1664, 0, 1262), 0),
        ("base/5/16384.3", RelTag(1663, 5, 16384), 3),
        ("base/5/16384_vm", RelTag(1663, 5, 16384, 2), 0),
        ("base/5/16384_fsm.1", RelTag(1663, 5, 16384, 1), 1),
        ("base/5/16384_init", RelTag(1663, 5, 16384, 3), 0),
        ("pg_tblspc/16400/PG_15_202209061/5/16401", RelTag(16400, 5, 16401), 0),
    ],
)
def test_relation_paths_round_trip(path: str, rel: RelTag, segment: int) -> None:
    assert parse_relation_path(path) == RelationFile(rel, segment)
    assert relation_path(rel, VERSIONS[15], segment) == path
    assert RelationFile(rel, segment).first_block == segment * 131072


def test_other_paths_are_told_apart() -> None:
    assert parse_relation_path("pg_xact/0000") is None
    assert parse_relation_path("postgresql.conf") is None
    assert parse_file_name("0") == (0, 0, 0)
    for name in ("pg_filenode.map", "16384_", "16384.x", "t3_16384", "4294967296", "1.40000", "PG_VERSION"):
        with pytest.raises(RelationFileNameError):
            parse_file_name(name)
    with pytest.raises(RelationFileNameError, match="invalid relation fork name"):
        parse_file_name("16384_abc")
    assert is_temporary("t3_16384") and is_temporary("t3_16384_fsm") and not is_temporary("16384")


def test_slru_file_names() -> None:
    assert (slru_file_name(0x1A), slru_file_name(0x14078)) == ("001A", "14078")
    assert (parse_slru_file_name("001A"), parse_slru_file_name("14078")) == (0x1A, 0x14078)
    assert parse_slru_file_name("1A") is None and parse_slru_file_name("001a") is None


def test_twophase_files_gain_and_lose_their_crc() -> None:
    value = bytes.fromhex("34 45 f9 57") + (24).to_bytes(4, "little") + bytes(12)
    on_disk = encode_twophase_file(value)
    assert len(on_disk) == 24
    assert decode_twophase_file(on_disk, "000002E5") == decode_twophase_file(value, "000002E5") == value
    for damaged in (on_disk[:-1] + bytes([on_disk[-1] ^ 1]), on_disk + b"\0", value[:-1], b""):
        with pytest.raises(TwoPhaseFileError):
            decode_twophase_file(damaged, "000002E5")
    assert twophase_file_name(0x2E5, VERSIONS[16]) == "000002E5"
    assert twophase_file_name(0xA000002E4, VERSIONS[17]) == "0000000A000002E4"
    assert parse_twophase_file_name("000002E5") == 0x2E5
    with pytest.raises(CorruptDataError):
        parse_twophase_file_name("x")


def test_origin_checkpoint_is_the_documented_bytes() -> None:
    origins = {1: Lsn(0x16B9188)}
    raw = bytes.fromhex("deda5712 0100 000000000000 88916b0100000000 7a648f9d")
    assert encode_origin_checkpoint(origins) == raw
    assert decode_origin_checkpoint(raw) == origins
    for damaged in (raw[:-1], bytes(24), raw[:-1] + b"\0", b""):
        with pytest.raises(OriginCheckpointError):
            decode_origin_checkpoint(damaged)


def test_timeline_history_is_followed_and_extended() -> None:
    text = "1\t0/3000000\tno recovery target specified\n\n# comment\n2\t0/5000000\tbefore 2025\n"
    entries = parse_history(text)
    assert entries == [
        HistoryEntry(1, Lsn(0x3000000), "no recovery target specified"),
        HistoryEntry(2, Lsn(0x5000000), "before 2025"),
    ]
    assert [timeline_at(entries, 3, Lsn(lsn)) for lsn in (0x3000000, 0x3000001, 0x5000001)] == [1, 2, 3]
    assert branch_history(entries, 3, Lsn(0x4000000), reason="restored") == [
        entries[0],
        HistoryEntry(2, Lsn(0x4000000), "restored"),
    ]
    assert encode_history(entries[:1]) == "1\t0/3000000\tno recovery target specified\n"
    for bad in ("x\t0/1\n", "1\n", "2\t0/1\ta\n1\t0/2\tb\n"):
        with pytest.raises(TimelineHistoryError):
            parse_history(bad)
