"""What exists at an LSN, for single questions: relation sizes, databases, SLRU pages (keyspace.md 5.1-5.7).

`find(key)` returns a value as of the LSN in question, or none. Long listings use `keyspace.Snapshot`.
"""

from __future__ import annotations

from collections.abc import Callable

from pageserver.errors import MissingKeyError, RequestError
from pageserver.keyspace.directories import (
    decode_database_directory,
    decode_relation_directory,
    decode_size,
)
from pageserver.keyspace.key import FSM_FORK, PAGE_SIZE, VM_FORK, Key, RelTag, SlruKind

Find = Callable[[bytes], bytes | None]


def listed_relations(find: Find, spcnode: int, dbnode: int, *, lsn: int) -> set[tuple[int, int]] | None:
    """Return (relation, fork) of a database; none if there is no such database. Raises: MissingKeyError."""
    databases = decode_database_directory(_require(find, Key.database_directory(), lsn))
    if (spcnode, dbnode) not in databases:
        return None
    return set(decode_relation_directory(_require(find, Key.relation_directory(spcnode, dbnode), lsn)))


def listed_rel_size(find: Find, rel: RelTag, *, lsn: int) -> int | None:
    """Return the blocks of a fork that the directories list, else none."""
    if rel.relnode == 0:
        raise RequestError("invalid relnode")
    relations = listed_relations(find, rel.spcnode, rel.dbnode, lsn=lsn)
    if relations is None or (rel.relnode, rel.forknum) not in relations:
        return None
    return decode_size(_require(find, Key.relation_size(rel), lsn))


def rel_size(find: Find, rel: RelTag, *, lsn: int) -> int | None:
    """Return the blocks of a fork: 0 for an absent free space or visibility map, none for another absent fork."""
    size = listed_rel_size(find, rel, lsn=lsn)
    return 0 if size is None and rel.forknum in (FSM_FORK, VM_FORK) else size


def rel_size_or_last(find: Find, rel: RelTag, *, lsn: int) -> int:
    """Return what a client is told: like `rel_size`, of a dropped relation its last size. Raises: MissingKeyError."""
    size = rel_size(find, rel, lsn=lsn)
    return decode_size(_require(find, Key.relation_size(rel), lsn)) if size is None else size


def db_size(find: Find, spcnode: int, dbnode: int, *, lsn: int) -> int | None:
    """Return the blocks of all forks of all relations; none if there is no such database."""
    relations = listed_relations(find, spcnode, dbnode, lsn=lsn)
    if relations is None:
        return None
    tags = (RelTag(spcnode, dbnode, relnode, fork) for relnode, fork in relations)
    return sum(decode_size(_require(find, Key.relation_size(tag), lsn)) for tag in tags)


def slru_pages(find: Find, kind: SlruKind, segno: int, *, lsn: int) -> list[bytes]:
    """Return the pages of a segment as stored: 8192 bytes, CLOG pages perhaps with a tail of 8."""
    blocks = decode_size(_require(find, Key.slru_segment_size(kind, segno), lsn))
    return [_require(find, Key.slru_block(kind, segno, block), lsn) for block in range(blocks)]


def slru_segment(find: Find, kind: SlruKind, segno: int, *, lsn: int) -> bytes:
    return b"".join(page[:PAGE_SIZE] for page in slru_pages(find, kind, segno, lsn=lsn))


def _require(find: Find, key: Key, lsn: int) -> bytes:
    value = find(key)
    if value is None:
        raise MissingKeyError(key=key, lsn=lsn)
    return value
