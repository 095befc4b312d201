"""`index_part.json`: what a timeline is (remote-storage.md 5). Newest index not above my generation = the truth.

A decoded index is a plain value; changing one means making another (`dataclasses.replace`) and putting it whole. Keys
are written in the order of 5.2, compact, null fields left out where 5.2 says "omit". Unknown keys are ignored and lost
on the next write, as the format asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pageserver.errors import CorruptDataError, PageServerError
from pageserver.ids import Generation, ShardCount, ShardIndex, ShardNumber, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote.index_legacy import decode_metadata_array
from pageserver.remote.json_fields import (
    optional_enum,
    optional_lsn,
    optional_timestamp,
    parse_object,
    parse_timestamp,
    required,
    required_lsn,
    required_uint,
)
from pageserver.remote.layer_name import LayerName

INDEX_VERSION = 15
PG_VERSIONS = (14, 15, 16, 17, 18)
"""Neon's indices know 14 to 17; 18 is ours."""
GC_BLOCK_REASONS = ("Manual", "DetachAncestor")
_AUX_POLICIES = ("v1", "v2", "cross-validation")
_REL_SIZE_MIGRATIONS = ("legacy", "migrating", "migrated")
UNSHARDED = ShardIndex(ShardNumber(0), ShardCount(0))


class IndexDecodeError(CorruptDataError):
    """An index object does not decode. The timeline cannot be loaded; keep the object as evidence."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"index_part.json is malformed: {reason}", reason=reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """One named layer: its size, and the generation and shard that wrote the object."""

    file_size: int
    generation: Generation = field(default_factory=lambda: Generation(None))
    shard: ShardIndex = UNSHARDED

    @classmethod
    def decode(cls, value: object) -> LayerEntry:
        fields = parse_object(value, "layer entry")
        generation = fields.get("generation")
        shard = fields.get("shard")
        return cls(
            file_size=required_uint(fields, "file_size", bits=64),
            generation=Generation(None if generation is None else required_uint(fields, "generation", bits=32)),
            shard=UNSHARDED if shard is None else ShardIndex.parse(str(shard)),
        )

    def encode(self) -> dict[str, Any]:
        encoded: dict[str, Any] = {"file_size": self.file_size}
        if self.generation.number is not None:
            encoded["generation"] = self.generation.number
        if self.shard != UNSHARDED:
            encoded["shard"] = str(self.shard)
        return encoded


@dataclass(frozen=True, slots=True)
class TimelineMetadata:
    """The fields of `metadata_bytes` (5.4). `prev_record_lsn` is known only if the flush covered all that was
    ingested.
    """

    disk_consistent_lsn: Lsn
    prev_record_lsn: Lsn | None
    ancestor_timeline: TimelineId | None
    ancestor_lsn: Lsn
    latest_gc_cutoff_lsn: Lsn
    initdb_lsn: Lsn
    pg_version: int

    @classmethod
    def decode(cls, value: object) -> TimelineMetadata:
        if isinstance(value, list):
            legacy = decode_metadata_array(value)
            return cls(
                disk_consistent_lsn=Lsn(legacy.disk_consistent_lsn),
                prev_record_lsn=None if legacy.prev_record_lsn is None else Lsn(legacy.prev_record_lsn),
                ancestor_timeline=None if legacy.ancestor_timeline is None else TimelineId(legacy.ancestor_timeline),
                ancestor_lsn=Lsn(legacy.ancestor_lsn),
                latest_gc_cutoff_lsn=Lsn(legacy.latest_gc_cutoff_lsn),
                initdb_lsn=Lsn(legacy.initdb_lsn),
                pg_version=_check_pg_version(legacy.pg_version),
            )
        fields = parse_object(value, "metadata")
        ancestor = fields.get("ancestor_timeline")
        return cls(
            disk_consistent_lsn=required_lsn(fields, "disk_consistent_lsn"),
            prev_record_lsn=optional_lsn(fields, "prev_record_lsn"),
            ancestor_timeline=None if ancestor is None else TimelineId.parse(str(ancestor)),
            ancestor_lsn=required_lsn(fields, "ancestor_lsn"),
            latest_gc_cutoff_lsn=required_lsn(fields, "latest_gc_cutoff_lsn"),
            initdb_lsn=required_lsn(fields, "initdb_lsn"),
            pg_version=_check_pg_version(required_uint(fields, "pg_version", bits=32)),
        )

    def encode(self) -> dict[str, Any]:
        return {
            "disk_consistent_lsn": str(self.disk_consistent_lsn),
            "prev_record_lsn": None if self.prev_record_lsn is None else str(self.prev_record_lsn),
            "ancestor_timeline": None if self.ancestor_timeline is None else str(self.ancestor_timeline),
            "ancestor_lsn": str(self.ancestor_lsn),
            "latest_gc_cutoff_lsn": str(self.latest_gc_cutoff_lsn),
            "initdb_lsn": str(self.initdb_lsn),
            "pg_version": self.pg_version,
        }


@dataclass(frozen=True, slots=True)
class Lineage:
    """Earlier ancestors (5.6)."""

    reparenting_history_truncated: bool = False
    reparenting_history: tuple[TimelineId, ...] = ()
    original_ancestor: tuple[TimelineId, Lsn, str] | None = None

    @classmethod
    def decode(cls, value: object) -> Lineage:
        fields = parse_object(value, "lineage")
        original = fields.get("original_ancestor")
        return cls(
            reparenting_history_truncated=bool(fields.get("reparenting_history_truncated", False)),
            reparenting_history=tuple(TimelineId.parse(text) for text in fields.get("reparenting_history", [])),
            original_ancestor=None
            if original is None
            else (
                TimelineId.parse(original[0]),
                Lsn.parse(original[1]),
                parse_timestamp(original[2], "original_ancestor"),
            ),
        )

    def encode(self) -> dict[str, Any]:
        encoded: dict[str, Any] = {}
        if self.reparenting_history_truncated:
            encoded["reparenting_history_truncated"] = True
        if self.reparenting_history:
            encoded["reparenting_history"] = [str(timeline_id) for timeline_id in self.reparenting_history]
        if self.original_ancestor is not None:
            timeline_id, lsn, time = self.original_ancestor
            encoded["original_ancestor"] = [str(timeline_id), str(lsn), time]
        return encoded


@dataclass(frozen=True, slots=True)
class GcBlocking:
    """Why garbage collection is blocked, and since when."""

    started_at: str
    reasons: tuple[str, ...]

    @classmethod
    def decode(cls, value: object) -> GcBlocking:
        fields = parse_object(value, "gc_blocking")
        reasons = required(fields, "reasons")
        if not isinstance(reasons, list) or any(reason not in GC_BLOCK_REASONS for reason in reasons):
            raise IndexDecodeError(reason=f"gc_blocking has unknown reasons {reasons!r}")
        started_at = optional_timestamp(fields, "started_at")
        if started_at is None:
            raise IndexDecodeError(reason="gc_blocking has no started_at")
        return cls(started_at=started_at, reasons=tuple(reason for reason in GC_BLOCK_REASONS if reason in reasons))

    def encode(self) -> dict[str, Any]:
        return {"started_at": self.started_at, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class IndexPart:
    """One whole index. `layers` maps logical layer names to their entries."""

    metadata: TimelineMetadata
    layers: Mapping[str, LayerEntry] = field(default_factory=dict)
    version: int = INDEX_VERSION
    deleted_at: str | None = None
    archived_at: str | None = None
    import_pgdata: Mapping[str, Any] | None = None
    lineage: Lineage = field(default_factory=Lineage)
    gc_blocking: GcBlocking | None = None
    last_aux_file_policy: str | None = None
    rel_size_migration: str | None = None
    l2_lsn: Lsn | None = None
    gc_compaction_last_completed_lsn: Lsn | None = None
    marked_invisible_at: str | None = None
    rel_size_migrated_at: Lsn | None = None

    @property
    def disk_consistent_lsn(self) -> Lsn:
        return self.metadata.disk_consistent_lsn

    @classmethod
    def decode(cls, content: bytes) -> IndexPart:
        """Read an index of any version. Raises IndexDecodeError."""
        try:
            document = json.loads(content, object_pairs_hook=_without_duplicates)
            return cls._from_fields(parse_object(document, "the index"))
        except IndexDecodeError:
            raise
        except (PageServerError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise IndexDecodeError(reason=str(error)) from error

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> IndexPart:
        if "metadata" in fields and "metadata_bytes" in fields:
            raise IndexDecodeError(reason="both metadata and metadata_bytes are given")
        metadata = fields["metadata"] if "metadata" in fields else required(fields, "metadata_bytes")
        required_lsn(fields, "disk_consistent_lsn")
        layers = parse_object(required(fields, "layer_metadata"), "layer_metadata")
        gc_blocking = fields.get("gc_blocking")
        gc_compaction = fields.get("gc_compaction")
        import_pgdata = fields.get("import_pgdata")
        return cls(
            metadata=TimelineMetadata.decode(metadata),
            layers={str(LayerName.parse(name)): LayerEntry.decode(entry) for name, entry in layers.items()},
            version=required_uint(fields, "version", bits=64) if "version" in fields else 0,
            deleted_at=optional_timestamp(fields, "deleted_at"),
            archived_at=optional_timestamp(fields, "archived_at"),
            import_pgdata=None if import_pgdata is None else parse_object(import_pgdata, "import_pgdata"),
            lineage=Lineage.decode(fields.get("lineage", {})),
            gc_blocking=None if gc_blocking is None else GcBlocking.decode(gc_blocking),
            last_aux_file_policy=optional_enum(fields, "last_aux_file_policy", _AUX_POLICIES, ignore_case=True),
            rel_size_migration=optional_enum(fields, "rel_size_migration", _REL_SIZE_MIGRATIONS),
            l2_lsn=optional_lsn(fields, "l2_lsn"),
            gc_compaction_last_completed_lsn=None
            if gc_compaction is None
            else required_lsn(parse_object(gc_compaction, "gc_compaction"), "last_completed_lsn"),
            marked_invisible_at=optional_timestamp(fields, "marked_invisible_at"),
            rel_size_migrated_at=optional_lsn(fields, "rel_size_migrated_at"),
        )

    def encode(self) -> bytes:
        """Write the index: compact JSON, keys in the order of 5.2."""
        document: dict[str, Any] = {"version": self.version}
        _put(document, "deleted_at", self.deleted_at)
        _put(document, "archived_at", self.archived_at)
        _put(document, "import_pgdata", self.import_pgdata)
        document["layer_metadata"] = {name: entry.encode() for name, entry in self.layers.items()}
        document["disk_consistent_lsn"] = str(self.metadata.disk_consistent_lsn)
        document["metadata_bytes"] = self.metadata.encode()
        document["lineage"] = self.lineage.encode()
        _put(document, "gc_blocking", None if self.gc_blocking is None else self.gc_blocking.encode())
        _put(document, "last_aux_file_policy", self.last_aux_file_policy)
        _put(document, "rel_size_migration", self.rel_size_migration)
        _put(document, "l2_lsn", _text(self.l2_lsn))
        if self.gc_compaction_last_completed_lsn is not None:
            document["gc_compaction"] = {"last_completed_lsn": str(self.gc_compaction_last_completed_lsn)}
        _put(document, "marked_invisible_at", self.marked_invisible_at)
        _put(document, "rel_size_migrated_at", _text(self.rel_size_migrated_at))
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    def check_before_upload(self) -> None:
        """Refuse an index that could not be loaded again (5.9)."""
        if self.metadata.ancestor_timeline is None and not self.layers and self.import_pgdata is None:
            raise IndexDecodeError(reason="Index has no ancestor and no layers")


def _put(document: dict[str, Any], key: str, value: object) -> None:
    if value is not None:
        document[key] = value


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _check_pg_version(version: int) -> int:
    if version not in PG_VERSIONS:
        raise IndexDecodeError(reason=f"unknown pg_version {version}")
    return version


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise IndexDecodeError(reason=f"duplicate field {repeated!r}")
    return document
