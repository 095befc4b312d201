"""Sets of keys as ordered lists of half-open ranges, and their sizes (spec keyspace.md 7.1-7.3).

Invariant of a ``KeySpace``: ranges ascend and do not overlap. Touching ranges stay apart unless an accumulating
constructor joined them; empty ranges are harmless.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pageserver.ids import ShardIdentity
from pageserver.keyspace.key import SIZE_BLOCK, Key, KeyRange
from pageserver.keyspace.shard import is_disposable

LARGE: Final = 0xFFFF_FFFF
"""Size of a range that is not contiguous: unknown, but large."""


@dataclass(frozen=True, slots=True)
class KeySpace:
    """An ordered list of ranges without overlaps."""

    ranges: tuple[KeyRange, ...] = ()

    def __post_init__(self) -> None:
        previous: KeyRange | None = None
        for current in self.ranges:
            assert previous is None or previous.end <= current.start, f"{current} follows {previous}"
            previous = current

    @classmethod
    def accumulate(cls, ranges: Iterable[KeyRange]) -> KeySpace:
        """Collect ranges that come in ascending order; one that starts where the previous ended is joined to it."""
        joined: list[KeyRange] = []
        for current in ranges:
            if joined and joined[-1].end == current.start:
                joined[-1] = KeyRange(joined[-1].start, current.end)
            else:
                joined.append(current)
        return cls(tuple(joined))

    @classmethod
    def union(cls, ranges: Iterable[KeyRange]) -> KeySpace:
        """Collect ranges in any order, overlapping or not; touching ranges are joined, empty ones dropped."""
        joined: list[KeyRange] = []
        for current in sorted(each for each in ranges if not each.is_empty()):
            if joined and current.start <= joined[-1].end:
                joined[-1] = KeyRange(joined[-1].start, max(joined[-1].end, current.end))
            else:
                joined.append(current)
        return cls(tuple(joined))

    def merge(self, other: KeySpace) -> KeySpace:
        """Return both sets together; they must not overlap."""
        return KeySpace.accumulate(sorted((*self.ranges, *other.ranges)))

    def remove_overlapping(self, other: KeySpace) -> tuple[KeySpace, KeySpace]:
        """Return (what is in this set only, what is in both); ranges are cut where needed, never joined."""
        rest: list[KeyRange] = []
        removed: list[KeyRange] = []
        at = 0
        for current in self.ranges:
            while at < len(other.ranges) and other.ranges[at].end <= current.start:
                at += 1
            cursor = current.start
            for index in range(at, len(other.ranges)):
                cut = other.ranges[index]
                if cut.start >= current.end:
                    break
                start, end = max(cut.start, cursor), min(cut.end, current.end)
                if cursor < start:
                    rest.append(KeyRange(cursor, start))
                if start < end:
                    removed.append(KeyRange(start, end))
                    cursor = end
            if cursor < current.end:
                rest.append(KeyRange(cursor, current.end))
        return KeySpace(tuple(rest)), KeySpace(tuple(removed))

    def overlaps(self, wanted: KeyRange) -> bool:
        """Return whether any key is in both."""
        first = bisect_right(self.ranges, wanted.start, key=lambda each: each.end)
        return any(each.overlaps(wanted) for each in self.ranges[first : self._first_from(wanted.end)])

    def __contains__(self, key: Key) -> bool:
        index = bisect_right(self.ranges, key, key=lambda each: each.start)
        return index > 0 and key in self.ranges[index - 1]

    def raw_size(self) -> int:
        """Return the sum of the sizes of the ranges, in pages (not capped)."""
        return sum(raw_size(each) for each in self.ranges)

    def _first_from(self, key: Key) -> int:
        return bisect_left(self.ranges, key, key=lambda each: each.start)

    def __iter__(self) -> Iterator[KeyRange]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)


def is_contiguous(keys: KeyRange) -> bool:
    """Return whether the range lies in the blocks of one fork, possibly begun by the previous fork's size key (7.2)."""
    start, end = keys.start.fields, keys.end.fields
    if start[:4] != end[:4]:
        return False
    return start[4] == end[4] or (start[5] == SIZE_BLOCK and start[4] + 1 == end[4])


def contiguous_size(keys: KeyRange) -> int:
    """Return the number of keys of a contiguous range."""
    start, end = keys.start.field6, keys.end.field6
    return min(end + 1, LARGE) if start == SIZE_BLOCK else end - start


def raw_size(keys: KeyRange) -> int:
    """Return the number of keys, or "large" for a range that is not contiguous."""
    return contiguous_size(keys) if is_contiguous(keys) else LARGE


def stripe_step(cursor: Key, end: Key, identity: ShardIdentity) -> int:
    """Return how many keys from ``cursor`` on, within a contiguous range, surely live on one shard (7.3 step 4)."""
    rest = contiguous_size(KeyRange(cursor, end))
    if identity.count < 2:
        return rest
    if cursor.field6 == SIZE_BLOCK:
        return 1
    return min(rest, identity.stripe_size - cursor.field6 % identity.stripe_size)


def page_count(keys: KeyRange, identity: ShardIdentity) -> int:
    """Return how many keys of the range this shard has to keep; at most 2^32 - 1 (7.3)."""
    if keys.is_single_key():
        return 0 if is_disposable(keys.start, identity) else 1
    if not is_contiguous(keys):
        return LARGE
    if identity.count < 2:
        return contiguous_size(keys)
    pages, cursor = 0, keys.start
    while cursor < keys.end:
        step = stripe_step(cursor, keys.end, identity)
        if not is_disposable(cursor, identity):
            pages += step
        cursor = cursor.add(step)
    return min(pages, LARGE)
