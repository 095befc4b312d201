"""The segment of a pgbench run under Neon's PostgreSQL 15, after the data directory that it continues (spec wal.md
12.2).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pageserver import _core
from pageserver.ids import ShardIdentity
from pageserver.keyspace.collect import collect_keyspace
from pageserver.keyspace.directories import decode_size
from pageserver.keyspace.key import Key, RelTag, SlruKind
from pageserver.keyspace.time_search import Future, Present, find_lsn_for_timestamp, find_timestamp_for_lsn
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.checkpoint import Checkpoint
from pageserver.wal.tar_stream import Closing
from tests.compat.imported import Imported, import_timeline
from tests.compat.vectors import unpack

REDO, SEGMENT_START, TIP = Lsn(0x14AEB90), Lsn(0x14AEC08), Lsn(0x1FFFF98)
DATABASE = (1663, 5)
CREATED = [16384, 16387, 16390, 16393, 16396, 16397, 16398, 16399]
COMMITS = {1024: 0x14C58F8, 1025: 0x14C8EE8, 1026: 0x14CA9A0, 1027: 0x14CC2D8}


@pytest.fixture(scope="module")
def segment() -> bytes:
    return unpack("neon-v15-pgbench/000000010000000000000001.zst")


@pytest.fixture(scope="module")
def timeline(segment: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    """The timeline after the whole segment."""
    archive = unpack("neon-v15-pgbench/initdb.tar.zst")
    folder: Path = tmp_path_factory.mktemp("pgbench")
    imported = import_timeline(archive, folder, start=None, flavour="neon", closing=Closing.ZERO_BLOCKS)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("pg_wal/000000010000000000000001")
        assert member is not None
        checkpoint_record = member.read()[REDO % WAL_SEGMENT_SIZE : SEGMENT_START % WAL_SEGMENT_SIZE]
    assert imported.start == REDO
    imported.take(checkpoint_record)
    assert imported.store.last_record_lsn == SEGMENT_START
    imported.take(segment[SEGMENT_START % WAL_SEGMENT_SIZE :])
    yield imported
    imported.store.shutdown()


@pytest.fixture(scope="module")
def record_lsns(segment: bytes) -> list[int]:
    """The end of each record of the segment, with its start, in order."""
    wal = segment[SEGMENT_START % WAL_SEGMENT_SIZE :]
    decoded = _core.decode_wal(wal, pg_version=15, flavour="neon", start_lsn=SEGMENT_START)
    return [record["lsn_end"] for record in decoded.records]


def checkpoint_at(timeline: Imported, lsn: int) -> Checkpoint:
    return Checkpoint(timeline.snapshot(lsn).checkpoint())


def forks(timeline: Imported, lsn: int) -> int:
    snapshot = timeline.snapshot(lsn)
    return sum(len(snapshot.relations(*database)) for database in snapshot.databases())


def test_the_archive_is_imported(timeline: Imported) -> None:
    assert forks(timeline, REDO) == 946
    snapshot = timeline.snapshot(REDO)
    sizes = [snapshot.relation_sizes(*database).values() for database in snapshot.databases()]
    assert sum(map(sum, sizes)) == 2720
    checkpoint = checkpoint_at(timeline, REDO)
    assert (checkpoint.redo, checkpoint.next_xid, checkpoint.next_oid, checkpoint.oldest_xid) == (REDO, 724, 12928, 716)


def test_the_checkpoint_record_moves_the_tip(timeline: Imported) -> None:
    checkpoint = checkpoint_at(timeline, SEGMENT_START)
    assert (checkpoint.redo, checkpoint.oldest_active_xid) == (SEGMENT_START, 724)


def test_the_checkpoint_value_changes_at_two_records(timeline: Imported, record_lsns: list[int]) -> None:
    store = timeline.store
    values = [(lsn, store.get(Key.checkpoint(), lsn)) for lsn in [int(SEGMENT_START), *record_lsns]]
    changes = [lsn for (_, before), (lsn, after) in pairwise(values) if before != after]
    assert changes == [0x14AEC60, 0x14AECD0]
    last = checkpoint_at(timeline, TIP)
    assert last == checkpoint_at(timeline, SEGMENT_START).replaced(next_xid=2048, next_oid=24576)


def test_the_tip_and_the_record_before_it(timeline: Imported, record_lsns: list[int]) -> None:
    assert timeline.store.last_record_lsn == record_lsns[-1] == TIP
    assert timeline.store.prev_record_lsn == record_lsns[-2]
    assert len(record_lsns) == 72_925


def test_relations_after_the_segment(timeline: Imported) -> None:
    snapshot = timeline.snapshot()
    assert forks(timeline, TIP) == 955
    before = timeline.snapshot(SEGMENT_START)
    new = set(snapshot.relations(*DATABASE)) - set(before.relations(*DATABASE))
    assert new == {RelTag(*DATABASE, rel) for rel in CREATED} | {RelTag(*DATABASE, 16396, 1)}
    assert snapshot.databases() == before.databases()
    sizes, old = snapshot.relation_sizes(*DATABASE), before.relation_sizes(*DATABASE)
    changed = {rel: size for rel, size in sizes.items() if old.get(rel, 0) != size}
    assert changed == {
        RelTag(*DATABASE, 16396): 1189,
        RelTag(*DATABASE, 16396, 1): 3,
        RelTag(*DATABASE, 16397): 1,
        RelTag(*DATABASE, 16399): 1,
        RelTag(*DATABASE, 1249): 57,
    }
    assert old[RelTag(*DATABASE, 1249)] == 56


def test_sizes_and_directories_are_written_only_when_they_change(timeline: Imported, record_lsns: list[int]) -> None:
    """Goal: 1,203 sizes and 9 relation directories. Method: read them at the end of every record and count changes."""
    tags = [RelTag(*DATABASE, rel) for rel in CREATED] + [RelTag(*DATABASE, 16396, 1), RelTag(*DATABASE, 1249)]
    keys: list[bytes] = [Key.relation_size(rel) for rel in tags]
    sizes: list[int | None] = [None] * 9 + [56]
    directory = timeline.store.get(Key.relation_directory(*DATABASE), SEGMENT_START)
    size_changes = directory_changes = 0
    for lsn in record_lsns:
        *now, listed = timeline.store.get_many([*keys, Key.relation_directory(*DATABASE)], lsn)
        decoded = [None if value is None else decode_size(value) for value in now]
        size_changes += sum(before != after for before, after in zip(sizes, decoded, strict=True))
        directory_changes += listed != directory
        sizes, directory = decoded, listed or b""
    assert (size_changes, directory_changes) == (1203, 9)


def test_commits_are_found_by_their_time(timeline: Imported) -> None:
    store = timeline.store
    times = [find_timestamp_for_lsn(store, lsn) for lsn in COMMITS.values()]
    assert times[0] == 754501601749633
    assert find_timestamp_for_lsn(store, COMMITS[1024] - 8) is None
    for (before, _), (lsn, time) in pairwise(zip(COMMITS.values(), times, strict=True)):
        assert time is not None
        found = find_lsn_for_timestamp(store, time, min_lsn=REDO, last_record_lsn=TIP)
        assert found == Present(Lsn(lsn - 8)) and before < lsn
    assert times[-1] is not None
    assert find_lsn_for_timestamp(store, times[-1] + 1, min_lsn=REDO, last_record_lsn=TIP) == Future(TIP)


def test_transactions_are_committed_in_the_log(timeline: Imported) -> None:
    for xid, lsn in COMMITS.items():
        for at, want in ((lsn - 8, 0), (lsn, 1)):
            page = timeline.snapshot(at).slru_segment(SlruKind.CLOG, 0)
            assert page[xid // 4] >> xid % 4 * 2 & 3 == want


@pytest.mark.parametrize(
    ("relation", "heap_block", "lsn"),
    [
        (1247, 14, 0x14AF478),
        (2608, 3, 0x14B41D8),
        (2608, 13, 0x14BA298),
        (1259, 0, 0x14BBC50),
        (1249, 17, 0x14C0EB8),
        (1249, 55, 0x14C7F68),
    ],
)
def test_visibility_bits_are_cleared(timeline: Imported, relation: int, heap_block: int, lsn: int) -> None:
    key = Key.relation_block(RelTag(*DATABASE, relation, 2), 0)
    byte, shift = 24 + heap_block // 4, heap_block % 4 * 2
    assert timeline.store.get(key, lsn - 8)[byte] >> shift & 3
    assert timeline.store.get(key, lsn)[byte] >> shift & 3 == 0


def test_every_collected_key_can_be_read(timeline: Imported) -> None:
    """Goal: what the directories promise is there. Method: read all metadata keys of the collected keyspace at the
    tip.
    """
    collected = collect_keyspace(timeline.snapshot(), ShardIdentity.unsharded())
    for keys in collected.dense:
        key = keys.start
        while key < keys.end:
            if key.is_data():
                break
            timeline.store.get(key, TIP)
            key = key.next()
