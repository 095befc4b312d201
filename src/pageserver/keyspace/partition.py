"""Cut a keyspace into parts of about equal size, as one shard sees it (spec keyspace.md 7.4, 7.5).

Sizes count pages that this shard keeps, so a sharded tenant's parts span far more keys than an unsharded one's.
"""

from __future__ import annotations

from dataclasses import dataclass

from pageserver.ids import ShardIdentity
from pageserver.keyspace.key import PAGE_SIZE, KeyRange
from pageserver.keyspace.ranges import LARGE, KeySpace, is_contiguous, page_count, stripe_step
from pageserver.keyspace.shard import is_disposable


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a range with the number of its pages that are local."""

    local_pages: int
    keys: KeyRange


@dataclass(frozen=True, slots=True)
class KeyPartitioning:
    """A keyspace cut into parts, each of about the target size."""

    parts: tuple[KeySpace, ...] = ()


def fragment(keys: KeyRange, target_pages: int, identity: ShardIdentity) -> list[Fragment]:
    """Cut a range into pieces of at most ``target_pages`` local pages.

    The pieces cover the range without gaps; if it has a local page at all, every piece has one.
    """
    assert target_pages > 0, "a fragment must be allowed at least one page"
    if keys.is_single_key():
        return [Fragment(page_count(keys, identity), keys)]
    if not is_contiguous(keys):
        return [Fragment(LARGE, keys)]
    pieces: list[Fragment] = []
    cursor = keys.start
    while cursor < keys.end:
        advance = stripe_step(cursor, keys.end, identity)
        disposable = is_disposable(cursor, identity)
        last = pieces[-1] if pieces else None
        if last is not None and (disposable or last.local_pages < target_pages):
            begin, size = last.keys.start, last.local_pages
            pieces.pop()
        else:
            begin, size = cursor, 0
        if not disposable:
            advance = min(advance, target_pages - size)
            size += advance
        cursor = cursor.add(advance)
        pieces.append(Fragment(size, KeyRange(begin, cursor)))
    return pieces


def partition(
    keyspace: KeySpace, identity: ShardIdentity, target_size_bytes: int, block_size: int = PAGE_SIZE
) -> KeyPartitioning:
    """Cut a keyspace into parts; the last one is kept even if it holds no local page."""
    target_pages = target_size_bytes // block_size
    parts: list[KeySpace] = []
    current: list[KeyRange] = []
    current_pages = 0
    for keys in keyspace:
        for piece in fragment(keys, target_pages, identity):
            if current_pages > 0 and current_pages + piece.local_pages > target_pages:
                parts.append(KeySpace(tuple(current)))
                current, current_pages = [], 0
            current.append(piece.keys)
            current_pages += piece.local_pages
    if current:
        parts.append(KeySpace(tuple(current)))
    return KeyPartitioning(tuple(parts))
