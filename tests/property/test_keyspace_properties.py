"""Properties of keys, directories, aux files and partitionings over random input."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageserver.errors import CorruptDataError
from pageserver.ids import ShardIdentity, TenantId, TenantShardId
from pageserver.keyspace.aux_files import decode_aux_files, encode_aux_files, update_aux_value
from pageserver.keyspace.directories import (
    decode_database_directory,
    decode_relation_directory,
    decode_slru_directory,
    decode_twophase_directory,
    encode_database_directory,
    encode_relation_directory,
    encode_slru_directory,
    encode_twophase_directory,
)
from pageserver.keyspace.key import Key, KeyRange, RelTag
from pageserver.keyspace.partition import fragment, partition
from pageserver.keyspace.ranges import KeySpace, page_count
from pageserver.keyspace.shard import is_disposable, shard_of_key
from pageserver.lsn import Lsn

u8, u32, u64 = st.integers(0, 0xFF), st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
keys = st.builds(Key.of, u8, u32, u32, u32, u8, u32)
small_keys = st.integers(0, 200).map(Key.from_compact)
identities = st.one_of(
    st.just(ShardIdentity.unsharded()),
    st.integers(1, 255).flatmap(
        lambda count: st.builds(ShardIdentity.new, st.integers(0, count - 1), st.just(count), st.integers(1, 4096))
    ),
)


@given(u64)
def test_lsn_texts_round_trip(value: int) -> None:
    lsn = Lsn(value)
    assert Lsn.parse(str(lsn)) == Lsn.from_hex(lsn.to_hex()) == lsn


@given(st.binary(min_size=18, max_size=18))
def test_tenant_shard_ids_round_trip_through_bytes(raw: bytes) -> None:
    shard = TenantShardId.from_bytes(raw)
    assert bytes(shard) == raw
    if shard.shard_count or not shard.shard_number:
        assert TenantShardId.parse(str(shard)) == shard
    assert shard.tenant_id == TenantId.parse(str(shard.tenant_id))


@given(keys, keys, u32)
def test_keys_order_as_their_fields_and_add_as_numbers(one: Key, other: Key, count: int) -> None:
    assert (one < other) == (one.fields < other.fields)
    assert Key.parse(str(one)) == one
    if one.field1 < 0xFF:
        assert int.from_bytes(one.add(count), "big") == int.from_bytes(one, "big") + count


@given(st.builds(Key.of, st.integers(0, 0x7F), st.integers(0, 0xFFFF), u32, u32, u8, u32))
def test_representable_keys_survive_the_compact_form(key: Key) -> None:
    assert Key.from_compact(key.to_compact()) == key


@given(st.dictionaries(st.tuples(u32, u32), st.booleans()), st.sets(st.tuples(u32, u8)), st.sets(u32), st.sets(u64))
def test_directories_round_trip(
    databases: dict[tuple[int, int], bool], relations: set[tuple[int, int]], small: set[int], large: set[int]
) -> None:
    assert decode_database_directory(encode_database_directory(databases)) == databases
    assert decode_relation_directory(encode_relation_directory(relations)) == relations
    assert decode_slru_directory(encode_slru_directory(small)) == small
    assert decode_twophase_directory(encode_twophase_directory(small, 14), 14) == small
    assert decode_twophase_directory(encode_twophase_directory(large, 18), 18) == large


@given(st.sets(st.tuples(u32, u8), min_size=1), st.data())
def test_a_shortened_directory_is_noticed(relations: set[tuple[int, int]], data: st.DataObject) -> None:
    value = encode_relation_directory(relations)
    with pytest.raises(CorruptDataError):
        decode_relation_directory(value[: data.draw(st.integers(0, len(value) - 1))])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.binary(max_size=4))))
def test_aux_values_agree_with_a_dictionary(puts: list[tuple[str, bytes]]) -> None:
    value, model = b"", dict[str, bytes]()
    for path, content in puts:
        value, existed = update_aux_value(value, path, content)
        assert existed == (path in model)
        model.pop(path, None)
        if content:
            model[path] = content
        assert dict(decode_aux_files(value)) == model
        assert bool(value) == bool(model)
        assert encode_aux_files(decode_aux_files(value)) == value


@given(st.binary(max_size=64))
def test_garbage_is_never_an_aux_value_by_accident(raw: bytes) -> None:
    try:
        files = decode_aux_files(raw)
    except CorruptDataError:
        return
    assert encode_aux_files(files) == raw or not files


small_ranges = st.tuples(small_keys, small_keys).map(lambda ends: KeyRange(min(ends), max(ends)))
small_spaces = st.lists(small_ranges).map(KeySpace.union)


@given(small_spaces, small_spaces)
def test_removing_overlaps_is_set_difference(left: KeySpace, right: KeySpace) -> None:
    rest, removed = left.remove_overlapping(right)
    for value in range(201):
        key = Key.from_compact(value)
        assert (key in rest) == (key in left and key not in right)
        assert (key in removed) == (key in left and key in right)


@settings(deadline=None)
@given(u32, st.integers(0, 5000), st.integers(0, 1000), st.integers(1, 500), identities)
def test_fragments_cover_a_range_in_local_pieces(
    relnode: int, start: int, length: int, target: int, identity: ShardIdentity
) -> None:
    rel = RelTag(1663, 5, relnode or 1)
    whole = KeyRange(Key.relation_block(rel, start), Key.relation_block(rel, start + length))
    pieces = fragment(whole, target, identity)
    cursor = whole.start
    for piece in pieces:
        assert piece.keys.start == cursor
        assert piece.local_pages == page_count(piece.keys, identity) <= target
        cursor = piece.keys.end
    assert cursor == whole.end
    total = page_count(whole, identity)
    assert sum(piece.local_pages for piece in pieces) == total
    if total:
        assert all(piece.local_pages for piece in pieces)
    else:
        assert len(pieces) <= 1
    parts = partition(KeySpace((whole,)), identity, target * 8192).parts
    assert [each for part in parts for each in part] == [piece.keys for piece in pieces]


@given(keys, st.integers(1, 15), st.integers(1, 15), st.integers(1, 4096))
def test_splitting_refines_the_mapping(key: Key, count: int, factor: int, stripe_size: int) -> None:
    """Goal: every key local to a child was local to its parent (checklist 36)."""
    coarse = shard_of_key(key, ShardIdentity.new(0, count, stripe_size))
    fine = shard_of_key(key, ShardIdentity.new(0, count * factor, stripe_size))
    assert fine % count == coarse


@given(keys, st.integers(2, 8))
def test_each_key_is_kept_somewhere(key: Key, count: int) -> None:
    kept = [n for n in range(count) if not is_disposable(key, ShardIdentity.new(n, count, 2048))]
    assert len(kept) in (1, count)
