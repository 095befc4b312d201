"""What the tenant asks of this room: check a primary, open a timeline's source, take histories that come as files.

Source: spec stock.md 1, standalone.md 3, tenants.md 9.6 and 10.2; the seam is `tenant/way_in.py`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pageserver.clock import Clock
from pageserver.errors import (
    ConflictError,
    PageServerError,
    PreconditionFailedError,
    RequestError,
    UnavailableError,
)
from pageserver.failpoints import Failpoints
from pageserver.keyspace.key import Key
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.postgres.checkpoint import Checkpoint
from pageserver.postgres.control_file import ClusterState, ControlFile
from pageserver.postgres.initdb import Initdb, is_neon
from pageserver.remote.source_document import Flavour as FlavourName
from pageserver.remote.source_document import SourceDocument
from pageserver.tenant.source_slot import RootParameters, SourceSlot
from pageserver.tenant.way_in import PreparedSource, WalSource
from pageserver.timeline.engine import TimelineStore
from pageserver.timeline.info import ImportProgress, SourceStatus
from pageserver.timeline.timeline import Timeline
from pageserver.wal.data_directory import DataDirectory, DataDirectoryError, Spool, scan_data_directory
from pageserver.wal.import_files import WalSegments, read_in_thread
from pageserver.wal.ingest import WalApplier
from pageserver.wal.primary import PrimaryConnection, PrimaryFacts, check_conninfo
from pageserver.wal.primary_import import PrimaryImport, check_control_file, write_timeline
from pageserver.wal.primary_slot import drop_slot_patiently, read_slot_facts
from pageserver.wal.receiver import RetryPauses, WalReceiver
from pageserver.wal.resync import PrimaryResync, finish_resync
from pageserver.wal.source_document import (
    Flavour,
    SourceState,
    StoredSource,
    parse_source,
    slot_name,
    source_body,
)
from pageserver.wal.source_errors import SourceRefusedError, SourceUnavailableError
from pageserver.wal.stopped_directory import import_stopped_directory
from pageserver.wal.takeover import OurEnd, check_continues, hold_wal
from pageserver.wal.tar_stream import Closing, TarReader
from pageserver.wal.threads import run_blocking

_CONNECT_TIMEOUT_SECONDS: Final = 10.0
_SPOOL_DIRECTORY: Final = "importing"


class PostgresWayIn:
    """Sources over replication connections, and imports from files.

    `workdir`: base backups are spooled below it. `node_id` names us in the primary's pg_stat_replication.
    `image_compression` is the server's setting of that name.
    """

    def __init__(
        self,
        *,
        workdir: Path,
        node_id: int,
        image_compression: str,
        initdb: Initdb,
        clock: Clock,
        log: Any,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._failpoints = failpoints or Failpoints.off()
        self._initdb = initdb
        self._spool_root = workdir / _SPOOL_DIRECTORY
        self._application_name = f"pageserver-{node_id}"
        self._compression = image_compression
        self._clock = clock
        self._log = log

    async def remove_leftovers(self) -> None:
        """Remove what imports that were killed have spooled. Called once, before tenants are attached."""
        await run_blocking(lambda: shutil.rmtree(self._spool_root, ignore_errors=True))

    async def prepare_primary(self, slot: SourceSlot, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check a primary and return the document to store. Options: `conninfo`.

        Raises: SourceRefusedError naming what is wrong, SourceUnavailableError.
        """
        conninfo = options.get("conninfo")
        if not isinstance(conninfo, str):
            raise RequestError("a timeline from a primary needs its connection string", hint="primary.conninfo")
        if not slot.shard_identity.is_unsharded():
            raise RequestError("a primary can only be followed by an unsharded tenant")
        conninfo = check_conninfo(conninfo)

        def probe() -> PrimaryFacts:
            with PrimaryConnection.connect(
                conninfo, application_name=self._application_name, timeout_seconds=_CONNECT_TIMEOUT_SECONDS
            ) as connection:
                return connection.read_facts()

        facts = await run_blocking(probe)
        source = StoredSource(
            flavour=Flavour.STOCK,
            pg_version=facts.major,
            state=SourceState.IMPORTING,
            connection=conninfo,
            slot=slot_name(slot.timeline_id),
            system_identifier=facts.identity.system_identifier,
            pg_tli=facts.identity.pg_tli,
            data_checksums=facts.data_checksums,
            wal_log_hints=facts.wal_log_hints,
        )
        return source_body(source)

    async def prepare_takeover(self, slot: SourceSlot, options: Mapping[str, Any]) -> PreparedSource:
        """Check that a primary continues the slot's timeline, and have it keep its WAL (docs/decisions/0008).

        Options: `conninfo`. Everything of the timeline is durable, and nothing feeds it. Raises: SourceRefusedError
        naming what is wrong, SourceUnavailableError, SlotInUseError. Nothing stays at the primary then.
        """
        timeline = slot.timeline
        assert timeline is not None, "the timeline is open"
        conninfo = options.get("conninfo")
        if not isinstance(conninfo, str):
            raise RequestError("a source needs the connection string of a primary", hint="conninfo")
        if not slot.shard_identity.is_unsharded():
            raise RequestError("a primary can only be followed by an unsharded tenant")
        conninfo, name, end = check_conninfo(conninfo), slot_name(slot.timeline_id), timeline.last_record_lsn
        before = await self._source_now(timeline)
        if before.read_only:
            raise RequestError("a read-only branch takes no WAL", hint="branch from it")
        ours = OurEnd(before.system_identifier or 0, timeline.pg_version, before.pg_tli, end)
        opened: list[PrimaryConnection] = []

        def connect() -> PrimaryConnection:
            opened.append(
                PrimaryConnection.connect(
                    conninfo, application_name=self._application_name, timeout_seconds=_CONNECT_TIMEOUT_SECONDS
                )
            )
            return opened[-1]

        def take_over() -> tuple[PrimaryFacts, bool]:
            connection = connect()
            facts = check_continues(connection, ours)
            is_new = connection.create_physical_slot(name)
            try:
                hold_wal(
                    connection,
                    facts,
                    slot=name,
                    pg_tli=ours.pg_tli,
                    last_record_lsn=end,
                    now_microseconds=lambda: round(self._clock.now().timestamp() * 1_000_000),
                )
            except PageServerError:
                if is_new:
                    drop_slot()
                raise
            return facts, is_new

        def drop_slot() -> None:
            for connection in opened:  # the one that streamed holds the slot
                connection.close()
            drop_slot_patiently(connect(), name)

        def close() -> None:
            for connection in opened:
                connection.close()

        async def undo() -> None:
            if is_new:
                try:
                    await run_blocking(drop_slot)
                finally:
                    close()

        try:
            facts, is_new = await run_blocking(take_over, interrupt=close)
        finally:
            close()
        is_neon = before.flavour is Flavour.NEON
        source = replace(
            before,
            flavour=Flavour.STOCK,
            connection=conninfo,
            slot=name,
            neon_until_lsn=end if is_neon else before.neon_until_lsn,
            data_checksums=facts.data_checksums,
            wal_log_hints=facts.wal_log_hints,
            resync_from_lsn=None,
        )
        return PreparedSource(source_body(source), undo)

    def document_of_resync(self, slot: SourceSlot) -> Mapping[str, Any]:
        """Return the slot's document with the wish for a resync. Raises: PreconditionFailedError (no primary)."""
        timeline, document = slot.timeline, slot.document
        assert timeline is not None, "the timeline is open"
        source = None if document is None or "version" not in document.body else parse_source(document.body)
        if source is None or source.connection is None:
            raise PreconditionFailedError(
                "the timeline follows no primary", hint="pagectl timeline source set points it at one"
            )
        source = source.with_gaps_in_force(timeline.disk_consistent_lsn)
        return source_body(replace(source, resync_from_lsn=timeline.last_record_lsn))

    async def describe_source(self, slot: SourceSlot) -> Mapping[str, Any]:
        """Return the document and what the primary says about the slot, for people; see `tenant/way_in.py`."""
        timeline, document = slot.timeline, slot.document
        if timeline is None or document is None or "version" not in document.body:
            return {"flavour": "neon" if timeline is None else timeline.flavour, "connection": None}
        body = source_body(parse_source(document.body).with_gaps_in_force(timeline.disk_consistent_lsn))
        shown = {name: value for name, value in body.items() if name not in ("version", "state")}
        conninfo, name = body["connection"], body["slot"]
        if conninfo is not None and name is not None:
            try:
                facts = await run_blocking(
                    lambda: read_slot_facts(conninfo, name, timeout_seconds=_CONNECT_TIMEOUT_SECONDS)
                )
                shown["slot_state"] = None if facts is None else facts.to_json()
            except (SourceUnavailableError, SourceRefusedError) as error:
                shown["slot_state_error"] = str(error)
        return shown

    async def drop_slot(self, document: SourceDocument) -> str | None:
        """Drop the slot that the document names at its primary; see `tenant/way_in.py`."""
        source = parse_source(document.body) if "version" in document.body else None
        if source is None or source.connection is None or source.slot is None:
            return None
        connection, slot = source.connection, source.slot

        def drop() -> bool:
            with PrimaryConnection.connect(
                connection, application_name=self._application_name, timeout_seconds=_CONNECT_TIMEOUT_SECONDS
            ) as primary:
                return drop_slot_patiently(primary, slot)

        return slot if await run_blocking(drop) else None

    async def _source_now(self, timeline: Timeline) -> StoredSource:
        """Return the timeline's document, or what stands for it where there is none: Neon wrote it."""
        document = timeline.document
        if document is not None and "version" in document.body:
            source = parse_source(document.body).with_gaps_in_force(timeline.disk_consistent_lsn)
            if source.system_identifier is not None:
                return source
        else:
            source = StoredSource(Flavour(timeline.flavour), pg_version=timeline.pg_version)
        snapshot = timeline.snapshot(timeline.last_record_lsn)

        def read() -> StoredSource:
            control = ControlFile(snapshot.control_file())
            checkpoint = Checkpoint(snapshot.checkpoint())
            return replace(
                source,
                system_identifier=control.system_identifier,
                pg_tli=max(1, checkpoint.this_timeline_id),
            )

        return await run_blocking(read)

    def open_source(self, slot: SourceSlot) -> WalSource | None:
        """Return the source of a timeline that follows a primary, none for any other. Raises: SourceDocumentError."""
        if slot.document is None or "version" not in slot.document.body:
            return None
        source = parse_source(slot.document.body)
        if source.connection is None:
            if source.backup_end_lsn is None and source.backup_start_lsn is not None and slot.timeline is not None:
                # Only the WAL that is still to be imported tells from where this copy may be read (stock.md 1.7).
                slot.timeline.store.hold_reads()
            return None
        return PrimarySource(
            slot,
            source,
            application_name=self._application_name,
            compression=self._compression,
            spool_directory=self._spool_of(slot),
            clock=self._clock,
            log=self._log.bind(tenant=str(slot.tenant_shard_id), timeline=str(slot.timeline_id)),
            failpoints=self._failpoints,
        )

    def document_of_branch(
        self, document: SourceDocument | None, *, branch_lsn: Lsn, pg_version: int
    ) -> Mapping[str, Any]:
        """Return a branch's document: the history up to `branch_lsn`, no connection, no slot."""
        if document is None:
            return source_body(StoredSource(Flavour.NEON, pg_version))
        return source_body(parse_source(document.body).branched(branch_lsn))

    async def import_base_backup(
        self,
        slot: SourceSlot,
        body: AsyncIterator[bytes],
        *,
        base_lsn: Lsn,
        end_lsn: Lsn,
        pg_version: int,
        flavour: FlavourName,
    ) -> None:
        """Make the slot's timeline from the tar of a data directory (spec tenants.md 10.2, stock.md 1.7).

        Raises: TarFormatError, DataDirectoryError, ControlFileError. Cancellation: safe; nothing stays.
        """
        if not slot.shard_identity.is_unsharded():
            raise RequestError("a base backup can only be imported into an unsharded tenant")
        if base_lsn == INVALID_LSN:
            raise RequestError(f"invalid base_lsn {base_lsn}")
        is_stock = flavour == "stock"
        spool_directory = self._spool_of(slot)
        found: list[DataDirectory] = []

        def spool_and_scan(chunks: Iterable[bytes]) -> None:
            shutil.rmtree(spool_directory, ignore_errors=True)
            spool_directory.mkdir(parents=True)
            spool = Spool(spool_directory, strict=not is_stock)
            spool.take_all(TarReader(chunks, closing=Closing.ZERO_BLOCKS), tablespace=None)
            found.append(scan_data_directory(spool_directory, tablespaces=spool.tablespaces, tolerant=is_stock))

        try:
            await read_in_thread(body, spool_and_scan)
            (directory,) = found
            control = ControlFile(directory.control_file)
            check_control_file(control, system_identifier=None, pg_version=pg_version)
            if is_stock:
                _check_backup_start(directory, base_lsn)
            is_clean = control.state == ClusterState.SHUTDOWNED or not is_stock
            source = StoredSource(
                flavour=Flavour(flavour),
                pg_version=pg_version,
                system_identifier=control.system_identifier,
                pg_tli=control.checkpoint.this_timeline_id,
                backup_start_lsn=base_lsn,
                backup_end_lsn=base_lsn if is_clean else None,
                data_checksums=control.has_data_checksums,
                wal_log_hints=control.wal_log_hints != 0,
            )
            start = base_lsn.normalised() if is_stock else base_lsn.aligned()
            document = source_body(source)
            root = RootParameters(
                pg_version=pg_version,
                start_lsn=start,
                traits=SourceDocument(document).traits,
                readable_from=start if is_clean else max(end_lsn, start + 8),
                prev_record_lsn=directory.prev_record_lsn,
            )
            timeline = await slot.begin(root)
            # Before the index: after a crash the timeline must not be taken for one of another flavour.
            await slot.save_document(document)
            await write_timeline(timeline, directory, lsn=start, compression=self._compression, report=lambda _: None)
            slot.activate()
        finally:
            await run_blocking(lambda: shutil.rmtree(spool_directory, ignore_errors=True))

    async def make_data_directory(self, directory: Path, pg_version: int) -> FlavourName:
        """Run initdb (spec tenants.md 9.4). Raises: InitdbError. Cancellation: a run that has begun is waited for."""
        installation = await run_blocking(
            lambda: self._initdb.make(directory, pg_version), executor=self._initdb.executor
        )
        return "neon" if is_neon(installation) else "stock"

    async def import_data_directory(
        self, slot: SourceSlot, directory: Path, *, pg_version: int, flavour: FlavourName
    ) -> None:
        """Make the slot's timeline from a cleanly stopped data directory; see `stopped_directory`."""

        def start_applying(source: StoredSource, start: Lsn) -> WalApplier:
            timeline = slot.timeline
            assert timeline is not None, "images come before WAL"
            return new_applier(timeline.store, timeline, source, start=start, consistent_from=start, check_prev=False)

        await import_stopped_directory(
            slot,
            directory,
            pg_version=pg_version,
            flavour=flavour,
            compression=self._compression,
            new_applier=start_applying,
            failpoints=self._failpoints,
        )

    async def import_wal(self, slot: SourceSlot, body: AsyncIterator[bytes], *, start_lsn: Lsn, end_lsn: Lsn) -> None:
        """Ingest a tar of WAL segments, then make it durable.

        Raises: PreconditionFailedError (does not continue the timeline), WalImportError, CorruptDataError.
        Cancellation: safe; what was ingested stays.
        """
        timeline = slot.timeline
        assert timeline is not None, "WAL is imported into a timeline that is open"
        source = StoredSource(Flavour.NEON, pg_version=timeline.pg_version)
        if timeline.document is not None:
            source = parse_source(timeline.document.body)
        if source.connection is not None:
            raise ConflictError("the timeline follows a primary; its WAL does not come from files")
        last = timeline.last_record_lsn
        if start_lsn.normalised() != last.normalised():
            raise PreconditionFailedError(
                f"Cannot import WAL from Lsn {start_lsn} because timeline does not start from the same lsn: {last}"
            )
        is_stock = source.flavour is Flavour.STOCK
        store = timeline.store
        consistent_from = source.backup_end_lsn if is_stock else last
        if consistent_from is None:
            store.hold_reads()
        loop = asyncio.get_running_loop()
        applier = await run_blocking(
            lambda: new_applier(
                store, timeline, source, start=last, consistent_from=consistent_from, check_prev=is_stock
            )
        )

        def ingest(chunks: Iterable[bytes]) -> None:
            segments = WalSegments(
                applier,
                start=last,
                end=end_lsn,
                pg_tli=source.pg_tli if is_stock else 1,
                skip_before=is_stock,
                roll=lambda: asyncio.run_coroutine_threadsafe(timeline.roll(), loop).result(),
            )
            passed_over = segments.take_all(TarReader(chunks, closing=Closing.ZERO_BLOCKS))
            if passed_over:
                self._log.info("WAL archive has members that are not needed", names=passed_over[:10])

        await read_in_thread(body, ingest)
        await timeline.freeze_and_flush()
        if consistent_from is None and applier.consistent_from is not None:
            await self._note_consistent(slot, timeline, source, applier.consistent_from)

    async def _note_consistent(self, slot: SourceSlot, timeline: Timeline, source: StoredSource, end: Lsn) -> None:
        """The end of the backup went by: reads are legal from there, or from where the import said if that is later."""
        cutoff = max(timeline.gc_cutoff_lsn, end)
        await timeline.advance_gc_cutoff(cutoff)
        await slot.save_document(source_body(replace(source, backup_end_lsn=end)))
        timeline.store.release_reads(cutoff)
        self._log.info("base copy is consistent", timeline=str(timeline.timeline_id), lsn=str(end))

    def _spool_of(self, slot: SourceSlot) -> Path:
        return self._spool_root / f"{slot.tenant_shard_id}-{slot.timeline_id}"


class PrimarySource:
    """The source of one timeline that follows a primary: imports first if need be, then streams for ever."""

    def __init__(
        self,
        slot: SourceSlot,
        source: StoredSource,
        *,
        application_name: str,
        compression: str,
        spool_directory: Path,
        clock: Clock,
        log: Any,
        failpoints: Failpoints,
    ) -> None:
        self._failpoints = failpoints
        self._slot = slot
        self._source = source
        self._application_name = application_name
        self._compression = compression
        self._spool_directory = spool_directory
        self._clock = clock
        self._log = log
        self._status = SourceStatus(text="starting", connection=source.connection, slot=source.slot)
        self._receiver: WalReceiver | None = None

    def status(self) -> SourceStatus:
        """Return what the API shows."""
        return self._status if self._receiver is None else self._receiver.status()

    async def run(self) -> None:
        """Import or resynchronise if needed, then stream until cancelled. Raises: SourceRefusedError, and whatever
        makes going on pointless.
        """
        if not self._source.is_imported:
            self._source = await self._attempt(PrimaryImport, "import")
        timeline = self._slot.timeline
        assert timeline is not None, "an imported timeline is open"
        if self._source.is_resynced(timeline.disk_consistent_lsn):
            self._source = await finish_resync(self._slot, self._source)
        elif self._source.resync_from_lsn is not None:
            self._source = await self._attempt(PrimaryResync, "resync")
        self._source = self._source.with_gaps_in_force(timeline.disk_consistent_lsn)
        self._receiver = WalReceiver(
            timeline,
            self._source,
            save=self._save,
            new_applier=lambda source: new_applier(
                timeline.store,
                timeline,
                source,
                start=timeline.last_record_lsn,
                consistent_from=source.consistent_from,
                check_prev=True,
            ),
            application_name=self._application_name,
            connect_timeout_seconds=timeline.settings.walreceiver_connect_timeout.seconds,
            clock=self._clock,
            log=self._log,
            is_overtaken=self._slot.is_overtaken,
            counts=timeline.wal_counts,
            failpoints=self._failpoints,
            ingest_pause=lambda: timeline.ingest_pause(),
        )
        await self._receiver.run()

    async def _attempt(self, kind: type[PrimaryImport], what: str) -> StoredSource:
        pauses = RetryPauses()
        while True:
            started = self._clock.monotonic_seconds()
            attempt = kind(
                self._slot,
                self._source,
                application_name=self._application_name,
                connect_timeout_seconds=_CONNECT_TIMEOUT_SECONDS,
                compression=self._compression,
                spool_directory=self._spool_directory,
                report=self._note_progress,
                log=self._log,
            )
            try:
                return await attempt.run()
            except SourceRefusedError:
                raise
            except UnavailableError as error:
                self._log.info(f"{what} interrupted", error=str(error))
                self._status = replace(self._status, text=f"{what} interrupted, will try again: {error}")
            lasted = self._clock.monotonic_seconds() - started
            await self._clock.sleep(pauses.after_attempt(lasted_seconds=lasted))

    def _note_progress(self, progress: ImportProgress) -> None:
        self._status = replace(self._status, text=f"importing: {progress.phase}", importing=progress)

    async def _save(self, source: StoredSource) -> None:
        await self._slot.save_document(source_body(source))


def _check_backup_start(directory: DataDirectory, base_lsn: Lsn) -> None:
    """WAL from a later position on would lack changes that the copy does not have, and nobody would notice. From an
    earlier one on, the end of this backup would never be recognised.
    """
    start = directory.backup_start_lsn
    if start is not None and start != base_lsn:
        raise DataDirectoryError(
            f"the backup's START WAL LOCATION is {start}, but base_lsn is {base_lsn}",
            hint="import it with base_lsn as its backup_label says",
        )


def new_applier(
    store: TimelineStore,
    timeline: Timeline,
    source: StoredSource,
    *,
    start: Lsn,
    consistent_from: Lsn | None,
    check_prev: bool,
) -> WalApplier:
    """Make what takes WAL from the timeline's last record on (blocking)."""
    return WalApplier(
        store,
        start=start.normalised(),
        checkpoint=store.get(Key.checkpoint(), start),
        system_identifier=source.system_identifier if source.flavour is Flavour.STOCK else None,
        check_prev=check_prev,
        consistent_from=consistent_from,
        backup_start=source.backup_start_lsn,
        checkpoint_distance=timeline.settings.checkpoint_distance,
        pg_version=timeline.pg_version,
        flavour=source.flavour,
        relation_directory=timeline.relation_directory,
        start_migration=timeline.begin_relation_directory_migration,
        is_migration_wanted=lambda: timeline.settings.rel_size_v2_enabled,
        note_growth=timeline.logical_size.note_growth,
    )
