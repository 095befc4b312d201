"""The WAL segment files of a directory: which of them make up the log, and where its first record begins.

A `pg_wal` also holds what is not the log: segments that were recycled (an old segment under the name of a later one),
segments of timelines that the server has left, `.partial` and history files. A segment belongs to the log if its
timeline is the server's own or an ancestor that was left behind its start, and if its first page says that it is where
its name says. Where several do, the newest timeline counts, as it does for a server in recovery.

Source: PostgreSQL's `xlog_internal.h` (names, page headers); spec wal.md 1.2, 1.3; stock.md 3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pageserver.errors import CorruptDataError, RequestError
from pageserver.lsn import WAL_PAGE_SIZE, WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.timeline_history import history_file_name, parse_history
from pageserver.postgres.wal_segment import FIRST_IS_CONTRECORD, header_size, segment_file_name

_NAME: Final = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})", re.ASCII)
_HEADER: Final = struct.Struct("<HHIQI")
"""Magic, flags, timeline id, address of the page, bytes of a record that go on from the page before."""


class NoWalSegmentsError(RequestError):
    """The directory holds no segment of the log. Carries ``path``."""


class MissingSegmentError(RequestError):
    """A segment of the log is not there, but later ones are, or it is where reading must begin. Carries ``name``."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One file of the log, 16 MiB."""

    number: int
    path: Path

    @property
    def start(self) -> Lsn:
        return Lsn(self.number * WAL_SEGMENT_SIZE)


def find_log(directory: Path, *, timeline_id: int, start: Lsn | None) -> list[SegmentFile]:
    """Return the segments of the log in order, from the one that holds `start` (left out: the oldest) without a gap.

    `timeline_id` is the PostgreSQL timeline the log ends on. Raises: NoWalSegmentsError, MissingSegmentError,
    CorruptDataError (a segment of another size), TimelineHistoryError.
    """
    found = _segments_of_log(directory, _lineage(directory, timeline_id))
    if not found:
        raise NoWalSegmentsError(
            f"{directory} holds no WAL segments of timeline {timeline_id}",
            hint="name the directory with the segments (pg_wal, or an archive) with --wal",
            path=str(directory),
        )
    first = min(found) if start is None else start.segment_number()
    last = max(found)
    for number in range(first, max(first, last) + 1):
        if number not in found:
            where = f"; the next one there is of {Lsn(min(n for n in found if n > number) * WAL_SEGMENT_SIZE)}"
            raise MissingSegmentError(
                f"WAL segment {segment_file_name(timeline_id, number)} is missing in {directory}"
                f"{where if number < last else ''}",
                hint="every segment from the start to the end is needed",
                name=segment_file_name(timeline_id, number),
            )
    return [found[number] for number in range(first, last + 1)]


def _lineage(directory: Path, timeline_id: int) -> dict[int, Lsn | None]:
    """Return where each timeline of the server's history was left; none for the last one."""
    lineage: dict[int, Lsn | None] = {timeline_id: None}
    history = directory / history_file_name(timeline_id)
    if timeline_id > 1 and history.exists():
        lineage.update({entry.timeline_id: entry.end for entry in parse_history(history.read_text())})
    return lineage


def _segments_of_log(directory: Path, lineage: Mapping[int, Lsn | None]) -> dict[int, SegmentFile]:
    per_id = 0x1_0000_0000 // WAL_SEGMENT_SIZE
    newest: dict[int, tuple[int, SegmentFile]] = {}
    for path in sorted(directory.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        tli, number = int(match[1], 16), int(match[2], 16) * per_id + int(match[3], 16)
        segment = SegmentFile(number, path)
        if tli not in lineage:
            continue
        left_at = lineage[tli]
        if left_at is not None and segment.start >= left_at:
            continue
        if _is_what_its_name_says(segment) and tli >= newest.get(number, (0, segment))[0]:
            newest[number] = (tli, segment)
    return {number: segment for number, (_, segment) in newest.items()}


def _is_what_its_name_says(segment: SegmentFile) -> bool:
    size = segment.path.stat().st_size
    if size != WAL_SEGMENT_SIZE:
        raise CorruptDataError(
            f"WAL segment {segment.path} has {size} bytes",
            hint="only complete segments of 16 MiB can be read; unpack compressed ones",
            path=str(segment.path),
        )
    with open(segment.path, "rb") as file:
        _, _, _, address, _ = _HEADER.unpack(file.read(_HEADER.size))
    return bool(address == segment.start)


def first_record(data: bytes, start: Lsn) -> Lsn | None:
    """Return where the first record that begins in `data` begins; none if it lies behind.

    Shape: `data` is WAL from the start of a page on, `start` its address. A record that goes on from the page before is
    passed over.
    """
    at = start
    while at - start + _HEADER.size <= len(data):
        _, flags, _, _, rest = _HEADER.unpack_from(data, at - start)
        begin = at + header_size(at)
        if not flags & FIRST_IS_CONTRECORD:
            return begin
        end = (begin + rest).aligned()
        if end < at + WAL_PAGE_SIZE:
            return end if end - start < len(data) else None
        at = at + WAL_PAGE_SIZE
    return None
