"""Makes a timeline of a running primary: slot, base backup, image layers, first index.

    slot ─▶ BASE_BACKUP ─▶ spool directory ─▶ image layers at the start LSN ─▶ index ─▶ document "ready"
            kill anywhere before the document says so: everything but the slot is thrown away and begun again

The slot comes first, with its WAL reserved, so nothing between backup and stream can be recycled. It is kept over a
restart of the import: an older reservation does no harm.
Source: spec stock.md 1, tenants.md 9.6, `tenant/source_slot.py` for what each step leaves behind.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pageserver.errors import StoppedError
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.remote.source_document import SourceDocument
from pageserver.repository import ObjectTimeline
from pageserver.tenant.source_slot import RootParameters, SourceSlot
from pageserver.timeline.engine import LayerFacts
from pageserver.timeline.info import ImportProgress
from pageserver.timeline.timeline import Timeline
from pageserver.wal.base_backup_stream import BackupPoint, BaseBackupStream
from pageserver.wal.data_directory import DataDirectory, DataDirectoryError, Spool, scan_data_directory
from pageserver.wal.image_import import ImageLayerWriter, pieces_of, plan_layers, write_layers
from pageserver.wal.primary import PrimaryConnection, PrimaryFacts
from pageserver.wal.source_document import SourceState, StoredSource, source_body
from pageserver.wal.source_errors import MajorVersionError, SourceUnavailableError, SystemIdentifierError
from pageserver.wal.threads import run_blocking

ReportProgress = Callable[[ImportProgress], None]


@dataclass(frozen=True, slots=True)
class TakenBackup:
    """A base backup that lies in the spool directory."""

    start: BackupPoint
    end: BackupPoint
    directory: DataDirectory


def take_base_backup(
    connection: PrimaryConnection, *, slot: str, label: str, spool_directory: Path, report: ReportProgress
) -> TakenBackup:
    """Create the slot, copy the primary, list what came (blocking).

    Raises: SourceRefusedError, SourceUnavailableError, TarFormatError, DataDirectoryError.
    """
    report(ImportProgress("waiting for a checkpoint of the primary"))
    connection.create_physical_slot(slot)
    total = 0

    def on_bytes(done: int) -> None:
        report(ImportProgress("copying", done, max(total, done)))

    backup = BaseBackupStream(connection, label=label, on_bytes=on_bytes)
    total = backup.size_bytes
    spool = Spool(spool_directory)
    for archive in backup.archives():
        spool.take_all(archive.members, tablespace=archive.tablespace.oid)
        if archive.tablespace.oid is not None:
            spool.tablespaces[archive.tablespace.oid] = archive.tablespace.location
    if backup.end is None:
        raise SourceUnavailableError("the primary did not say where the base backup ends")
    directory = scan_data_directory(spool_directory, tablespaces=spool.tablespaces, tolerant=True)
    return TakenBackup(backup.start, backup.end, directory)


async def write_timeline(
    timeline: Timeline, directory: DataDirectory, *, lsn: Lsn, compression: str, report: ReportProgress
) -> None:
    """Write image layers, or objects, of everything at `lsn`, and put the timeline's first index, which names them.

    Cancellation: ends between two layers; what was written is named nowhere and removed with the directory.
    """
    written = await write_images(timeline, directory, lsn=lsn, compression=compression, report=report)
    await timeline.publish_layers(written, disk_consistent_lsn=lsn)


async def write_images(
    timeline: Timeline,
    directory: DataDirectory,
    *,
    lsn: Lsn,
    compression: str,
    report: ReportProgress,
    whole_key_space: bool = False,
) -> list[LayerFacts]:
    """Write image layers of everything at `lsn` and return them, which no index names yet; objects, if the repository
    has no layers. `whole_key_space` as in `plan_layers`.

    Cancellation: ends between two layers. Then, and after an error, nothing of it is left in the layer map.
    """
    stopping = threading.Event()
    total = directory.total_blocks * 8192

    def on_bytes(done: int) -> None:
        if stopping.is_set():
            raise StoppedError("the import was stopped")
        report(ImportProgress("writing layers", min(done, total), total))

    on_bytes(0)  # a small cluster is one layer: without this its writing would never be shown
    control = ControlFile(directory.control_file)
    pieces = pieces_of(directory, control=control, pg_version=timeline.pg_version)
    if isinstance(timeline.store, ObjectTimeline):
        objects = timeline.store

        def import_all() -> None:
            for done in objects.import_pieces(lsn, pieces):
                on_bytes(done)

        await run_blocking(import_all, interrupt=stopping.set)
        return []
    store = cast("ImageLayerWriter", timeline.store)
    return await run_blocking(
        lambda: write_layers(
            store,
            plan_layers(pieces, whole_key_space=whole_key_space),
            lsn=lsn,
            generation=timeline.generation.number,
            compression=compression,
            on_bytes=on_bytes,
        ),
        interrupt=stopping.set,
    )


def check_control_file(control: ControlFile, *, system_identifier: int | None, pg_version: int) -> None:
    """Refuse the copy of another cluster than was announced, or of one with other sizes than ours."""
    if system_identifier is not None and control.system_identifier != system_identifier:
        raise SystemIdentifierError(expected=system_identifier, got=control.system_identifier)
    if control.version.major != pg_version:
        raise MajorVersionError(f"the copy is of PostgreSQL {control.version.major}, expected {pg_version}")
    sizes = (control.block_size, control.relation_segment_blocks, control.wal_block_size, control.wal_segment_size)
    if sizes != (8192, 131_072, 8192, 16 * 1024 * 1024):
        raise DataDirectoryError(
            f"blocks, segments of relations, WAL blocks, WAL segments are {sizes}",
            hint="only the usual sizes are served",
        )


class PrimaryImport:
    """One attempt to import a primary into a slot."""

    def __init__(
        self,
        slot: SourceSlot,
        source: StoredSource,
        *,
        application_name: str,
        connect_timeout_seconds: float,
        compression: str,
        spool_directory: Path,
        report: ReportProgress,
        log: Any,
    ) -> None:
        assert source.connection is not None and source.slot is not None, "an import needs a primary and a slot name"
        self._slot = slot
        self._source = source
        self._conninfo = source.connection
        self._slot_name = source.slot
        self._application_name = application_name
        self._connect_timeout_seconds = connect_timeout_seconds
        self._compression = compression
        self._spool_directory = spool_directory
        self._report = report
        self._log = log

    async def run(self) -> StoredSource:
        """Import, and return what was stored. Cancellation: safe; the next attempt begins from nothing."""
        await run_blocking(self._clear_spool)
        try:
            backup = await self._copy()
            self._log.info("base backup taken", start=str(backup.start.lsn), end=str(backup.end.lsn))
            return await self._make_timeline(backup)
        finally:
            await run_blocking(self._clear_spool)

    async def _copy(self) -> TakenBackup:
        opened: list[PrimaryConnection] = []
        given_up = threading.Event()

        def copy() -> TakenBackup:
            connection = PrimaryConnection.connect(
                self._conninfo,
                application_name=self._application_name,
                timeout_seconds=self._connect_timeout_seconds,
                given_up=given_up,
            )
            opened.append(connection)
            if given_up.is_set():
                # Who gave it up did not find the connection yet, and would wait for the whole copy.
                connection.close()
            facts = connection.read_facts()
            expected = self._source.system_identifier
            if expected is not None and facts.identity.system_identifier != expected:
                raise SystemIdentifierError(expected=expected, got=facts.identity.system_identifier)
            self._before_copy(connection, facts)
            self._spool_directory.mkdir(parents=True, exist_ok=True)
            return take_base_backup(
                connection,
                slot=self._slot_name,
                label=self._slot_name,
                spool_directory=self._spool_directory,
                report=self._report,
            )

        def close() -> None:
            given_up.set()
            for connection in opened:
                connection.close()

        try:
            return await run_blocking(copy, interrupt=close)
        finally:
            close()

    def _before_copy(self, connection: PrimaryConnection, facts: PrimaryFacts) -> None:
        """Do what has to precede the slot and the backup; an import needs nothing."""

    async def _make_timeline(self, backup: TakenBackup) -> StoredSource:
        control = ControlFile(backup.directory.control_file)
        check_control_file(
            control, system_identifier=self._source.system_identifier, pg_version=self._source.pg_version
        )
        source = replace(
            self._source,
            state=SourceState.READY,
            system_identifier=control.system_identifier,
            pg_tli=backup.start.pg_tli,
            backup_start_lsn=backup.start.lsn,
            backup_end_lsn=backup.end.lsn,
            data_checksums=control.has_data_checksums,
            wal_log_hints=control.wal_log_hints != 0,
        )
        start = backup.start.lsn.normalised()
        body = source_body(source)
        root = RootParameters(
            pg_version=source.pg_version,
            start_lsn=start,
            traits=SourceDocument(body).traits,
            readable_from=backup.end.lsn,
        )
        timeline = await self._slot.begin(root)
        await write_timeline(timeline, backup.directory, lsn=start, compression=self._compression, report=self._report)
        await self._slot.finish(body)
        return source

    def _clear_spool(self) -> None:
        shutil.rmtree(self._spool_directory, ignore_errors=True)
