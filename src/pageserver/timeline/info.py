"""What the API tells about a timeline (http-api.md 5.3), and about where its WAL comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pageserver.ids import TenantShardId, TimelineId
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.remote.source_document import HistoryGap
from pageserver.timeline.state import TimelineState


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far the base copy of a timeline is. `bytes_total` is an estimate of the primary, 0 while unknown."""

    phase: str
    bytes_done: int = 0
    bytes_total: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"phase": self.phase, "bytes_done": self.bytes_done, "bytes_total": self.bytes_total}


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What a WAL source says about itself. `connection` carries no password; `error` is why it stopped for good,
    `stalled` why WAL that comes cannot be taken now.
    """

    text: str = "Not active"
    connection: str | None = None
    last_received_lsn: Lsn | None = None
    last_received_at_micros: int | None = None
    error: str | None = None
    stalled: str | None = None
    importing: ImportProgress | None = None
    paused: str | None = None
    """Why nothing is ingested for now, though the source could go on."""
    slot: str | None = None
    is_lost: bool = False
    """The primary no longer has the WAL that comes next; only a resync helps."""
    slot_retained_bytes: int | None = None
    """WAL that the primary keeps for the slot, as far as it told us."""


@dataclass(frozen=True, slots=True)
class TimelineInfo:
    """One timeline, all fields of http-api.md 5.3 that this release can know. Ours come last: `flavour`,
    `wal_source_error`, `ingest_stalled`, `wal_source_paused`, `read_only`, `import`. `flush_error` is why the last
    flush failed.
    """

    tenant_id: TenantShardId
    timeline_id: TimelineId
    ancestor_timeline_id: TimelineId | None
    ancestor_lsn: Lsn
    last_record_lsn: Lsn
    prev_record_lsn: Lsn | None
    applied_gc_cutoff_lsn: Lsn
    disk_consistent_lsn: Lsn
    remote_consistent_lsn: Lsn
    remote_consistent_lsn_visible: Lsn
    initdb_lsn: Lsn
    current_physical_size: int | None
    current_logical_size: int
    current_logical_size_is_accurate: bool
    pg_version: int
    state: TimelineState
    flavour: str
    source: SourceStatus
    is_archived: bool = False
    rel_size_migration: str = "legacy"
    rel_size_migrated_at: Lsn | None = None
    is_invisible: bool = False
    is_read_only: bool = False
    gaps: tuple[HistoryGap, ...] = ()
    flush_error: str | None = None

    @property
    def ingest_stalled(self) -> str | None:
        """Why WAL cannot be taken, or not be made durable: a full disk, say. It is tried again."""
        return self.flush_error or self.source.stalled

    @classmethod
    def without_engine(
        cls,
        shard: TenantShardId,
        timeline_id: TimelineId,
        *,
        state: TimelineState,
        source: SourceStatus,
        pg_version: int,
        flavour: str,
    ) -> TimelineInfo:
        """Describe a timeline that is not open: still importing, or broken at load."""
        return cls(
            tenant_id=shard,
            timeline_id=timeline_id,
            ancestor_timeline_id=None,
            ancestor_lsn=INVALID_LSN,
            last_record_lsn=INVALID_LSN,
            prev_record_lsn=None,
            applied_gc_cutoff_lsn=INVALID_LSN,
            disk_consistent_lsn=INVALID_LSN,
            remote_consistent_lsn=INVALID_LSN,
            remote_consistent_lsn_visible=INVALID_LSN,
            initdb_lsn=INVALID_LSN,
            current_physical_size=None,
            current_logical_size=0,
            current_logical_size_is_accurate=False,
            pg_version=pg_version,
            state=state,
            flavour=flavour,
            source=source,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object in the order of http-api.md 5.3."""
        body: dict[str, Any] = {
            "tenant_id": str(self.tenant_id),
            "timeline_id": str(self.timeline_id),
            "ancestor_timeline_id": None if self.ancestor_timeline_id is None else str(self.ancestor_timeline_id),
            "ancestor_lsn": _valid_or_null(self.ancestor_lsn),
            "last_record_lsn": str(self.last_record_lsn),
            "prev_record_lsn": _valid_or_null(self.prev_record_lsn),
            "applied_gc_cutoff_lsn": str(self.applied_gc_cutoff_lsn),
            "min_readable_lsn": str(self.applied_gc_cutoff_lsn),
            "disk_consistent_lsn": str(self.disk_consistent_lsn),
            "remote_consistent_lsn": str(self.remote_consistent_lsn),
            "remote_consistent_lsn_visible": str(self.remote_consistent_lsn_visible),
            "initdb_lsn": str(self.initdb_lsn),
            "current_logical_size": self.current_logical_size,
            "current_logical_size_is_accurate": self.current_logical_size_is_accurate,
            "directory_entries_counts": [0] * 8,
            "current_physical_size": self.current_physical_size,
            "current_logical_size_non_incremental": None,
            "pitr_history_size": int(self.last_record_lsn),
            "within_ancestor_pitr": False,
            "timeline_dir_layer_file_size_sum": None,
            "wal_source_connstr": self.source.connection,
            "last_received_msg_lsn": _valid_or_null(self.source.last_received_lsn),
            "last_received_msg_ts": self.source.last_received_at_micros,
            "pg_version": self.pg_version,
            "state": self.state.to_json(),
            "walreceiver_status": self.source.text,
            "is_archived": self.is_archived,
            "rel_size_migration": self.rel_size_migration,
            "rel_size_migrated_at": _valid_or_null(self.rel_size_migrated_at),
            "is_invisible": self.is_invisible,
            "flavour": self.flavour,
            "wal_source_error": self.source.error,
            "ingest_stalled": self.ingest_stalled,
        }
        if self.source.paused is not None:
            body["wal_source_paused"] = self.source.paused
        if self.is_read_only:
            body["read_only"] = True
        if self.gaps:
            body["gaps"] = [gap.to_json() for gap in self.gaps]
        if self.source.importing is not None:
            body["import"] = self.source.importing.to_json()
        return body


def _valid_or_null(lsn: Lsn | None) -> str | None:
    return str(lsn) if lsn else None
