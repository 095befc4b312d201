"""The object repository over RocksDB: crashes between steps, branches, garbage, readers beside writers, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from pageserver.clock import SystemClock
from pageserver.errors import (
    ConflictError,
    CorruptDataError,
    MissingKeyError,
    NotFoundError,
    RequestError,
    StoppedError,
    UnavailableError,
)
from pageserver.keyspace.key import PAGE_SIZE, Key, RelTag
from pageserver.repository import ObjectRepository, ObjectTimeline, RocksObjectStore, TimelineRecord
from pageserver.repository.garbage import plan_unlinks, readable_ranges
from pageserver.repository.values import encode_image

ROOT, CHILD, GRANDCHILD = (bytes([number]) * 16 for number in (1, 2, 3))
START = 0x1000
KEY = Key.relation_block(RelTag(1663, 5, 16384, 0), 0)
OTHER = Key.relation_block(RelTag(1663, 5, 16384, 0), 1)
AUX = Key.of(0x62, 1, 2, 3, 4, 5)
RECORD = TimelineRecord(ROOT, 16, "stock", False, None, 0, START, 0, START)
TRUNCATE_MAP = (1).to_bytes(4, "big") + (7).to_bytes(4, "big") + bytes(16)
"""A record that clears a visibility map from its first bit on."""

Open = Callable[[], ObjectRepository]


@pytest.fixture
def open_repository(tmp_path: Path) -> Iterator[Open]:
    opened: list[ObjectRepository] = []

    def open_it() -> ObjectRepository:
        for earlier in opened:
            earlier.close()
        opened.append(ObjectRepository(lambda: RocksObjectStore(tmp_path / "rocksdb"), clock=SystemClock()))
        opened[-1].open()
        return opened[-1]

    yield open_it
    for repository in opened:
        repository.close()


def make_root(repository: ObjectRepository) -> ObjectTimeline:
    return repository.create_timeline(RECORD, disk_consistent_lsn=0, redo=None)


def make_branch(repository: ObjectRepository, new: bytes, ancestor: bytes, lsn: int) -> ObjectTimeline:
    record = replace(RECORD, timeline_id=new, ancestor_id=ancestor, ancestor_lsn=lsn, last_record_lsn=lsn)
    return repository.create_timeline(record, disk_consistent_lsn=lsn, redo=None)


def reopen(repository: ObjectRepository, timeline_id: bytes = ROOT, *, at_least: int = 0) -> ObjectTimeline:
    return repository.open_timeline(
        timeline_id, ancestor_id=None, ancestor_lsn=0, disk_consistent_lsn=at_least, redo=None
    )


def test_what_was_committed_is_there_again_and_what_was_not_is_gone(open_repository: Open) -> None:
    """Goal: a record is seen whole or not at all. Method: stop between its values and its commit, open again."""
    timeline = make_root(open_repository())
    timeline.commit_values([(KEY, START + 8, encode_image(b"first"))], [START + 8])
    timeline.put_values([(KEY, START + 16, encode_image(b"half")), (OTHER, START + 16, encode_image(b"half"))])
    assert timeline.find(KEY, START + 16) == b"half"
    assert (timeline.last_record_lsn, timeline.prev_record_lsn) == (START + 8, START)
    again = reopen(open_repository())
    assert again.record_lsns() == (START + 8, START)
    assert (again.get(KEY, START + 99), again.find(OTHER, START + 99)) == (b"first", None)
    again.put_values([(OTHER, START + 16, encode_image(b"early"))])
    again.commit_values([(KEY, START + 16, encode_image(b"late"))], [START + 16])
    third = reopen(open_repository(), at_least=START + 16)
    assert third.get_many([KEY, OTHER], START + 16) == [b"late", b"early"]


def test_a_killed_process_leaves_a_moment_of_its_history(tmp_path: Path) -> None:
    """Goal: durability without a clean end. Method: a process commits two keys per record and is killed while it does;
    both keys agree afterwards, and nothing that was flushed is missing.
    """
    script = f"""
import sys
from pathlib import Path
from tests.unit.test_object_repository import *
repository = ObjectRepository(lambda: RocksObjectStore(Path({str(tmp_path / "rocksdb")!r})), clock=SystemClock())
repository.open()
timeline = make_root(repository)
for number in range(1, 100000):
    lsn = START + 8 * number
    timeline.put_values([(KEY, lsn, encode_image(str(number).encode()))])
    timeline.commit_values([(OTHER, lsn, encode_image(str(number).encode()))], [lsn])
    if number % 50 == 0:
        timeline.freeze()
        timeline.flush_oldest(None)
        print(timeline.disk_consistent_lsn, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": f"src{os.pathsep}."}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as lines:
        flushed = [int(next(lines)) for _ in range(5)][-1]
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    repository = ObjectRepository(lambda: RocksObjectStore(tmp_path / "rocksdb"), clock=SystemClock())
    repository.open()
    timeline = reopen(repository, at_least=flushed)
    number = str((timeline.last_record_lsn - START) // 8).encode()
    assert timeline.last_record_lsn >= flushed
    assert timeline.get_many([KEY, OTHER], timeline.last_record_lsn) == [number, number]
    assert timeline.find(KEY, timeline.last_record_lsn + 800) == number
    repository.close()


def test_freezing_and_flushing_move_what_is_durable(open_repository: Open) -> None:
    timeline = make_root(open_repository())
    timeline.freeze()
    timeline.flush_oldest(None)
    assert (timeline.open_layer(), timeline.freeze(), timeline.disk_consistent_lsn) == (None, None, START)
    timeline.put_images(START + 8, [(KEY, b"one")])
    layer = timeline.open_layer()
    assert layer is not None and (layer.size_bytes, layer.lsn_start) == (15, START + 1)
    assert (timeline.freeze(), timeline.frozen_layers(), timeline.open_layer()) == (START + 9, 1, None)
    timeline.flush_oldest(None)
    assert (timeline.frozen_layers(), timeline.disk_consistent_lsn) == (0, START + 8)


def test_a_repository_that_lost_acknowledged_data_is_not_served(open_repository: Open) -> None:
    make_root(open_repository())
    with pytest.raises(CorruptDataError, match="was durable"):
        reopen(open_repository(), at_least=START + 8)
    with pytest.raises(CorruptDataError, match="another ancestor"):
        open_repository().open_timeline(
            ROOT, ancestor_id=CHILD, ancestor_lsn=START, disk_consistent_lsn=START, redo=None
        )


def test_branches_see_their_ancestor_up_to_the_branch_point(open_repository: Open) -> None:
    repository = open_repository()
    root = make_root(repository)
    root.put_images(START + 8, [(KEY, b"old"), (AUX, b"slot")])
    branch = make_branch(repository, CHILD, ROOT, START + 8)
    root.put_images(START + 16, [(KEY, b"new"), (OTHER, b"other")])
    branch.put_images(START + 24, [(OTHER, b"own")])
    twig = make_branch(repository, GRANDCHILD, CHILD, START + 16)
    assert branch.get_many([KEY, OTHER, AUX], START + 24) == [b"old", b"own", None]
    assert twig.get_many([KEY, OTHER], START + 99) == [b"old", None]
    assert (root.scan(AUX, Key.of(0x63), START + 8), branch.scan(AUX, Key.of(0x63), START + 24)) == (
        [(AUX, b"slot")],
        [],
    )
    with pytest.raises(ConflictError, match="has branches"):
        repository.drop_timeline(CHILD)
    repository.drop_timeline(GRANDCHILD)
    repository.drop_timeline(CHILD)
    with pytest.raises(StoppedError):
        branch.get(KEY, START + 24)
    assert make_branch(repository, CHILD, ROOT, START + 8).find(OTHER, START + 99) is None


def test_what_no_index_names_is_dropped_at_the_next_start(open_repository: Open) -> None:
    repository = open_repository()
    make_root(repository)
    make_branch(repository, CHILD, ROOT, START)
    make_branch(repository, GRANDCHILD, CHILD, START)
    assert open_repository().keep_only([ROOT]) == [GRANDCHILD, CHILD]
    repository = open_repository()
    assert repository.timeline_ids == {ROOT}
    with pytest.raises(NotFoundError):
        reopen(repository, CHILD)


def test_garbage_goes_and_answers_stay(open_repository: Open) -> None:
    """Goal: only what nobody can read goes. Method: a branch holds one old version, a chain of records its base."""
    vm = Key.relation_block(RelTag(1663, 5, 16384, 2), 0)
    repository = open_repository()
    root = make_root(repository)
    for number in range(1, 11):
        root.put_images(START + 8 * number, [(KEY, b"%d" % number)])
    root.put_images(START + 88, [(vm, b"\xff" * PAGE_SIZE)])
    root.commit_values([(vm, START + 96, TRUNCATE_MAP)], [START + 96])
    branch = make_branch(repository, CHILD, ROOT, START + 24)
    before = root.get(vm, START + 96)
    assert before != b"\xff" * PAGE_SIZE
    report = repository.collect_garbage(ROOT, START + 96)
    # The branch reads from the root's former cutoff on: 1 to 3 stay, and so does 10.
    assert (report.versions_seen, report.versions_removed) == (12, 6)
    assert (branch.get(KEY, START + 8), branch.get(KEY, START + 99)) == (b"1", b"3")
    assert (root.get(KEY, START + 96), root.get(vm, START + 96)) == (b"10", before)
    with pytest.raises(RequestError, match="garbage collection"):
        root.get(KEY, START + 80)
    assert repository.collect_garbage(CHILD, START + 24).versions_removed == 0
    assert repository.collect_garbage(ROOT, START + 96).versions_removed == 2
    repository.drop_timeline(CHILD)
    assert repository.collect_garbage(ROOT, START + 96).versions_removed == 1
    again = reopen(open_repository())
    with pytest.raises(RequestError, match="garbage collection"):
        again.get_many([KEY], START + 80)


def test_readers_beside_a_writer_and_a_collector_see_one_moment(open_repository: Open) -> None:
    """Goal: no read mixes moments. Method: every commit writes two keys alike; readers compare them, refused reads
    apart, while versions are added and removed.
    """
    repository = open_repository()
    timeline = make_root(repository)
    timeline.put_images(START + 8, [(KEY, b"0"), (OTHER, b"0")])
    stop, wrong, reads = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            lsn = timeline.last_record_lsn
            try:
                pair = timeline.get_many([KEY, OTHER], lsn)
            except RequestError:
                continue
            reads.append(1)
            if pair[0] is None or pair[0] != pair[1]:
                wrong.append((lsn, pair))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(2, 400):
            timeline.put_images(START + 8 * number, [(KEY, b"%d" % number), (OTHER, b"%d" % number)])
            if number % 40 == 0:
                repository.collect_garbage(ROOT, START + 8 * number)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert reads and not wrong


def test_bad_input_is_refused_and_loses_nothing(open_repository: Open, tmp_path: Path) -> None:
    repository = open_repository()
    timeline = make_root(repository)
    timeline.put_images(START + 8, [(KEY, b"good")])
    with pytest.raises(RequestError, match="18 bytes"):
        timeline.put_images(START + 16, [(b"short", b"")])
    with pytest.raises(RequestError, match="18 bytes"):
        timeline.get(b"short", START + 8)
    with pytest.raises(RequestError, match="Invalid LSN"):
        timeline.get(KEY, 0)
    with pytest.raises(RequestError, match="after record"):
        timeline.commit_values([(KEY, START, encode_image(b"back"))], [START])
    with pytest.raises(RequestError, match="metadata keyspace"):
        timeline.scan(KEY, OTHER, START + 8)
    with pytest.raises(MissingKeyError):
        timeline.get(OTHER, START + 8)
    with pytest.raises(ConflictError, match="exists already"):
        make_root(repository)
    with pytest.raises(UnavailableError, match="rocksdb"):
        RocksObjectStore(tmp_path / "rocksdb")
    short = tmp_path / "short"
    short.write_bytes(bytes(PAGE_SIZE + 1))
    with pytest.raises(CorruptDataError, match="ends inside of block 1"):
        list(timeline.import_pieces(START + 8, [("file", OTHER, str(short), 0, 2)]))
    assert timeline.get(KEY, START + 8) == b"good"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (bytes(4) + (9).to_bytes(8, "big") + b"four", "another length"),
        (b"\0\0\0\7rubbish", "."),
        (TRUNCATE_MAP, "not found"),
    ],
)
def test_a_damaged_value_is_an_error_and_no_page(open_repository: Open, value: bytes, complaint: str) -> None:
    timeline = make_root(open_repository())
    timeline.put_images(START + 8, [(OTHER, b"fine")])
    timeline.commit_values([(KEY, START + 16, value)], [START + 16])
    with pytest.raises(CorruptDataError, match=complaint):
        timeline.get(KEY, START + 16)
    assert timeline.get(OTHER, START + 16) == b"fine"


def test_another_format_or_a_damaged_record_is_not_opened(open_repository: Open, tmp_path: Path) -> None:
    make_root(open_repository()).put_images(START + 8, [(KEY, b"kept")])
    open_repository().close()
    for key, value, complaint in ((b"t" + ROOT, b"{}", "does not decode"), (b"f", b"9", "format")):
        database = Rdict(str(tmp_path / "rocksdb"), Options(raw_mode=True))
        kept = database.get(key)
        database.put(key, value)
        database.close()
        with pytest.raises(CorruptDataError, match=complaint):
            open_repository()
        database = Rdict(str(tmp_path / "rocksdb"), Options(raw_mode=True))
        database.put(key, kept)
        database.close()
    assert reopen(open_repository()).get(KEY, START + 8) == b"kept"


def test_readable_ranges_follow_branches_and_their_cutoffs() -> None:
    """The drawing of `repository/garbage.py`."""
    first = replace(RECORD, timeline_id=CHILD, ancestor_id=ROOT, ancestor_lsn=300, gc_cutoff_lsn=200)
    second = replace(RECORD, timeline_id=GRANDCHILD, ancestor_id=ROOT, ancestor_lsn=400, gc_cutoff_lsn=450)
    records = {record.timeline_id: record for record in (replace(RECORD, gc_cutoff_lsn=500), first, second)}
    ranges = readable_ranges(ROOT, records)
    assert [(low, high) for low, high in ranges[:2]] == [(200, 300), (400, 400)]
    assert ranges[2][0] == 500
    versions = [(lsn, True) for lsn in (600, 500, 410, 350, 310, 300, 250, 150, 100)]
    assert plan_unlinks(versions, ranges) == [410, 310, 100]
    assert plan_unlinks([(lsn, lsn in (100, 310)) for lsn, _ in versions], ranges) == []
