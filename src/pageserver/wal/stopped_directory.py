"""Makes a timeline of the data directory of a server that was stopped cleanly, as initdb leaves it.

    files ─▶ image layers at the checkpoint's LSN ─▶ document ─▶ WAL from there to the end of the checkpoint record
          ─▶ flush: the one index that names all of it

The checkpoint record itself is ingested: then its predecessor's position is known, and the timeline ends where a
server that is started from it goes on writing. Layers are uploaded meanwhile, but nothing names them before all is
there, so a crash leaves either the whole timeline or none.
Source: spec tenants.md 9.4 and 10.1, keyspace.md 5.14.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pageserver.failpoints import Failpoints
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.control_file import ClusterState, ControlFile
from pageserver.postgres.wal_segment import segment_file_name
from pageserver.remote.source_document import Flavour as FlavourName
from pageserver.remote.source_document import SourceDocument
from pageserver.tenant.source_slot import RootParameters, SourceSlot
from pageserver.wal.data_directory import DataDirectory, DataDirectoryError, scan_data_directory
from pageserver.wal.import_files import WalImportError
from pageserver.wal.ingest import IngestStep, WalApplier
from pageserver.wal.primary_import import check_control_file, write_images
from pageserver.wal.source_document import Flavour, StoredSource, source_body
from pageserver.wal.threads import run_blocking

NewApplier = Callable[[StoredSource, Lsn], WalApplier]
_STEP_BYTES: Final = 8
"""Records begin at multiples of this; what lies behind the last one is not WAL."""


async def import_stopped_directory(
    slot: SourceSlot,
    root: Path,
    *,
    pg_version: int,
    flavour: FlavourName,
    compression: str,
    new_applier: NewApplier,
    failpoints: Failpoints,
) -> None:
    """Fill the slot's timeline and activate it. `new_applier` makes what takes WAL from an LSN on (blocking).

    Raises DataDirectoryError, WalImportError, CorruptDataError; StoppedError if the timeline is stopped meanwhile.
    Cancellation: safe; nothing in the store names what was made, unless all of it was.
    """
    directory = await run_blocking(lambda: scan_data_directory(root, tablespaces={}, tolerant=False))
    control = ControlFile(directory.control_file)
    check_control_file(control, system_identifier=None, pg_version=pg_version)
    lsn = _check_stopped(directory, control)
    source = StoredSource(
        flavour=Flavour(flavour),
        pg_version=pg_version,
        system_identifier=control.system_identifier,
        pg_tli=control.checkpoint.this_timeline_id,
        backup_end_lsn=lsn,
        data_checksums=control.has_data_checksums,
        wal_log_hints=control.wal_log_hints != 0,
    )
    body = source_body(source)
    timeline = await slot.begin(
        RootParameters(pg_version=pg_version, start_lsn=lsn, traits=SourceDocument(body).traits)
    )
    await slot.save_document(body)
    layers = await write_images(timeline, directory, lsn=lsn, compression=compression, report=lambda _: None)
    timeline.store.set_disk_consistent_lsn(lsn)
    timeline.remote.schedule_layers({layer.name: layer.file_size for layer in layers})
    applier = await run_blocking(lambda: new_applier(source, lsn))
    loop = asyncio.get_running_loop()

    def roll() -> None:
        asyncio.run_coroutine_threadsafe(timeline.roll(), loop).result()

    await run_blocking(lambda: _take_checkpoint(root, applier, start=lsn, pg_tli=source.pg_tli, roll=roll))
    await failpoints.fail("before-checkpoint-new-timeline")
    await timeline.freeze_and_flush()
    slot.activate()


def _check_stopped(directory: DataDirectory, control: ControlFile) -> Lsn:
    """Return the LSN of the last checkpoint, after which nothing else happened. Raises DataDirectoryError."""
    if directory.tablespaces:
        raise DataDirectoryError("Importing pg_tblspc is not implemented")
    if control.state != ClusterState.SHUTDOWNED:
        raise DataDirectoryError(
            "Postgres cluster was not shut down cleanly", hint="stop it with `pg_ctl stop -m fast` and copy it again"
        )
    checkpoint = Lsn(control.check_point)
    if control.checkpoint.redo != checkpoint:
        raise DataDirectoryError(
            f"unexpected checkpoint REDO pointer {Lsn(control.checkpoint.redo)}, the checkpoint is at {checkpoint}"
        )
    return checkpoint.aligned()


def _take_checkpoint(root: Path, applier: WalApplier, *, start: Lsn, pg_tli: int, roll: Callable[[], None]) -> None:
    """Feed WAL from `start` until one record has ended (blocking). Raises WalImportError, CorruptDataError."""
    position = start
    while applier.lsn <= start:
        segment = _find_segment(root / "pg_wal", segment_file_name(pg_tli, position.segment_number()))
        with segment.open("rb") as wal:
            wal.seek(position - position.segment_start())
            while applier.lsn <= start and (data := wal.read(_STEP_BYTES)):
                position = position + len(data)
                step = applier.take(data)
                while step is IngestStep.ROLL:
                    roll()
                    step = applier.go_on()
            if applier.lsn <= start and position != position.segment_start():
                raise WalImportError(
                    f"expected more wal: {segment.name} ends after {position - position.segment_start()} bytes, inside "
                    f"of the checkpoint record at {start}"
                )
        if position - start > WAL_SEGMENT_SIZE:
            raise WalImportError(f"there is no complete record at the checkpoint's lsn {start}")


def _find_segment(directory: Path, name: str) -> Path:
    for candidate in (directory / name, directory / f"{name}.partial"):
        if candidate.is_file():
            return candidate
    raise WalImportError(f"expected more wal: there is no segment {name}")
