"""The compiled engine behind the protocols of `engine.py`: one for the process, with its caches and redo templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pageserver import _core
from pageserver.clock import Clock, SystemClock
from pageserver.config import RepositoryKind, ServerSettings, client_page_cache_bytes, open_layer_memory_bytes
from pageserver.ids import TenantShardId
from pageserver.postgres.redo_scratch import RedoScratch
from pageserver.timeline.engine import RedoPool, StoreParameters, TimelineStore
from pageserver.timeline.repository import LayeredRepository, Repository, RocksRepository

_PAGE_SIZE = 8192
_ROCKSDB_DIRECTORY = "rocksdb"


class CoreEngine:
    """Makes stores and redo pools. `close` after all of them were shut down."""

    def __init__(self, settings: ServerSettings, log: Any, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._timeout_seconds = settings.wal_redo_timeout.seconds
        self._log = log
        self._caches = _core.Caches(
            block_cache_bytes=settings.page_cache_size * _PAGE_SIZE,
            page_cache_bytes=client_page_cache_bytes(settings),
            value_memory_bytes=open_layer_memory_bytes(settings),
        )
        self._process_only = settings.redo == "process-only"
        self._scratch = RedoScratch(
            pg_installations=settings.pg_installations,
            pg_distrib_dir=settings.pg_distrib_dir,
            redo_programs=settings.redo_programs,
        )
        self._redo_metrics = _core.RedoMetrics()

    def remove_leftovers(self) -> None:
        """Remove the redo processes' directories of servers that were killed; blocking."""
        self._scratch.remove_leftovers()

    def open_store(self, parameters: StoreParameters) -> TimelineStore:
        return _core.TimelineStore(
            directory=str(parameters.directory),
            tenant_id=bytes(parameters.shard.tenant_id),
            timeline_id=bytes(parameters.timeline_id),
            shard=(parameters.identity.number, parameters.identity.count, parameters.identity.stripe_size),
            pg_version=parameters.pg_version,
            flavour=parameters.traits.flavour,
            hint_bits_logged=parameters.traits.hint_bits_logged,
            data_checksums=parameters.traits.data_checksums,
            last_record_lsn=int(parameters.last_record_lsn),
            prev_record_lsn=int(parameters.prev_record_lsn),
            disk_consistent_lsn=int(parameters.disk_consistent_lsn),
            gc_cutoff_lsn=int(parameters.gc_cutoff_lsn),
            next_open_layer_at=int(parameters.next_open_layer_at),
            ancestor=_as_core(parameters.ancestor),
            ancestor_lsn=int(parameters.ancestor_lsn),
            redo=_as_core_redo(parameters.redo),
            caches=self._caches,
            download=parameters.download,
            neon_until_lsn=int(parameters.traits.neon_until_lsn),
        )

    def make_repository(self, kind: RepositoryKind, directory: Path) -> Repository:
        if kind == "rocksdb":
            return RocksRepository(directory / _ROCKSDB_DIRECTORY, clock=self._clock)
        return LayeredRepository(self.open_store)

    def open_redo(self, shard: TenantShardId) -> RedoPool:
        """Return the tenant's pool. The process, and the installation it needs, are looked for at the first request."""
        log = self._log.bind(tenant_id=str(shard.tenant_id), shard_id=shard.slug())
        versions: dict[int, int] = {}

        def note(event: str, fields: Mapping[str, Any]) -> None:
            """Log in the words of walredo.md 2.1 and 4.1, which people look for."""
            match event:
                case "received output":
                    pid = fields["pid"]
                    span = {"pid": pid, "tenant_id": str(shard.tenant_id), "shard_id": shard.slug()}
                    if pid in versions:
                        span["pg_version"] = versions[pid]
                    spans = [("wal-redo-postgres-stderr", span)]
                    self._log.error(event, spans=spans, output=fields["output"])
                case "failed":
                    level = log.warning if fields["during"] == "gc compaction" else log.error
                    level(fields["error"])
                case "retried walredo succeeded":
                    log.info(event, **fields)
                case _:
                    if event == "started":
                        versions[fields["pid"]] = fields["pg_version"]
                    elif event == "stopped":
                        versions.pop(fields["pid"], None)
                    log.info(f"wal redo process {event}", **fields)

        return _core.RedoPool(
            tenant=str(shard),
            timeout_seconds=self._timeout_seconds,
            command=self._scratch.command,
            log=note,
            metrics=self._redo_metrics,
            process_only=self._process_only,
        )

    def redo_counts(self) -> Mapping[str, Any]:
        """Return what is counted about redo, by the names of metrics.md (see ``_core.RedoMetrics.snapshot``)."""
        return self._redo_metrics.snapshot()

    def cache_counts(self) -> Mapping[str, tuple[int, int, int, int]]:
        """Return hits, misses, entries and bytes of the caches ``blocks`` and ``pages``."""
        return self._caches.stats()

    def read_counts(self) -> Mapping[str, tuple[Sequence[int], Sequence[int], int]]:
        """Return what reads cost (see ``_core.Caches.reads``)."""
        return self._caches.reads()

    def close(self) -> None:
        """Remove the redo templates."""
        self._scratch.close()


def _as_core(store: TimelineStore | None) -> _core.TimelineStore | None:
    assert store is None or isinstance(store, _core.TimelineStore), "ancestors are opened by the same engine"
    return store


def _as_core_redo(redo: RedoPool | None) -> _core.RedoPool | None:
    assert redo is None or isinstance(redo, _core.RedoPool), "pools are opened by the same engine"
    return redo
