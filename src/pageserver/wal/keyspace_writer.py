"""Primitive changes of what exists: relations, databases, SLRU segments, prepared transactions, files (spec wal.md
4.4, 4.5).

    rare record ─▶ records/*.py (what it means) ─▶ KeyspaceWriter (directories, sizes) ─▶ engine (values at the
    record's LSN)

Directories are read-modify-write. The writer keeps the ones that it has decoded: it is the only writer of its
timeline, so they cannot change behind its back. An error leaves them in doubt; then ingest, writer and engine's ingest
are thrown away together.

While a base copy is not consistent yet, it may contain already what a record creates, or lack already what one
removes: both are accepted then (wal.md 9.3) and errors otherwise. Deletions write no tombstones for dense keys:
"deleted" is what no directory lists.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from pageserver.errors import CorruptDataError, MissingKeyError, PreconditionFailedError
from pageserver.ids import ShardIdentity
from pageserver.keyspace.aux_files import aux_file_key, update_aux_value
from pageserver.keyspace.directories import (
    EMPTY_DIRECTORY,
    RELATION_EXISTS,
    decode_database_directory,
    decode_relation_directory,
    decode_size,
    decode_slru_directory,
    decode_twophase_directory,
    encode_database_directory,
    encode_replication_origin,
    encode_slru_directory,
    encode_twophase_directory,
)
from pageserver.keyspace.key import PAGE_SIZE, SLRU_SEGMENT_BLOCKS, Key, RelTag, SlruKind
from pageserver.keyspace.shard import is_local
from pageserver.keyspace.snapshot import RelationDirectoryState, RelationDirectoryStatus
from pageserver.lsn import Lsn
from pageserver.postgres.checkpoint import Checkpoint

log = structlog.get_logger(__name__)

_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class Modification(Protocol):
    """What the engine offers while a rare record is applied; ``_core.WalIngest`` has it, and says more about each."""

    checkpoint: bytes
    tolerant_until: int

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, image: bytes) -> None: ...
    def put_value(self, key: bytes, encoded_value: bytes) -> None: ...
    def rel_size(self, spc: int, db: int, rel: int, fork: int) -> int | None: ...
    def set_rel_size(self, spc: int, db: int, rel: int, fork: int, blocks: int) -> None: ...
    def remember_rel_size(self, spc: int, db: int, rel: int, fork: int, blocks: int) -> None: ...
    def forget_rel(self, spc: int, db: int, rel: int, fork: int) -> None: ...
    def forget_database(self, spc: int, db: int) -> None: ...
    def copy_relation(
        self, source: tuple[int, int, int, int], target: tuple[int, int, int, int], blocks: int
    ) -> None: ...
    def set_slru_size(self, kind: int, segno: int, blocks: int) -> None: ...
    def forget_slru(self, kind: int, segno: int) -> None: ...


class KeyspaceConflictError(CorruptDataError):
    """A record creates what exists already: WAL and stored state do not belong together."""


class RelationSet:
    """The relation directory v1 of one database, decoded once and kept sorted, because it is written as a whole."""

    def __init__(self, relations: Iterable[tuple[int, int]] = ()) -> None:
        self._elements = sorted(_element(relnode, forknum) for relnode, forknum in relations)

    def add(self, rel: RelTag) -> bool:
        """Add a fork; false if it is there already."""
        element = _element(rel.relnode, rel.forknum)
        at = bisect_left(self._elements, element)
        if at < len(self._elements) and self._elements[at] == element:
            return False
        self._elements.insert(at, element)
        return True

    def remove(self, relations: Iterable[RelTag]) -> list[RelTag]:
        """Remove forks in one pass, since a transaction may drop thousands; return those that were there."""
        wanted = {_element(rel.relnode, rel.forknum): rel for rel in relations}
        removed = [wanted[element] for element in self._elements if element in wanted]
        if removed:
            self._elements = [element for element in self._elements if element not in wanted]
        return removed

    def __contains__(self, rel: RelTag) -> bool:
        element = _element(rel.relnode, rel.forknum)
        at = bisect_left(self._elements, element)
        return at < len(self._elements) and self._elements[at] == element

    def tags(self, spcnode: int, dbnode: int) -> list[RelTag]:
        """Return the forks in ascending order."""
        return [RelTag(spcnode, dbnode, int.from_bytes(each[:4], "big"), each[4]) for each in self._elements]

    def encode(self) -> bytes:
        return len(self._elements).to_bytes(8, "big") + b"".join(self._elements)


class KeyspaceWriter:
    """Changes what exists on one timeline, as one shard sees it, at the LSN of the record being applied.

    ``tolerant`` and ``lsn`` are set for each record by its owner. Raises of all methods: KeyspaceConflictError,
    MissingKeyError, CorruptDataError (a stored value is damaged).
    """

    def __init__(
        self,
        modification: Modification,
        *,
        pg_version: int,
        identity: ShardIdentity,
        relation_directory: RelationDirectoryState | None = None,
        start_migration: Callable[[Lsn], None] | None = None,
        is_migration_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """``start_migration`` is called once with the LSN from which on both forms of relation directory are written,
        and makes that durable with the timeline's index. ``is_migration_wanted`` is asked at each creation of a
        relation until then (``rel_size_v2_enabled``).
        """
        self.modification: Final = modification
        self.pg_version: Final = pg_version
        self.identity: Final = identity
        self.tolerant = False
        self.lsn = Lsn(0)
        self._status = (relation_directory or RelationDirectoryState()).status
        self._start_migration: Final = start_migration
        self._is_migration_wanted: Final = is_migration_wanted
        if self._status is RelationDirectoryStatus.MIGRATED:
            raise PreconditionFailedError(
                "the timeline has only the second form of relation directory, which can be read but not written",
                hint="no release ever wrote such a timeline; detach it and keep it as it is",
            )
        self._databases: dict[tuple[int, int], bool] | None = None
        self._relations: dict[tuple[int, int], RelationSet] = {}

    # Databases

    def databases(self) -> dict[tuple[int, int], bool]:
        """Return (tablespace, database) -> has a relmap file; do not change it."""
        if self._databases is None:
            self._databases = decode_database_directory(self._require(Key.database_directory()))
        return self._databases

    def put_relmap(self, spcnode: int, dbnode: int, content: bytes) -> None:
        """Write a relmap file; a new database gets an empty relation directory."""
        known = self.databases().get((spcnode, dbnode))
        if known is not True:
            self._put_database(spcnode, dbnode, has_relmap=True)
        if known is None:
            self._put_relations(spcnode, dbnode, RelationSet())
        self.modification.put(Key.relmap(spcnode, dbnode), content)

    def copy_database(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        """Make a database as a copy of another one, with all its blocks that are local to this shard (wal.md 5.5)."""
        if target in self.databases():
            if not self.tolerant:
                raise KeyspaceConflictError(f"database {target[0]}/{target[1]} already exists", lsn=self.lsn)
            self._forget_database(*target)
        if source not in self.databases() and self.tolerant:
            log.warning("source of a copied database is gone", source=source, target=target, lsn=str(self.lsn))
            self._put_database(*target, has_relmap=False)
            self._put_relations(*target, RelationSet())
            return
        relations = self.relations(*source).tags(*source)
        sizes = {rel: self._stored_size(rel) for rel in relations}
        has_relmap = self.databases().get(source, False)
        self._put_database(*target, has_relmap=has_relmap)
        if has_relmap:
            self.modification.put(Key.relmap(*target), self._require(Key.relmap(*source)))
        copies = [RelTag(*target, rel.relnode, rel.forknum) for rel in relations]
        self._put_relations(*target, RelationSet((rel.relnode, rel.forknum) for rel in copies))
        self._mark_v2(copies, exists=True)
        for rel, copy in zip(relations, copies, strict=True):
            self._set_size(copy, sizes[rel])
            if sizes[rel]:
                self.modification.copy_relation(_parts(rel), _parts(copy), sizes[rel])

    def drop_database(self, spcnode: int, dbnode: int) -> None:
        """Remove a database from its tablespace; its keys stay behind, unreachable."""
        if (spcnode, dbnode) not in self.databases():
            log.warning("dropped database is not known", spcnode=spcnode, dbnode=dbnode, lsn=str(self.lsn))
            return
        self._forget_database(spcnode, dbnode)
        left = dict(self.databases())
        del left[spcnode, dbnode]
        self._write_databases(left)

    def _put_database(self, spcnode: int, dbnode: int, *, has_relmap: bool) -> None:
        self._write_databases({**self.databases(), (spcnode, dbnode): has_relmap})

    def _write_databases(self, databases: dict[tuple[int, int], bool]) -> None:
        self.modification.put(Key.database_directory(), encode_database_directory(databases))
        self._databases = databases

    def _forget_database(self, spcnode: int, dbnode: int) -> None:
        """Take note that a database which the directory still lists has no fork any more."""
        try:
            forks = self.relations(spcnode, dbnode).tags(spcnode, dbnode)
        except MissingKeyError:
            forks = []
        for rel in forks:
            self.modification.forget_rel(*_parts(rel))
        self._relations.pop((spcnode, dbnode), None)
        self.modification.forget_database(spcnode, dbnode)

    # Relations

    def relations(self, spcnode: int, dbnode: int) -> RelationSet:
        """Return the forks of a database; do not change it. Raises: MissingKeyError (no such database)."""
        known = self._relations.get((spcnode, dbnode))
        if known is None:
            if (spcnode, dbnode) not in self.databases():
                raise MissingKeyError(
                    key=Key.relation_directory(spcnode, dbnode),
                    lsn=self.lsn,
                    detail=f"database {spcnode}/{dbnode} does not exist",
                )
            key = Key.relation_directory(spcnode, dbnode)
            value = self.modification.get(key)
            if value is None and not self.tolerant:
                raise MissingKeyError(key=key, lsn=self.lsn)
            known = RelationSet(decode_relation_directory(value or EMPTY_DIRECTORY))
            self._relations[spcnode, dbnode] = known
        return known

    def create_relation(self, rel: RelTag, *, implicit: bool) -> None:
        """Make a fork of size 0. ``implicit``: a block of it comes next, and it may well exist (keyspace.md 5.5)."""
        if rel.relnode == 0:
            raise CorruptDataError("invalid relnode", lsn=self.lsn)
        self._migrate_if_wanted()
        database = rel.spcnode, rel.dbnode
        if database in self.databases():
            relations = self.relations(*database)
            if rel in relations:
                if not (implicit or self.tolerant):
                    raise KeyspaceConflictError(f"relation {rel} already exists", rel=rel, lsn=self.lsn)
                self.modification.remember_rel_size(*_parts(rel), self._stored_size(rel))
                return
        else:
            self._put_database(*database, has_relmap=False)
            relations = RelationSet()
        relations.add(rel)
        self._put_relations(*database, relations)
        self._mark_v2([rel], exists=True)
        self._set_size(rel, 0)

    def relation_size(self, rel: RelTag) -> int | None:
        """Return the blocks of a fork, none if it does not exist."""
        return self.modification.rel_size(*_parts(rel))

    def truncate_relation(self, rel: RelTag, blocks: int) -> None:
        """Set the size of a fork that exists; the pages behind it stay, out of reach."""
        if self.relation_size(rel) is not None:
            self._set_size(rel, blocks)

    def drop_relations(self, relations: Iterable[tuple[int, int, int]]) -> None:
        """Remove all forks of (tablespace, database, relation) that exist, with one directory write for each
        database.
        """
        by_database: dict[tuple[int, int], list[int]] = {}
        for spcnode, dbnode, relnode in relations:
            by_database.setdefault((spcnode, dbnode), []).append(relnode)
        for database, relnodes in by_database.items():
            if database not in self.databases() and self.tolerant:
                continue
            known = self.relations(*database)
            forks = (RelTag(*database, relnode, forknum) for relnode in relnodes for forknum in range(4))
            dropped = known.remove(forks)
            if dropped:
                self._put_relations(*database, known)
                self._mark_v2(dropped, exists=False)
            for rel in dropped:
                self.modification.forget_rel(*_parts(rel))

    def put_zero_block(self, rel: RelTag, block: int) -> bool:
        """Write a page of zeros if this shard owns it; false if it does not. The relation's size stays."""
        key = Key.relation_block(rel, block)
        if not is_local(key, self.identity):
            return False
        self.modification.put(key, _ZERO_PAGE)
        return True

    def put_block_value(self, rel: RelTag, block: int, encoded_value: bytes) -> bool:
        """Write an encoded value for a block if this shard owns it; false if it does not."""
        key = Key.relation_block(rel, block)
        if not is_local(key, self.identity):
            return False
        self.modification.put_value(key, encoded_value)
        return True

    def _stored_size(self, rel: RelTag) -> int:
        return decode_size(self._require(Key.relation_size(rel)))

    def _set_size(self, rel: RelTag, blocks: int) -> None:
        self.modification.set_rel_size(*_parts(rel), blocks)

    def _put_relations(self, spcnode: int, dbnode: int, relations: RelationSet) -> None:
        self._relations[spcnode, dbnode] = relations
        self.modification.put(Key.relation_directory(spcnode, dbnode), relations.encode())

    def _mark_v2(self, relations: Iterable[RelTag], *, exists: bool) -> None:
        """While migrating, each change of the v1 directory is followed by one of the v2 directory (keyspace.md
        5.12).
        """
        if self._status is not RelationDirectoryStatus.MIGRATING:
            return
        for rel in relations:
            self.modification.put(Key.relation_directory_v2(rel), RELATION_EXISTS if exists else b"")

    def _migrate_if_wanted(self) -> None:
        """Copy all v1 entries to the v2 directory and keep both from now on; a failure is tried again next time."""
        if self._start_migration is None or self._status is not RelationDirectoryStatus.LEGACY:
            return
        if not self._is_migration_wanted():
            return
        try:
            found = [rel for database in self.databases() for rel in self.relations(*database).tags(*database)]
        except CorruptDataError as error:
            log.warning("relation directories could not be copied to their second form", error=str(error))
            return
        self._status = RelationDirectoryStatus.MIGRATING
        self._mark_v2(found, exists=True)
        self._start_migration(self.lsn)

    # SLRUs; their pages, sizes and directories live on shard zero only

    def put_slru_zero_page(self, kind: SlruKind, page: int, *, only_if_missing: bool) -> None:
        """Write a page of zeros, and of those before it that its segment lacks (wal.md 4.5)."""
        if not self.identity.is_shard_zero():
            return
        segno, block = divmod(page, SLRU_SEGMENT_BLOCKS)
        segments = self.slru_segments(kind)
        size = 0
        if segno in segments:
            size = decode_size(self._require(Key.slru_segment_size(kind, segno)))
        else:
            self._put_slru_segments(kind, segments | {segno})
        if only_if_missing and block < size:
            return
        if block >= size:
            self.modification.set_slru_size(kind, segno, block + 1)
            for gap in range(size, block):
                self.modification.put(Key.slru_block(kind, segno, gap), _ZERO_PAGE)
        self.modification.put(Key.slru_block(kind, segno, block), _ZERO_PAGE)

    def slru_segments(self, kind: SlruKind) -> set[int]:
        """Return the numbers of the segments that exist."""
        return decode_slru_directory(self._require(Key.slru_directory(kind)))

    def drop_slru_segments(self, kind: SlruKind, dropped: Iterable[int]) -> None:
        """Remove segments from the directory, with one write; one that is gone is only worth a warning."""
        if not self.identity.is_shard_zero():
            return
        segments = self.slru_segments(kind)
        wanted = set(dropped)
        if missing := wanted - segments:
            log.warning(
                "dropped slru segments are not known", kind=kind.name, segments=sorted(missing), lsn=str(self.lsn)
            )
        if wanted & segments:
            self._put_slru_segments(kind, segments - wanted)
        for segno in sorted(wanted & segments):
            self.modification.forget_slru(kind, segno)

    def _put_slru_segments(self, kind: SlruKind, segments: set[int]) -> None:
        self.modification.put(Key.slru_directory(kind), encode_slru_directory(segments))

    # Prepared transactions, origins, aux files, checkpoint

    def twophase_xids(self) -> set[int]:
        """Return the ids of prepared transactions; 64-bit from PostgreSQL 17 on."""
        return decode_twophase_directory(self._require(Key.twophase_directory()), self.pg_version)

    def put_twophase_file(self, xid: int, content: bytes) -> None:
        """Add a prepared transaction."""
        xids = self.twophase_xids()
        if xid in xids and not self.tolerant:
            raise KeyspaceConflictError(f"twophase file for xid {xid} already exists", xid=xid, lsn=self.lsn)
        self.modification.put(Key.twophase_directory(), encode_twophase_directory(xids | {xid}, self.pg_version))
        self.modification.put(Key.twophase_file(xid), content)

    def drop_twophase_file(self, xid: int) -> None:
        """Remove a prepared transaction; one that is gone is only worth a warning."""
        xids = self.twophase_xids()
        if xid not in xids:
            log.warning("ended prepared transaction is not known", xid=xid, lsn=str(self.lsn))
            return
        self.modification.put(Key.twophase_directory(), encode_twophase_directory(xids - {xid}, self.pg_version))

    def set_origin(self, origin_id: int, lsn: int) -> None:
        """Write how far replication from an origin has come; 0 drops it."""
        self.modification.put(Key.replication_origin(origin_id), encode_replication_origin(lsn))

    def put_aux_file(self, path: str, content: bytes) -> None:
        """Write an aux file, or delete it if ``content`` is empty. Shard zero only."""
        if not self.identity.is_shard_zero():
            return
        key = aux_file_key(path)
        value, existed = update_aux_value(self.modification.get(key), path, content)
        if not content and not existed:
            level = log.info if path.startswith("pg_stat/") else log.warning
            level("deleted aux file is not known", path=path, lsn=str(self.lsn))
        self.modification.put(key, value)

    def checkpoint(self) -> Checkpoint:
        """Return the tracked CheckPoint value."""
        return Checkpoint(self.modification.checkpoint)

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the tracked CheckPoint value, changed or not."""
        self.modification.checkpoint = checkpoint.raw

    def _require(self, key: Key) -> bytes:
        value = self.modification.get(key)
        if value is None:
            raise MissingKeyError(key=key, lsn=self.lsn)
        return value


def initial_values(identity: ShardIdentity) -> list[tuple[Key, bytes]]:
    """Return what a timeline holds before anything is imported, in key order (keyspace.md 5.14)."""
    slrus = [Key.slru_directory(kind) for kind in SlruKind] if identity.is_shard_zero() else []
    keys = [Key.database_directory(), *slrus, Key.twophase_directory()]
    return [(key, EMPTY_DIRECTORY) for key in keys]


def _element(relnode: int, forknum: int) -> bytes:
    return relnode.to_bytes(4, "big") + bytes((forknum,))


def _parts(rel: RelTag) -> tuple[int, int, int, int]:
    return rel.spcnode, rel.dbnode, rel.relnode, rel.forknum
