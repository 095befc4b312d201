"""What must be known of a timeline's source of WAL after a restart, on this machine or another: a small JSON document.

It lies in object storage beside the timeline (standalone.md 3; `remote/source_document.py` stores it) and never holds a
password. A timeline without one is of Neon's flavour and is fed by safekeepers.

    state "importing": the base backup has to be taken (again)     state "ready": stream from our last record

Source: spec standalone.md 3, stock.md 1, wal-receiver.md 10.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from pageserver.errors import CorruptDataError
from pageserver.lsn import INVALID_LSN, Lsn, LsnParseError

DOCUMENT_VERSION: Final = 1


class Flavour(Enum):
    """Whose PostgreSQL wrote the WAL; fixed at creation."""

    NEON = "neon"
    STOCK = "stock"


class SourceState(Enum):
    """How far the import is."""

    IMPORTING = "importing"
    READY = "ready"


class SourceDocumentError(CorruptDataError):
    """The document does not parse."""


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One PostgreSQL timeline that was left, and where the next one begins."""

    pg_tli: int
    end_lsn: Lsn


@dataclass(frozen=True, slots=True)
class StoredSource:
    """Where a timeline's WAL comes from.

    Without `connection` nothing is streamed: the timeline was imported from files, or is a branch.
    """

    flavour: Flavour
    pg_version: int
    state: SourceState = SourceState.READY
    connection: str | None = None
    slot: str | None = None
    system_identifier: int | None = None
    pg_tli: int = 1
    """The PostgreSQL timeline that we are on."""
    history: tuple[HistoryLine, ...] = ()
    """How the source came to `pg_tli`, oldest first."""
    backup_start_lsn: Lsn | None = None
    backup_end_lsn: Lsn | None = None
    """From here on reads are legal."""
    data_checksums: bool = False
    wal_log_hints: bool = False
    read_only: bool = False
    """A branch that takes no WAL, from nobody."""

    @property
    def is_imported(self) -> bool:
        """Whether the base copy is complete and durable."""
        return self.state is SourceState.READY

    @property
    def hint_bits_logged(self) -> bool:
        """Whether HEAP2_VISIBLE sets the heap page's LSN (spec stock.md 5)."""
        return self.data_checksums or self.wal_log_hints

    @property
    def tolerant_until(self) -> Lsn:
        """WAL below repeats what the copied files may contain already (spec wal.md 9.3)."""
        return self.backup_end_lsn or INVALID_LSN

    def with_next_timeline(self, pg_tli: int, start: Lsn) -> StoredSource:
        """Return the document after the source went on to another timeline."""
        return replace(self, pg_tli=pg_tli, history=(*self.history, HistoryLine(self.pg_tli, start)))

    def branched(self) -> StoredSource:
        """Return what a branch inherits: flavour and history, but no connection and no slot."""
        return replace(self, connection=None, slot=None, read_only=False)


def slot_name(timeline_id: object) -> str:
    """Return the name of the replication slot of a timeline (standalone.md 3)."""
    return f"pageserver_{timeline_id}"


def source_body(source: StoredSource) -> dict[str, Any]:
    """Return the document; LSNs and the system identifier (it needs 64 bits) as text."""
    return {
        "version": DOCUMENT_VERSION,
        "state": source.state.value,
        "flavour": source.flavour.value,
        "pg_version": source.pg_version,
        "connection": source.connection,
        "slot": source.slot,
        "system_identifier": None if source.system_identifier is None else str(source.system_identifier),
        "pg_tli": source.pg_tli,
        "history": [{"pg_tli": line.pg_tli, "end_lsn": str(line.end_lsn)} for line in source.history],
        "backup_start_lsn": _lsn_text(source.backup_start_lsn),
        "backup_end_lsn": _lsn_text(source.backup_end_lsn),
        "data_checksums": source.data_checksums,
        "wal_log_hints": source.wal_log_hints,
        "hint_bits_logged": source.hint_bits_logged,
        **({"read_only": True} if source.read_only else {}),
    }


def parse_source(body: Mapping[str, Any]) -> StoredSource:
    """Read a document. Unknown fields are ignored. Raises: SourceDocumentError."""
    version = body.get("version")
    if version != DOCUMENT_VERSION:
        raise SourceDocumentError(f"source document has the unknown version {version!r}")
    try:
        system_identifier = body["system_identifier"]
        return StoredSource(
            flavour=Flavour(body["flavour"]),
            pg_version=int(body["pg_version"]),
            state=SourceState(body["state"]),
            connection=_optional_text(body["connection"]),
            slot=_optional_text(body["slot"]),
            system_identifier=None if system_identifier is None else int(system_identifier),
            pg_tli=int(body["pg_tli"]),
            history=tuple(HistoryLine(int(line["pg_tli"]), Lsn.parse(line["end_lsn"])) for line in body["history"]),
            backup_start_lsn=_optional_lsn(body["backup_start_lsn"]),
            backup_end_lsn=_optional_lsn(body["backup_end_lsn"]),
            data_checksums=bool(body["data_checksums"]),
            wal_log_hints=bool(body["wal_log_hints"]),
            read_only=bool(body.get("read_only", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, LsnParseError) as error:
        raise SourceDocumentError(f"source document does not parse: {error!r}") from error


def _lsn_text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _optional_lsn(value: object) -> Lsn | None:
    return None if value is None else Lsn.parse(str(value))


def _optional_text(value: object) -> str | None:
    return None if value is None else str(value)
