"""What must be known of a timeline's source of WAL after a restart, on this machine or another: a small JSON document.

It lies in object storage beside the timeline (standalone.md 3; `remote/source_document.py` stores it) and never holds a
password. A timeline without one is of Neon's flavour and is fed by safekeepers.

    state "importing": the base backup has to be taken (again)     state "ready": stream from our last record
    and with "resync_from_lsn": a new base backup has to be taken, the history before it stays (docs/decisions/0008)

Source: spec standalone.md 3, stock.md 1, wal-receiver.md 10.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from pageserver.errors import CorruptDataError
from pageserver.lsn import INVALID_LSN, Lsn, LsnParseError
from pageserver.remote.source_document import HistoryGap

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
    resync_from_lsn: Lsn | None = None
    """A resync was asked for when our last record ended here, and has not come to its end."""
    neon_until_lsn: Lsn | None = None
    """Where a primary took over what Neon had written: records up to here are Neon's."""
    gaps: tuple[HistoryGap, ...] = ()
    """Stretches that were skipped, oldest first. The last one is only planned until the index names its images."""

    @property
    def is_imported(self) -> bool:
        """Whether the base copy is complete and durable."""
        return self.state is SourceState.READY

    @property
    def hint_bits_logged(self) -> bool:
        """Whether HEAP2_VISIBLE sets the heap page's LSN (spec stock.md 5)."""
        return self.data_checksums or self.wal_log_hints

    @property
    def consistent_from(self) -> Lsn | None:
        """WAL below repeats what the copied files may contain already (spec wal.md 9.3).

        None if only the WAL to come tells where that ends. Gaps that are only planned must have been taken out.
        """
        if self.gaps:
            return self.gaps[-1].to_lsn
        return INVALID_LSN if self.backup_start_lsn is None else self.backup_end_lsn

    def is_resynced(self, disk_consistent_lsn: Lsn) -> bool:
        """Whether the resync that was asked for is published, and only the document does not say so yet."""
        last = self.gaps[-1] if self.gaps else None
        return last is not None and last.from_lsn == self.resync_from_lsn and last.start_lsn <= disk_consistent_lsn

    def with_gaps_in_force(self, disk_consistent_lsn: Lsn) -> StoredSource:
        """Return the document without a gap whose images no index names."""
        return replace(self, gaps=tuple(gap for gap in self.gaps if gap.start_lsn <= disk_consistent_lsn))

    def with_next_timeline(self, pg_tli: int, start: Lsn) -> StoredSource:
        """Return the document after the source went on to another timeline."""
        return replace(self, pg_tli=pg_tli, history=(*self.history, HistoryLine(self.pg_tli, start)))

    def branched(self, branch_lsn: Lsn) -> StoredSource:
        """Return what a branch inherits: flavour, history and gaps up to there, but no connection and no slot."""
        branch = replace(
            self,
            connection=None,
            slot=None,
            resync_from_lsn=None,
            read_only=False,
            gaps=tuple(gap for gap in self.gaps if gap.to_lsn <= branch_lsn),
        )
        if self.neon_until_lsn is not None and branch_lsn < self.neon_until_lsn:
            branch = replace(branch, flavour=Flavour.NEON, neon_until_lsn=None)
        kept: list[HistoryLine] = []
        for line in self.history:
            if branch_lsn <= line.end_lsn:
                return replace(branch, pg_tli=line.pg_tli, history=tuple(kept))
            kept.append(line)
        return branch


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
        **({} if source.resync_from_lsn is None else {"resync_from_lsn": str(source.resync_from_lsn)}),
        **({} if source.neon_until_lsn is None else {"neon_until_lsn": str(source.neon_until_lsn)}),
        **({} if not source.gaps else {"gaps": [gap.to_json() for gap in source.gaps]}),
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
            resync_from_lsn=_optional_lsn(body.get("resync_from_lsn")),
            neon_until_lsn=_optional_lsn(body.get("neon_until_lsn")),
            gaps=tuple(HistoryGap.of(each) for each in body.get("gaps", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, LsnParseError) as error:
        raise SourceDocumentError(f"source document does not parse: {error!r}") from error


def _lsn_text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _optional_lsn(value: object) -> Lsn | None:
    return None if value is None else Lsn.parse(str(value))


def _optional_text(value: object) -> str | None:
    return None if value is None else str(value)
