"""Made-up WAL: page headers, and segments that let a server start at any LSN (spec wal.md 1.2, 10; stock.md 3).

    segment (16 MiB)
    |long header 40|........ zeros ........|page of the LSN: short header 24|... record at the LSN ...|.. zeros ..|

A base backup for a Neon compute holds no record at all; a restore for an unmodified server holds exactly one, a
shutdown checkpoint, which may run over the page's or even the segment's end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pageserver import _core
from pageserver.errors import RequestError
from pageserver.lsn import LONG_HEADER_SIZE, SHORT_HEADER_SIZE, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.checkpoint import Checkpoint
from pageserver.postgres.versions import PostgresVersion

FIRST_IS_CONTRECORD: Final = 0x0001
LONG_HEADER: Final = 0x0002
NEON_TIMELINE_ID: Final = 1
"""The PostgreSQL timeline id in all that a Neon compute reads."""

_SHORT: Final = struct.Struct("<HHIQI4x")
_LONG_REST: Final = struct.Struct("<QII")
_RECORD_HEADER: Final = struct.Struct("<IIQBBxx")
_SHORT_MAIN_DATA: Final = 255
_RMGR_XLOG: Final = 0
_CHECKPOINT_SHUTDOWN: Final = 0x00


class LsnInPageHeaderError(RequestError):
    """No record can begin inside the header of a WAL page. Carries ``lsn``."""

    def __init__(self, *, lsn: Lsn) -> None:
        super().__init__(f"lsn {lsn} lies inside the header of a wal page", lsn=lsn)


@dataclass(frozen=True, slots=True)
class WalSegment:
    """One segment file: its name in ``pg_wal`` and its 16 MiB."""

    name: str
    content: bytes


def segment_file_name(timeline_id: int, segment_number: int) -> str:
    """Return the name of a segment file in ``pg_wal``."""
    per_id = 0x1_0000_0000 // WAL_SEGMENT_SIZE
    return f"{timeline_id:08X}{segment_number // per_id:08X}{segment_number % per_id:08X}"


def header_size(page: Lsn) -> int:
    """Return the bytes of the header of the WAL page that starts at ``page``."""
    return LONG_HEADER_SIZE if page % WAL_SEGMENT_SIZE == 0 else SHORT_HEADER_SIZE


def restore_position(lsn: Lsn) -> Lsn:
    """Return where the first record goes if a server is started at ``lsn``; inside a page header is the page's
    start.
    """
    page = lsn.page_start()
    return page.normalised() if lsn - page < header_size(page) else lsn.normalised()


def record_end(start: Lsn, length: int) -> Lsn:
    """Return the aligned end LSN of a record of `length` bytes that begins at `start`, page headers on its way
    included.
    """
    at = start
    while length:
        part = min(length, WAL_PAGE_SIZE - at % WAL_PAGE_SIZE)
        at, length = at + part, length - part
        if length:
            at += header_size(at)
    return at.aligned()


def encode_record(*, rmid: int, info: int, xid: int, previous: int, main_data: bytes) -> bytes:
    """Return a complete WAL record without block references. Shape: not padded; main data of at most 255 bytes."""
    assert len(main_data) <= 255, "longer main data needs another sub-header"
    body = bytes((_SHORT_MAIN_DATA, len(main_data))) + main_data
    header = _RECORD_HEADER.pack(_RECORD_HEADER.size + 4 + len(body), xid, previous, info, rmid)
    crc = _core.crc32c(header, _core.crc32c(body))
    return header + crc.to_bytes(4, "little") + body


def shutdown_checkpoint_record(checkpoint: Checkpoint) -> bytes:
    """Return the record of a clean shutdown, as the first that a log ever held. Shape: 114 bytes."""
    return encode_record(rmid=_RMGR_XLOG, info=_CHECKPOINT_SHUTDOWN, xid=0, previous=0, main_data=checkpoint.raw)


def basebackup_segment(lsn: Lsn, *, system_identifier: int, version: PostgresVersion) -> WalSegment:
    """Return the segment for a Neon compute that writes its first record at ``lsn`` (page-service.md 6.12).

    The page of ``lsn`` pretends that a record ends exactly there, so that tools read from the right place.
    Raises: LsnInPageHeaderError.
    """
    page, in_page = lsn.page_start(), lsn % WAL_PAGE_SIZE
    if 0 < in_page < header_size(page):
        raise LsnInPageHeaderError(lsn=lsn)
    writer = _SegmentWriter(lsn.segment_start(), NEON_TIMELINE_ID, system_identifier, version)
    rest = in_page - header_size(page) if in_page else 0
    flags = FIRST_IS_CONTRECORD if in_page else 0
    if page == writer.start:
        writer.put_header(page, flags=flags, record_rest=rest)
    else:
        writer.put_header(writer.start)
        writer.put_header(page, flags=flags, record_rest=rest)
    return writer.finish()


def restore_checkpoint(stored: Checkpoint, lsn: Lsn, *, timeline_id: int) -> Checkpoint:
    """Return the checkpoint that an unmodified server starts from at ``lsn`` on a new timeline (stock.md 3)."""
    return stored.replaced(
        redo=restore_position(lsn),
        this_timeline_id=timeline_id,
        previous_timeline_id=timeline_id,
        oldest_active_xid=0,
        oldest_commit_ts_xid=0,
        newest_commit_ts_xid=0,
    )


def restore_segments(checkpoint: Checkpoint, *, system_identifier: int, version: PostgresVersion) -> list[WalSegment]:
    """Return the one or two segments that hold ``checkpoint`` as a shutdown record at its own redo position."""
    at, timeline_id = Lsn(checkpoint.redo), checkpoint.this_timeline_id
    rest = shutdown_checkpoint_record(checkpoint)
    writer = _SegmentWriter(at.segment_start(), timeline_id, system_identifier, version)
    writer.put_header(writer.start)
    if at.page_start() != writer.start:
        writer.put_header(at.page_start())
    segments: list[WalSegment] = []
    while True:
        room = WAL_PAGE_SIZE - at % WAL_PAGE_SIZE
        writer.put(at, rest[:room])
        rest, at = rest[room:], at + min(room, len(rest))
        if not rest:
            return [*segments, writer.finish()]
        if at % WAL_SEGMENT_SIZE == 0:
            segments.append(writer.finish())
            writer = _SegmentWriter(at, timeline_id, system_identifier, version)
        writer.put_header(at, flags=FIRST_IS_CONTRECORD, record_rest=len(rest))
        at += header_size(at)


class _SegmentWriter:
    """Fills one segment."""

    def __init__(self, start: Lsn, timeline_id: int, system_identifier: int, version: PostgresVersion) -> None:
        self.start = start
        self._timeline_id = timeline_id
        self._system_identifier = system_identifier
        self._magic = version.wal_magic
        self._content = bytearray(WAL_SEGMENT_SIZE)

    def put_header(self, page: Lsn, *, flags: int = 0, record_rest: int = 0) -> None:
        """Write the header of the page that starts at ``page``, a long one at the segment's start."""
        is_long = page == self.start
        flags |= LONG_HEADER if is_long else 0
        self.put(page, _SHORT.pack(self._magic, flags, self._timeline_id, page, record_rest))
        if is_long:
            rest = _LONG_REST.pack(self._system_identifier, WAL_SEGMENT_SIZE, WAL_PAGE_SIZE)
            self.put(page + SHORT_HEADER_SIZE, rest)

    def put(self, at: Lsn, data: bytes) -> None:
        offset = at - self.start
        self._content[offset : offset + len(data)] = data

    def finish(self) -> WalSegment:
        assert len(self._content) == WAL_SEGMENT_SIZE
        return WalSegment(segment_file_name(self._timeline_id, self.start.segment_number()), bytes(self._content))
