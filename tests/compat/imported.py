"""A timeline made from files with the house's own parts: spool, image layers, engine, rare records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pageserver import _core
from pageserver.ids import ShardIdentity, TenantId, TimelineId
from pageserver.keyspace.key import Key
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.wal.data_directory import DataDirectory, Spool, scan_data_directory
from pageserver.wal.image_import import ImageLayerWriter, pieces_of, plan_layers, write_layers
from pageserver.wal.ingest import IngestStep, WalApplier
from pageserver.wal.source_document import Flavour
from pageserver.wal.tar_stream import Closing, TarReader
from tests.compat.vectors import chunks

CHECKPOINT_DISTANCE = 256 << 20
UNSHARDED = ShardIdentity.unsharded()


@dataclass(frozen=True)
class Imported:
    """A timeline that was imported at ``start`` and takes WAL from there."""

    store: _core.TimelineStore
    applier: WalApplier
    directory: DataDirectory
    control: ControlFile
    start: Lsn

    def take(self, wal: bytes) -> None:
        """Ingest WAL, freezing and flushing layers when they are full."""
        step = IngestStep.DONE
        for chunk in chunks(wal):
            step = self.applier.take(chunk)
            while step is IngestStep.ROLL:
                self.store.freeze()
                self.store.flush_oldest(1)
                step = self.applier.go_on()

    def snapshot(self, lsn: int | None = None) -> Snapshot:
        return Snapshot(self.store, self.store.last_record_lsn if lsn is None else lsn, self.control.version.major)


def import_timeline(
    tar: bytes, folder: Path, *, start: Lsn | None, flavour: str, tolerant_until: Lsn | None = None, closing: Closing
) -> Imported:
    """Make a timeline of a data directory's tar. ``start``: by default the redo position of its control file."""
    spool = Spool(folder / "spool")
    spool.take_all(TarReader(chunks(tar), closing=closing), tablespace=None)
    directory = scan_data_directory(spool.root, tablespaces=spool.tablespaces, tolerant=flavour == "stock")
    control = ControlFile(directory.control_file)
    pg_version = control.version.major
    start = Lsn(control.checkpoint.redo) if start is None else start
    (folder / "layers").mkdir()
    store = _core.TimelineStore(
        directory=str(folder / "layers"),
        tenant_id=TenantId(b"\xaa" * 16).raw,
        timeline_id=TimelineId(b"\xbb" * 16).raw,
        shard=(0, 0, UNSHARDED.stripe_size),
        pg_version=pg_version,
        flavour=flavour,
        hint_bits_logged=control.logs_hint_bits,
        data_checksums=control.has_data_checksums,
        last_record_lsn=start,
        prev_record_lsn=0,
        disk_consistent_lsn=start,
        gc_cutoff_lsn=start,
        next_open_layer_at=start,
        ancestor=None,
        ancestor_lsn=0,
        redo=None,
        caches=_core.Caches(block_cache_bytes=64 << 20, page_cache_bytes=64 << 20, value_memory_bytes=16 << 20),
    )
    pieces = pieces_of(directory, control=control, pg_version=pg_version)
    written = write_layers(
        cast("ImageLayerWriter", store),
        plan_layers(pieces),
        lsn=start,
        generation=1,
        compression="disabled",
        on_bytes=lambda _done: None,
    )
    for layer in written:
        assert isinstance(layer, _core.LayerInfo)
        store.add_layers([(layer.name, layer.path, layer.file_size)])
    applier = WalApplier(
        store,
        start=start.normalised(),
        checkpoint=store.get(Key.checkpoint(), start),
        system_identifier=control.system_identifier,
        check_prev=True,
        consistent_from=start if tolerant_until is None else tolerant_until,
        backup_start=None,
        checkpoint_distance=CHECKPOINT_DISTANCE,
        pg_version=pg_version,
        flavour=Flavour(flavour),
    )
    return Imported(store, applier, directory, control, start)
