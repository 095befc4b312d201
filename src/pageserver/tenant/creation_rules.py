"""Creating timelines: what a request must agree with, and where a branch may start (tenants.md 9.1, 9.2, 9.5).

Errors here are the answers that the storage controller tells apart by status; their texts are part of the interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from pageserver.errors import (
    ConflictError,
    InternalError,
    NotBuiltError,
    PreconditionFailedError,
    RequestError,
    UnavailableError,
)
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, TimelineMetadata
from pageserver.remote.source_document import SourceDocument
from pageserver.tenant.tenant_errors import FencedError


class DifferentParametersError(ConflictError):
    """409: the id is taken by a timeline that was created differently."""

    def __init__(self, *, timeline_id: TimelineId) -> None:
        super().__init__("timeline already exists with different parameters", timeline_id=timeline_id)


class CreationInProgressError(RequestError):
    """429: somebody else is creating the same id right now. Back off and repeat."""

    def __init__(self, *, timeline_id: TimelineId) -> None:
        super().__init__("creation of timeline with the given ID is in progress", timeline_id=timeline_id)


class BranchRefusedError(PreconditionFailedError):
    """406: permanent, do not repeat."""


class AncestorNotActiveError(UnavailableError):
    """503: the ancestor is loading or stopping."""

    def __init__(self, *, timeline_id: TimelineId) -> None:
        super().__init__("ancestor timeline is not active", timeline_id=timeline_id)


class UnknownAncestorError(InternalError):
    """500, as Neon answers it."""

    def __init__(self, *, timeline_id: TimelineId) -> None:
        super().__init__(
            f"Cannot branch off the timeline that's not present in pageserver: {timeline_id}", timeline_id=timeline_id
        )


class ShardedBootstrapError(NotBuiltError):
    """501: initdb's files are not distributed over shards yet."""

    def __init__(self, *, shard: TenantShardId) -> None:
        super().__init__("bootstrap of a timeline of a sharded tenant", shard=shard)


class StaleCreationError(FencedError):
    """503: another server has the tenant in a newer generation; what is made here would not be seen there."""

    def __init__(self, *, shard: TenantShardId, generation: Generation) -> None:
        super().__init__("no cluster is made here", shard=shard, generation=generation)


@dataclass(frozen=True, slots=True)
class BranchKey:
    """Two creations of a branch are the same if these are equal."""

    ancestor_timeline_id: TimelineId
    ancestor_lsn: Lsn


@dataclass(frozen=True, slots=True)
class BootstrapKey:
    """The same for clusters made by initdb, also from an existing archive."""

    pg_version: int


@dataclass(frozen=True, slots=True)
class NeverEqual:
    """The key of imports: no repeat is idempotent."""


IdempotencyKey = BranchKey | BootstrapKey | NeverEqual


def is_repeat(existing: IndexPart, document: SourceDocument | None, key: IdempotencyKey) -> bool:
    """Return whether a creation with `key` asks for the timeline that exists; its key is recovered from its index, and
    from its source document: what began with a base backup was not made by initdb.
    """
    metadata = existing.metadata
    match key:
        case BranchKey():
            ancestor = metadata.ancestor_timeline
            return ancestor is not None and BranchKey(ancestor, metadata.ancestor_lsn) == key
        case BootstrapKey():
            is_import = existing.import_pgdata is not None or (document is not None and document.is_of_base_backup)
            return metadata.ancestor_timeline is None and not is_import and metadata.pg_version == key.pg_version
        case NeverEqual():
            return False
        case _:
            assert_never(key)


def check_branch_point(lsn: Lsn, *, ancestor: IndexPart, ancestor_id: TimelineId) -> None:
    """Refuse an LSN at which the ancestor cannot be read. Raises BranchRefusedError."""
    metadata = ancestor.metadata
    if lsn < metadata.ancestor_lsn:
        raise BranchRefusedError(
            f"invalid start lsn {lsn} for ancestor timeline {ancestor_id}: "
            f"less than timeline ancestor lsn {metadata.ancestor_lsn}"
        )
    if lsn < metadata.latest_gc_cutoff_lsn:
        cutoff = metadata.latest_gc_cutoff_lsn
        raise BranchRefusedError(
            f"invalid branch start lsn: less than latest GC cutoff {cutoff}: LSN {lsn} is earlier than latest "
            f"GC cutoff {cutoff} (we might've already garbage collected needed data)"
        )


def index_of_branch(
    ancestor: IndexPart, *, ancestor_id: TimelineId, start_lsn: Lsn, ancestor_last: Lsn, ancestor_prev: Lsn
) -> IndexPart:
    """Return the first index of a branch: no layers, everything up to the branch point is the ancestor's."""
    is_at_the_end = start_lsn == ancestor_last and ancestor_prev != 0
    return IndexPart(
        metadata=TimelineMetadata(
            disk_consistent_lsn=start_lsn,
            prev_record_lsn=ancestor_prev if is_at_the_end else None,
            ancestor_timeline=ancestor_id,
            ancestor_lsn=start_lsn,
            latest_gc_cutoff_lsn=ancestor.metadata.latest_gc_cutoff_lsn,
            initdb_lsn=ancestor.metadata.initdb_lsn,
            pg_version=ancestor.metadata.pg_version,
        ),
        rel_size_migration=ancestor.rel_size_migration,
        rel_size_migrated_at=ancestor.rel_size_migrated_at,
    )


def index_of_root(
    *, pg_version: int, start_lsn: Lsn, readable_from: Lsn | None, prev_record_lsn: Lsn | None = None
) -> IndexPart:
    """Return the index of a root timeline before its first layers are published. It may not be uploaded as it is."""
    return IndexPart(
        metadata=TimelineMetadata(
            disk_consistent_lsn=Lsn(0),
            prev_record_lsn=prev_record_lsn,
            ancestor_timeline=None,
            ancestor_lsn=Lsn(0),
            latest_gc_cutoff_lsn=max(start_lsn, readable_from or start_lsn),
            initdb_lsn=start_lsn,
            pg_version=pg_version,
        )
    )
