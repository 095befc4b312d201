"""One branch in the object repository: what WAL ingest writes, what readers read, what is durable.

    put_values ──▶ unfinished objects ┐
    commit_values ──▶ objects + record ┴─ one atomic write each ──▶ readable ──freeze, flush_oldest (sync)──▶ durable

Invariants:
- The record's `last_record_lsn` and the values up to it are written together, so what a crash leaves is a moment of
  the timeline's own history. Values of a record that was not committed are known as unfinished and removed at open.
- `disk_consistent_lsn <= last_record_lsn`; the first moves only after a sync of everything that was written before.
- A read sees one view of the store, its own timeline and ancestors alike. A read that began before a garbage
  collection does not notice it; one that begins behind it and asks below the cutoff is refused.

There are no layers: freezing notes an LSN, flushing syncs the store's log.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike

from pageserver import _core
from pageserver.clock import Clock
from pageserver.errors import (
    CorruptDataError,
    NotFoundError,
    PageServerError,
    PreconditionFailedError,
    RequestError,
    UnavailableError,
)
from pageserver.keyspace.key import (
    KEY_SIZE,
    NOT_INHERITED_SPARSE_RANGE,
    PAGE_SIZE,
    SPARSE_RANGE,
    Key,
    RelTag,
    SlruKind,
)
from pageserver.lsn import Lsn
from pageserver.repository import relations
from pageserver.repository.gate import Gate
from pageserver.repository.object_store import MAX_LSN, Changes, ObjectStore, ObjectView, TimelineRecord
from pageserver.repository.values import encode_image, is_base, make_page

_IMPORT_BATCH_BYTES = 4 << 20

Piece = tuple[str, bytes, bytes] | tuple[str, bytes, str, int, int]
"""What an import brings: `("bytes", key, value)` or `("file", first key, path, offset, blocks)`."""


class LayersRefusedError(CorruptDataError):
    """Layers belong to the layered repository; this timeline is kept in objects."""

    def __init__(self, *, names: list[str]) -> None:
        super().__init__(f"a timeline that is kept in objects has no layers {', '.join(names[:10])}", names=names)


@dataclass(frozen=True, slots=True)
class Unsynced:
    """What was written since the last freeze, in the words of an open layer."""

    size_bytes: int
    lsn_start: int
    age_seconds: float


class ObjectTimeline:
    """A timeline that is open. One thread writes at a time, any number read.

    Raises, in every method: StoppedError (after `shutdown`), UnavailableError (the disk fails or is full),
    CorruptDataError (the store is damaged).
    """

    def __init__(
        self,
        store: ObjectStore,
        record: TimelineRecord,
        lineage: Sequence[tuple[bytes, int]],
        *,
        disk_consistent_lsn: int,
        redo: _core.RedoPool | None,
        clock: Clock,
    ) -> None:
        """`lineage`: the ancestors, nearest first, each with the last LSN at which this timeline reads it."""
        self.timeline_id = record.timeline_id
        self.pg_version = record.pg_version
        self.flavour = record.flavour
        self._store = store
        self._record = record
        self._lineage = ((record.timeline_id, MAX_LSN), *lineage)
        self._redo = redo
        self._clock = clock
        self._gate = Gate(f"timeline {record.timeline_id.hex()}")
        self._lock = threading.RLock()
        """Guards the record and what follows; never held during a read."""
        self._disk_consistent_lsn = disk_consistent_lsn
        self._readable_from = record.gc_cutoff_lsn
        self._open_since: float | None = None
        self._open_bytes = 0
        self._open_from = record.last_record_lsn + 1
        self._frozen_until: list[int] = []
        self._page_source: _core.PageBridge | None = _core.PageBridge(
            self,
            last_record_lsn=record.last_record_lsn,
            disk_consistent_lsn=disk_consistent_lsn,
            gc_cutoff_lsn=record.gc_cutoff_lsn,
        )

    # LSNs

    @property
    def record(self) -> TimelineRecord:
        return self._record

    @property
    def last_record_lsn(self) -> int:
        return self._record.last_record_lsn

    @property
    def prev_record_lsn(self) -> int:
        return self._record.prev_record_lsn

    @property
    def disk_consistent_lsn(self) -> int:
        return self._disk_consistent_lsn

    def record_lsns(self) -> tuple[int, int]:
        record = self._record
        return record.last_record_lsn, record.prev_record_lsn

    def set_disk_consistent_lsn(self, lsn: int) -> None:
        """Sync, and note that everything up to `lsn` is durable: an import is complete."""
        with self._gate:
            self._store.sync()
        with self._lock:
            self._disk_consistent_lsn = max(self._disk_consistent_lsn, lsn)
            self._tell()

    def set_origin(self, *, flavour: str, neon_until_lsn: int, hint_bits_logged: bool, data_checksums: bool) -> None:
        """Accept another source only if its records mean the same. Raises: PreconditionFailedError."""
        record = self.record
        if (flavour, hint_bits_logged) != (record.flavour, record.hint_bits_logged) or neon_until_lsn:
            raise PreconditionFailedError(
                'a timeline of repository = "rocksdb" keeps the kind of source that it was made from',
                hint="flavour, data checksums and wal_log_hints must be the same",
            )

    def set_relation_directory_v2_from(self, lsn: int) -> None:
        """Raises: PreconditionFailedError; only a bucket could bring a timeline with such directories."""
        raise PreconditionFailedError(
            'a timeline of repository = "rocksdb" has the first form of relation directory only'
        )

    def set_gaps(self, gaps: Sequence[tuple[int, int]]) -> None:
        """Raises: PreconditionFailedError, see `resume_at`."""
        if gaps:
            self.resume_at(gaps[-1][1])

    def resume_at(self, lsn: int) -> None:
        """Objects have no floor below which a search must not go. Raises: PreconditionFailedError."""
        raise PreconditionFailedError(
            f'a timeline of repository = "rocksdb" cannot go on at {Lsn(lsn)} without the WAL before it',
            hint="import the primary as a new timeline",
        )

    def set_gc_cutoff(self, lsn: int) -> None:
        """Let the page service refuse reads below `lsn`. Nothing is removed by this."""
        with self._lock:
            self._readable_from = max(self._readable_from, lsn)
            self._tell()

    def hold_reads(self) -> None:
        """Let the page service refuse all reads until `release_reads`: a base copy is not consistent yet."""
        with self._lock:
            self._readable_from = MAX_LSN
            self._tell()

    def release_reads(self, cutoff: int) -> None:
        with self._lock:
            self._readable_from = cutoff
            self._tell()

    @property
    def page_source(self) -> _core.PageBridge:
        """What the page service reads from. Raises: StoppedError."""
        with self._gate:
            assert self._page_source is not None, "dropped only behind the gate"
            return self._page_source

    # Reading

    def get(self, key: bytes, lsn: int) -> bytes:
        """Return the value as of `lsn`, inclusive.

        Raises: MissingKeyError, RequestError (LSN 0, or below what garbage collection left), UnavailableError (a
        record needs the redo process, and there is none).
        """
        with self._gate, self._store.view() as view:
            self._check_kept(lsn)
            return self._read(view, key, lsn)

    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]:
        """Return a value for each key, none where there is none, all of one moment."""
        with self._gate, self._store.view() as view:
            self._check_kept(lsn)
            return [self._find(view, key, lsn) for key in keys]

    def find(self, key: bytes, lsn: int) -> bytes | None:
        """Return what ingest sees: any value at or below `lsn`, also unfinished ones."""
        with self._gate, self._store.view() as view:
            return self._find(view, key, lsn)

    def scan(self, start: bytes, end: bytes, lsn: int) -> list[tuple[bytes, bytes]]:
        """Return what exists in a range of the sparse keyspace, in key order; removed keys are left out."""
        if not SPARSE_RANGE.start <= start or not end <= SPARSE_RANGE.end:
            raise RequestError("only metadata keyspace can be scanned")
        found: dict[bytes, bytes] = {}
        with self._gate, self._store.view() as view:
            self._check_kept(lsn)
            for depth, (timeline_id, limit) in enumerate(self._lineage):
                for key, version_lsn, value in view.entries(timeline_id, start, end):
                    if version_lsn > min(lsn, limit) or key in found or (depth and key in NOT_INHERITED_SPARSE_RANGE):
                        continue
                    found[key] = make_page(key, lsn, [(version_lsn, value)], record=self._record, redo=None)
        return sorted((key, value) for key, value in found.items() if value)

    def rel_exists(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> bool:
        return self.listed_rel_size(spc, db, rel, fork, lsn) is not None

    def listed_rel_size(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int | None:
        """Return the blocks of a fork that the directories list, else none."""
        with self._reading(lsn) as find:
            return relations.listed_rel_size(find, RelTag(spc, db, rel, fork), lsn=lsn)

    def rel_size(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int | None:
        """Return the blocks of a fork: 0 for an absent map, none for another absent fork."""
        with self._reading(lsn) as find:
            return relations.rel_size(find, RelTag(spc, db, rel, fork), lsn=lsn)

    def rel_size_or_last(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int:
        with self._reading(lsn) as find:
            return relations.rel_size_or_last(find, RelTag(spc, db, rel, fork), lsn=lsn)

    def db_size(self, spc: int, db: int, lsn: int) -> int | None:
        with self._reading(lsn) as find:
            return relations.db_size(find, spc, db, lsn=lsn)

    def slru_pages(self, kind: int, segno: int, lsn: int) -> list[bytes]:
        with self._reading(lsn) as find:
            return relations.slru_pages(find, SlruKind(kind), segno, lsn=lsn)

    def slru_segment(self, kind: int, segno: int, lsn: int) -> bytes:
        """Return the pages of a segment, 8192 bytes each. Raises: MissingKeyError (no such segment)."""
        with self._reading(lsn) as find:
            return relations.slru_segment(find, SlruKind(kind), segno, lsn=lsn)

    def read_blocks(
        self, spc: int, db: int, rel: int, fork: int, first: int, count: int, lsn: int, *, stamp_checksums: bool
    ) -> bytes:
        """Return `count` pages of a fork, zeros from its end on. Raises: NotFoundError (no such fork)."""
        tag = RelTag(spc, db, rel, fork)
        with self._gate, self._store.view() as view:
            self._check_kept(lsn)
            size = relations.rel_size(lambda key: self._find(view, key, lsn), tag, lsn=lsn)
            if size is None:
                raise NotFoundError(f"relation {tag} does not exist", lsn=lsn)
            end = min(first + count, size)
            pages = b"".join(self._read_block(view, tag, block, lsn) for block in range(first, end))
        if stamp_checksums:
            pages = _core.stamp_checksums(pages, first)
        return pages + bytes(count * PAGE_SIZE - len(pages))

    def read_blocks_each(self, rel: RelTag, first: int, count: int, lsn: int) -> tuple[bytes, dict[int, str]]:
        """Read pages one by one even if some cannot be made; as `_core.read_blocks_each`, for comparisons."""
        pages: list[bytes] = []
        failed: dict[int, str] = {}
        with self._gate, self._store.view() as view:
            for block in range(first, first + count):
                try:
                    pages.append(self._read_block(view, rel, block, lsn))
                except UnavailableError:
                    failed[block] = "unsupported"
                except PageServerError as error:
                    failed[block] = f"error: {error}"
                if block in failed:
                    pages.append(bytes(PAGE_SIZE))
        return b"".join(pages), failed

    # Writing

    def put_values(self, values: Sequence[tuple[bytes, int, bytes]]) -> None:
        """Store (key, LSN, encoded value) of a record that is not complete yet; only `find` sees them."""
        changes = Changes(
            puts=[(self.timeline_id, key, lsn, value) for key, lsn, value in values],
            unfinished=[(self.timeline_id, key, lsn) for key, lsn, _ in values],
        )
        with self._gate:
            self._store.write(changes)
            self._note_written(values)

    def commit_values(self, values: Sequence[tuple[bytes, int, bytes]], record_lsns: Sequence[int]) -> None:
        """Store values and make everything up to the last of `record_lsns` readable.

        Raises: RequestError (LSNs go backwards; nothing is stored).
        """
        with self._gate, self._lock:
            record = self._record
            for lsn in record_lsns:
                if lsn < record.last_record_lsn:
                    raise RequestError(f"record at {lsn:#x} after record at {record.last_record_lsn:#x}")
                if lsn > record.last_record_lsn:
                    record = replace(record, last_record_lsn=lsn, prev_record_lsn=record.last_record_lsn)
            puts = [(self.timeline_id, key, lsn, value) for key, lsn, value in values]
            self._store.write(Changes(puts=puts, records=[record], finished=[self.timeline_id]))
            self._record = record
            self._note_written(values)
            self._tell()

    def put_images(self, lsn: int, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store images that do not come from WAL, and advance to `lsn` if it is new."""
        for key, _ in items:
            if len(key) != KEY_SIZE:
                raise RequestError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
        values = [(bytes(key), lsn, encode_image(image)) for key, image in items]
        self.commit_values(values, [max(lsn, self.last_record_lsn)])

    def import_pieces(self, lsn: int, pieces: Iterable[Piece]) -> Iterator[int]:
        """Store what an import brings as images at `lsn`; yields the bytes so far, from time to time.

        Raises: CorruptDataError (a file is shorter than it was when it was listed).
        """
        total = 0
        batch: list[tuple[bytes, int, bytes]] = []
        size = 0
        for key, image in _images(pieces):
            batch.append((key, lsn, encode_image(image)))
            size += len(image)
            if size >= _IMPORT_BATCH_BYTES:
                self.commit_values(batch, [])
                total += size
                batch, size = [], 0
                yield total
        self.commit_values(batch, [])
        yield total + size

    # What is durable

    def open_layer(self) -> Unsynced | None:
        with self._lock:
            if self._open_since is None:
                return None
            age = self._clock.monotonic_seconds() - self._open_since
            return Unsynced(self._open_bytes, self._open_from, age)

    def frozen_layers(self) -> int:
        return len(self._frozen_until)

    def layers(self) -> list[_core.LayerInfo]:
        """Return nothing: there are none."""
        return []

    def freeze(self) -> int | None:
        """Note the last record as the next LSN to become durable. Returns its exclusive end, none if nothing is new."""
        with self._lock:
            if self.last_record_lsn <= max(self._disk_consistent_lsn, *self._frozen_until, 0):
                return None
            self._frozen_until.append(self.last_record_lsn)
            self._open_since, self._open_bytes, self._open_from = None, 0, self.last_record_lsn + 1
            return self.last_record_lsn + 1

    def flush_oldest(self, generation: int | None) -> None:
        """Make everything that is frozen durable. There is no file to name, hence no result."""
        with self._lock:
            wanted = list(self._frozen_until)
        if not wanted:
            return
        with self._gate:
            self._store.sync()
        with self._lock:
            del self._frozen_until[: len(wanted)]
            self._disk_consistent_lsn = max(self._disk_consistent_lsn, wanted[-1])
            self._tell()

    def add_layers(self, layers: Sequence[tuple[str, str | PathLike[str], int]]) -> None:
        raise LayersRefusedError(names=[name for name, _, _ in layers])

    def remove_layers(self, names: list[str]) -> None:
        raise LayersRefusedError(names=names)

    def evict_layers(self, names: list[str]) -> None:
        raise LayersRefusedError(names=names)

    def begin_collection(self, cutoff: int) -> TimelineRecord:
        """Refuse reads below `cutoff` from now on, and note it in the store; returns the changed record."""
        with self._gate, self._lock:
            record = replace(self._record, gc_cutoff_lsn=max(cutoff, self._record.gc_cutoff_lsn))
            self._store.write(Changes(records=[record]))
            self._record = record
            return record

    def shutdown(self) -> None:
        """End all waits and wait for running reads and writes; later ones raise StoppedError."""
        self._gate.close()
        if self._page_source is not None:
            self._page_source.shutdown()
            # It refers to us as we to it.
            self._page_source = None

    # Private

    @contextlib.contextmanager
    def _reading(self, lsn: int) -> Iterator[relations.Find]:
        with self._gate, self._store.view() as view:
            yield lambda key: self._find(view, key, lsn)

    def _check_kept(self, lsn: int) -> None:
        """Refuse what may be gone. To be asked behind the beginning of the view: then the view is the older one."""
        if lsn == 0:
            raise RequestError("Invalid LSN")
        cutoff = self._record.gc_cutoff_lsn
        if lsn < cutoff:
            raise RequestError(f"lsn {lsn:#x} is below {cutoff:#x}, the first one that garbage collection has left")

    def _collect(self, view: ObjectView, key: bytes, lsn: int) -> list[tuple[int, bytes]]:
        """Return versions, newest first, down to one that needs nothing older (read-path-compaction-gc.md 1.1)."""
        found: list[tuple[int, bytes]] = []
        for depth, (timeline_id, limit) in enumerate(self._lineage):
            if depth and not Key(key).is_inherited():
                break
            for version in view.versions(timeline_id, key, min(lsn, limit)):
                found.append(version)
                if is_base(version[1]):
                    return found
        return found

    def _read(self, view: ObjectView, key: bytes, lsn: int) -> bytes:
        if len(key) != KEY_SIZE:
            raise RequestError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
        found = self._collect(view, key, lsn)
        return make_page(key, lsn, found, record=self._record, redo=self._redo)

    def _find(self, view: ObjectView, key: bytes, lsn: int) -> bytes | None:
        found = self._collect(view, key, lsn)
        return make_page(key, lsn, found, record=self._record, redo=self._redo) if found else None

    def _read_block(self, view: ObjectView, rel: RelTag, block: int, lsn: int) -> bytes:
        key = Key.relation_block(rel, block)
        page = self._read(view, key, lsn)
        if len(page) != PAGE_SIZE:
            raise CorruptDataError(f"page has {len(page)} bytes", key=str(key), lsn=lsn)
        return page

    def _note_written(self, values: Sequence[tuple[bytes, int, bytes]]) -> None:
        with self._lock:
            if self._open_since is None:
                self._open_since = self._clock.monotonic_seconds()
            self._open_bytes += sum(len(value) for _, _, value in values)

    def _tell(self) -> None:
        if self._page_source is not None:
            self._page_source.tell(self.last_record_lsn, self._disk_consistent_lsn, self._readable_from)


def _images(pieces: Iterable[Piece]) -> Iterator[tuple[bytes, bytes]]:
    for piece in pieces:
        if len(piece) == 3:
            yield piece[1], piece[2]
            continue
        _, first_key, path, offset, blocks = piece
        with open(path, "rb") as file:
            file.seek(offset)
            for number in range(blocks):
                page = file.read(PAGE_SIZE)
                if len(page) != PAGE_SIZE:
                    raise CorruptDataError(f"{path} ends inside of block {number}", path=path)
                yield Key(first_key).add(number), page
