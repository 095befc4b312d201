"""Keys, relation tags, predicates, ranges (spec keyspace.md 2-4; checklist 1-4, 16)."""

from __future__ import annotations

import pytest

from pageserver.errors import InternalError
from pageserver.keyspace.key import (
    AUX_FILE_RANGE,
    MAX_KEY,
    MIN_KEY,
    NOT_INHERITED_DENSE_RANGE,
    ORIGIN_RANGE,
    InvalidKeyError,
    Key,
    KeyParseError,
    RelTag,
    RelTagParseError,
    SlruKind,
    database_range,
    relation_directory_v2_range,
    relation_range,
    slru_segment_range,
)

REL = RelTag(1663, 5, 16396)
MEMBERS, OFFSETS, CLOG = SlruKind.MULTIXACT_MEMBERS, SlruKind.MULTIXACT_OFFSETS, SlruKind.CLOG


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (Key.relation_block(REL, 7), "000000067F000000050000400C0000000007"),
        (Key.relmap(1663, 5), "000000067F00000005000000000000000000"),
        (Key.relmap(1664, 0), "000000068000000000000000000000000000"),
        (Key.relation_directory(1663, 5), "000000067F00000005000000000000000001"),
        (Key.relation_size(REL), "000000067F000000050000400C00FFFFFFFF"),
        (Key.relation_block(REL.with_fork(1), 2), "000000067F000000050000400C0100000002"),
        (Key.slru_directory(CLOG), "010000000000000000000000000000000000"),
        (Key.slru_directory(MEMBERS), "010000000100000000000000000000000000"),
        (Key.slru_directory(OFFSETS), "010000000200000000000000000000000000"),
        (Key.slru_block(CLOG, 0, 3), "010000000000000001000000000000000003"),
        (Key.slru_segment_size(CLOG, 0), "0100000000000000010000000000FFFFFFFF"),
        (Key.slru_block(OFFSETS, 0x1A, 5), "0100000002000000010000001A0000000005"),
        (Key.twophase_file(0x2E5), "0200000000000000000000000000000002E5"),
        (Key.twophase_file(0x0000000A000002E4), "020000000000000000000000000A000002E4"),
        (Key.twophase_file(0x0123456789ABCDEF), "020000000000000000000123456789ABCDEF"),
        (Key.control_file(), "030000000000000000000000000000000000"),
        (Key.checkpoint(), "030000000000000000000000000000000001"),
        (Key.replication_origin(7), "630000000000000000000000000000000007"),
        (Key.relation_directory_v2(REL), "650000067F000000050000400C0000000001"),
        (Key.relation_directory_v2(REL.with_fork(2)), "650000067F000000050000400C0200000001"),
    ],
)
def test_keys_of_every_kind_have_the_bytes_of_the_map(key: Key, text: str) -> None:
    assert str(key) == text
    assert Key.parse(text.lower()) == key


def test_key_text_of_another_length_is_refused() -> None:
    for bad in ("0" * 35, "0" * 37, "g" * 36, ""):
        with pytest.raises(KeyParseError, match="parse error"):
            Key.parse(bad)
    with pytest.raises(KeyParseError):
        Key(bytes(17))


def test_the_key_after_a_size_is_block_0_of_the_next_fork() -> None:
    assert Key.relation_size(REL).next() == Key.relation_block(REL.with_fork(1), 0)
    assert Key.of(0, 1, 2, 0xFFFFFFFF, 0xFF, 0xFFFFFFFF).next() == Key.of(0, 1, 3, 0, 0, 0)
    with pytest.raises(InternalError):
        MAX_KEY.next()


def test_compact_form_drops_the_high_half_of_field2() -> None:
    key = Key.relation_block(REL, 7)
    assert f"{key.to_compact():032X}" == "00067F000000050000400C0000000007"
    assert Key.from_compact(key.to_compact()) == key
    assert MAX_KEY.to_compact() == (1 << 127) - 1
    with pytest.raises(InvalidKeyError, match="invalid key"):
        Key.of(0, 0x10000, 5).to_compact()
    assert Key.from_compact(Key.of(0, 0xFFFFFFFF).to_compact()).field2 == 0xFFFF
    assert Key.from_compact(Key.of(0, 0x22222222).to_compact()).field2 == 0x2222


@pytest.mark.parametrize(
    ("rel", "text"),
    [
        (RelTag(1663, 208101, 2620, 1), "1663/208101/2620_fsm"),
        (REL, "1663/5/16396"),
        (REL.with_fork(2), "1663/5/16396_vm"),
        (REL.with_fork(3), "1663/5/16396_init"),
    ],
)
def test_relation_text_names_the_fork(rel: RelTag, text: str) -> None:
    assert str(rel) == text
    assert RelTag.parse(text) == rel
    assert RelTag.from_bytes(bytes(rel)) == rel


def test_relation_text_may_end_in_a_fork_number() -> None:
    assert RelTag.parse("1663/208101/2620.1") == RelTag.parse("1663/208101/2620_1") == RelTag(1663, 208101, 2620, 1)
    assert str(RelTag(1, 2, 3, 9)) == "1/2/3_UNKNOWN FORKNUM"
    assert bytes(RelTag(1663, 5, 16396, 2)).hex() == "020000067f000000050000400c"
    for bad in ("1663/5", "1663/5/a", "1663/5/1_x", "1663/5/1_", "1663/5/4294967296", "1/2/3/4", "-1/2/3"):
        with pytest.raises(RelTagParseError):
            RelTag.parse(bad)
    assert RelTag(1, 2, 3, 3) < RelTag(1, 2, 4, 0) < RelTag(1, 3, 0, 0)


def test_predicates_tell_the_kinds_apart() -> None:
    block, size = Key.relation_block(REL, 7), Key.relation_size(REL)
    assert block.is_relation_block() and block.is_data() and not block.is_relation_size()
    assert size.is_relation_size() and not size.is_relation_block() and not size.is_data()
    assert Key.relation_directory(1663, 5).is_relation_directory()
    assert not Key.relation_directory(1664, 0).is_relation_directory()
    assert not Key.relation_directory(1663, 5).is_relation_block()
    assert Key.relation_block(REL.with_fork(1), 0).is_fsm_block()
    assert Key.relation_block(REL.with_fork(2), 0).is_vm_block()
    assert Key.slru_block(CLOG, 0, 3).is_slru_block() and Key.slru_block(CLOG, 0, 3).is_data()
    assert Key.slru_segment_size(CLOG, 0).is_slru_segment_size() and not Key.slru_segment_size(CLOG, 0).is_slru_block()
    assert Key.slru_directory(MEMBERS).is_slru_directory() and not Key.slru_block(CLOG, 0, 0).is_slru_directory()
    assert Key.of(0x60).is_sparse() and not Key.of(0x5F).is_sparse() and not Key.of(0x7F).is_sparse()
    assert block.relation() == REL


def test_branches_inherit_all_but_aux_files_and_origins() -> None:
    assert not Key.of(0x62, 1).is_inherited()
    assert not Key.replication_origin(1).is_inherited()
    assert not Key.aux_files_v1().is_inherited()
    assert Key.relation_directory_v2(REL).is_inherited() and Key.checkpoint().is_inherited()
    assert Key.aux_files_v1() in NOT_INHERITED_DENSE_RANGE and Key.checkpoint() not in NOT_INHERITED_DENSE_RANGE


def test_ranges_hold_what_they_name() -> None:
    assert str(ORIGIN_RANGE.end) == "630000000000000000000000000000010000"
    assert Key.replication_origin(0xFFFF) in ORIGIN_RANGE
    assert Key.of(0x62, 0xFFFF, 1, 2, 3, 4) in AUX_FILE_RANGE
    assert Key.relation_directory_v2(REL) in relation_directory_v2_range(1663, 5)
    assert Key.relation_directory_v2(REL) not in relation_directory_v2_range(1663, 6)
    assert Key.relation_size(REL) in relation_range(REL) and Key.relation_size(REL).next() not in relation_range(REL)
    assert Key.relmap(1663, 5) in database_range(1663, 5) and Key.relation_size(REL) in database_range(1663, 5)
    assert Key.slru_segment_size(CLOG, 1) in slru_segment_range(CLOG, 1)
    assert Key.database_directory() == MIN_KEY
