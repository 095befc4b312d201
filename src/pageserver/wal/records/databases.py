"""DBASE, TBLSPC, RELMAP: databases, tablespaces and relation maps (spec wal.md 5.5, 5.7; stock.md 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pageserver.keyspace.aux_files import tablespace_path
from pageserver.wal.keyspace_writer import KeyspaceWriter

if TYPE_CHECKING:
    from pageserver._core import (
        DatabaseCreate,
        DatabaseDrop,
        RelationMapUpdate,
        TablespaceCreate,
        TablespaceDrop,
    )


def create_database(writer: KeyspaceWriter, detail: DatabaseCreate) -> None:
    """Copy a database by files; the other strategy is seen as relation maps, relations and blocks."""
    writer.copy_database((detail.source_tablespace, detail.source_db), (detail.tablespace, detail.db))


def drop_database(writer: KeyspaceWriter, detail: DatabaseDrop) -> None:
    for tablespace in detail.tablespaces:
        writer.drop_database(tablespace, detail.db)


def create_tablespace(writer: KeyspaceWriter, detail: TablespaceCreate) -> None:
    """Keep the tablespace's location, versioned, as an aux file of ours.

    One that lies in place (``allow_in_place_tablespaces``) has no path in WAL; its location is that of its directory.
    """
    path = tablespace_path(detail.oid)
    writer.put_aux_file(path, detail.path or path.encode())


def drop_tablespace(writer: KeyspaceWriter, detail: TablespaceDrop) -> None:
    writer.put_aux_file(tablespace_path(detail.oid), b"")


def update_relation_map(writer: KeyspaceWriter, detail: RelationMapUpdate) -> None:
    writer.put_relmap(detail.tablespace, detail.db, detail.data)
