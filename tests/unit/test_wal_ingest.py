"""The recorded pgbench segment through the engine and the code that applies rare records (spec wal.md 12)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import zstandard

from pageserver import _core
from pageserver.errors import CorruptDataError, InternalError, RequestError, UnavailableError
from pageserver.ids import ShardIdentity
from pageserver.keyspace.directories import (
    decode_relation_directory,
    encode_database_directory,
    encode_relation_directory,
    encode_size,
)
from pageserver.keyspace.key import VM_FORK, Key, RelTag, SlruKind
from pageserver.keyspace.snapshot import RelationDirectoryState, RelationDirectoryStatus, Snapshot
from pageserver.lsn import Lsn
from pageserver.wal.apply import RecordApplier
from pageserver.wal.ingest import WalApplier
from pageserver.wal.keyspace_writer import initial_values
from pageserver.wal.source_document import Flavour

VECTORS = Path(__file__).parents[3] / "shared/vectors/neon-v15-pgbench"
START = Lsn(0x14AEC08)
IMPORT_LSN = Lsn(0x14AEB90)


def unpack(name: str) -> bytes:
    window = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    with (VECTORS / name).open("rb") as file, window.stream_reader(file) as reader:
        return reader.read()


@pytest.fixture(scope="module")
def wal() -> bytes:
    return unpack("000000010000000000000001.zst")[START % (1 << 24) :]


def make_store(directory: Path) -> _core.TimelineStore:
    return _core.TimelineStore(
        directory=directory,
        tenant_id=bytes(16),
        timeline_id=bytes(15) + b"\1",
        shard=(0, 0, 2048),
        pg_version=15,
        flavour="neon",
        hint_bits_logged=False,
        data_checksums=False,
        last_record_lsn=0,
        prev_record_lsn=0,
        disk_consistent_lsn=0,
        gc_cutoff_lsn=0,
        next_open_layer_at=IMPORT_LSN,
        ancestor=None,
        ancestor_lsn=0,
        redo=None,
        caches=_core.Caches(block_cache_bytes=1 << 20, page_cache_bytes=1 << 20, value_memory_bytes=1 << 20),
    )


def import_archive(store: _core.TimelineStore) -> bytes:
    """Put directories, sizes and pages of the data directory; return the checkpoint."""
    values = dict(initial_values(ShardIdentity.unsharded()))
    relations: dict[tuple[int, int], list[tuple[int, int]]] = {}
    blocks = 0
    checkpoint = b""
    with tarfile.open(fileobj=io.BytesIO(unpack("initdb.tar.zst"))) as tar:
        for member in tar:
            extracted = tar.extractfile(member)
            parts = member.name.removeprefix("./").split("/")
            if extracted is None:
                continue
            contents = extracted.read()
            if parts == ["global", "pg_control"]:
                checkpoint = contents[40:128]
            elif parts == ["pg_xact", "0000"]:
                values[Key.slru_directory(SlruKind.CLOG)] = (1).to_bytes(8, "big") + bytes(4)
                values[Key.slru_segment_size(SlruKind.CLOG, 0)] = encode_size(1)
                values[Key.slru_block(SlruKind.CLOG, 0, 0)] = contents[:8192]
            elif parts[0] in ("base", "global") and parts[-1][0].isdigit():
                number, _, fork = parts[-1].partition("_")
                spc, db = (1664, 0) if parts[0] == "global" else (1663, int(parts[1]))
                rel = RelTag(spc, db, int(number), ["", "fsm", "vm", "init"].index(fork))
                relations.setdefault((spc, db), []).append((rel.relnode, rel.forknum))
                values[Key.relation_size(rel)] = encode_size(len(contents) // 8192)
                for block in range(len(contents) // 8192):
                    values[Key.relation_block(rel, block)] = contents[block * 8192 : (block + 1) * 8192]
                    blocks += 1
    values[Key.database_directory()] = encode_database_directory(dict.fromkeys(relations, True))
    for (spc, db), forks in relations.items():
        values[Key.relation_directory(spc, db)] = encode_relation_directory(forks)
    values[Key.checkpoint()] = checkpoint
    assert (sum(map(len, relations.values())), blocks) == (946, 2720)
    store.put_images(IMPORT_LSN, [(bytes(key), value) for key, value in values.items()])
    store.advance(START)
    return checkpoint


def make_ingest(store: _core.TimelineStore, checkpoint: bytes, *, distance: int = 1 << 40) -> _core.WalIngest:
    return _core.WalIngest(
        store,
        start_lsn=START,
        checkpoint=checkpoint,
        system_identifier=None,
        check_prev=True,
        tolerant_until=0,
        checkpoint_distance=distance,
    )


def test_the_segment_leaves_the_specified_state(tmp_path: Path, wal: bytes) -> None:
    """Goal: all of wal.md 12.2. Method: import the archive, feed uneven chunks, freeze when asked, read directories."""
    store = make_store(tmp_path)
    ingest = make_ingest(store, import_archive(store), distance=4 << 20)
    applier = RecordApplier(ingest, pg_version=15, flavour="neon", identity=ShardIdentity.unsharded())
    kinds: list[str] = []
    rolls = 0
    for at in range(0, len(wal), 99_991):
        ingest.feed(wal[at : at + 99_991])
        while (step := ingest.run()) != "need-input":
            if isinstance(step, str):
                store.freeze()
                rolls += 1
            else:
                assert store.last_record_lsn < step.lsn
                assert type(step.detail).__name__ == step.kind
                kinds.append(step.kind)
                applier.apply(step)
    assert rolls == 4, "once for the 22 MiB of the import, then for each 4 MiB of some 13 MB of values"
    assert (ingest.records, ingest.lsn, store.last_record_lsn) == (72_925, 0x1FFFF98, 0x1FFFF98)
    assert kinds.count("RelationCreate") == 9
    assert ingest.ignored_vm_clears == 0
    last = Lsn(store.last_record_lsn)
    snapshot = Snapshot(store, last, 15)
    assert sum(len(snapshot.relations(*database)) for database in snapshot.databases()) == 955
    sizes = {
        rel: store.rel_size(1663, 5, *rel, last) for rel in [(16396, 0), (16396, 1), (16397, 0), (16399, 0), (1249, 0)]
    }
    assert list(sizes.values()) == [1189, 3, 1, 1, 57]
    assert store.rel_size(1663, 5, 1249, 0, START) == 56
    checkpoint = store.get(bytes(Key.checkpoint()), last)
    assert checkpoint == ingest.checkpoint
    assert int.from_bytes(checkpoint[24:32], "little") == 2048
    assert int.from_bytes(checkpoint[32:36], "little") == 24576
    clog = store.get(bytes(Key.slru_block(SlruKind.CLOG, 0, 0)), last)
    assert clog[256] == 0b01010101, "transactions 1024 to 1027 are committed"
    page = store.get(bytes(Key.relation_block(RelTag(1663, 5, 16396, 0), 0)), last)
    assert len(page) == 8192 and any(page)


def make_applier(
    store: _core.TimelineStore, checkpoint: bytes, start_migration: Callable[[Lsn], None] | None = None
) -> WalApplier:
    return WalApplier(
        store,
        start=Lsn(store.last_record_lsn).normalised(),
        checkpoint=checkpoint,
        system_identifier=None,
        check_prev=False,
        consistent_from=START,
        backup_start=None,
        checkpoint_distance=1 << 40,
        pg_version=15,
        flavour=Flavour.NEON,
        start_migration=start_migration,
    )


def test_clears_of_map_pages_that_do_not_exist_are_told_and_passed_over(tmp_path: Path, wal: bytes) -> None:
    """Goal: wal.md checklist 34. Method: take the visibility maps of the archive away, then ingest the segment."""
    store = make_store(tmp_path)
    checkpoint = import_archive(store)
    directory = Key.relation_directory(1663, 5)
    main = {fork for fork in decode_relation_directory(store.get(bytes(directory), START)) if fork[1] != VM_FORK}
    store.put_images(START, [(bytes(directory), encode_relation_directory(main))])
    applier = make_applier(store, checkpoint)
    with structlog.testing.capture_logs() as logs:
        applier.take(wal[: 2 << 20])
    told = [entry for entry in logs if entry["event"].startswith("visibility bits of pages that do not exist")]
    assert [(entry["log_level"], entry["count"]) for entry in told] == [("error", 6)]
    assert applier.lsn > 0x14C7F68


class _FailsAfterCreation:
    """A `WalIngest` that cannot commit the first relation that was made."""

    def __init__(self, ingest: Any) -> None:
        self._ingest = ingest
        self._has_created = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ingest, name)

    def run(self) -> Any:
        if self._has_created:
            raise UnavailableError("the disk is full")
        found = self._ingest.run()
        self._has_created = not isinstance(found, str) and found.kind == "RelationCreate"
        return found


def test_a_migration_that_was_not_committed_has_not_begun(tmp_path: Path, wal: bytes) -> None:
    """Goal: the copy of all relations that begins it is never missing. Method: the record that makes it fails once, and
    comes again.
    """
    store = make_store(tmp_path)
    checkpoint = import_archive(store)
    started: list[Lsn] = []

    failing = make_applier(store, checkpoint, started.append)
    failing._ingest = _FailsAfterCreation(failing._ingest)  # type: ignore[assignment]
    with pytest.raises(UnavailableError):
        failing.take(wal)
    assert started == []
    last = Lsn(store.last_record_lsn)
    make_applier(store, checkpoint, started.append).take(wal[last - START :])
    (at,) = started
    assert last < at
    state = RelationDirectoryState(RelationDirectoryStatus.MIGRATED, at)
    first_form = Snapshot(store, Lsn(store.last_record_lsn), 15)
    second_form = Snapshot(store, Lsn(store.last_record_lsn), 15, relation_directory=state)
    for database in first_form.databases():
        assert second_form.relations(*database) == first_form.relations(*database)


def test_damaged_wal_raises_and_ends_ingest(tmp_path: Path, wal: bytes) -> None:
    """Goal: a flipped bit stops the timeline's ingest before anything is lost. Method: flip one, go on afterwards."""
    store = make_store(tmp_path)
    ingest = make_ingest(store, import_archive(store))
    damaged = bytearray(wal[:100])
    damaged[25] ^= 4
    ingest.feed(bytes(damaged))
    with pytest.raises(CorruptDataError, match="WAL record crc mismatch at 0/14AEC08"):
        ingest.run()
    with pytest.raises(InternalError):
        ingest.run()
    assert store.last_record_lsn == START


def test_writes_need_a_rare_record(tmp_path: Path) -> None:
    """Goal: nothing is written at an LSN that is not being applied. Method: put without a record; bad arguments."""
    store = make_store(tmp_path)
    checkpoint = import_archive(store)
    ingest = make_ingest(store, checkpoint)
    with pytest.raises(InternalError):
        ingest.put(bytes(Key.database_directory()), b"")
    with pytest.raises(RequestError):
        ingest.get(b"short")
    with pytest.raises(CorruptDataError):
        make_ingest(store, checkpoint[:87])
    assert ingest.get(bytes(Key.checkpoint())) == checkpoint


def test_records_can_be_shown_offline(wal: bytes) -> None:
    """Goal: `pagectl wal decode` shows what a record is and becomes. Method: the first records of the segment."""
    decoded = _core.decode_wal(wal[:4000], pg_version=15, flavour="neon", start_lsn=START, limit=1000)
    assert decoded.error is None
    first = decoded.records[0]
    assert (first["lsn"], first["rmgr"], first["type"]) == (START, "XLOG", "PARAMETER_CHANGE")
    nextoid = decoded.records[1]
    assert (nextoid["lsn_end"], nextoid["type"], nextoid["main_data"]) == (0x14AEC60, "NEXTOID", "00600000")
    blocks = next(record for record in decoded.records if record["blocks"])
    assert blocks["values"][0]["key"].startswith("00")
    assert decoded.lsn_end == decoded.records[-1]["lsn_end"]
    zeros = _core.decode_wal(wal[:56] + bytes(100), pg_version=15, flavour="neon", start_lsn=START)
    assert zeros.error == "invalid xl_tot_len 0 at 0/14AEC40"
    assert len(zeros.records) == 1
    assert len(_core.decode_wal(wal, pg_version=15, flavour="neon", start_lsn=START, limit=3).records) == 3
    with pytest.raises(RequestError):
        _core.decode_wal(wal, pg_version=13, flavour="neon", start_lsn=START)
    with pytest.raises(RequestError):
        _core.decode_wal(wal, pg_version=15, flavour="other", start_lsn=START)
