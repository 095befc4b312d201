"""XLOG: checkpoints, changed parameters, ends of recovery (spec wal.md 5.1, 6; stock.md 1).

The tracked CheckPoint is not the record's: its counters follow each record, and ``redo`` says only whether the log
ends in a clean shutdown exactly here. Stock timelines also follow PostgreSQL's timeline ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pageserver.postgres.checkpoint import Checkpoint, is_ahead
from pageserver.wal.keyspace_writer import KeyspaceWriter

if TYPE_CHECKING:
    from pageserver._core import CheckpointTaken, EndOfRecovery, ParameterChange

_U32 = 0xFFFF_FFFF


def take_checkpoint(writer: KeyspaceWriter, detail: CheckpointTaken, *, follow_pg_timelines: bool) -> None:
    """Take over the few fields that no other record brings."""
    tracked, taken = writer.checkpoint(), Checkpoint(detail.checkpoint)
    oldest_active_xid = taken.oldest_active_xid
    if oldest_active_xid == 0 and detail.shutdown:
        oldest_active_xid = _oldest_running_xid(writer, tracked)
    changed = tracked.replaced(
        redo=writer.lsn if detail.shutdown else 0,
        oldest_xid=taken.oldest_xid if is_ahead(taken.oldest_xid, tracked.oldest_xid) else tracked.oldest_xid,
        oldest_active_xid=oldest_active_xid,
    )
    if follow_pg_timelines:
        changed = changed.replaced(
            this_timeline_id=taken.this_timeline_id, previous_timeline_id=taken.previous_timeline_id
        )
    writer.put_checkpoint(changed)


def change_parameters(writer: KeyspaceWriter, detail: ParameterChange) -> None:
    if writer.pg_version >= 17:
        writer.put_checkpoint(writer.checkpoint().replaced(wal_level=detail.wal_level))


def end_recovery(writer: KeyspaceWriter, detail: EndOfRecovery, *, follow_pg_timelines: bool) -> None:
    changed = writer.checkpoint()
    if writer.pg_version >= 17 and detail.wal_level is not None:
        changed = changed.replaced(wal_level=detail.wal_level)
    if follow_pg_timelines:
        changed = changed.replaced(this_timeline_id=detail.tli, previous_timeline_id=detail.prev_tli)
    if changed != writer.checkpoint():
        writer.put_checkpoint(changed)


def _oldest_running_xid(writer: KeyspaceWriter, tracked: Checkpoint) -> int:
    """Return the oldest transaction after a shutdown: only prepared ones are left. A hot standby needs to know."""
    xids = writer.twophase_xids()
    if writer.pg_version >= 17:
        return min([tracked.next_xid, *xids]) & _U32
    oldest = tracked.next_xid & _U32
    for xid in xids:
        if is_ahead(oldest, xid):
            oldest = xid
    return oldest
