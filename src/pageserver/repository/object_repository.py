"""One tenant in an object store: which timelines there are, branches, garbage collection.

    create (root or branch) ─▶ open ─▶ … ─▶ drop        the records say what exists and what descends from what

Order of steps, so that a crash between any two loses and leaks nothing:
- create: the record, synced. A branch so makes its ancestor's past durable as well. Who asked for it writes an index
  behind that; a record without an index is dropped by `keep_only` at the next start.
- drop: record and objects in one synced write. Refused while something descends from it.
- collect: the cutoff into the record (reads below it end), then unlinks in batches; what a crash leaves of them is
  found by the next collection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from pageserver import _core
from pageserver.clock import Clock
from pageserver.errors import ConflictError, CorruptDataError, NotFoundError, StoppedError
from pageserver.keyspace.key import MIN_KEY
from pageserver.lsn import Lsn
from pageserver.repository.garbage import GarbageReport, plan_unlinks, readable_ranges
from pageserver.repository.object_store import Changes, ObjectStore, TimelineRecord
from pageserver.repository.object_timeline import ObjectTimeline
from pageserver.repository.values import is_base

_UNLINKS_MAX = 10_000
_LINEAGE_MAX = 10_000


class ObjectRepository:
    """All timelines of one tenant. Methods may block; those that make or end timelines come from one thread at a time.

    `open_store` is called by `open`. Raises, in every method: UnavailableError, CorruptDataError, StoppedError.
    """

    def __init__(self, open_store: Callable[[], ObjectStore], *, clock: Clock) -> None:
        self._open_store = open_store
        self._clock = clock
        self._store: ObjectStore | None = None
        self._is_closed = False
        self._records: dict[bytes, TimelineRecord] = {}
        self._open: dict[bytes, ObjectTimeline] = {}
        self._lock = threading.RLock()

    def open(self) -> None:
        """Open the store. Again: nothing."""
        with self._lock:
            if self._is_closed:
                raise StoppedError("the repository is closed")
            if self._store is None:
                store = self._open_store()
                try:
                    self._records = {record.timeline_id: record for record in store.records()}
                except BaseException:
                    store.close()
                    raise
                self._store = store

    @property
    def timeline_ids(self) -> set[bytes]:
        """Which timelines exist."""
        with self._lock:
            return set(self._records)

    def create_timeline(
        self,
        record: TimelineRecord,
        *,
        disk_consistent_lsn: int,
        redo: _core.RedoPool | None,
    ) -> ObjectTimeline:
        """Make a timeline that ends at the record's last LSN; for a branch that is where its ancestor's part ends.

        Raises: ConflictError (the id is taken), NotFoundError (no such ancestor).
        """
        with self._lock:
            if record.timeline_id in self._records:
                raise ConflictError(f"timeline {record.timeline_id.hex()} exists already in the repository")
            if record.ancestor_id is not None:
                ancestor = self._record(record.ancestor_id)
                record = replace(record, gc_cutoff_lsn=min(ancestor.gc_cutoff_lsn, record.ancestor_lsn))
            store = self._running()
            store.write(Changes(records=[record]))
            store.sync()
            self._records[record.timeline_id] = record
            return self._make(store, record, disk_consistent_lsn, redo)

    def open_timeline(
        self,
        timeline_id: bytes,
        *,
        ancestor_id: bytes | None,
        ancestor_lsn: int,
        disk_consistent_lsn: int,
        redo: _core.RedoPool | None,
    ) -> ObjectTimeline:
        """Open a timeline that is there; what was written of an incomplete record is removed.

        Raises: NotFoundError, CorruptDataError (it ends below `disk_consistent_lsn`, which was acknowledged, or has
        another ancestor than it should).
        """
        with self._lock:
            store, record = self._running(), self._record(timeline_id)
            if record.last_record_lsn < disk_consistent_lsn:
                raise CorruptDataError(
                    f"the repository ends at {Lsn(record.last_record_lsn)}, but {Lsn(disk_consistent_lsn)} was durable",
                    timeline_id=timeline_id.hex(),
                )
            if (record.ancestor_id, record.ancestor_lsn if record.ancestor_id else 0) != (ancestor_id, ancestor_lsn):
                raise CorruptDataError("the repository knows another ancestor", timeline_id=timeline_id.hex())
            unfinished = store.unfinished(timeline_id)
            if unfinished:
                unlinks = [(timeline_id, key, lsn) for key, lsn in unfinished]
                store.write(Changes(unlinks=unlinks, finished=[timeline_id]))
            return self._make(store, record, disk_consistent_lsn, redo)

    def drop_timeline(self, timeline_id: bytes) -> None:
        """Remove a timeline, durably. Absence is fine. Raises: ConflictError (it has branches)."""
        with self._lock:
            children = [each.timeline_id.hex() for each in self._records.values() if each.ancestor_id == timeline_id]
            if children:
                raise ConflictError(f"timeline {timeline_id.hex()} has branches: {', '.join(children)}")
            timeline = self._open.pop(timeline_id, None)
            if timeline is not None:
                timeline.shutdown()
            self._running().drop_timeline(timeline_id)
            self._records.pop(timeline_id, None)

    def keep_only(self, timeline_ids: Iterable[bytes]) -> list[bytes]:
        """Drop all timelines but these and their ancestors; returns those that went."""
        with self._lock:
            kept: set[bytes] = set()
            for timeline_id in timeline_ids:
                step: bytes | None = timeline_id
                while step is not None and step not in kept:
                    kept.add(step)
                    step = self._records[step].ancestor_id if step in self._records else None
            dropped: list[bytes] = []
            while going := [
                each
                for each in self._records
                if each not in kept and not any(other.ancestor_id == each for other in self._records.values())
            ]:
                for timeline_id in going:
                    self.drop_timeline(timeline_id)
                dropped += going
            return dropped

    def collect_garbage(self, timeline_id: bytes, cutoff_lsn: int) -> GarbageReport:
        """Remove the versions of one timeline that nobody can read any more, once it is read from `cutoff_lsn` on only.

        Branches keep what they see. Safe beside reads and writes. Raises: NotFoundError (it is not open).
        """
        with self._lock:
            timeline = self._open.get(timeline_id)
            if timeline is None:
                raise NotFoundError(f"timeline {timeline_id.hex()} is not open")
            store = self._running()
            self._records[timeline_id] = timeline.begin_collection(cutoff_lsn)
            ranges = readable_ranges(timeline_id, self._records)
        seen = removed = 0
        pending: list[tuple[bytes, bytes, int]] = []
        for key, versions in _by_key(store, timeline_id):
            seen += len(versions)
            pending += [(timeline_id, key, lsn) for lsn in plan_unlinks(versions, ranges)]
            if len(pending) >= _UNLINKS_MAX:
                store.write(Changes(unlinks=pending))
                removed += len(pending)
                pending = []
        store.write(Changes(unlinks=pending))
        return GarbageReport(cutoff_lsn, versions_seen=seen, versions_removed=removed + len(pending))

    def size_bytes(self) -> int:
        return self._running().size_bytes()

    def close(self) -> None:
        """Close all timelines, then the store. Again: nothing."""
        with self._lock:
            self._is_closed = True
            for timeline in self._open.values():
                timeline.shutdown()
            self._open.clear()
            store, self._store = self._store, None
        if store is not None:
            store.close()

    # Private

    def _running(self) -> ObjectStore:
        if self._store is None:
            raise StoppedError("the repository is not open")
        return self._store

    def _record(self, timeline_id: bytes) -> TimelineRecord:
        timeline = self._open.get(timeline_id)
        record = self._records.get(timeline_id) if timeline is None else timeline.record
        if record is None:
            raise NotFoundError(f"the repository has no timeline {timeline_id.hex()}", timeline_id=timeline_id.hex())
        return record

    def _make(
        self, store: ObjectStore, record: TimelineRecord, disk_consistent_lsn: int, redo: _core.RedoPool | None
    ) -> ObjectTimeline:
        timeline = ObjectTimeline(
            store,
            record,
            self._lineage(record),
            disk_consistent_lsn=disk_consistent_lsn,
            redo=redo,
            clock=self._clock,
        )
        self._open[record.timeline_id] = timeline
        return timeline

    def _lineage(self, record: TimelineRecord) -> list[tuple[bytes, int]]:
        lineage: list[tuple[bytes, int]] = []
        limit = record.ancestor_lsn
        while record.ancestor_id is not None:
            limit = min(limit, record.ancestor_lsn)
            lineage.append((record.ancestor_id, limit))
            if len(lineage) > _LINEAGE_MAX:
                raise CorruptDataError("ancestry in the repository has no end", timeline_id=record.timeline_id.hex())
            record = self._record(record.ancestor_id)
        return lineage


def _by_key(store: ObjectStore, timeline_id: bytes) -> Iterable[tuple[bytes, list[tuple[int, bool]]]]:
    """Yield each key with its versions, newest first: (LSN, needs nothing older)."""
    with store.view() as view:
        current: bytes | None = None
        versions: list[tuple[int, bool]] = []
        for key, lsn, value in view.entries(timeline_id, MIN_KEY, None):
            if key != current:
                if current is not None:
                    yield current, versions
                current, versions = key, []
            versions.append((lsn, is_base(value)))
        if current is not None:
            yield current, versions
