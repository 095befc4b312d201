"""What a data directory contains at one LSN: the entries, and the bytes of each.

In: a `Snapshot` (what exists at the LSN). Out: a list of entries in a fixed order, and a function that streams the
bytes of one. Base backups, restores and `verify` choose from these entries; nothing here knows about tar, HTTP or
the page service.

Relation files are cut into segments of 1 GiB as PostgreSQL does. The free space map is never listed by
`Forks.FOR_STOCK`: it is a hint that an unmodified PostgreSQL rebuilds (spec stock.md 3.4).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from pageserver.keyspace.key import FSM_FORK, INIT_FORK, MAIN_FORK, PAGE_SIZE, RELATION_SEGMENT_BLOCKS, RelTag, SlruKind
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.relation_files import RELMAP_FILE, database_directory, relation_path, slru_file_name
from pageserver.postgres.two_phase import encode_twophase_file, twophase_file_name
from pageserver.postgres.versions import PostgresVersion

PG_HBA: Final = b"""\
# Local connections only, each as whom it says it is; change this before others may come in.
local   all             all                                     trust
host    all             all             127.0.0.1/32            trust
host    all             all             ::1/128                 trust
local   replication     all                                     trust
host    replication     all             127.0.0.1/32            trust
host    replication     all             ::1/128                 trust
"""
"""What every data directory that leaves the server gets as pg_hba.conf (spec page-service.md 6.6)."""

CHUNK_BLOCKS: Final = 128
"""Pages that are read at once: 1 MiB."""


class BlockReader(Protocol):
    """What streams pages: `_core.TimelineStore` in production."""

    def read_blocks(
        self, spc: int, db: int, rel: int, fork: int, first: int, count: int, lsn: int, *, stamp_checksums: bool
    ) -> bytes:
        """Return `count` pages of 8192 bytes; beyond the relation's end they are zeros."""


class Forks(Enum):
    """Which forks of ordinary relations are listed; init forks always are."""

    FOR_STOCK = "main and visibility map"
    ALL = "main, free space map and visibility map"
    NONE = "none; init forks only"


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file whose content is at hand."""

    path: str
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass(frozen=True, slots=True)
class RelationSegment:
    """One segment file of a relation fork: blocks `first_block` up to `first_block + blocks`."""

    path: str
    rel: RelTag
    first_block: int
    blocks: int

    @property
    def size(self) -> int:
        return self.blocks * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class SlruSegment:
    """One segment file of pg_xact or pg_multixact, of at most 32 pages."""

    path: str
    kind: SlruKind
    segno: int
    blocks: int

    @property
    def size(self) -> int:
        return self.blocks * PAGE_SIZE


Entry = SmallFile | RelationSegment | SlruSegment


class DataDirectory:
    """The contents of a data directory as of the snapshot's LSN."""

    def __init__(
        self, snapshot: Snapshot, reader: BlockReader, *, version: PostgresVersion, stamp_checksums: bool
    ) -> None:
        self._snapshot = snapshot
        self._reader = reader
        self._version = version
        self._stamp_checksums = stamp_checksums

    @property
    def lsn(self) -> Lsn:
        """The LSN that everything is as of."""
        return self._snapshot.lsn

    def slru_entries(self) -> list[SlruSegment]:
        """Return all SLRU segments that are kept, in the order pg_xact, members, offsets."""
        entries = []
        for kind in (SlruKind.CLOG, SlruKind.MULTIXACT_MEMBERS, SlruKind.MULTIXACT_OFFSETS):
            for segno, blocks in sorted(self._snapshot.slru_segment_sizes(kind).items()):
                entries.append(SlruSegment(f"{kind.directory}/{slru_file_name(segno)}", kind, segno, blocks))
        return entries

    def database_entries(self, forks: Forks) -> list[Entry]:
        """Return PG_VERSION, relation map and relation files of every database, for a server that is not Neon's."""
        entries: list[Entry] = []
        for (spc, db), has_relmap in sorted(self._snapshot.databases().items()):
            folder = database_directory(spc, db, self._version)
            if has_relmap:
                entries.append(self.relmap_entry(spc, db))
            if folder != "global":
                entries.append(SmallFile(f"{folder}/PG_VERSION", self._version.version_file))
            entries.extend(self.relation_entries(spc, db, forks))
        return entries

    def relmap_entry(self, spc: int, db: int) -> SmallFile:
        """Return the relation map of a database."""
        folder = database_directory(spc, db, self._version)
        return SmallFile(f"{folder}/{RELMAP_FILE}", self._snapshot.relmap(spc, db))

    def relation_entries(self, spc: int, db: int, forks: Forks, *, init_as_main: bool = True) -> list[RelationSegment]:
        """Return the relation files of one database in one tablespace.

        An init fork stands under its own name and, with `init_as_main`, once more as the main fork: a clean start
        does not reset unlogged relations. Their other forks are never listed, since nothing of them is in the WAL.
        """
        sizes = self._snapshot.relation_sizes(spc, db)
        unlogged = {rel.relnode for rel in sizes if rel.forknum == INIT_FORK}
        entries: list[RelationSegment] = []
        for rel, blocks in sorted(sizes.items()):
            if rel.forknum == INIT_FORK:
                entries.extend(self._segments(rel, blocks, named_as=rel))
                if init_as_main:
                    entries.extend(self._segments(rel, blocks, named_as=rel.with_fork(MAIN_FORK)))
            elif _wanted(rel, forks) and rel.relnode not in unlogged:
                entries.extend(self._segments(rel, blocks, named_as=rel))
        return entries

    def two_phase_entries(self) -> list[SmallFile]:
        """Return the state files of prepared transactions, each with the checksum that the file on disk ends with."""
        return [
            SmallFile(f"pg_twophase/{twophase_file_name(xid, self._version)}", encode_twophase_file(content))
            for xid, content in sorted(self._snapshot.twophase().items())
        ]

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of an entry in pieces of at most 1 MiB. Blocking: call it in a thread."""
        match entry:
            case SmallFile():
                yield entry.content
            case SlruSegment():
                yield self._snapshot.slru_segment(entry.kind, entry.segno)
            case RelationSegment():
                rel = entry.rel
                for block in range(entry.first_block, entry.first_block + entry.blocks, CHUNK_BLOCKS):
                    count = min(CHUNK_BLOCKS, entry.first_block + entry.blocks - block)
                    yield self._reader.read_blocks(
                        rel.spcnode,
                        rel.dbnode,
                        rel.relnode,
                        rel.forknum,
                        block,
                        count,
                        self.lsn,
                        stamp_checksums=self._stamp_checksums,
                    )

    def _segments(self, rel: RelTag, blocks: int, *, named_as: RelTag) -> Iterator[RelationSegment]:
        """Cut a fork into segment files; an empty fork is one empty file."""
        for segment in range(max(1, -(-blocks // RELATION_SEGMENT_BLOCKS))):
            first = segment * RELATION_SEGMENT_BLOCKS
            path = relation_path(named_as, self._version, segment)
            yield RelationSegment(path, rel, first, min(RELATION_SEGMENT_BLOCKS, blocks - first))


def _wanted(rel: RelTag, forks: Forks) -> bool:
    match forks:
        case Forks.ALL:
            return True
        case Forks.FOR_STOCK:
            return rel.forknum != FSM_FORK
        case Forks.NONE:
            return False
