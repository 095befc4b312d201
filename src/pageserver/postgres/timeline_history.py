"""PostgreSQL's timeline history files, ``pg_wal/<tli>.history`` (spec stock.md 3; wal-receiver.md 10.4).

One line for each ancestor: its timeline id, the LSN where it was left, and a reason, separated by tabs; ``#`` begins a
comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pageserver.errors import CorruptDataError
from pageserver.lsn import Lsn, LsnParseError


class TimelineHistoryError(CorruptDataError):
    """A line of a history file does not parse. Carries ``line``."""

    def __init__(self, *, line: str) -> None:
        super().__init__(f"invalid line in timeline history: {line!r}", line=line)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """The log went along ``timeline_id`` up to ``end``."""

    timeline_id: int
    end: Lsn
    reason: str


def parse_history(text: str) -> list[HistoryEntry]:
    """Return the ancestors, oldest first. Raises: TimelineHistoryError."""
    entries: list[HistoryEntry] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        number, _, rest = line.strip().partition("\t")
        position, _, reason = rest.partition("\t")
        try:
            entry = HistoryEntry(int(number), Lsn.parse(position), reason)
        except (ValueError, LsnParseError) as error:
            raise TimelineHistoryError(line=line) from error
        if entries and entry.timeline_id <= entries[-1].timeline_id:
            raise TimelineHistoryError(line=line)
        entries.append(entry)
    return entries


def encode_history(entries: Sequence[HistoryEntry]) -> str:
    """Return the text of a history file."""
    return "".join(f"{entry.timeline_id}\t{entry.end}\t{entry.reason}\n" for entry in entries)


def history_file_name(timeline_id: int) -> str:
    """Return the name of a history file in ``pg_wal``."""
    return f"{timeline_id:08X}.history"


def timeline_at(entries: Sequence[HistoryEntry], current_timeline_id: int, lsn: Lsn) -> int:
    """Return the id of the PostgreSQL timeline on which the record that ends at ``lsn`` was written."""
    for entry in entries:
        if lsn <= entry.end:
            return entry.timeline_id
    return current_timeline_id


def branch_history(
    entries: Sequence[HistoryEntry], current_timeline_id: int, lsn: Lsn, *, reason: str
) -> list[HistoryEntry]:
    """Return the history of a new timeline that leaves the source's log at ``lsn``."""
    kept = [entry for entry in entries if entry.end < lsn]
    return [*kept, HistoryEntry(timeline_at(entries, current_timeline_id, lsn), lsn, reason)]
