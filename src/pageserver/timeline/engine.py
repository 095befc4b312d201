"""What this room asks of the compiled engine, as protocols, so that decisions can be tested without it.

`pageserver._core.TimelineStore` and `RedoPool` fit them; `CoreEngine` makes them. Keys are 18 raw bytes, LSNs plain
integers, pages bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pageserver.ids import ShardIdentity, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote.source_document import SourceTraits


class LayerFacts(Protocol):
    """One layer as the engine lists it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def key_start(self) -> bytes: ...
    @property
    def key_end(self) -> bytes: ...
    @property
    def lsn_start(self) -> int: ...
    @property
    def lsn_end(self) -> int: ...
    @property
    def file_size(self) -> int: ...
    @property
    def is_l0(self) -> bool: ...


class OpenLayer(Protocol):
    """The layer that takes writes now."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def lsn_start(self) -> int: ...
    @property
    def age_seconds(self) -> float: ...


class RedoPool(Protocol):
    """At most one WAL redo process for one tenant, started on demand."""

    def is_running(self) -> bool: ...
    def pid(self) -> int | None: ...
    def stop_if_idle(self, idle_seconds: float) -> bool: ...
    def shutdown(self) -> None: ...


class TimelineStore(Protocol):
    """The storage engine's half of a timeline. Methods release the GIL; those that wait belong in a worker thread."""

    @property
    def last_record_lsn(self) -> int: ...
    @property
    def prev_record_lsn(self) -> int: ...
    @property
    def disk_consistent_lsn(self) -> int: ...
    def set_gc_cutoff(self, lsn: int) -> None: ...
    def add_layer(self, name: str, path: str, file_size: int) -> None: ...
    def remove_layers(self, names: list[str]) -> None: ...
    def layers(self) -> list[LayerFacts]: ...
    def get(self, key: bytes, lsn: int) -> bytes: ...
    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]: ...
    def scan(self, start: bytes, end: bytes, lsn: int) -> list[tuple[bytes, bytes]]: ...
    def open_layer(self) -> OpenLayer | None: ...
    def frozen_layers(self) -> int: ...
    def freeze(self) -> int | None: ...
    def flush_oldest(self, generation: int | None) -> LayerFacts | None: ...
    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StoreParameters:
    """How to open a timeline in the engine. `ancestor` is the parent's store, still open."""

    directory: Path
    shard: TenantShardId
    identity: ShardIdentity
    timeline_id: TimelineId
    pg_version: int
    traits: SourceTraits
    last_record_lsn: Lsn
    prev_record_lsn: Lsn
    disk_consistent_lsn: Lsn
    gc_cutoff_lsn: Lsn
    next_open_layer_at: Lsn
    ancestor: TimelineStore | None
    ancestor_lsn: Lsn
    redo: RedoPool | None


class Engine(Protocol):
    """Makes the engine's objects."""

    def open_store(self, parameters: StoreParameters) -> TimelineStore: ...
    def open_redo(self, shard: TenantShardId) -> RedoPool | None:
        """Return the tenant's redo pool, or None where no PostgreSQL installation is configured."""
        ...
