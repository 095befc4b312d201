"""Directory values, sizes, origins, aux files (spec keyspace.md 5, 6; checklist 5-15)."""

from __future__ import annotations

import pytest

from pageserver.errors import CorruptDataError
from pageserver.keyspace.aux_files import (
    AuxFileDecodeError,
    aux_file_key,
    decode_aux_files,
    encode_aux_files,
    fnv1a_128,
    tablespace_path,
    tablespaces_of,
    update_aux_value,
)
from pageserver.keyspace.directories import (
    EMPTY_DIRECTORY,
    DirectoryDecodeError,
    decode_database_directory,
    decode_relation_directory,
    decode_relation_directory_v2,
    decode_replication_origin,
    decode_size,
    decode_slru_directory,
    decode_twophase_directory,
    encode_database_directory,
    encode_relation_directory,
    encode_replication_origin,
    encode_size,
    encode_slru_directory,
    encode_twophase_directory,
)
from pageserver.keyspace.key import Key, RelTag

DATABASES = bytes.fromhex("0000000000000002 0000067f 00000005 01 00000680 00000000 01")


def test_database_directory_is_the_documented_bytes() -> None:
    databases = {(1663, 5): True, (1664, 0): True}
    assert decode_database_directory(DATABASES) == databases
    assert encode_database_directory(databases) == DATABASES
    assert encode_database_directory({}) == EMPTY_DIRECTORY


def test_database_directory_may_come_in_any_order_and_the_later_entry_wins() -> None:
    swapped = DATABASES[:8] + DATABASES[17:] + DATABASES[8:17]
    assert decode_database_directory(swapped) == decode_database_directory(DATABASES)
    twice = bytes.fromhex("0000000000000002 0000067f 00000005 01 0000067f 00000005 00")
    assert decode_database_directory(twice) == {(1663, 5): False}


@pytest.mark.parametrize(
    "damaged",
    [DATABASES + b"\0", DATABASES[:-1], b"\0" * 7, DATABASES[:-1] + b"\x02", b"\xff" * 8 + DATABASES[8:]],
    ids=["trailing byte", "short", "no count", "boolean 2", "huge count"],
)
def test_a_damaged_database_directory_is_corrupt_data(damaged: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_database_directory(damaged)


def test_relation_and_slru_directories_are_the_documented_bytes() -> None:
    relations = bytes.fromhex("0000000000000002 0000400c 00 0000400c 01")
    assert decode_relation_directory(relations) == {(16396, 0), (16396, 1)}
    assert encode_relation_directory({(16396, 1), (16396, 0)}) == relations
    segments = bytes.fromhex("0000000000000002 00000000 00000001")
    assert decode_slru_directory(segments) == {0, 1}
    assert encode_slru_directory({1, 0}) == segments


def test_twophase_directory_has_wider_elements_from_17_on() -> None:
    old, new = bytes.fromhex("0000000000000001 000002e5"), bytes.fromhex("0000000000000001 0000000a000002e4")
    for version in (14, 15, 16):
        assert decode_twophase_directory(old, version) == {0x2E5}
        assert encode_twophase_directory({0x2E5}, version) == old
    for version in (17, 18):
        assert decode_twophase_directory(new, version) == {0x0000000A000002E4}
        assert encode_twophase_directory({0x0000000A000002E4}, version) == new
    with pytest.raises(DirectoryDecodeError):
        decode_twophase_directory(old, 17)
    with pytest.raises(DirectoryDecodeError):
        encode_twophase_directory({1 << 32}, 16)


def test_sizes_are_little_endian_and_origins_big_endian() -> None:
    assert encode_size(1).hex() == "01000000"
    assert decode_size(bytes.fromhex("01000000")) == 1
    assert decode_size(bytes.fromhex("0100000099")) == 1
    assert encode_replication_origin(0x16B3748).hex() == "00000000016b3748"
    assert decode_replication_origin(bytes.fromhex("00000000016b3748")) == 0x16B3748
    assert decode_replication_origin(bytes(8)) is None
    assert decode_replication_origin(b"") is None
    for damaged in (bytes(3), bytes(7)):
        with pytest.raises(DirectoryDecodeError):
            decode_replication_origin(damaged)
    with pytest.raises(DirectoryDecodeError):
        decode_size(bytes(3))


def test_relation_directory_v2_marks_with_an_r() -> None:
    rel = RelTag(1663, 5, 16396)
    found = [(bytes(Key.relation_directory_v2(rel)), b"r"), (bytes(Key.relation_directory_v2(rel.with_fork(2))), b"")]
    assert decode_relation_directory_v2(1663, 5, found) == {(16396, 0)}
    with pytest.raises(DirectoryDecodeError, match="invalid reldir key: decode failed"):
        decode_relation_directory_v2(1663, 5, [(bytes(Key.relation_directory_v2(rel)), b"x")])
    with pytest.raises(DirectoryDecodeError, match="is not of database"):
        decode_relation_directory_v2(1663, 6, found)
    with pytest.raises(DirectoryDecodeError, match="does not end in 1"):
        decode_relation_directory_v2(1663, 5, [(bytes(Key.of(0x65, 1663, 5, 16396, 0, 2)), b"r")])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 144066263297769815596495629667062367629),
        ("test1", 265160408618497461376862998434862070044),
        ("test/test2", 295486155126299629456360817749600553988),
    ],
)
def test_hash_follows_the_vectors(text: str, value: int) -> None:
    assert fnv1a_128(text.encode()) == value


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("pg_logical/mappings/test1", "62000001017F8B83D94F7081693471ABF91C"),
        ("pg_logical/snapshots/test2", "62000001027F8E83D94F7081693471ABFCCD"),
        ("pg_logical/replorigin_checkpoint", "62000001032E07BB014262B821756295C58D"),
        ("pg_logical/unsupported", "62000001FF4F38E1C74754E7D03C1A660178"),
        ("pg_replslot/test3", "62000002017F8D83D94F7081693471ABFB92"),
        ("pg_replslot/slot1/state", "620000020169708DCE2103D47F6431FACB3E"),
        ("pg_stat/pgstat.stat", "62000003014A14AF1BD3D02542B00AA75B8E"),
        ("other_file_not_supported", "620000FFFF2B6ECC8AEF93F643DC44F15E03"),
    ],
)
def test_aux_file_keys_follow_the_vectors(path: str, key: str) -> None:
    assert str(aux_file_key(path)) == key
    assert aux_file_key(path).is_aux_file()


AUX_VALUE = bytes.fromhex(
    "01 00000011 70675f6c6f676963616c2f312e66696c65 00000004 31313131"
    "00000011 70675f6c6f676963616c2f322e66696c65 00000004 32323232"
)


def test_aux_value_is_the_documented_bytes() -> None:
    files = [("pg_logical/1.file", b"1111"), ("pg_logical/2.file", b"2222")]
    assert decode_aux_files(AUX_VALUE) == files
    assert encode_aux_files(files) == AUX_VALUE
    assert encode_aux_files([]) == b""
    assert decode_aux_files(b"") == []


@pytest.mark.parametrize(
    "damaged", [b"\x02" + AUX_VALUE[1:], AUX_VALUE[:-1], AUX_VALUE + b"\0", b"\x01\0\0\0\x01\xff\0\0\0\0"]
)
def test_a_damaged_aux_value_is_corrupt_data(damaged: bytes) -> None:
    with pytest.raises(AuxFileDecodeError):
        decode_aux_files(damaged)


def test_paths_that_collide_live_together_and_die_apart() -> None:
    """Goal: two paths in one value are both kept, and deleting one keeps the other; the last leaves the tombstone."""
    value, existed = update_aux_value(None, "a", b"1")
    assert not existed
    value, existed = update_aux_value(value, "b", b"2")
    assert not existed
    value, existed = update_aux_value(value, "a", b"3")
    assert existed
    assert dict(decode_aux_files(value)) == {"a": b"3", "b": b"2"}
    value, existed = update_aux_value(value, "a", b"")
    assert existed
    assert decode_aux_files(value) == [("b", b"2")]
    value, existed = update_aux_value(value, "c", b"")
    assert not existed
    value, _ = update_aux_value(value, "b", b"")
    assert value == b""
    with pytest.raises(AuxFileDecodeError, match="2 times"):
        update_aux_value(encode_aux_files([("a", b"1"), ("a", b"2")]), "a", b"3")


def test_tablespaces_are_aux_files_of_ours() -> None:
    files = {tablespace_path(16400): b"/mnt/fast", "pg_stat/pgstat.stat": b"x"}
    assert tablespaces_of(files) == {16400: "/mnt/fast"}
    with pytest.raises(AuxFileDecodeError):
        tablespaces_of({"pg_tblspc/x": b"/mnt"})
