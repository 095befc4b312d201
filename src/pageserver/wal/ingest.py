"""Takes WAL for one timeline: bytes to the engine, rare records to `apply.py`.

`WalIngest` of the engine decodes and applies what is frequent, and hands back each record that decides about
directories; `apply.py` writes its effects, then decoding goes on. All of it blocks: one worker thread at
a time runs it.

    take(bytes) ─▶ engine ─▶ DONE: everything complete is readable
                      │  └──▶ ROLL: the open layer is full; freeze it, then go_on()
                      └─────▶ rare record ─▶ apply.py ─▶ engine …

Source: spec wal.md 4, 9.3; stock.md 1.5, 1.7.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import cast

import structlog

from pageserver import _core
from pageserver.ids import ShardIdentity
from pageserver.keyspace.snapshot import RelationDirectoryState
from pageserver.lsn import MAX_LSN, Lsn
from pageserver.repository import ObjectTimeline
from pageserver.timeline.engine import TimelineStore
from pageserver.wal.apply import RecordApplier
from pageserver.wal.source_document import Flavour

log = structlog.get_logger(__name__)


class IngestStep(Enum):
    """Why ingest paused."""

    DONE = "done"
    ROLL = "roll"


class WalApplier:
    """The only writer of a timeline, from `start` on. After an error it is of no more use.

    `consistent_from`: where the base copy is consistent; none if only the BACKUP_END record of `backup_start` tells.
    """

    def __init__(
        self,
        store: TimelineStore,
        *,
        start: Lsn,
        checkpoint: bytes,
        system_identifier: int | None,
        check_prev: bool,
        consistent_from: Lsn | None,
        backup_start: Lsn | None,
        checkpoint_distance: int,
        pg_version: int,
        flavour: Flavour,
        relation_directory: RelationDirectoryState | None = None,
        start_migration: Callable[[Lsn], None] | None = None,
        is_migration_wanted: Callable[[], bool] = lambda: True,
        note_growth: Callable[[Lsn, int], None] = lambda _lsn, _bytes: None,
    ) -> None:
        """See `KeyspaceWriter` for the three before the last. `note_growth` is told, after each commit, up to where WAL
        was ingested and how many bytes that added to all relations.
        """
        self._ingest = _core.WalIngest(
            cast("_core.TimelineStore | ObjectTimeline", store),
            start_lsn=start,
            checkpoint=checkpoint,
            system_identifier=system_identifier,
            check_prev=check_prev,
            tolerant_until=MAX_LSN if consistent_from is None else consistent_from,
            checkpoint_distance=checkpoint_distance,
        )
        self._migration_started: Lsn | None = None
        self._start_migration = start_migration
        self._applier = RecordApplier(
            self._ingest,
            pg_version=pg_version,
            flavour=flavour.value,
            identity=ShardIdentity.unsharded(),
            relation_directory=relation_directory,
            start_migration=None if start_migration is None else self._note_migration,
            is_migration_wanted=is_migration_wanted,
        )
        self._backup_start = backup_start
        self._ignored_vm_clears = 0
        self._note_growth = note_growth
        self._grown_bytes = 0
        self.consistent_from = consistent_from

    @property
    def lsn(self) -> Lsn:
        """End of the last record taken."""
        return Lsn(self._ingest.lsn)

    @property
    def records(self) -> int:
        return self._ingest.records

    def take(self, wal: bytes) -> IngestStep:
        """Append bytes of the stream and take what is complete. Raises: CorruptDataError, StoppedError."""
        self._ingest.feed(wal)
        return self.go_on()

    def go_on(self) -> IngestStep:
        """Take what is complete."""
        try:
            while isinstance(found := self._run(), _core.RareRecord):
                self._note_backup_end(found)
                self._applier.apply(found)
        except BaseException:
            self._ingest.abandon()
            raise
        self._report_ignored_vm_clears()
        return IngestStep.ROLL if found == "roll" else IngestStep.DONE

    def _run(self) -> _core.RareRecord | str:
        """Take records up to one that is ours to apply, and tell what was committed."""
        try:
            found = self._ingest.run()
        finally:
            self._tell_growth()
        self._tell_migration()
        return found

    def _note_migration(self, lsn: Lsn) -> None:
        self._migration_started = lsn

    def _tell_migration(self) -> None:
        """Tell that both forms of relation directory are written, now that the record which began it is committed: had
        it failed, the copy of the first form would be missing in the second.
        """
        lsn, self._migration_started = self._migration_started, None
        if lsn is not None and self._start_migration is not None:
            self._start_migration(lsn)

    def _tell_growth(self) -> None:
        lsn, grown_bytes = self._ingest.growth
        self._note_growth(Lsn(lsn), grown_bytes - self._grown_bytes)
        self._grown_bytes = grown_bytes

    def _report_ignored_vm_clears(self) -> None:
        """PostgreSQL has had bugs that clear bits of map pages that do not exist: an error to be told, and no more
        (spec wal.md 5.3). A base copy that is not consistent yet may well lack a map.
        """
        ignored = self._ingest.ignored_vm_clears
        count, self._ignored_vm_clears = ignored - self._ignored_vm_clears, ignored
        if count and self.lsn > self._ingest.tolerant_until:
            log.error("visibility bits of pages that do not exist were to be cleared", count=count, up_to=str(self.lsn))

    def _note_backup_end(self, record: _core.RareRecord) -> None:
        """The record that ends the backup says where the copy is consistent, if nothing else did (stock.md 1.7)."""
        detail = record.detail
        if not isinstance(detail, _core.BackupEnd) or self.consistent_from is not None:
            return
        if self._backup_start is None or detail.start_lsn == self._backup_start:
            self.consistent_from = Lsn(record.lsn)
            self._ingest.tolerant_until = record.lsn
