"""Which versions of a key nobody can see any more: a pure decision over what may be read.

A timeline may be read from its cutoff on. A branch reads its ancestor at the branch point, or below it where its own
cutoff is lower; so do the branches of the branch. Each of these is a range of LSNs at which the timeline must answer:

    timeline   cutoff 500                                   ──────────── 500 … ∞
    branch at 300, cutoff 200 (its ancestor's of that time)  ── 200 … 300
    branch at 400, cutoff 450                                  ─ 400 … 400

A version is needed if it is the newest one at some readable LSN, or if a needed newer one is a record that must be
applied to it. All others go. Source: read-path-compaction-gc.md 12.3, 12.8 (the same rule for layers, and for keys).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pageserver.repository.object_store import MAX_LSN, TimelineRecord

LsnRange = tuple[int, int]
"""First and last LSN, both readable."""


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What one collection did. A layered repository counts nothing here: it removes whole layers elsewhere."""

    cutoff_lsn: int
    versions_seen: int = 0
    versions_removed: int = 0


def readable_ranges(timeline_id: bytes, records: Mapping[bytes, TimelineRecord]) -> list[LsnRange]:
    """Return the LSNs of one timeline that it or its descendants may still read, ascending, without overlaps."""
    ranges = [_range_in(record, timeline_id, records) for record in records.values()]
    merged: list[LsnRange] = []
    for first, last in sorted(each for each in ranges if each is not None):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def plan_unlinks(newest_first: Iterable[tuple[int, bool]], ranges: Sequence[LsnRange]) -> list[int]:
    """Return the LSNs of the versions of one key that may go. Versions are (LSN, needs nothing older)."""
    unlinks: list[int] = []
    visible_until = MAX_LSN
    is_chain_open = False
    for lsn, is_base in newest_first:
        is_visible = any(first <= visible_until and lsn <= last for first, last in ranges)
        if is_visible or is_chain_open:
            is_chain_open = not is_base
        else:
            unlinks.append(lsn)
        visible_until = lsn - 1
    return unlinks


def _range_in(reader: TimelineRecord, timeline_id: bytes, records: Mapping[bytes, TimelineRecord]) -> LsnRange | None:
    """Return which LSNs of a timeline are read through `reader`; none if it does not descend from it."""
    top = MAX_LSN
    record = reader
    while record.timeline_id != timeline_id:
        ancestor = None if record.ancestor_id is None else records.get(record.ancestor_id)
        if ancestor is None:
            return None
        top = min(top, record.ancestor_lsn)
        record = ancestor
    return min(reader.gc_cutoff_lsn, top), top
