"""The values that say what exists: directories, sizes, replication origins (spec keyspace.md 1, 5).

All are big-endian with fixed widths (u64 element counts) unless noted, and no byte may follow. Element order on disk is
arbitrary; we write sorted order, so equal contents give equal bytes. Where a key occurs twice in a map, the later wins.

    database directory      u64 n, n x (u32 tablespace, u32 database, u8 has-relmap)
    relation directory v1   u64 n, n x (u32 relation, u8 fork)
    relation directory v2   one key per fork: "r" exists, empty removed
    SLRU directory          u64 n, n x u32 segment
    two-phase directory     u64 n, n x u32 xid (PostgreSQL 14-16) or u64 full xid (17 and later)
    sizes                   u32 *little-endian*, blocks
    replication origin      u64 LSN; 0 or empty: dropped
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pageserver.errors import CorruptDataError
from pageserver.keyspace.key import Key
from pageserver.lsn import Lsn

EMPTY_DIRECTORY: Final = bytes(8)
"""Any directory without entries."""
RELATION_EXISTS: Final = b"r"
"""Value of a relation directory v2 key whose relation exists."""
FULL_XID_SINCE: Final = 17
"""First major version whose two-phase files are named by the 64-bit transaction id."""

_COUNT: Final = struct.Struct(">Q")
_DATABASE: Final = struct.Struct(">IIB")
_RELATION: Final = struct.Struct(">IB")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_SIZE: Final = struct.Struct("<I")


class DirectoryDecodeError(CorruptDataError):
    """The bytes of a ``kind`` of directory do not decode; ``reason`` says why."""

    def __init__(self, *, kind: str, reason: str) -> None:
        super().__init__(f"invalid {kind}: {reason}", kind=kind, reason=reason)


def _elements(kind: str, value: bytes, layout: struct.Struct) -> Iterator[tuple[int, ...]]:
    if len(value) < 8:
        raise DirectoryDecodeError(kind=kind, reason=f"{len(value)} bytes, the element count alone has 8")
    (count,) = _COUNT.unpack_from(value)
    want = 8 + count * layout.size
    if len(value) != want:
        raise DirectoryDecodeError(kind=kind, reason=f"{len(value)} bytes where {count} elements take {want}")
    return layout.iter_unpack(memoryview(value)[8:])


def _encode(layout: struct.Struct, elements: Iterable[tuple[int, ...]]) -> bytes:
    parts = [layout.pack(*element) for element in elements]
    return _COUNT.pack(len(parts)) + b"".join(parts)


def decode_database_directory(value: bytes) -> dict[tuple[int, int], bool]:
    """Return (tablespace, database) -> has a relmap file. Raises: DirectoryDecodeError."""
    kind, databases = "database directory", {}
    for spcnode, dbnode, flag in _elements(kind, value, _DATABASE):
        if flag > 1:
            raise DirectoryDecodeError(kind=kind, reason=f"invalid boolean {flag:#04x}")
        databases[spcnode, dbnode] = bool(flag)
    return databases


def encode_database_directory(databases: Mapping[tuple[int, int], bool]) -> bytes:
    return _encode(_DATABASE, ((spc, db, flag) for (spc, db), flag in sorted(databases.items())))


def decode_relation_directory(value: bytes) -> set[tuple[int, int]]:
    """Return the set of (relation, fork) of one database. Raises: DirectoryDecodeError."""
    return {(relnode, fork) for relnode, fork in _elements("relation directory", value, _RELATION)}


def encode_relation_directory(relations: Iterable[tuple[int, int]]) -> bytes:
    return _encode(_RELATION, sorted(relations))


def decode_relation_marker(value: bytes) -> bool:
    """Return whether a relation directory v2 value says "exists". Raises: DirectoryDecodeError."""
    if value == RELATION_EXISTS:
        return True
    if value == b"":
        return False
    raise DirectoryDecodeError(kind="reldir key", reason=f"decode failed, got {value[:16].hex()}")


def decode_relation_directory_v2(
    spcnode: int, dbnode: int, found: Iterable[tuple[bytes, bytes]]
) -> set[tuple[int, int]]:
    """Return the (relation, fork) pairs of one database from a scan of its v2 range. Raises: DirectoryDecodeError."""
    relations = set()
    for raw_key, value in found:
        key = Key(raw_key)
        if key.field6 != 1:
            raise DirectoryDecodeError(kind="reldir key", reason=f"{key} does not end in 1")
        rel = key.relation()
        if (rel.spcnode, rel.dbnode) != (spcnode, dbnode):
            raise DirectoryDecodeError(kind="reldir key", reason=f"{key} is not of database {spcnode}/{dbnode}")
        if decode_relation_marker(value):
            relations.add((rel.relnode, rel.forknum))
    return relations


def decode_slru_directory(value: bytes) -> set[int]:
    """Return the set of segment numbers. Raises: DirectoryDecodeError."""
    return {segno for (segno,) in _elements("slru directory", value, _U32)}


def encode_slru_directory(segments: Iterable[int]) -> bytes:
    return _encode(_U32, ((segno,) for segno in sorted(segments)))


def decode_twophase_directory(value: bytes, pg_version: int) -> set[int]:
    """Return the prepared transaction ids, 64-bit from PostgreSQL 17 on. Raises: DirectoryDecodeError."""
    layout = _U64 if pg_version >= FULL_XID_SINCE else _U32
    return {xid for (xid,) in _elements("two-phase directory", value, layout)}


def encode_twophase_directory(xids: Iterable[int], pg_version: int) -> bytes:
    """Shape: 4-byte elements up to PostgreSQL 16, 8-byte from 17 on. Raises: DirectoryDecodeError (xid too large)."""
    xids = sorted(xids)
    if pg_version >= FULL_XID_SINCE:
        return _encode(_U64, ((xid,) for xid in xids))
    if xids and xids[-1] > 0xFFFF_FFFF:
        raise DirectoryDecodeError(kind="two-phase directory", reason=f"xid {xids[-1]} does not fit 32 bits")
    return _encode(_U32, ((xid,) for xid in xids))


def decode_size(value: bytes) -> int:
    """Return the number of blocks of a relation fork or SLRU segment; only the first 4 bytes count."""
    if len(value) < 4:
        raise DirectoryDecodeError(kind="size", reason=f"{len(value)} bytes where 4 are needed")
    (blocks,) = _SIZE.unpack_from(value)
    return int(blocks)


def encode_size(blocks: int) -> bytes:
    return _SIZE.pack(blocks)


def decode_replication_origin(value: bytes) -> Lsn | None:
    """Return the origin's remote LSN; none if it was dropped (value 0, or the universal tombstone)."""
    if value == b"":
        return None
    if len(value) != 8:
        raise DirectoryDecodeError(kind="replication origin", reason=f"{len(value)} bytes where 8 are needed")
    (lsn,) = _U64.unpack(value)
    return Lsn(lsn) if lsn else None


def encode_replication_origin(lsn: int) -> bytes:
    """Shape: 8 bytes; LSN 0 says "dropped"."""
    return _U64.pack(lsn)
