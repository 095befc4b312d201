"""A timeline that follows a real primary with the house's own parts, without a server around it.

    with following(server, folder) as timeline: …       import, then stream in a task until the block ends

The engine, base backup, receiver and rare records are the real ones; index, remote storage and tenants are left out.
`Followed.reopen` is a restart: a new store over the layers that were flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from os import PathLike
from pathlib import Path
from typing import Any

from pageserver import _core
from pageserver.clock import SystemClock
from pageserver.disk_errors import DiskGuard
from pageserver.ids import TenantId, TimelineId
from pageserver.keyspace.key import Key, RelTag
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.redo_scratch import RedoScratch
from pageserver.postgres.versions import postgres_version
from pageserver.serve.data_directory import DataDirectory
from pageserver.serve.verify_compare import Comparison, Report
from pageserver.serve.verify_stream import HEADER, entries, stream
from pageserver.wal.image_import import pieces_of, plan_layers, write_layers
from pageserver.wal.ingest import WalApplier
from pageserver.wal.primary import PrimaryConnection
from pageserver.wal.primary_import import take_base_backup
from pageserver.wal.receiver import WalReceiver
from pageserver.wal.source_document import Flavour, StoredSource
from tests.postgres.server import PostgresServer

SLOT = "ours"


class QuietLog:
    """Keeps errors for the test to look at."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None: ...

    def error(self, event: str, **fields: object) -> None:
        self.errors.append((event, fields))


class Followed:
    """One timeline, imported from `server`."""

    timeline_id = "followed"

    def __init__(self, server: PostgresServer, folder: Path, *, checkpoint_distance: int = 16 << 20) -> None:
        """Take the base backup and write its layers (blocking)."""
        self._server = server
        self._folder = folder
        self._checkpoint_distance = checkpoint_distance
        self._scratch = RedoScratch(pg_installations={str(server.major): str(server.installation.bin.parent)})
        self.log = QuietLog()
        self.disk = DiskGuard(self.log)
        self.pg_version = server.major
        folder.mkdir()
        (folder / "layers").mkdir()
        with PrimaryConnection.connect(server.conninfo(), application_name="test") as connection:
            facts = connection.read_facts()
            backup = take_base_backup(
                connection, slot=SLOT, label="test", spool_directory=folder / "spool", report=lambda _: None
            )
        control = ControlFile(backup.directory.control_file)
        self.source = StoredSource(
            flavour=Flavour.STOCK,
            pg_version=server.major,
            connection=server.conninfo(),
            slot=SLOT,
            system_identifier=facts.identity.system_identifier,
            pg_tli=backup.start.pg_tli,
            backup_start_lsn=backup.start.lsn,
            backup_end_lsn=backup.end.lsn,
            data_checksums=control.has_data_checksums,
            wal_log_hints=control.wal_log_hints != 0,
        )
        self._start = backup.start.lsn.normalised()
        self.store = self._open(self._start, previous=0, next_open=self._start)
        pieces = pieces_of(backup.directory, control=control, pg_version=server.major)
        write_layers(
            self.store,
            plan_layers(pieces),
            lsn=self._start,
            generation=1,
            compression="zstd(1)",
            on_bytes=lambda _: None,
        )
        self.store.set_disk_consistent_lsn(self._start)

    @property
    def last_record_lsn(self) -> Lsn:
        return Lsn(self.store.last_record_lsn)

    @property
    def durable_lsn(self) -> Lsn:
        return Lsn(self.store.disk_consistent_lsn)

    async def roll(self) -> None:
        await asyncio.to_thread(self.flush)

    async def freeze_and_flush(self) -> None:
        await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Freeze and flush everything."""
        self.store.freeze()
        while self.store.flush_oldest(1) is not None:
            pass

    def reopen(self) -> None:
        """Restart from what is on disk, as after a kill: unflushed WAL is asked for again."""
        layers: list[tuple[str, str | PathLike[str], int]] = [
            (layer.name, layer.path, layer.file_size) for layer in self.store.layers()
        ]
        durable = Lsn(self.store.disk_consistent_lsn)
        self.store.shutdown()
        self.store = self._open(durable, previous=0, next_open=durable + 1)
        self.store.add_layers(layers)

    def close(self) -> None:
        self.store.shutdown()
        self._redo.shutdown()
        self._scratch.close()

    async def wait_for(self, lsn: Lsn, timeout_seconds: float = 120.0) -> None:
        """Wait until WAL up to `lsn` was ingested. Fails with what ingest stumbled over."""
        for _ in range(round(timeout_seconds * 10)):
            if self.last_record_lsn >= lsn:
                return
            assert not self.log.errors, self.log.errors
            await asyncio.to_thread(self.store.wait_lsn, lsn, 0.1)
        raise AssertionError(f"{lsn} did not come within {timeout_seconds} s, {self.last_record_lsn} did")

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator[WalReceiver]:
        """Follow the primary for the length of the block."""

        async def save(changed: StoredSource) -> None:
            self.source = changed

        receiver = WalReceiver(
            self,
            self.source,
            save=save,
            new_applier=self._new_applier,
            application_name="test-receiver",
            connect_timeout_seconds=5,
            clock=SystemClock(),
            log=self.log,
        )
        task = asyncio.create_task(receiver.run())
        try:
            yield receiver
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def compare(self, lsn: Lsn) -> Report:
        """Compare a cleanly stopped data directory with the timeline at `lsn` (blocking)."""
        version = postgres_version(self.pg_version)
        snapshot = Snapshot(self.store, lsn, self.pg_version)
        directory = DataDirectory(snapshot, self.store, version=version, stamp_checksums=False)
        comparison = Comparison(self._server.data_dir)

        def read_each(rel: RelTag, first: int, count: int, at: int) -> tuple[bytes, dict[int, str]]:
            return _core.read_blocks_each(
                self.store, rel.spcnode, rel.dbnode, rel.relnode, rel.forknum, first, count, at
            )

        for frame in stream(directory, read_each, entries(directory, snapshot)):
            (length,) = HEADER.unpack_from(frame)
            header: dict[str, Any] = json.loads(frame[HEADER.size : HEADER.size + length])
            if "end" not in header:
                comparison.take(header, frame[HEADER.size + length :])
        return comparison.finish()

    def _new_applier(self, source: StoredSource) -> WalApplier:
        last = self.last_record_lsn
        return WalApplier(
            self.store,
            start=last.normalised(),
            checkpoint=self.store.get(Key.checkpoint(), last),
            system_identifier=source.system_identifier,
            check_prev=True,
            consistent_from=source.backup_end_lsn,
            backup_start=source.backup_start_lsn,
            checkpoint_distance=self._checkpoint_distance,
            pg_version=self.pg_version,
            flavour=Flavour.STOCK,
        )

    def _open(self, lsn: Lsn, *, previous: int, next_open: Lsn) -> _core.TimelineStore:
        self._redo = _core.RedoPool(tenant="test", timeout_seconds=60, command=self._scratch.command)
        return _core.TimelineStore(
            directory=str(self._folder / "layers"),
            tenant_id=bytes(TenantId(b"\xaa" * 16)),
            timeline_id=bytes(TimelineId(b"\xbb" * 16)),
            shard=(0, 0, 2048),
            pg_version=self.pg_version,
            flavour="stock",
            hint_bits_logged=self.source.hint_bits_logged,
            data_checksums=self.source.data_checksums,
            last_record_lsn=lsn,
            prev_record_lsn=previous,
            disk_consistent_lsn=lsn,
            gc_cutoff_lsn=self.source.backup_end_lsn or lsn,
            next_open_layer_at=next_open,
            ancestor=None,
            ancestor_lsn=0,
            redo=self._redo,
            caches=_core.Caches(block_cache_bytes=64 << 20, page_cache_bytes=0, value_memory_bytes=16 << 20),
        )
