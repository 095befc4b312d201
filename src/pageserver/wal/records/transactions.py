"""XACT, REPLORIGIN: prepared transactions, dropped relations, replication origins (spec wal.md 5.2, 5.10).

The engine has written the CLOG records of a commit or abort before it comes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pageserver.wal.keyspace_writer import KeyspaceWriter

if TYPE_CHECKING:
    from pageserver._core import OriginSet, TransactionEnd, TransactionPrepare


def end_transaction(writer: KeyspaceWriter, detail: TransactionEnd) -> None:
    """Drop the relations that are gone with the transaction, note its origin, forget its state file: in this order."""
    if detail.relations:
        writer.drop_relations(detail.relations)
    if detail.origin:
        writer.set_origin(detail.origin, detail.origin_lsn)
    if detail.prepared:
        writer.drop_twophase_file(_twophase_xid(writer, detail.xid))


def prepare_transaction(writer: KeyspaceWriter, detail: TransactionPrepare) -> None:
    writer.put_twophase_file(_twophase_xid(writer, detail.xid), detail.data)


def set_origin(writer: KeyspaceWriter, detail: OriginSet) -> None:
    writer.set_origin(detail.origin, detail.origin_lsn)


def _twophase_xid(writer: KeyspaceWriter, xid: int) -> int:
    """Return the number that names a state file: with the epoch from PostgreSQL 17 on."""
    return writer.checkpoint().full_xid(xid) if writer.pg_version >= 17 else xid
