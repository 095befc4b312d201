"""Pointing a timeline at a primary: does its WAL continue ours, and is it still there (docs/decisions/0008)?

    IDENTIFY_SYSTEM, TIMELINE_HISTORY ─▶ same cluster, our last record in its history
    CREATE_REPLICATION_SLOT ─▶ START_REPLICATION at our last record ─▶ status with that position as flushed

A primary sets a physical slot's `restart_lsn` to the flush position it is told, also backwards: from then on our WAL is
kept. That it was there is known from the first frame. All of it blocks: for a worker thread.
Source: spec wal-receiver.md 10.1-10.4, standalone.md 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pageserver.lsn import Lsn
from pageserver.postgres.timeline_history import parse_history
from pageserver.wal.primary import PrimaryConnection, PrimaryFacts, SystemIdentity
from pageserver.wal.source_document import HistoryLine
from pageserver.wal.source_errors import (
    MajorVersionError,
    PrimaryBehindError,
    SystemIdentifierError,
    TimelineForkedError,
    UnknownTimelineError,
)
from pageserver.wal.wal_stream import encode_status, next_timeline_of

_FRAME_SECONDS_MAX: Final = 20.0


@dataclass(frozen=True, slots=True)
class OurEnd:
    """Where a timeline of ours ends, and of which cluster it is. `pg_tli` is PostgreSQL's timeline there."""

    system_identifier: int
    pg_version: int
    pg_tli: int
    last_record_lsn: Lsn


def check_continues(connection: PrimaryConnection, ours: OurEnd) -> PrimaryFacts:
    """Return what is known of the primary. Raises SourceRefusedError saying why its WAL does not continue ours."""
    facts = connection.read_facts()
    if facts.identity.system_identifier != ours.system_identifier:
        raise SystemIdentifierError(expected=ours.system_identifier, got=facts.identity.system_identifier)
    if facts.major != ours.pg_version:
        raise MajorVersionError(
            f"the primary is PostgreSQL {facts.major}, the timeline was made from {ours.pg_version}",
            hint="after pg_upgrade the cluster has to be imported as a new timeline",
        )
    check_history(connection, facts.identity, pg_tli=ours.pg_tli, last_record_lsn=ours.last_record_lsn)
    return facts


def check_history(
    connection: PrimaryConnection, identity: SystemIdentity, *, pg_tli: int, last_record_lsn: Lsn
) -> None:
    """Check that our last record is in the primary's history (spec wal-receiver.md 10.4).

    Raises: PrimaryBehindError, TimelineForkedError, UnknownTimelineError.
    """
    if identity.pg_tli == pg_tli:
        if identity.flush_lsn < last_record_lsn:
            raise PrimaryBehindError(
                f"the primary's WAL ends at {identity.flush_lsn}, ours at {last_record_lsn}",
                hint="the primary was restored from an older state: import it anew",
            )
        return
    for line in parse_history(connection.timeline_history(identity.pg_tli)):
        if line.timeline_id == pg_tli:
            if line.end < last_record_lsn:
                raise TimelineForkedError(
                    pg_tli=line.timeline_id,
                    next_tli=identity.pg_tli,
                    switch_lsn=line.end,
                    last_record_lsn=last_record_lsn,
                )
            return
    raise UnknownTimelineError(
        f"the primary is on timeline {identity.pg_tli}, whose history does not contain ours, {pg_tli}",
        hint="the primary descends from another history: import it anew",
    )


def history_up_to(connection: PrimaryConnection, pg_tli: int) -> tuple[HistoryLine, ...]:
    """Return how the primary came to `pg_tli`, oldest first."""
    return tuple(HistoryLine(line.timeline_id, line.end) for line in parse_history(connection.timeline_history(pg_tli)))


def hold_wal(
    connection: PrimaryConnection,
    facts: PrimaryFacts,
    *,
    slot: str,
    pg_tli: int,
    last_record_lsn: Lsn,
    now_microseconds: Callable[[], int],
) -> None:
    """Make the slot keep WAL from our last record on, and see that the primary still has it.

    The connection streams afterwards and is good for nothing else: close it.
    Raises: WalRemovedError, SlotInUseError, SourceUnavailableError, SourceRefusedError.
    """
    start = last_record_lsn  # not behind a page header: the primary's WAL may end before it
    row = connection.start_replication(slot=slot, start=start, pg_tli=pg_tli)
    while row is not None:  # the primary left that timeline exactly here
        row = connection.start_replication(slot=slot, start=start, pg_tli=next_timeline_of(row).pg_tli)
    connection.put_copy_data(
        encode_status(
            write=last_record_lsn,
            flush=last_record_lsn,
            apply=last_record_lsn,
            unix_microseconds=now_microseconds(),
            reply_requested=True,
        )
    )
    has_answered, has_wal = False, facts.identity.flush_lsn <= start
    while not (has_answered and has_wal):
        message = connection.next_copy_data(timeout_seconds=_FRAME_SECONDS_MAX)
        if message is None:
            connection.next_result()  # raises what the primary said
            return  # the streamed timeline ended: its WAL was all there
        has_answered |= bytes(message[:1]) == b"k"
        has_wal |= bytes(message[:1]) == b"w"
