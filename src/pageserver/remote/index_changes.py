"""How single events change an index (remote-storage.md 5.6, 9.8): pure functions from an index to the next one.

`now` is always the naive UTC time stamp in its written form (`naive_time`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from pageserver.errors import PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.remote.index_part import GC_BLOCK_REASONS, GcBlocking, IndexPart, LayerEntry, Lineage

REPARENTING_HISTORY_KEPT = 99


def naive_time(moment: datetime) -> str:
    """Write a moment as documents do: UTC, no zone, the shortest exact fraction of 0, 3 or 6 digits."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    if utc.microsecond == 0:
        return utc.isoformat(timespec="seconds")
    return utc.isoformat(timespec="milliseconds" if utc.microsecond % 1000 == 0 else "microseconds")


def with_layers(index: IndexPart, new: Mapping[str, LayerEntry], removed: Iterable[str] = ()) -> IndexPart:
    """Name `new` layers, and no longer `removed` ones."""
    gone = set(removed)
    kept = {name: entry for name, entry in index.layers.items() if name not in gone} if gone else dict(index.layers)
    return replace(index, layers={**kept, **new})


def archived(index: IndexPart, now: str | None) -> IndexPart:
    """Mark as archived since `now`, or with None as not archived; an archived one keeps its time."""
    if (index.archived_at is None) == (now is None):
        return index
    return replace(index, archived_at=now)


def invisible(index: IndexPart, now: str | None) -> IndexPart:
    """Hide since `now`, or with None show (22: the reference toggles instead)."""
    if (index.marked_invisible_at is None) == (now is None):
        return index
    return replace(index, marked_invisible_at=now)


def migrating(index: IndexPart, lsn: Lsn) -> IndexPart:
    """Say that both forms of relation directory are written from `lsn` on; one that is migrated stays so."""
    if index.rel_size_migration not in (None, "legacy"):
        return index
    return replace(index, rel_size_migration="migrating", rel_size_migrated_at=lsn)


def import_finalized(index: IndexPart, now: str) -> IndexPart:
    """Turn an import in progress into a done one; anything else stays."""
    state = (index.import_pgdata or {}).get("V1")
    if not isinstance(state, Mapping) or "InProgress" not in state:
        return index
    started = state["InProgress"]
    done = {
        "idempotency_key": started["idempotency_key"],
        "started_at": started["started_at"],
        "finished_at": now,
    }
    return replace(index, import_pgdata={"V1": {"Done": done}})


def reparented(index: IndexPart, ancestor: TimelineId) -> IndexPart:
    """Replace the ancestor and remember the old one. The branch point stays. Without an ancestor nothing changes."""
    previous = index.metadata.ancestor_timeline
    if previous is None:
        return index
    return replace(
        index,
        lineage=_remembering(index.lineage, previous),
        metadata=replace(index.metadata, ancestor_timeline=ancestor),
    )


def detached(
    index: IndexPart, layers: Mapping[str, LayerEntry], *, ancestor: TimelineId, lsn: Lsn, now: str
) -> IndexPart:
    """Cut off the ancestor and adopt copies of its layers. Raises PreconditionFailedError if it was cut off elsewhere.

    A repeat with the same ancestor and LSN changes nothing.
    """
    original = index.lineage.original_ancestor
    if original is not None:
        if original[:2] != (ancestor, lsn):
            raise PreconditionFailedError(
                f"timeline was detached from {original[0]} at {original[1]} before", ancestor=ancestor, lsn=lsn
            )
        return index
    return replace(
        with_layers(index, layers),
        lineage=replace(index.lineage, original_ancestor=(ancestor, lsn, now)),
        metadata=replace(index.metadata, ancestor_timeline=None, ancestor_lsn=INVALID_LSN),
    )


def gc_blocked(index: IndexPart, reason: str, now: str) -> IndexPart:
    """Add a reason; the first one sets the time."""
    assert reason in GC_BLOCK_REASONS, "an unknown reason would make the index unreadable"
    current = index.gc_blocking
    if current is not None and reason in current.reasons:
        return index
    reasons = {reason} if current is None else {reason, *current.reasons}
    ordered = tuple(known for known in GC_BLOCK_REASONS if known in reasons)
    return replace(index, gc_blocking=GcBlocking(now if current is None else current.started_at, ordered))


def gc_unblocked(index: IndexPart, reason: str) -> IndexPart:
    """Take a reason away; the last one takes the whole object with it."""
    current = index.gc_blocking
    if current is None or reason not in current.reasons:
        return index
    left = tuple(other for other in current.reasons if other != reason)
    return replace(index, gc_blocking=replace(current, reasons=left) if left else None)


def _remembering(lineage: Lineage, previous: TimelineId) -> Lineage:
    history = lineage.reparenting_history
    if history and history[-1] == previous:
        return lineage
    is_full = len(history) >= REPARENTING_HISTORY_KEPT
    kept = history[len(history) - REPARENTING_HISTORY_KEPT + 1 :] if is_full else history
    return replace(
        lineage,
        reparenting_history=(*kept, previous),
        reparenting_history_truncated=lineage.reparenting_history_truncated or is_full,
    )
