"""Applies rare records: those whose effects depend on what exists already (spec wal.md 3.4, 4, 5).

The engine (``_core.WalIngest``) decodes WAL and applies what is frequent. A record that decides about directories
comes out of its ``run()``; the applier writes its effects through the same object, at the record's LSN, and ``run()``
goes on.

    kind of the record's detail ─▶ one function of records/ ─▶ KeyspaceWriter ─▶ engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from pageserver.errors import InternalError
from pageserver.ids import ShardIdentity
from pageserver.keyspace.snapshot import RelationDirectoryState
from pageserver.lsn import Lsn
from pageserver.wal.keyspace_writer import KeyspaceWriter, Modification
from pageserver.wal.records import checkpoints, databases, files, relations, slrus, transactions
from pageserver.wal.source_document import Flavour

if TYPE_CHECKING:
    from pageserver import _core


class RareRecord(Protocol):
    """The parts of ``_core.RareRecord`` that applying needs."""

    @property
    def kind(self) -> str: ...
    @property
    def detail(self) -> Any: ...
    @property
    def lsn(self) -> int: ...


class RecordApplier:
    """Applies rare records to one timeline, through the ingest that hands them out."""

    def __init__(
        self,
        modification: Modification,
        *,
        pg_version: int,
        flavour: Flavour | str,
        identity: ShardIdentity,
        relation_directory: RelationDirectoryState | None = None,
        start_migration: Callable[[Lsn], None] | None = None,
        is_migration_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """See ``KeyspaceWriter`` for the last three."""
        self._modification = modification
        self._writer = KeyspaceWriter(
            modification,
            pg_version=pg_version,
            identity=identity,
            relation_directory=relation_directory,
            start_migration=start_migration,
            is_migration_wanted=is_migration_wanted,
        )
        self._functions = _functions(is_stock=Flavour(flavour) is Flavour.STOCK)

    def apply(self, record: RareRecord | _core.RareRecord) -> None:
        """Write all effects of a record that the engine left to us.

        Raises: CorruptDataError and its leaves; the ingest and this applier are of no more use then.
        """
        function = self._functions.get(record.kind)
        if function is None:
            raise InternalError(f"rare record of kind {record.kind} has nobody to apply it", lsn=record.lsn)
        self._writer.lsn = Lsn(record.lsn)
        # The record that ends at the backup's end is in the copy as well: the copy is consistent *from* there.
        self._writer.tolerant = record.lsn <= self._modification.tolerant_until
        function(self._writer, record.detail)


def _functions(*, is_stock: bool) -> Mapping[str, Callable[[KeyspaceWriter, Any], None]]:
    """Return the function for each kind of detail that ``_core`` knows."""
    return {
        "RelationCreate": relations.create_relation,
        "RelationTruncate": relations.truncate_relation,
        "DatabaseCreate": databases.create_database,
        "DatabaseDrop": databases.drop_database,
        "TablespaceCreate": databases.create_tablespace,
        "TablespaceDrop": databases.drop_tablespace,
        "RelationMapUpdate": databases.update_relation_map,
        "TransactionEnd": transactions.end_transaction,
        "TransactionPrepare": transactions.prepare_transaction,
        "OriginSet": transactions.set_origin,
        "SlruZeroPage": slrus.zero_slru_page,
        "ClogTruncate": slrus.truncate_clog,
        "MultixactTruncate": partial(slrus.truncate_multixact, drop_offsets=is_stock),
        "CheckpointTaken": partial(checkpoints.take_checkpoint, follow_pg_timelines=is_stock),
        "ParameterChange": checkpoints.change_parameters,
        "EndOfRecovery": partial(checkpoints.end_recovery, follow_pg_timelines=is_stock),
        "AuxFilePut": files.put_aux_file,
        "BackupEnd": _do_nothing,
    }


def _do_nothing(_writer: KeyspaceWriter, _detail: object) -> None:
    """The end of a backup changes no key; the ingest's owner takes note of it."""


RARE_RECORD_KINDS: Final = frozenset(_functions(is_stock=False))
"""All kinds that can be applied."""
