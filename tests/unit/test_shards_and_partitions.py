"""The key-to-shard hash, sets of keys, partitioning (spec keyspace.md 7, 9; checklist 29-32, 36-38)."""

from __future__ import annotations

import pytest

from pageserver.ids import ShardIdentity
from pageserver.keyspace.key import INIT_FORK, Key, KeyRange, RelTag, SlruKind
from pageserver.keyspace.partition import fragment, partition
from pageserver.keyspace.ranges import LARGE, KeySpace, contiguous_size, is_contiguous, page_count
from pageserver.keyspace.shard import (
    combine,
    is_disposable,
    is_global,
    is_local,
    murmur32,
    shard_of_block,
    shard_of_key,
)

UNSHARDED = ShardIdentity.unsharded()
ZERO_OF_FOUR = ShardIdentity.new(0, 4, 2048)
AE = RelTag(1663, 1, 0xAE)


def of_four(number: int) -> ShardIdentity:
    return ShardIdentity.new(number, 4, 2048)


def blocks(rel: RelTag, start: int, end: int) -> KeyRange:
    return KeyRange(Key.relation_block(rel, start), Key.relation_block(rel, end))


def test_hash_functions_follow_the_vectors() -> None:
    assert murmur32(0) == 0
    assert combine(0xB1FF3B40, 0) == 0xFB7923C9
    assert murmur32(0x400C) == 0xCB776F3E


@pytest.mark.parametrize(
    ("relnode", "block", "stripe_size", "count", "shard"),
    [
        (0x400C, 0x7D06, 32768, 10, 8),
        (0x400C, 0x7D06, 2048, 10, 1),
        (0xAE, 0, 2048, 4, 0),
        (0xAE, 2047, 2048, 4, 0),
        (0xAE, 2048, 2048, 4, 3),
        (0xAE, 4096, 2048, 4, 2),
        (0xAE, 6144, 2048, 4, 3),
        (0xAE, 8192, 2048, 4, 1),
        (16384, 0, 2048, 8, 4),
        (16384, 2048, 2048, 8, 7),
        (16384, 131071, 2048, 8, 4),
        (1259, 0, 2048, 2, 0),
        (1259, 1, 1, 2, 1),
        (2620, 0, 1, 2, 0),
        (2620, 1, 1, 2, 1),
        (2620, 2, 1, 2, 0),
        (2620, 3, 1, 2, 1),
        (0xFFFFFFFF, 0xFFFFFFFE, 2048, 255, 117),
    ],
)
def test_blocks_map_to_the_shards_of_the_vectors(
    relnode: int, block: int, stripe_size: int, count: int, shard: int
) -> None:
    assert shard_of_block(relnode, block, count=count, stripe_size=stripe_size) == shard
    key = Key.relation_block(RelTag(1663, 5, relnode), block)
    assert shard_of_key(key, ShardIdentity.new(0, count, stripe_size)) == shard


def test_init_forks_live_on_shard_zero() -> None:
    for relnode in (1, 0xAE, 16384):
        for block in (0, 2048, 99999):
            assert shard_of_key(Key.relation_block(RelTag(1663, 5, relnode, INIT_FORK), block), of_four(0)) == 0


def test_what_shard_one_may_throw_away() -> None:
    one = ShardIdentity.new(1, 2, 2048)
    for kind in SlruKind:
        for key in (Key.slru_directory(kind), Key.slru_segment_size(kind, 0), Key.slru_block(kind, 0, 0)):
            assert is_disposable(key, one) and not is_global(key)
    assert is_disposable(Key.of(0x62, 0, 1), one)
    assert is_disposable(Key.relation_block(RelTag(1663, 5, 1259, INIT_FORK), 0), one)
    for key in (
        Key.database_directory(),
        Key.relmap(1663, 5),
        Key.relation_directory(1663, 5),
        Key.relation_size(AE),
        Key.twophase_directory(),
        Key.twophase_file(7),
        Key.checkpoint(),
        Key.control_file(),
        Key.aux_files_v1(),
        Key.replication_origin(1),
        Key.relation_directory_v2(AE),
    ):
        assert is_global(key) and not is_disposable(key, one)


def test_nothing_is_disposable_without_sharding() -> None:
    for identity in (UNSHARDED, ShardIdentity.new(0, 1, 2048)):
        for key in (Key.slru_directory(SlruKind.CLOG), Key.relation_block(AE, 99999), Key.of(0x62)):
            assert is_local(key, identity) and not is_disposable(key, identity)


def compact(*pairs: tuple[int, int]) -> KeySpace:
    return KeySpace(tuple(KeyRange(Key.from_compact(start), Key.from_compact(end)) for start, end in pairs))


def pairs(keyspace: KeySpace) -> list[tuple[int, int]]:
    return [(keys.start.to_compact(), keys.end.to_compact()) for keys in keyspace]


def test_removing_overlaps_cuts_and_splits_ranges() -> None:
    rest, removed = compact((1, 4), (5, 8), (10, 12)).remove_overlapping(compact((2, 3), (6, 7), (11, 13)))
    assert pairs(rest) == [(1, 2), (3, 4), (5, 6), (7, 8), (10, 11)]
    assert pairs(removed) == [(2, 3), (6, 7), (11, 12)]
    rest, removed = compact((1, 3), (3, 6), (6, 10), (12, 15), (17, 20), (20, 30), (30, 40)).remove_overlapping(
        compact((9, 19))
    )
    assert pairs(rest) == [(1, 3), (3, 6), (6, 9), (19, 20), (20, 30), (30, 40)]
    assert pairs(removed) == [(9, 10), (12, 15), (17, 19)]


def test_accumulating_joins_what_touches() -> None:
    ordered = KeySpace.accumulate(compact((1, 3), (3, 6), (8, 8), (8, 9)))
    assert pairs(ordered) == [(1, 6), (8, 9)]
    anyhow = KeySpace.union([*compact((5, 9)), *compact((1, 3), (3, 6)), *compact((20, 20)), *compact((11, 12))])
    assert pairs(anyhow) == [(1, 9), (11, 12)]
    merged = compact((1, 3), (8, 9)).merge(compact((3, 5)))
    assert pairs(merged) == [(1, 5), (8, 9)]
    with pytest.raises(AssertionError):
        compact((1, 3)).merge(compact((2, 5)))


def test_membership_and_overlap_are_half_open() -> None:
    keyspace = compact((1, 3), (5, 8))
    inside = [value for value in range(10) if Key.from_compact(value) in keyspace]
    assert inside == [1, 2, 5, 6, 7]
    assert not keyspace.overlaps(compact((3, 5)).ranges[0])
    assert not keyspace.overlaps(compact((8, 9)).ranges[0])
    assert keyspace.overlaps(compact((2, 5)).ranges[0])
    assert keyspace.overlaps(compact((0, 100)).ranges[0])


@pytest.mark.parametrize(
    ("start", "end", "size"),
    [
        ("00fffffffe", "0100000003", None),
        ("00fffffffe", "0100000000", None),
        ("0000000000", "0000000080", 0x80),
        ("00ffffffff", "0100000080", 0x81),
    ],
)
def test_contiguous_ranges_lie_in_one_fork(start: str, end: str, size: int | None) -> None:
    prefix = "000000067F000000050000" + "04DF"
    keys = KeyRange(Key.parse(prefix + start), Key.parse(prefix + end))
    assert is_contiguous(keys) == (size is not None)
    if size is not None:
        assert contiguous_size(keys) == page_count(keys, UNSHARDED) == size
    else:
        assert page_count(keys, UNSHARDED) == LARGE


def test_page_counts_of_the_vectors() -> None:
    size_key = KeyRange.single(Key.parse("000000067f000000010000007000ffffffff"))
    assert page_count(size_key, of_four(1)) == 1
    assert [page_count(blocks(AE, 0, 1), of_four(n)) for n in range(4)] == [1, 0, 0, 0]
    assert [page_count(blocks(AE, 0, 20480), of_four(n)) for n in range(4)] == [6144, 4096, 2048, 8192]


def test_fragments_of_the_vectors() -> None:
    def cut(keys: KeyRange, target: int, identity: ShardIdentity = ZERO_OF_FOUR) -> list[tuple[int, int, int]]:
        return [
            (piece.local_pages, piece.keys.start.field6, piece.keys.end.field6)
            for piece in fragment(keys, target, identity)
        ]

    assert cut(blocks(AE, 0, 2048), 2048) == cut(blocks(AE, 0, 2048), 20480) == [(2048, 0, 2048)]
    assert cut(blocks(AE, 0, 2048), 1024) == [(1024, 0, 1024), (1024, 1024, 2048)]
    assert cut(blocks(AE, 0, 8192), 8192) == [(2048, 0, 8192)]
    assert cut(blocks(AE, 0, 8192), 683) == [(683, 0, 683), (683, 683, 1366), (682, 1366, 8192)]
    with_size = KeyRange(Key.relation_size(AE), Key.relation_block(AE.with_fork(1), 8192))
    assert [size for size, *_ in cut(with_size, 4096)] == [2049]
    assert [size for size, *_ in cut(with_size, 4096, of_four(1))] == [1]
    assert [size for size, *_ in cut(blocks(AE, 0, 65536), 32768, UNSHARDED)] == [32768, 32768]
    assert [size for size, *_ in cut(blocks(AE, 0, 56), 16, UNSHARDED)] == [16, 16, 16, 8]
    assert cut(blocks(AE, 2048, 8192), 100) == [(0, 2048, 8192)]


def test_partitioning_example() -> None:
    rel = RelTag(1663, 5, 16384)
    keyspace = KeySpace(
        (
            KeyRange(Key.relmap(1663, 5), Key.relation_directory(1663, 5).next()),
            blocks(rel, 0, 40000),
            KeyRange(Key.relation_size(rel), Key.relation_block(rel.with_fork(1), 3)),
            KeyRange.single(Key.relation_size(rel.with_fork(1))),
        )
    )
    parts = partition(keyspace, UNSHARDED, 128 << 20).parts
    assert [part.ranges for part in parts] == [
        (keyspace.ranges[0],),
        (blocks(rel, 0, 0x4000),),
        (blocks(rel, 0x4000, 0x8000),),
        (blocks(rel, 0x8000, 0x9C40), keyspace.ranges[2], keyspace.ranges[3]),
    ]
    (only,) = partition(keyspace, of_four(0), 128 << 20).parts
    assert only == keyspace
    assert partition(KeySpace(), UNSHARDED, 128 << 20).parts == ()
