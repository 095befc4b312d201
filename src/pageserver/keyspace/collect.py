"""All keys that exist at an LSN, for repartitioning and image layers (spec keyspace.md 8.1-8.3).

What is not collected may vanish from newer image layers: that is how deleted data eventually disappears.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pageserver.ids import ShardIdentity
from pageserver.keyspace.key import (
    AUX_FILE_RANGE,
    MIN_KEY,
    NOT_INHERITED_DENSE_RANGE,
    ORIGIN_RANGE,
    RELDIR_V2_RANGE,
    SPARSE_RANGE,
    Key,
    KeyRange,
    SlruKind,
)
from pageserver.keyspace.ranges import KeySpace
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn

SPARSE_RANGES: Final = (AUX_FILE_RANGE, ORIGIN_RANGE, RELDIR_V2_RANGE)
"""The collected sparse keyspace: always these three, never merged, never walked key by key."""

GC_COMPACTION_DENSE: Final = KeySpace(
    (
        KeyRange(MIN_KEY, NOT_INHERITED_DENSE_RANGE.start),
        KeyRange(NOT_INHERITED_DENSE_RANGE.end, SPARSE_RANGE.start),
    )
)
"""Dense keys of all LSNs: everything but the aux v1 key (8.2)."""


@dataclass(frozen=True, slots=True)
class CollectedKeySpace:
    """The keys that exist at an LSN."""

    dense: KeySpace
    sparse: tuple[KeyRange, ...]
    at_lsn: Lsn

    def to_json(self) -> dict[str, object]:
        """Return ``{"keys": [[start, end], ...], "sparse_keys": ..., "at_lsn": "X/Y"}`` (8.3)."""
        return {
            "keys": [[str(keys.start), str(keys.end)] for keys in self.dense],
            "sparse_keys": [[str(keys.start), str(keys.end)] for keys in self.sparse],
            "at_lsn": str(self.at_lsn),
        }


def collect_keyspace(snapshot: Snapshot, identity: ShardIdentity) -> CollectedKeySpace:
    """List what exists at the snapshot's LSN. Raises: MissingKeyError, CorruptDataError."""
    return CollectedKeySpace(KeySpace.accumulate(_dense(snapshot, identity)), SPARSE_RANGES, snapshot.lsn)


def _dense(snapshot: Snapshot, identity: ShardIdentity) -> Iterator[KeyRange]:
    """Yield ranges in ascending key order."""
    yield KeyRange.single(Key.database_directory())
    for (spcnode, dbnode), has_relmap in snapshot.databases().items():
        if has_relmap:
            yield KeyRange.single(Key.relmap(spcnode, dbnode))
        yield KeyRange.single(Key.relation_directory(spcnode, dbnode))
        for rel, blocks in snapshot.relation_sizes(spcnode, dbnode).items():
            yield KeyRange(Key.relation_block(rel, 0), Key.relation_block(rel, blocks))
            yield KeyRange.single(Key.relation_size(rel))
    if identity.is_shard_zero():
        for kind in SlruKind:
            yield KeyRange.single(Key.slru_directory(kind))
            for segno, blocks in snapshot.slru_segment_sizes(kind).items():
                yield KeyRange(Key.slru_block(kind, segno, 0), Key.slru_block(kind, segno, blocks))
                yield KeyRange.single(Key.slru_segment_size(kind, segno))
    yield KeyRange.single(Key.twophase_directory())
    for xid in snapshot.twophase_xids():
        yield KeyRange.single(Key.twophase_file(xid))
    yield KeyRange.single(Key.control_file())
    yield KeyRange.single(Key.checkpoint())
