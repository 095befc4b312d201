"""From a moment to an LSN and back, through the commit timestamps at the end of CLOG pages (spec keyspace.md 5.7).

A CLOG page that saw a commit is 8200 bytes; its tail is the time of the last commit or abort on it, big-endian, in
PostgreSQL's unit: microseconds since 2000-01-01 00:00 UTC. All calls read pages at many LSNs and may take a while:
they belong into a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pageserver.errors import MissingKeyError, RequestError
from pageserver.keyspace.key import PAGE_SIZE, SlruKind
from pageserver.keyspace.snapshot import Reader, Snapshot
from pageserver.lsn import Lsn

CLOG_PAGE_WITH_TIME_SIZE: Final = PAGE_SIZE + 8
POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ANY_VERSION: Final = 17
"""SLRU directories look the same in all major versions."""


@dataclass(frozen=True, slots=True)
class Present:
    """There are commits before and after the moment; ``lsn`` is the last position before it."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Past:
    """The moment is before what is kept; ``lsn`` is the oldest that is."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Future:
    """No commit at or after the moment is known yet; ``lsn`` is the newest position."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class NoData:
    """No commit timestamps at all; ``lsn`` is the oldest position that is kept."""

    lsn: Lsn


LsnForTimestamp = Present | Past | Future | NoData


def to_postgres_time(moment: datetime) -> int:
    """Return microseconds since PostgreSQL's epoch; ``moment`` has a time zone."""
    return (moment - POSTGRES_EPOCH) // _MICROSECOND


def from_postgres_time(microseconds: int) -> datetime:
    """Return the moment in UTC."""
    return POSTGRES_EPOCH + timedelta(microseconds=microseconds)


def find_lsn_for_timestamp(reader: Reader, wanted: int, *, min_lsn: int, last_record_lsn: int) -> LsnForTimestamp:
    """Find the last position before the first commit at or after ``wanted`` by binary search.

    ``min_lsn`` is the largest of the planned and applied GC cutoffs and the ancestor LSN.
    Raises: CorruptDataError other than MissingKeyError, which here means "before what is kept".
    """
    low, high = min_lsn // 8, last_record_lsn // 8 + 1
    found_smaller = found_larger = False
    while low < high:
        middle = (low + high) // 2
        try:
            is_larger, saw_smaller = _probe(reader, middle * 8, wanted)
        except MissingKeyError:
            return Past(Lsn(min_lsn))
        found_smaller |= saw_smaller
        if is_larger:
            found_larger = True
            high = middle
        else:
            low = middle + 1
    commit_lsn = max(low - 1, 0) * 8
    match found_smaller, found_larger:
        case False, False:
            return NoData(Lsn(min_lsn))
        case False, True:
            return Past(Lsn(min_lsn))
        case _ if commit_lsn < min_lsn:
            return Past(Lsn(min_lsn))
        case _, False:
            return Future(Lsn(commit_lsn))
        case _:
            return Present(Lsn(commit_lsn))


class MomentInGapError(RequestError):
    """What was committed at that moment was never received."""


def find_lsn_in_stretches(
    reader: Reader, wanted: int, *, min_lsn: int, last_record_lsn: int, gaps: Sequence[tuple[int, int]]
) -> LsnForTimestamp:
    """Like ``find_lsn_for_timestamp``, for a history with gaps (first and last position that can be read, ascending).

    Behind a gap the commit log has no times at first, so each stretch is searched by itself, the newest one first.
    Raises: MomentInGapError.
    """
    starts = [min_lsn, *(end for _, end in gaps)]
    ends = [*(start for start, _ in gaps), last_record_lsn]
    stretches = [(start, end) for start, end in zip(starts, ends, strict=True) if min_lsn <= start <= end]
    found: LsnForTimestamp = NoData(Lsn(min_lsn))
    for number, (start, end) in enumerate(reversed(stretches)):
        found = find_lsn_for_timestamp(reader, wanted, min_lsn=start, last_record_lsn=end)
        if isinstance(found, Future) and number:
            raise MomentInGapError(
                f"the moment lies behind the last commit before a gap of the timeline's history, which begins at "
                f"{Lsn(end)}",
                hint="what was committed in a gap is not known; ask for a position before or behind it",
            )
        if isinstance(found, Present | Future):
            return found
    return found


def find_timestamp_for_lsn(reader: Reader, lsn: int) -> int | None:
    """Return the latest commit time known at ``lsn``, none if no page has one. Raises: MissingKeyError."""
    return max(_timestamps(reader, lsn), default=None)


def _probe(reader: Reader, lsn: int, wanted: int) -> tuple[bool, bool]:
    """Return (a timestamp at or after ``wanted`` exists at ``lsn``, one before it was seen on the way)."""
    saw_smaller = False
    for timestamp in _timestamps(reader, lsn):
        if timestamp >= wanted:
            return True, saw_smaller
        saw_smaller = True
    return False, saw_smaller


def _timestamps(reader: Reader, lsn: int) -> Iterator[int]:
    snapshot = Snapshot(reader, lsn, _ANY_VERSION)
    for segno in snapshot.slru_segments(SlruKind.CLOG):
        for page in snapshot.slru_pages(SlruKind.CLOG, segno):
            if len(page) == CLOG_PAGE_WITH_TIME_SIZE:
                yield int.from_bytes(page[PAGE_SIZE:], "big", signed=True)
