"""Rare records and what they do to the keyspace (spec wal.md 4.4, 4.5, 5, 6, 9.3; checklist 27-32, 35-42, 49; stock.md
2).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pageserver.errors import CorruptDataError, MissingKeyError, PreconditionFailedError
from pageserver.ids import ShardIdentity
from pageserver.keyspace.key import Key, RelTag, SlruKind
from pageserver.keyspace.shard import is_local
from pageserver.keyspace.snapshot import RelationDirectoryState, RelationDirectoryStatus, Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.checkpoint import Checkpoint
from pageserver.wal.apply import RARE_RECORD_KINDS, RecordApplier
from pageserver.wal.keyspace_writer import KeyspaceConflictError, RelationSet
from pageserver.wal.records.relations import fsm_page_of_heap_block
from pageserver.wal.records.slrus import clog_page_precedes, member_segments_between, offset_page_precedes
from tests.unit.fake_modification import World

REL = RelTag(1663, 5, 16384)
FSM, VM = REL.with_fork(1), REL.with_fork(2)
CLOG, MEMBERS, OFFSETS = SlruKind.CLOG, SlruKind.MULTIXACT_MEMBERS, SlruKind.MULTIXACT_OFFSETS
PAGE = bytes(8192)


def test_every_kind_of_rare_record_has_its_function() -> None:
    """Goal: no record of the engine stays without effect. Method: compare with the union in the stub."""
    stub = ast.parse((Path(__file__).parents[2] / "src/pageserver/_core.pyi").read_text())
    (union,) = [
        node.value
        for node in ast.walk(stub)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "RareDetail"
    ]
    assert union is not None
    assert {node.id for node in ast.walk(union) if isinstance(node, ast.Name)} == RARE_RECORD_KINDS


# Relations


def test_the_first_relation_of_a_database_makes_the_database() -> None:
    world = World()
    world.create(1663, 5, 16384)
    assert world.snapshot().databases() == {(1663, 5): False}
    assert world.size(REL) == 0
    world.create(1663, 5, 16384, 1)
    assert world.written() == [Key.relation_directory(1663, 5), Key.relation_size(FSM)]
    assert world.snapshot().relations(1663, 5) == [REL, FSM]


def test_creating_a_relation_twice_is_refused_once_the_copy_is_consistent() -> None:
    world = World()
    world.create(1663, 5, 16384)
    world.fill(REL, 3)
    with pytest.raises(KeyspaceConflictError, match="relation 1663/5/16384 already exists"):
        world.create(1663, 5, 16384)
    world.modification.tolerant_until = world.lsn + 8
    world.create(1663, 5, 16384)
    assert world.size(REL) == 3
    assert world.written() == []
    assert world.modification.remembered == [(1663, 5, 16384, 0, 3)]
    with pytest.raises(CorruptDataError, match="invalid relnode"):
        world.create(1663, 5, 0)


def test_an_implicitly_created_relation_keeps_its_size_if_it_exists() -> None:
    world = World()
    world.create(1663, 5, 16384, implicit=True)
    assert world.size(REL) == 0
    world.fill(REL, 7)
    world.create(1663, 5, 16384, implicit=True)
    assert world.written() == []
    assert world.modification.remembered == [(1663, 5, 16384, 0, 7)]


@pytest.mark.parametrize(
    ("blocks", "fsm_size", "fsm_zeroed", "vm_size", "vm_value"),
    [
        (1000, 3, 2, 1, (250, 0)),
        (1001, 3, 2, 1, (250, 2)),
        (32672, 11, 10, 1, None),
        (0, 2, None, 0, None),
    ],
)
def test_truncation_cuts_the_maps_and_clears_their_last_page(
    blocks: int, fsm_size: int, fsm_zeroed: int | None, vm_size: int, vm_value: tuple[int, int] | None
) -> None:
    """Vectors of wal.md 5.4."""
    world = World()
    for rel in (REL, FSM, VM):
        world.create(rel.spcnode, rel.dbnode, rel.relnode, rel.forknum)
    world.fill(REL, 50)
    world.fill(FSM, 20)
    world.fill(VM, 5)
    world.take("RelationTruncate", spc=1663, db=5, rel=16384, blocks=blocks, flags=7)
    assert (world.size(REL), world.size(FSM), world.size(VM)) == (blocks, fsm_size, vm_size)
    zeroed = [Key(key).field6 for key in world.written() if Key(key).is_fsm_block()]
    assert zeroed == ([] if fsm_zeroed is None else [fsm_zeroed])
    value = world.value(Key.relation_block(VM, blocks // 32672))
    if vm_value is None:
        assert value is None
    else:
        assert value == bytes.fromhex("00000001 00000007") + b"".join(n.to_bytes(8, "big") for n in vm_value)


def test_truncation_does_not_lengthen_maps_and_needs_no_relation() -> None:
    world = World()
    world.create(1663, 5, 16384)
    world.fill(REL, 5)
    world.take("RelationTruncate", spc=1663, db=5, rel=16384, blocks=3, flags=7)
    assert (world.size(REL), world.size(FSM), world.size(VM)) == (3, None, None)
    assert Key.relation_block(FSM, 2) in world.written()
    world.take("RelationTruncate", spc=1663, db=5, rel=999, blocks=3, flags=1)
    assert world.written() == []
    world.take("RelationTruncate", spc=1663, db=5, rel=16384, blocks=1, flags=6)
    assert world.size(REL) == 3


def test_only_the_owner_of_a_map_page_writes_it() -> None:
    key = Key.relation_block(VM, 0)
    for number in (0, 1):
        world = World(identity=ShardIdentity.new(number, 2, 2048))
        world.create(1663, 5, 16384)
        world.take("RelationTruncate", spc=1663, db=5, rel=16384, blocks=1000, flags=7)
        assert (world.value(key) is not None) == is_local(key, world.identity)
        assert (Key.relation_block(FSM, 2) in world.written()) == is_local(Key.relation_block(FSM, 2), world.identity)


def test_fsm_pages_of_heap_blocks() -> None:
    assert [fsm_page_of_heap_block(page * 4069) for page in (0, 1, 4069)] == [2, 3, 4072]
    assert fsm_page_of_heap_block(4068) == 2


# Databases


def test_a_copied_database_has_the_relations_and_blocks_of_its_source() -> None:
    world = World()
    world.take("RelationMapUpdate", db=5, tablespace=1663, data=b"map")
    for rel in (REL, VM):
        world.create(rel.spcnode, rel.dbnode, rel.relnode, rel.forknum)
    world.fill(REL, 3)
    world.take("DatabaseCreate", db=6, tablespace=1663, source_db=5, source_tablespace=1663)
    snapshot = world.snapshot()
    copy = RelTag(1663, 6, 16384)
    assert snapshot.databases() == {(1663, 5): True, (1663, 6): True}
    assert snapshot.relmap(1663, 6) == b"map"
    assert snapshot.relation_sizes(1663, 6) == {copy: 3, copy.with_fork(2): 0}
    assert world.modification.get(Key.relation_block(copy, 2)) == b"\2" * 8192
    with pytest.raises(KeyspaceConflictError, match="1663/6 already exists"):
        world.take("DatabaseCreate", db=6, tablespace=1663, source_db=5, source_tablespace=1663)
    with pytest.raises(MissingKeyError, match="1663/7 does not exist"):
        world.take("DatabaseCreate", db=8, tablespace=1663, source_db=7, source_tablespace=1663)


def test_before_consistency_a_copy_replaces_what_is_there() -> None:
    world = World()
    world.create(1663, 5, 16384)
    world.fill(REL, 1)
    world.create(1663, 6, 999)
    world.modification.tolerant_until = 1000
    world.take("DatabaseCreate", db=6, tablespace=1663, source_db=5, source_tablespace=1663)
    assert (1663, 6) in world.modification.forgotten
    assert world.snapshot().relations(1663, 6) == [RelTag(1663, 6, 16384)]
    world.take("DatabaseCreate", db=7, tablespace=1663, source_db=99, source_tablespace=1663)
    assert world.snapshot().relations(1663, 7) == []


def test_a_dropped_database_is_gone_from_each_tablespace() -> None:
    world = World()
    world.create(1663, 5, 16384)
    world.create(16400, 5, 16401)
    world.create(1663, 6, 16384)
    world.take("DatabaseDrop", db=5, tablespaces=[1663, 16400])
    assert world.snapshot().databases() == {(1663, 6): False}
    forks = [(1663, 5, 16384, 0), (16400, 5, 16401, 0)]
    assert world.modification.forgotten == [forks[0], (1663, 5), forks[1], (16400, 5)], "sizes are counted fork by fork"
    world.take("DatabaseDrop", db=5, tablespaces=[1663])
    assert world.written() == []
    world.create(1663, 5, 16384)
    assert world.snapshot().relations(1663, 5) == [REL]


def test_a_relation_map_makes_a_database_and_marks_it() -> None:
    world = World()
    world.take("RelationMapUpdate", db=5, tablespace=1663, data=b"one")
    assert world.written() == [Key.database_directory(), Key.relation_directory(1663, 5), Key.relmap(1663, 5)]
    world.take("RelationMapUpdate", db=5, tablespace=1663, data=b"two")
    assert world.written() == [Key.relmap(1663, 5)]
    world.create(1663, 6, 16384)
    world.take("RelationMapUpdate", db=6, tablespace=1663, data=b"map")
    assert world.snapshot().databases()[1663, 6] is True
    assert world.snapshot().relations(1663, 6) == [RelTag(1663, 6, 16384)]


def test_tablespaces_come_and_go() -> None:
    world = World()
    created = world.take("TablespaceCreate", oid=100000, path=b"/mnt/fast")
    assert world.snapshot().tablespaces() == {100000: "/mnt/fast"}
    world.take("TablespaceDrop", oid=100000)
    assert world.snapshot().tablespaces() == {}
    assert world.snapshot(created).tablespaces() == {100000: "/mnt/fast"}
    world.take("TablespaceCreate", oid=16400, path=b"")
    assert world.snapshot().tablespaces() == {16400: "pg_tblspc/16400"}, "a tablespace in place has no path of its own"


# Transactions


def end(world: World, **changed: object) -> int:
    detail = {"committed": True, "prepared": False, "xid": 737, "time": 0, "subxacts": [], "relations": [], "origin": 0}
    return world.take("TransactionEnd", **{**detail, "origin_lsn": 0, **changed})


def test_a_transaction_drops_all_forks_with_one_write_for_each_database() -> None:
    world = World()
    for rel in (16384, 16385, 16386):
        for fork in (0, 1, 2):
            world.create(1663, 5, rel, fork)
    world.create(1663, 6, 16384)
    end(world, relations=[(1663, 5, 16384), (1663, 5, 16385), (1663, 6, 16384), (1663, 5, 999)])
    assert sorted(world.written()) == [Key.relation_directory(1663, 5), Key.relation_directory(1663, 6)]
    assert [rel.relnode for rel in world.snapshot().relations(1663, 5)] == [16386] * 3
    assert len(world.modification.forgotten) == 7
    end(world, relations=[(1663, 5, 16384)])
    assert world.written() == []


def test_dropping_from_an_unknown_database_is_accepted_only_before_consistency() -> None:
    world = World()
    with pytest.raises(MissingKeyError):
        end(world, relations=[(1663, 5, 16384)])
    world.modification.tolerant_until = 1000
    end(world, relations=[(1663, 5, 16384)])
    assert world.written() == []


def test_a_commit_notes_its_origin() -> None:
    world = World()
    end(world, origin=1, origin_lsn=0xABCDEF12)
    assert world.modification.get(Key.replication_origin(1)) == bytes.fromhex("00000000abcdef12")
    world.take("OriginSet", origin=7, origin_lsn=0xABCDEF99)
    assert world.snapshot().origins() == {1: 0xABCDEF12, 7: 0xABCDEF99}
    world.take("OriginSet", origin=7, origin_lsn=0)
    assert world.modification.get(Key.replication_origin(7)) == bytes(8)
    assert world.snapshot().origins() == {1: 0xABCDEF12}


def test_prepared_transactions_are_kept_until_their_second_phase() -> None:
    world = World()
    world.take("TransactionPrepare", xid=740, data=b"state")
    assert world.snapshot().twophase() == {740: b"state"}
    assert world.modification.get(Key.twophase_directory()) == bytes.fromhex("0000000000000001 000002e4")
    with pytest.raises(KeyspaceConflictError, match="twophase file for xid 740 already exists"):
        world.take("TransactionPrepare", xid=740, data=b"other")
    end(world, prepared=True, xid=740)
    assert world.snapshot().twophase() == {}
    end(world, prepared=True, xid=740)
    assert world.written() == []
    world.modification.tolerant_until = 1000
    world.take("TransactionPrepare", xid=741, data=b"one")
    world.take("TransactionPrepare", xid=741, data=b"two")
    assert world.snapshot().twophase() == {741: b"two"}


def test_from_17_on_prepared_transactions_have_their_epoch() -> None:
    world = World(pg_version=17)
    world.modification.checkpoint = Checkpoint(bytes(88)).replaced(next_xid=0xA_0000_0400).raw
    world.take("TransactionPrepare", xid=740, data=b"state")
    assert world.modification.get(Key.twophase_directory()) == bytes.fromhex("0000000000000001 0000000a000002e4")
    world.take("TransactionPrepare", xid=0xFFFF_FFF0, data=b"old")
    assert world.snapshot().twophase_xids() == [0x9_FFFF_FFF0, 0xA_0000_02E4]
    end(world, prepared=True, xid=0xFFFF_FFF0, committed=False)
    assert world.snapshot().twophase_xids() == [0xA_0000_02E4]


# SLRUs


def zero(world: World, kind: SlruKind, page: int, *, implicit: bool = False) -> int:
    return world.take("SlruZeroPage", slru=int(kind), page=page, implicit=implicit)


def test_zero_pages_make_segments_and_fill_gaps() -> None:
    world = World()
    zero(world, CLOG, 2)
    assert world.snapshot().slru_segment_sizes(CLOG) == {0: 3}
    assert world.snapshot().slru_segment(CLOG, 0) == PAGE * 3
    zero(world, CLOG, 32)
    assert world.snapshot().slru_segment_sizes(CLOG) == {0: 3, 1: 1}
    zero(world, CLOG, 0)
    assert world.written() == [Key.slru_block(CLOG, 0, 0)]


def test_an_implicit_zero_page_leaves_an_existing_one_alone() -> None:
    world = World()
    zero(world, OFFSETS, 1, implicit=True)
    assert world.snapshot().slru_segment_sizes(OFFSETS) == {0: 2}
    zero(world, OFFSETS, 1, implicit=True)
    zero(world, OFFSETS, 0, implicit=True)
    assert world.written() == []


def test_other_shards_do_not_touch_slrus() -> None:
    world = World(identity=ShardIdentity.new(1, 2, 2048))
    zero(world, CLOG, 0)
    assert world.written() == []
    world.take("ClogTruncate", page=32, oldest_xid=9, oldest_xid_db=5)
    assert world.written() == [Key.checkpoint()]
    world.take("MultixactTruncate", oldest_multi_db=5, start_offset=1, end_offset=9, start_member=1, end_member=99999)
    assert world.written() == [Key.checkpoint()]
    world.take("TablespaceCreate", oid=16400, path=b"/mnt")
    assert world.written() == []


def test_clog_truncation_drops_whole_segments_below_the_cutoff() -> None:
    world = World()
    world.modification.checkpoint = Checkpoint(bytes(88)).replaced(next_xid=100 * 32768).raw
    for page in (0, 32, 64, 96):
        zero(world, CLOG, page)
    world.take("ClogTruncate", page=70, oldest_xid=70 * 32768 + 5, oldest_xid_db=5)
    assert world.snapshot().slru_segments(CLOG) == [2, 3]
    checkpoint = Checkpoint(world.snapshot().checkpoint())
    assert (checkpoint.oldest_xid, checkpoint.oldest_xid_db) == (70 * 32768 + 5, 5)
    world.take("ClogTruncate", page=110, oldest_xid=9, oldest_xid_db=5)
    assert world.snapshot().slru_segments(CLOG) == [2, 3], "a cutoff beyond nextXid means wraparound: nothing goes"


def test_clog_truncation_works_across_the_end_of_the_circle() -> None:
    last = 0x1_0000_0000 // 32768 - 1
    assert clog_page_precedes(last, 0) and not clog_page_precedes(0, last)
    assert clog_page_precedes(0, 1) and not clog_page_precedes(1, 1)
    world = World()
    world.modification.checkpoint = Checkpoint(bytes(88)).replaced(next_xid=0x1_0000_0000 + 5 * 32768).raw
    for page in (last - 40, last, 0):
        zero(world, CLOG, page)
    world.take("ClogTruncate", page=last, oldest_xid=last * 32768, oldest_xid_db=5)
    assert world.snapshot().slru_segments(CLOG) == [0, last // 32]


def test_multixact_truncation() -> None:
    """Goal: member segments go from start to end around the circle; offset segments only on stock timelines."""
    assert member_segments_between(0, 3 * 1636 * 32) == [0, 1, 2]
    assert member_segments_between(82040 * 1636 * 32, 1636 * 32) == [82040, 0]
    assert member_segments_between(5, 6) == []
    assert offset_page_precedes(0, 1) and not offset_page_precedes(1, 1) and offset_page_precedes(2097151, 0)
    for flavour, left in (("neon", [0, 1]), ("stock", [1])):
        world = World(flavour=flavour)
        for page in (0, 32, 64):
            zero(world, MEMBERS, page)
        for page in (0, 32):
            zero(world, OFFSETS, page)
        world.take(
            "MultixactTruncate",
            oldest_multi_db=5,
            start_offset=1,
            end_offset=32 * 2048 + 2,
            start_member=1,
            end_member=64 * 1636,
        )
        assert world.snapshot().slru_segments(MEMBERS) == [2]
        assert world.snapshot().slru_segments(OFFSETS) == left
        checkpoint = Checkpoint(world.snapshot().checkpoint())
        assert (checkpoint.oldest_multi, checkpoint.oldest_multi_db) == (32 * 2048 + 2, 5)


# Checkpoints


def taken(**fields: int) -> bytes:
    return Checkpoint(bytes(88)).replaced(**fields).raw


def test_checkpoint_records_say_how_the_log_ends() -> None:
    world = World(flavour="neon")
    world.modification.checkpoint = taken(next_xid=1024, oldest_xid=700)
    lsn = world.take(
        "CheckpointTaken", shutdown=True, checkpoint=taken(redo=1, oldest_xid=716, next_xid=900, next_oid=7)
    )
    checkpoint = Checkpoint(world.snapshot().checkpoint())
    assert (checkpoint.redo, checkpoint.oldest_xid, checkpoint.oldest_active_xid) == (lsn, 716, 1024)
    assert (checkpoint.next_xid, checkpoint.next_oid, checkpoint.this_timeline_id) == (1024, 0, 0)
    detail = taken(redo=1, oldest_xid=700, oldest_active_xid=900, this_timeline_id=2)
    world.take("CheckpointTaken", shutdown=False, checkpoint=detail)
    checkpoint = Checkpoint(world.snapshot().checkpoint())
    assert (checkpoint.redo, checkpoint.oldest_xid, checkpoint.oldest_active_xid) == (0, 716, 900)
    assert checkpoint.this_timeline_id == 0
    world.take("CheckpointTaken", shutdown=False, checkpoint=detail)
    assert world.written() == [Key.checkpoint()], "written even if unchanged"


def test_prepared_transactions_hold_back_the_oldest_active_one() -> None:
    for version, next_xid, xids, oldest in [
        (15, 1024, [740, 741], 740),
        (15, 0x1_0000_0400, [0xFFFF_FFF0, 740], 0xFFFF_FFF0),
        (17, 0xA_0000_0400, [740, 0xFFFF_FFF0], 0xFFFF_FFF0),
    ]:
        world = World(pg_version=version)
        world.modification.checkpoint = taken(next_xid=next_xid)
        for xid in xids:
            world.take("TransactionPrepare", xid=xid, data=b"state")
        world.take("CheckpointTaken", shutdown=True, checkpoint=taken())
        assert Checkpoint(world.snapshot().checkpoint()).oldest_active_xid == oldest


def test_stock_timelines_follow_postgres_timelines() -> None:
    world = World(flavour="stock")
    world.take("CheckpointTaken", shutdown=True, checkpoint=taken(this_timeline_id=2, previous_timeline_id=1))
    checkpoint = Checkpoint(world.snapshot().checkpoint())
    assert (checkpoint.this_timeline_id, checkpoint.previous_timeline_id) == (2, 1)
    world.take("EndOfRecovery", time=0, tli=3, prev_tli=2, wal_level=None)
    checkpoint = Checkpoint(world.snapshot().checkpoint())
    assert (checkpoint.this_timeline_id, checkpoint.previous_timeline_id) == (3, 2)


def test_wal_level_is_tracked_from_17_on() -> None:
    parameters = {
        "max_connections": 100,
        "max_worker_processes": 8,
        "max_wal_senders": 10,
        "max_prepared_xacts": 0,
        "max_locks_per_xact": 64,
        "wal_level": 2,
        "wal_log_hints": False,
        "track_commit_timestamp": False,
    }
    for version, level in ((15, 0), (17, 2)):
        world = World(pg_version=version, flavour="neon")
        world.take("ParameterChange", **parameters)
        assert Checkpoint(world.snapshot().checkpoint()).wal_level == level
        world.take("EndOfRecovery", time=0, tli=1, prev_tli=1, wal_level=1 if version >= 17 else None)
        assert Checkpoint(world.snapshot().checkpoint()).wal_level == min(level, 1)


# Files


def test_aux_files_are_replaced_and_deleted() -> None:
    world = World(flavour="neon")
    path = "pg_logical/snapshots/0-1752A98.snap"
    world.take("AuxFilePut", path=path, content=b"hello")
    assert world.snapshot().aux_files() == {path: b"hello"}
    world.take("AuxFilePut", path=path, content=b"bye")
    assert world.snapshot().aux_files() == {path: b"bye"}
    world.take("AuxFilePut", path=path, content=b"")
    assert world.snapshot().aux_files() == {}
    world.take("AuxFilePut", path=path, content=b"")
    world.take("BackupEnd", start_lsn=8)
    assert world.written() == []


# The second form of relation directory


def test_while_migrating_both_relation_directories_are_written() -> None:
    """Goal: keyspace.md checklist 28."""
    world = World()
    state = RelationDirectoryState(RelationDirectoryStatus.MIGRATING)
    world.applier = RecordApplier(
        world.modification, pg_version=15, flavour="neon", identity=world.identity, relation_directory=state
    )
    world.create(1663, 5, 16384)
    assert world.modification.get(Key.relation_directory_v2(REL)) == b"r"
    end(world, relations=[(1663, 5, 16384)])
    assert world.modification.get(Key.relation_directory_v2(REL)) == b""
    assert world.snapshot().relations(1663, 5) == []
    with pytest.raises(PreconditionFailedError, match="can be read but not written"):
        RecordApplier(
            world.modification,
            pg_version=15,
            flavour="neon",
            identity=world.identity,
            relation_directory=RelationDirectoryState(RelationDirectoryStatus.MIGRATED),
        )


def test_the_second_directory_begins_as_a_copy_of_the_first() -> None:
    world = World()
    world.create(1663, 5, 16384)
    world.create(1663, 6, 16384, 2)
    started: list[int] = []
    world.applier = RecordApplier(
        world.modification, pg_version=15, flavour="neon", identity=world.identity, start_migration=started.append
    )
    end(world, relations=[(1663, 5, 999)])
    assert started == []
    lsn = world.create(1663, 7, 16385)
    world.create(1663, 7, 16386)
    assert started == [lsn]
    state = RelationDirectoryState(RelationDirectoryStatus.MIGRATED, Lsn(lsn))
    second = Snapshot(world.modification.store, world.lsn, 15, relation_directory=state)
    for database in (5, 6, 7):
        assert second.relations(1663, database) == world.snapshot().relations(1663, database) != []


def test_a_relation_set_encodes_like_the_directory() -> None:
    relations = RelationSet([(16396, 1), (16396, 0)])
    assert relations.encode().hex() == "00000000000000020000400c000000400c01"
    assert not relations.add(RelTag(1, 2, 16396, 1))
    assert relations.remove([RelTag(1, 2, 16396, 0), RelTag(1, 2, 9)]) == [RelTag(1, 2, 16396, 0)]
    assert relations.remove([RelTag(1, 2, 16396, 0)]) == []
    assert RelTag(1, 2, 16396, 1) in relations and RelTag(1, 2, 16396, 0) not in relations
    assert relations.tags(1, 2) == [RelTag(1, 2, 16396, 1)]
