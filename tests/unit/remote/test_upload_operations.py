"""Which operation may overtake which, and what starts next: remote-storage.md 9.3 and 9.4, cell by cell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from pageserver.ids import Generation, ShardCount, ShardIndex, ShardNumber
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, LayerEntry, TimelineMetadata
from pageserver.remote.upload_operations import (
    Barrier,
    DeleteLayers,
    LayerFile,
    Operation,
    Shutdown,
    UploadIndex,
    UploadLayer,
    UploadPolicy,
    choose_next,
    may_bypass,
)

METADATA = TimelineMetadata(
    disk_consistent_lsn=Lsn(0x100),
    prev_record_lsn=None,
    ancestor_timeline=None,
    ancestor_lsn=Lsn(0),
    latest_gc_cutoff_lsn=Lsn(0),
    initdb_lsn=Lsn(0),
    pg_version=16,
)
ENTRY = LayerEntry(10, Generation(1))


def name(number: int) -> str:
    return f"{'0' * 36}-{'F' * 36}__{number:016X}"


def file(number: int, entry: LayerEntry = ENTRY) -> LayerFile:
    return LayerFile(name(number), entry)


def index(*numbers: int) -> IndexPart:
    return IndexPart(METADATA, {name(number): ENTRY for number in numbers})


def upload(number: int, entry: LayerEntry = ENTRY) -> UploadLayer:
    return UploadLayer(file(number, entry))


def delete(*numbers: int) -> DeleteLayers:
    return DeleteLayers(tuple(map(file, numbers)))


def put(*numbers: int) -> UploadIndex:
    return UploadIndex(index(*numbers))


def barrier() -> Barrier:
    return Barrier(asyncio.get_running_loop().create_future())


class Schedule:
    """A queue without I/O: tests say what completes and look at what started."""

    def __init__(self, *operations: Operation, clean: IndexPart | None = None, limit: int = 0) -> None:
        self.queued: list[Operation] = list(operations)
        self.running: list[Operation] = []
        self.clean = clean or index()
        self.coalesced: list[Operation] = []
        self._limit = limit

    def start(self) -> list[Operation]:
        started: list[Operation] = []
        while not self._limit or len(self.running) < self._limit:
            choice = choose_next(self.running, self.queued, self.clean)
            if choice is None or isinstance(choice.operation, Shutdown):
                break
            del self.queued[choice.position : choice.position + len(choice.coalesced) + 1]
            self.coalesced += choice.coalesced
            self.running.append(choice.operation)
            started.append(choice.operation)
        return started

    def complete(self, *operations: Operation) -> list[Operation]:
        started = []
        for operation in operations:
            self.running.remove(operation)
            if isinstance(operation, UploadIndex):
                self.clean = operation.index
            started += self.start()
        return started


async def test_every_cell_of_the_bypass_matrix() -> None:
    """Goal: 9.3. Method: each cell once where it says yes and once where it says no, `A` empty unless it matters."""
    none, names_0 = index(), index(0)
    cases: list[tuple[Operation, Operation, IndexPart, bool]] = [
        (upload(0), upload(1), none, True),
        (upload(0), upload(0), none, False),
        (upload(0), delete(1), none, True),
        (upload(0), delete(1, 0), none, False),
        (upload(0), put(1), none, True),
        (upload(0), put(0), none, False),
        (upload(0), put(1), names_0, False),
        (delete(0), upload(1), none, True),
        (delete(0, 1), upload(1), none, False),
        (delete(0), delete(0), none, True),
        (delete(0), put(1), none, True),
        (delete(0), put(0), none, False),
        (delete(0), put(), names_0, False),
        (put(1), upload(0), none, True),
        (put(0), upload(0), none, False),
        (put(), upload(0), names_0, False),
        (put(1), delete(0), none, True),
        (put(0), delete(0), none, False),
        (put(), delete(0), names_0, False),
        (put(), put(), none, False),
    ]
    for candidate, other, active, expected in cases:
        assert may_bypass(candidate, other, active) is expected, f"{candidate} over {other}"
    for stopper in (barrier(), Shutdown()):
        for operation in (upload(0), delete(0), put(), barrier(), Shutdown()):
            assert not may_bypass(operation, stopper, none)
            assert not may_bypass(stopper, operation, none)


@pytest.mark.parametrize(
    "other",
    [
        replace(ENTRY, generation=Generation(2)),
        replace(ENTRY, generation=Generation(None)),
        replace(ENTRY, shard=ShardIndex(ShardNumber(0), ShardCount(1))),
    ],
)
def test_another_generation_or_shard_is_another_file(other: LayerEntry) -> None:
    elsewhere = DeleteLayers((file(0, other),))
    assert may_bypass(upload(0), UploadLayer(file(0, other)), index())
    assert may_bypass(upload(0), elsewhere, index())
    assert may_bypass(elsewhere, put(0), index(0))
    assert may_bypass(put(0), elsewhere, index(0))
    assert not may_bypass(upload(0, replace(ENTRY, file_size=99)), upload(0), index()), "the size does not matter"


async def test_independent_operations_run_together_and_barriers_part_them() -> None:
    stop = barrier()
    first: list[Operation] = [upload(0), delete(1), put()]
    second: list[Operation] = [upload(2), delete(3), put()]
    schedule = Schedule(*first, stop, *second)
    assert schedule.start() == first
    assert schedule.complete(*first[:2]) == []
    assert schedule.complete(first[2]) == [stop]
    assert schedule.complete(stop) == second


def test_deletes_never_wait_for_each_other() -> None:
    deletes = [delete(0), delete(1), delete(1, 2), delete(2), delete(3)]
    assert Schedule(*deletes).start() == deletes


def test_uploads_of_one_file_go_one_by_one() -> None:
    a, b, c = upload(0), upload(0), upload(0)
    schedule = Schedule(a, b, c)
    assert schedule.start() == [a]
    assert schedule.complete(a) == [b]
    assert schedule.complete(b) == [c]


def test_a_delete_waits_for_its_files_uploads_and_the_other_way_round() -> None:
    u0, d01, u1, u2, d3 = upload(0), delete(0, 1), upload(1), upload(2), delete(3)
    schedule = Schedule(u0, d01, u1, u2, d3)
    assert schedule.start() == [u0, u2, d3]
    assert schedule.complete(u2, d3) == []
    assert schedule.complete(u0) == [d01]
    assert schedule.complete(d01) == [u1]


def test_adjacent_indices_become_one_upload() -> None:
    a, b, c = put(0), put(0, 1), put(0, 1, 2)
    schedule = Schedule(a, b, c)
    assert schedule.start() == [c]
    assert schedule.coalesced == [a, b]


def test_an_index_waits_for_the_layers_it_names() -> None:
    u0, i0, u1, i01, u2, i012 = upload(0), put(0), upload(1), put(0, 1), upload(2), put(0, 1, 2)
    schedule = Schedule(u0, i0, u1, i01, u2, i012)
    assert schedule.start() == [u0, u1, u2]
    assert schedule.complete(u2) == []
    assert schedule.complete(u0) == [i0]
    assert schedule.complete(i0) == []
    assert schedule.complete(u1) == [i012]
    assert schedule.coalesced == [i01]


@pytest.mark.parametrize("last", ["delete", "upload"])
async def test_unlinking_is_strictly_ordered(last: str) -> None:
    tail: Sequence[Operation] = [delete(0)] if last == "delete" else [upload(0), put(0)]
    chain = [upload(0), put(0), barrier(), put(), *tail]
    schedule = Schedule(*chain)
    assert schedule.start() == [chain[0]]
    for done, following in pairwise(chain):
        assert schedule.complete(done) == [following]


def test_the_limit_holds() -> None:
    uploads = [upload(number) for number in range(4)]
    schedule = Schedule(*uploads, limit=2)
    assert schedule.start() == uploads[:2]
    assert schedule.complete(uploads[1]) == [uploads[2]]
    assert schedule.complete(uploads[0]) == [uploads[3]]


def test_switches_turn_reordering_and_coalescing_off() -> None:
    u0, i0, u1 = upload(0), put(0), upload(1)
    assert choose_next([u0], [i0, u1], index(), UploadPolicy(reorders=False)) is None
    newest = choose_next([], [i0, put(0, 1)], index(), UploadPolicy(coalesces=False))
    assert newest is not None
    assert (newest.operation, newest.coalesced) == (i0, ())
    given = {"DISABLE_UPLOAD_QUEUE_REORDERING": "true", "DISABLE_UPLOAD_QUEUE_INDEX_COALESCING": "false"}
    assert UploadPolicy.from_environment(given, limit=7) == UploadPolicy(7, reorders=False, coalesces=True)
    choice = choose_next([u0], [i0, u1], index())
    assert choice is not None
    assert (choice.operation, choice.position) == (u1, 1)


def test_a_delete_waits_for_the_index_without_its_file() -> None:
    """What the store's index names is not deleted, also not while its successor is being uploaded."""
    unlinking, gone = put(), delete(0)
    schedule = Schedule(unlinking, gone, clean=index(0))
    assert schedule.start() == [unlinking]
    assert schedule.complete(unlinking) == [gone]
