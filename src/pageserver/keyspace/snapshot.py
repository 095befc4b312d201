"""Everything that exists on a timeline at one LSN, listed through the directories (spec keyspace.md 5, 6; stock.md 2).

A ``Snapshot`` reads; it keeps what it has read of the directories, since nothing at an LSN ever changes. It serves base
backups, restores, verification and the collection of keyspaces. The ``Reader`` is the timeline's store, or in tests a
dictionary. All reads are batches; a call may wait for disk or a download, so long listings belong into a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, assert_never

from pageserver.errors import MissingKeyError
from pageserver.keyspace.aux_files import decode_aux_files, tablespaces_of
from pageserver.keyspace.directories import (
    decode_database_directory,
    decode_relation_directory,
    decode_relation_directory_v2,
    decode_replication_origin,
    decode_size,
    decode_slru_directory,
    decode_twophase_directory,
)
from pageserver.keyspace.key import (
    AUX_FILE_RANGE,
    FSM_FORK,
    ORIGIN_RANGE,
    PAGE_SIZE,
    VM_FORK,
    Key,
    RelTag,
    SlruKind,
    relation_directory_v2_range,
)
from pageserver.lsn import Lsn

_BATCH_KEYS: Final = 4096
"""Keys asked for in one read."""


class Reader(Protocol):
    """What a snapshot needs of a timeline's store (``_core.TimelineStore`` has it)."""

    def get(self, key: bytes, lsn: int) -> bytes:
        """Return the value. Raises: MissingKeyError."""
        ...

    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]:
        """Return a value for each key, none where there is none."""
        ...

    def scan(self, start: bytes, end: bytes, lsn: int) -> list[tuple[bytes, bytes]]:
        """Return what exists in a range of the sparse keyspace, in key order."""
        ...


class RelationDirectoryStatus(Enum):
    """Which relation directory decides (``rel_size_migration`` of the index part)."""

    LEGACY = "legacy"
    MIGRATING = "migrating"
    MIGRATED = "migrated"


@dataclass(frozen=True, slots=True)
class RelationDirectoryState:
    """The timeline's status and the LSN below which the v1 directory decides anyway."""

    status: RelationDirectoryStatus = RelationDirectoryStatus.LEGACY
    migrated_at: Lsn | None = None

    def reads_v2(self, lsn: int) -> bool:
        """Return whether a read at ``lsn`` is decided by the v2 directory (keyspace.md 5.12)."""
        match self.status:
            case RelationDirectoryStatus.LEGACY | RelationDirectoryStatus.MIGRATING:
                return False
            case RelationDirectoryStatus.MIGRATED:
                return self.migrated_at is None or lsn >= self.migrated_at
            case _:
                assert_never(self.status)


class InvalidRelnodeError(ValueError):
    """Relation number 0 names no relation; the caller's bug, or a request that was not checked."""

    def __init__(self) -> None:
        super().__init__("invalid relnode")


class Snapshot:
    """What exists at ``lsn``. Raises of all methods: MissingKeyError, CorruptDataError (damaged values)."""

    def __init__(
        self,
        reader: Reader,
        lsn: int,
        pg_version: int,
        *,
        relation_directory: RelationDirectoryState | None = None,
    ) -> None:
        self.reader: Final = reader
        self.lsn: Final = Lsn(lsn)
        self.pg_version: Final = pg_version
        self._uses_v2: Final = (relation_directory or RelationDirectoryState()).reads_v2(lsn)
        self._databases: dict[tuple[int, int], bool] | None = None
        self._relations: dict[tuple[int, int], list[RelTag]] = {}
        self._sizes: dict[tuple[int, int], dict[RelTag, int]] = {}

    # Databases and relations

    def databases(self) -> dict[tuple[int, int], bool]:
        """Return (tablespace, database) -> has a relmap file, in ascending order."""
        if self._databases is None:
            found = decode_database_directory(self._get(Key.database_directory()))
            self._databases = dict(sorted(found.items()))
        return self._databases

    def relations(self, spcnode: int, dbnode: int) -> list[RelTag]:
        """Return all forks of all relations of a database in ascending order; none if the database does not exist."""
        if (spcnode, dbnode) not in self.databases():
            return []
        known = self._relations.get((spcnode, dbnode))
        if known is None:
            if self._uses_v2:
                keys = relation_directory_v2_range(spcnode, dbnode)
                found = self.reader.scan(keys.start, keys.end, self.lsn)
                pairs = decode_relation_directory_v2(spcnode, dbnode, found)
            else:
                pairs = decode_relation_directory(self._get(Key.relation_directory(spcnode, dbnode)))
            known = [RelTag(spcnode, dbnode, relnode, fork) for relnode, fork in sorted(pairs)]
            self._relations[spcnode, dbnode] = known
        return known

    def relation_exists(self, rel: RelTag) -> bool:
        """Return whether the directories say so; a size may outlive its relation and proves nothing."""
        if rel.relnode == 0:
            raise InvalidRelnodeError
        return rel in self.relation_sizes(rel.spcnode, rel.dbnode)

    def relation_sizes(self, spcnode: int, dbnode: int) -> dict[RelTag, int]:
        """Return fork -> blocks for all relations of a database, in ascending order."""
        known = self._sizes.get((spcnode, dbnode))
        if known is None:
            relations = self.relations(spcnode, dbnode)
            values = self._get_existing(Key.relation_size(rel) for rel in relations)
            known = {rel: decode_size(value) for rel, value in zip(relations, values, strict=True)}
            self._sizes[spcnode, dbnode] = known
        return known

    def relation_size(self, rel: RelTag, *, allow_missing: bool = False) -> int | None:
        """Return the blocks of a fork by the rules of keyspace.md 5.4.

        A missing free space or visibility map has 0 blocks, another missing fork "none" if that is allowed. If it is
        not, a dropped relation answers with its last size, which its key still has.
        Raises: MissingKeyError (never existed, and not allowed).
        """
        if self.relation_exists(rel):
            return self.relation_sizes(rel.spcnode, rel.dbnode)[rel]
        if allow_missing:
            return None
        if rel.forknum in (FSM_FORK, VM_FORK):
            return 0
        return decode_size(self._get(Key.relation_size(rel)))

    def relmap(self, spcnode: int, dbnode: int) -> bytes:
        """Return the bytes of a database's ``pg_filenode.map``."""
        return self._get(Key.relmap(spcnode, dbnode))

    def database_size(self, spcnode: int, dbnode: int) -> int:
        """Return the bytes of all forks of one database in one tablespace; exact on shard zero only."""
        return PAGE_SIZE * sum(self.relation_sizes(spcnode, dbnode).values())

    def logical_size(self) -> int:
        """Return the bytes of all forks of all relations; SLRUs and metadata do not count (8.4)."""
        return sum(self.database_size(spcnode, dbnode) for spcnode, dbnode in self.databases())

    # SLRUs (shard zero only)

    def slru_segments(self, kind: SlruKind) -> list[int]:
        """Return the numbers of the existing segments, ascending."""
        return sorted(decode_slru_directory(self._get(Key.slru_directory(kind))))

    def slru_segment_sizes(self, kind: SlruKind) -> dict[int, int]:
        """Return segment -> pages."""
        segments = self.slru_segments(kind)
        values = self._get_existing(Key.slru_segment_size(kind, segno) for segno in segments)
        return {segno: decode_size(value) for segno, value in zip(segments, values, strict=True)}

    def slru_pages(self, kind: SlruKind, segno: int) -> list[bytes]:
        """Return the stored pages of a segment: 8192 bytes, CLOG pages possibly with an 8-byte timestamp tail."""
        blocks = decode_size(self._get(Key.slru_segment_size(kind, segno)))
        return list(self._get_existing(Key.slru_block(kind, segno, block) for block in range(blocks)))

    def slru_segment(self, kind: SlruKind, segno: int) -> bytes:
        """Return the segment file as PostgreSQL has it. Shape: 8192 bytes for each page."""
        return b"".join(page[:PAGE_SIZE] for page in self.slru_pages(kind, segno))

    # Prepared transactions, aux files, origins

    def twophase_xids(self) -> list[int]:
        """Return the ids of prepared transactions, ascending; full 64-bit ids from PostgreSQL 17 on."""
        return sorted(decode_twophase_directory(self._get(Key.twophase_directory()), self.pg_version))

    def twophase(self) -> dict[int, bytes]:
        """Return xid -> state file, without the CRC that the file on disk ends with."""
        xids = self.twophase_xids()
        values = self._get_existing(Key.twophase_file(xid) for xid in xids)
        return dict(zip(xids, values, strict=True))

    def aux_files(self) -> dict[str, bytes]:
        """Return path -> content of all aux files, in path order."""
        found = self.reader.scan(AUX_FILE_RANGE.start, AUX_FILE_RANGE.end, self.lsn)
        return dict(sorted(file for _, value in found for file in decode_aux_files(value)))

    def tablespaces(self) -> dict[int, str]:
        """Return oid -> location of the user tablespaces of a stock timeline."""
        return tablespaces_of(self.aux_files())

    def origins(self) -> dict[int, Lsn]:
        """Return id -> remote LSN of the replication origins that exist."""
        found = self.reader.scan(ORIGIN_RANGE.start, ORIGIN_RANGE.end, self.lsn)
        decoded = ((Key(key).field6, decode_replication_origin(value)) for key, value in found)
        return {origin_id: lsn for origin_id, lsn in decoded if lsn is not None}

    # Control data

    def control_file(self) -> bytes:
        """Return ``global/pg_control`` as it was imported."""
        return self._get(Key.control_file())

    def checkpoint(self) -> bytes:
        """Return the 88 bytes of the CheckPoint structure, as tracked up to this LSN."""
        return self._get(Key.checkpoint())

    # Reading

    def _get(self, key: Key) -> bytes:
        return self.reader.get(key, self.lsn)

    def _get_existing(self, keys: Iterable[Key]) -> Iterator[bytes]:
        """Read keys that the directories imply, in batches. Raises: MissingKeyError."""
        wanted: list[bytes] = list(keys)
        for first in range(0, len(wanted), _BATCH_KEYS):
            batch = wanted[first : first + _BATCH_KEYS]
            for key, value in zip(batch, self.reader.get_many(batch, self.lsn), strict=True):
                if value is None:
                    raise MissingKeyError(key=key, lsn=self.lsn, detail="a directory says that it exists")
                yield value
