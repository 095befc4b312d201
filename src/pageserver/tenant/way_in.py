"""How WAL gets into timelines, as this room sees it. The room `wal` above implements it; `server.py` hands it down.

A timeline that has a source document gets one `WalSource`, which the tenant runs in a task of its own from attach to
detach. The source imports first if the document says so, then streams. What it raises stops that source only: the
timeline stays readable and shows the error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pageserver.lsn import Lsn
from pageserver.remote.source_document import Flavour, SourceDocument
from pageserver.tenant.source_slot import SourceSlot
from pageserver.timeline import SourceStatus


class WalSource(Protocol):
    """Feeds one timeline."""

    async def run(self) -> None:
        """Import if needed, then stream until cancelled; reconnect by itself. Raises PageServerError when going on is
        pointless.

        Cancellation: comes at shutdown and detach; everything not flushed yet will be asked for again.
        """
        ...

    def status(self) -> SourceStatus:
        """Return what the API shows."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """A document to store for a timeline that goes on from another primary, and what takes the preparation back."""

    body: Mapping[str, Any]
    undo: Callable[[], Awaitable[None]]


class WayIn(Protocol):
    """Makes sources, and takes histories that come as files."""

    async def prepare_primary(self, slot: SourceSlot, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check a primary (the creation request's object `primary`: `conninfo` and more) and return the document to
        store.

        The document holds `state: "importing"`, the traits (`flavour`, `data_checksums`, `hint_bits_logged`),
        `pg_version`, and no password. Raises RequestError with the setting's name if this primary cannot be followed,
        UnavailableError if it does not answer.
        """
        ...

    async def prepare_takeover(self, slot: SourceSlot, options: Mapping[str, Any]) -> PreparedSource:
        """Check that a primary (`conninfo`) continues the slot's timeline, and have it keep the WAL that comes next.

        Raises RequestError with the reason, UnavailableError; nothing stays at the primary then.
        """
        ...

    def document_of_resync(self, slot: SourceSlot) -> Mapping[str, Any]:
        """Return the slot's document with the wish that a new base backup be taken. Raises PreconditionFailedError."""
        ...

    async def describe_source(self, slot: SourceSlot) -> Mapping[str, Any]:
        """Return the document's facts in JSON, with `slot_state` as the primary tells it now (None: there is no slot)
        or `slot_state_error`.
        """
        ...

    async def drop_slot(self, document: SourceDocument) -> str | None:
        """Drop the replication slot of a timeline that is deleted, and return its name; None if there is none (any
        more).

        Raises RequestError, UnavailableError: it may still be there, and retain WAL.
        """
        ...

    def open_source(self, slot: SourceSlot) -> WalSource | None:
        """Return the source that the slot's document describes, or None if it describes none (a history from files, a
        branch).
        """
        ...

    def document_of_branch(
        self, document: SourceDocument | None, *, branch_lsn: Lsn, pg_version: int
    ) -> Mapping[str, Any]:
        """Return the document of a branch: traits and PostgreSQL timeline history inherited, no connection
        (standalone.md 3). An ancestor without a document is of Neon's flavour.
        """
        ...

    async def import_base_backup(
        self,
        slot: SourceSlot,
        body: AsyncIterator[bytes],
        *,
        base_lsn: Lsn,
        end_lsn: Lsn,
        pg_version: int,
        flavour: Flavour,
    ) -> None:
        """Make the slot's timeline from a base backup's tar (tenants.md 9.6, 10.2): begin, publish its layers,
        finish.
        """
        ...

    async def make_data_directory(self, directory: Path, pg_version: int) -> Flavour:
        """Make the data directory of a new cluster with initdb (tenants.md 9.4), and return whose PostgreSQL did it.

        Raises InitdbError. Cancellation: a run that has begun is waited for.
        """
        ...

    async def import_data_directory(
        self, slot: SourceSlot, directory: Path, *, pg_version: int, flavour: Flavour
    ) -> None:
        """Make the slot's timeline from the data directory of a server that was stopped cleanly (tenants.md 9.4,
        10.1), up to the end of its WAL. Raises RequestError (not such a directory), CorruptDataError.
        """
        ...

    async def import_wal(self, slot: SourceSlot, body: AsyncIterator[bytes], *, start_lsn: Lsn, end_lsn: Lsn) -> None:
        """Ingest a tar of WAL segments into the slot's timeline (tenants.md 10.2), freeze and flush. Raises
        RequestError, CorruptDataError.
        """
        ...
