"""What exists at an LSN: snapshots, collected keyspaces, search by time (spec keyspace.md 5, 6, 8; checklist 13-27,
37-42).
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pageserver.errors import CorruptDataError, MissingKeyError
from pageserver.ids import ShardIdentity
from pageserver.keyspace.aux_files import aux_file_key, encode_aux_files
from pageserver.keyspace.collect import SPARSE_RANGES, collect_keyspace
from pageserver.keyspace.directories import (
    EMPTY_DIRECTORY,
    encode_database_directory,
    encode_relation_directory,
    encode_replication_origin,
    encode_size,
    encode_slru_directory,
    encode_twophase_directory,
)
from pageserver.keyspace.key import Key, KeyRange, RelTag, SlruKind
from pageserver.keyspace.snapshot import (
    InvalidRelnodeError,
    RelationDirectoryState,
    RelationDirectoryStatus,
    Snapshot,
)
from pageserver.keyspace.time_search import (
    Future,
    LsnForTimestamp,
    MomentInGapError,
    NoData,
    Past,
    Present,
    find_lsn_for_timestamp,
    find_lsn_in_stretches,
    find_timestamp_for_lsn,
    from_postgres_time,
    to_postgres_time,
)
from pageserver.lsn import Lsn
from tests.unit.dict_store import DictStore

REL = RelTag(1663, 5, 16396)
PAGE = b"p" * 8192
UNSHARDED = ShardIdentity.unsharded()


def small_world() -> DictStore:
    """One database with one relation (3 blocks, free space map of 2), shared catalogs, one CLOG segment; all at LSN
    16.
    """
    store = DictStore()
    store.put(Key.database_directory(), 16, encode_database_directory({(1663, 5): True, (1664, 0): False}))
    store.put(Key.relmap(1663, 5), 16, b"map")
    store.put(Key.relation_directory(1663, 5), 16, encode_relation_directory({(16396, 0), (16396, 1)}))
    store.put(Key.relation_directory(1664, 0), 16, EMPTY_DIRECTORY)
    store.put(Key.relation_size(REL), 16, encode_size(3))
    store.put(Key.relation_size(REL.with_fork(1)), 16, encode_size(2))
    for kind in SlruKind:
        store.put(Key.slru_directory(kind), 16, EMPTY_DIRECTORY)
    store.put(Key.slru_directory(SlruKind.CLOG), 16, encode_slru_directory({0}))
    store.put(Key.slru_segment_size(SlruKind.CLOG, 0), 16, encode_size(1))
    store.put(Key.slru_block(SlruKind.CLOG, 0, 0), 16, PAGE)
    store.put(Key.twophase_directory(), 16, encode_twophase_directory({740}, 15))
    store.put(Key.twophase_file(740), 16, b"prepared")
    store.put(Key.control_file(), 16, b"control")
    store.put(Key.checkpoint(), 16, bytes(88))
    return store


def test_a_snapshot_lists_everything_that_exists() -> None:
    store = small_world()
    store.put(aux_file_key("pg_tblspc/16400"), 16, encode_aux_files([("pg_tblspc/16400", b"/mnt/fast")]))
    store.put(aux_file_key("a"), 16, b"")
    store.put(Key.replication_origin(1), 16, encode_replication_origin(0x16B9188))
    store.put(Key.replication_origin(2), 16, encode_replication_origin(0))
    snapshot = Snapshot(store, 16, 15)
    assert snapshot.databases() == {(1663, 5): True, (1664, 0): False}
    assert snapshot.relations(1663, 5) == [REL, REL.with_fork(1)]
    assert snapshot.relation_sizes(1663, 5) == {REL: 3, REL.with_fork(1): 2}
    assert snapshot.relmap(1663, 5) == b"map"
    assert snapshot.slru_segments(SlruKind.CLOG) == [0]
    assert snapshot.slru_segment(SlruKind.CLOG, 0) == PAGE
    assert snapshot.twophase() == {740: b"prepared"}
    assert snapshot.aux_files() == {"pg_tblspc/16400": b"/mnt/fast"}
    assert snapshot.tablespaces() == {16400: "/mnt/fast"}
    assert snapshot.origins() == {1: Lsn(0x16B9188)}
    assert (snapshot.control_file(), snapshot.checkpoint()) == (b"control", bytes(88))
    assert snapshot.database_size(1663, 5) == snapshot.logical_size() == 5 * 8192


def test_the_size_of_what_is_missing_depends_on_the_fork() -> None:
    snapshot = Snapshot(small_world(), 16, 15)
    assert snapshot.relation_size(REL) == 3
    assert snapshot.relation_size(REL.with_fork(2)) == 0
    assert snapshot.relation_size(REL.with_fork(2), allow_missing=True) is None
    assert snapshot.relation_size(RelTag(1663, 5, 1), allow_missing=True) is None
    with pytest.raises(MissingKeyError, match="000000067F000000050000000100FFFFFFFF"):
        snapshot.relation_size(RelTag(1663, 5, 1))
    with pytest.raises(InvalidRelnodeError):
        snapshot.relation_size(RelTag(1663, 5, 0))


def test_a_dropped_relation_is_gone_although_its_size_is_still_there() -> None:
    store = small_world()
    store.put(Key.relation_directory(1663, 5), 24, EMPTY_DIRECTORY)
    assert not Snapshot(store, 24, 15).relation_exists(REL)
    assert Snapshot(store, 24, 15).relation_size(REL, allow_missing=True) is None
    assert Snapshot(store, 24, 15).relation_size(REL) == 3
    assert Snapshot(store, 23, 15).relation_exists(REL)


def test_a_database_that_is_not_listed_hides_its_relations() -> None:
    store = small_world()
    store.put(Key.database_directory(), 24, encode_database_directory({(1664, 0): False}))
    assert not Snapshot(store, 24, 15).relation_exists(REL)
    assert Snapshot(store, 24, 15).relations(1663, 5) == []


def test_a_key_that_the_directories_promise_must_be_there() -> None:
    store = small_world()
    store.put(Key.relation_directory(1663, 5), 24, encode_relation_directory({(16396, 0), (99, 0)}))
    with pytest.raises(MissingKeyError, match="0000006300FFFFFFFF"):
        Snapshot(store, 24, 15).relation_sizes(1663, 5)


def test_which_relation_directory_decides() -> None:
    """Goal: v1 decides unless migrated, and always below the LSN of migration (checklist 27, 28)."""
    store = small_world()
    store.put(Key.relation_directory_v2(REL), 24, b"r")
    store.put(Key.relation_directory_v2(REL.with_fork(1)), 24, b"")
    for status, migrated_at, lsn, forks in [
        (RelationDirectoryStatus.LEGACY, None, 24, 2),
        (RelationDirectoryStatus.MIGRATING, Lsn(24), 24, 2),
        (RelationDirectoryStatus.MIGRATED, Lsn(24), 24, 1),
        (RelationDirectoryStatus.MIGRATED, Lsn(24), 16, 2),
    ]:
        state = RelationDirectoryState(status, migrated_at)
        assert len(Snapshot(store, lsn, 15, relation_directory=state).relations(1663, 5)) == forks


def test_collected_keyspace_is_ascending_and_joined() -> None:
    """Goal: keys of 8.1 in order; the size of a fork is joined with what follows it (checklist 39, 40)."""
    collected = collect_keyspace(Snapshot(small_world(), 16, 15), UNSHARDED)
    clog = SlruKind.CLOG
    assert list(collected.dense) == [
        KeyRange.single(Key.database_directory()),
        KeyRange(Key.relmap(1663, 5), Key.relation_directory(1663, 5).next()),
        KeyRange(Key.relation_block(REL, 0), Key.relation_block(REL, 3)),
        KeyRange(Key.relation_size(REL), Key.relation_block(REL.with_fork(1), 2)),
        KeyRange.single(Key.relation_size(REL.with_fork(1))),
        KeyRange.single(Key.relation_directory(1664, 0)),
        KeyRange.single(Key.slru_directory(clog)),
        KeyRange(Key.slru_block(clog, 0, 0), Key.slru_block(clog, 0, 1)),
        KeyRange.single(Key.slru_segment_size(clog, 0)),
        KeyRange.single(Key.slru_directory(SlruKind.MULTIXACT_MEMBERS)),
        KeyRange.single(Key.slru_directory(SlruKind.MULTIXACT_OFFSETS)),
        KeyRange.single(Key.twophase_directory()),
        KeyRange.single(Key.twophase_file(740)),
        KeyRange(Key.control_file(), Key.checkpoint().next()),
    ]
    assert collected.sparse == SPARSE_RANGES and len(SPARSE_RANGES) == 3
    shown = collected.to_json()
    assert shown["at_lsn"] == "0/10"
    assert shown["sparse_keys"] == [[str(keys.start), str(keys.end)] for keys in SPARSE_RANGES]


def test_other_shards_collect_no_slru_keys() -> None:
    collected = collect_keyspace(Snapshot(small_world(), 16, 15), ShardIdentity.new(1, 2, 2048))
    assert Key.slru_directory(SlruKind.CLOG) not in collected.dense
    assert Key.twophase_directory() in collected.dense


def clog_world(commits: dict[int, int], *, start: int = 16) -> DictStore:
    """A store whose only CLOG page gets the given commit times at the given LSNs."""
    store = small_world()
    for lsn, timestamp in commits.items():
        store.put(Key.slru_block(SlruKind.CLOG, 0, 0), lsn, PAGE + timestamp.to_bytes(8, "big", signed=True))
    return store


def test_time_is_found_between_commits() -> None:
    store = clog_world({80: 1000, 160: 2000, 240: 3000})
    find = {
        wanted: find_lsn_for_timestamp(store, wanted, min_lsn=16, last_record_lsn=400)
        for wanted in range(500, 3600, 500)
    }
    assert find[500] == find[1000] == Past(Lsn(16))
    assert find[1500] == find[2000] == Present(Lsn(152))
    assert find[2500] == find[3000] == Present(Lsn(232))
    assert find[3500] == Future(Lsn(400))


def test_time_is_found_in_each_stretch_of_a_history_with_a_gap() -> None:
    """Behind the gap the page has no time at first, as one from a base backup."""
    store = clog_world({80: 1000, 160: 2000, 320: 5000, 400: 6000})
    store.put(Key.slru_block(SlruKind.CLOG, 0, 0), 240, PAGE)

    def find(wanted: int) -> LsnForTimestamp:
        return find_lsn_in_stretches(store, wanted, min_lsn=16, last_record_lsn=480, gaps=[(200, 280)])

    assert find(500) == Past(Lsn(16))
    assert find(1500) == Present(Lsn(152))
    assert find(5500) == Present(Lsn(392))
    assert find(6500) == Future(Lsn(480))
    for inside in (2500, 5000):
        with pytest.raises(MomentInGapError, match="gap of the timeline's history, which begins at 0/C8"):
            find(inside)


def test_time_search_without_commits_or_data() -> None:
    assert find_lsn_for_timestamp(clog_world({}), 5, min_lsn=16, last_record_lsn=400) == NoData(Lsn(16))
    assert find_lsn_for_timestamp(clog_world({80: 1}), 5, min_lsn=0, last_record_lsn=16) == Past(Lsn(0))
    assert find_timestamp_for_lsn(clog_world({80: 7}), 79) is None
    assert find_timestamp_for_lsn(clog_world({80: 7}), 80) == 7
    with pytest.raises(CorruptDataError):
        find_timestamp_for_lsn(clog_world({}), 8)


def test_postgres_time_counts_microseconds_from_2000() -> None:
    moment = datetime(2023, 11, 28, 13, 13, 21, 749633, tzinfo=UTC)
    assert from_postgres_time(to_postgres_time(moment)) == moment
    assert to_postgres_time(datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC)) == 1_000_000
    assert from_postgres_time(754501601749633).isoformat() == "2023-11-28T15:46:41.749633+00:00"
