"""CLOG, MULTIXACT: new pages, and segments that are not needed any more (spec wal.md 4.5, 5.6).

Transaction and multixact numbers live on a circle of 2^32: which page is older is a question of signed differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from pageserver.keyspace.key import SLRU_SEGMENT_BLOCKS, SlruKind
from pageserver.postgres.checkpoint import FIRST_NORMAL_XID
from pageserver.wal.keyspace_writer import KeyspaceWriter

if TYPE_CHECKING:
    from pageserver._core import ClogTruncate, MultixactTruncate, SlruZeroPage

log = structlog.get_logger(__name__)

XIDS_PER_CLOG_PAGE: Final = 32768
MULTIXACTS_PER_OFFSET_PAGE: Final = 2048
MEMBERS_PER_PAGE: Final = 1636
FIRST_MULTIXACT: Final = 1
_MEMBER_SEGMENT_LAST: Final = 0xFFFF_FFFF // MEMBERS_PER_PAGE // SLRU_SEGMENT_BLOCKS
_U32: Final = 0xFFFF_FFFF

assert _MEMBER_SEGMENT_LAST == 82040, "number of the last segment of multixact members"


def zero_slru_page(writer: KeyspaceWriter, detail: SlruZeroPage) -> None:
    """Make a page of zeros; ``implicit`` ones only if a base copy that is not consistent yet lacks them."""
    writer.put_slru_zero_page(SlruKind(detail.slru), detail.page, only_if_missing=detail.implicit)


def truncate_clog(writer: KeyspaceWriter, detail: ClogTruncate) -> None:
    checkpoint = writer.checkpoint()
    writer.put_checkpoint(checkpoint.replaced(oldest_xid=detail.oldest_xid, oldest_xid_db=detail.oldest_xid_db))
    if not writer.identity.is_shard_zero():
        return
    latest_page = (checkpoint.next_xid & _U32) // XIDS_PER_CLOG_PAGE
    if clog_page_precedes(latest_page, detail.page):
        log.warning("could not truncate clog: apparent wraparound", cutoff_page=detail.page, lsn=str(writer.lsn))
        return
    old = [
        segno
        for segno in writer.slru_segments(SlruKind.CLOG)
        if _is_segment_before(segno, detail.page, clog_page_precedes)
    ]
    if old:
        writer.drop_slru_segments(SlruKind.CLOG, old)


def truncate_multixact(writer: KeyspaceWriter, detail: MultixactTruncate, *, drop_offsets: bool) -> None:
    """Move the oldest multixact and drop member segments.

    Offset segments stay on Neon's timelines (wal.md 5.6); on stock ones they go like the server's own, since what we
    restore is compared with it.
    """
    writer.put_checkpoint(
        writer.checkpoint().replaced(oldest_multi=detail.end_offset, oldest_multi_db=detail.oldest_multi_db)
    )
    if not writer.identity.is_shard_zero():
        return
    dropped = member_segments_between(detail.start_member, detail.end_member)
    existing = writer.slru_segments(SlruKind.MULTIXACT_MEMBERS)
    old = [segno for segno in dropped if segno in existing]
    if old:
        writer.drop_slru_segments(SlruKind.MULTIXACT_MEMBERS, old)
    if drop_offsets:
        cutoff_page = _multixact_before(detail.end_offset) // MULTIXACTS_PER_OFFSET_PAGE
        existing = writer.slru_segments(SlruKind.MULTIXACT_OFFSETS)
        old = [segno for segno in existing if _is_segment_before(segno, cutoff_page, offset_page_precedes)]
        if old:
            writer.drop_slru_segments(SlruKind.MULTIXACT_OFFSETS, old)


def clog_page_precedes(left: int, right: int) -> bool:
    """Return whether all transactions of a CLOG page are older than all of another one."""
    oldest_left = left * XIDS_PER_CLOG_PAGE + FIRST_NORMAL_XID + 1 & _U32
    oldest_right = right * XIDS_PER_CLOG_PAGE + FIRST_NORMAL_XID + 1 & _U32
    newest_right = oldest_right + XIDS_PER_CLOG_PAGE - 1 & _U32
    return xid_precedes(oldest_left, oldest_right) and xid_precedes(oldest_left, newest_right)


def offset_page_precedes(left: int, right: int) -> bool:
    """Return whether all multixacts of an offsets page are older than all of another one."""
    oldest_left = left * MULTIXACTS_PER_OFFSET_PAGE + FIRST_MULTIXACT + 1 & _U32
    oldest_right = right * MULTIXACTS_PER_OFFSET_PAGE + FIRST_MULTIXACT + 1 & _U32
    newest_right = oldest_right + MULTIXACTS_PER_OFFSET_PAGE - 1 & _U32
    return _is_behind(oldest_left, oldest_right) and _is_behind(oldest_left, newest_right)


def xid_precedes(left: int, right: int) -> bool:
    """Return whether a transaction is older than another; the special ones below 3 are older than all."""
    if left >= FIRST_NORMAL_XID and right >= FIRST_NORMAL_XID:
        return _is_behind(left, right)
    return left < right


def member_segments_between(start_member: int, end_member: int) -> list[int]:
    """Return the segments from that of one member up to but excluding that of another, around the circle's end."""
    segno, end = (member // MEMBERS_PER_PAGE // SLRU_SEGMENT_BLOCKS for member in (start_member, end_member))
    segments = []
    while segno != end:
        segments.append(segno)
        segno = 0 if segno == _MEMBER_SEGMENT_LAST else segno + 1
    return segments


def _is_segment_before(segno: int, cutoff_page: int, precedes: Callable[[int, int], bool]) -> bool:
    first = segno * SLRU_SEGMENT_BLOCKS
    return precedes(first, cutoff_page) and precedes(first + SLRU_SEGMENT_BLOCKS - 1, cutoff_page)


def _is_behind(left: int, right: int) -> bool:
    """Return whether the signed 32-bit difference is negative."""
    return (left - right & _U32) >= 0x8000_0000


def _multixact_before(multi: int) -> int:
    return _U32 if multi == FIRST_MULTIXACT else multi - 1 & _U32
