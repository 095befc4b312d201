"""Where one tenant's versions of all keys are kept: the seam between a tenant and the two repositories.

    Tenant ── Repository ──┬─ LayeredRepository   the engine's open layers and layer files, indices, object storage
                           └─ RocksRepository     every version an object in RocksDB, local disk only

A repository opens timelines, as roots or as branches of an open ancestor, drops them, and removes what nobody can read
any more; reading and writing is the business of the `TimelineStore` that it opens. Which one a tenant has is its
setting `repository` (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol

from pageserver import _core
from pageserver.clock import Clock
from pageserver.errors import CorruptDataError, PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.repository import GarbageReport, ObjectRepository, RocksObjectStore, TimelineRecord
from pageserver.timeline.engine import StoreParameters, TimelineStore


class Repository(Protocol):
    """All timelines of one tenant shard. Methods block; `open_timeline` only for memory, once `open` has returned.

    Raises, in every method: UnavailableError, CorruptDataError, StoppedError (after `close`).
    """

    @property
    def keeps_layers(self) -> bool:
        """Whether timelines consist of layer files that an index names. If not, the local disk is the only copy."""
        ...

    def open(self) -> None:
        """Open what is on disk. Again: nothing."""
        ...

    def open_timeline(self, parameters: StoreParameters) -> TimelineStore:
        """Open a timeline, or make it if the parameters say that it is new. An ancestor is open already."""
        ...

    def drop_timeline(self, timeline_id: TimelineId) -> None:
        """Remove what lies outside of the timeline's directory, durably. Absence is fine."""
        ...

    def keep_only(self, timeline_ids: Iterable[TimelineId]) -> None:
        """Remove what earlier runs left of other timelines."""
        ...

    def collect_garbage(self, timeline_id: TimelineId, cutoff_lsn: int) -> GarbageReport:
        """Remove what nobody can read once the timeline is read from `cutoff_lsn` on only, durably so."""
        ...

    def close(self) -> None:
        """Let go of everything, behind the shutdown of all timelines. Again: nothing."""
        ...


class LayeredRepository:
    """The engine's stores. What is durable are layer files and the indices that name them, not this object."""

    keeps_layers = True

    def __init__(self, open_store: Callable[[StoreParameters], TimelineStore]) -> None:
        self._open_store = open_store

    def open(self) -> None:
        """There is nothing to open: layers come with their timelines."""

    def open_timeline(self, parameters: StoreParameters) -> TimelineStore:
        return self._open_store(parameters)

    def drop_timeline(self, timeline_id: TimelineId) -> None:
        """There is nothing outside of the timeline's directory and its objects, which its owner removes."""

    def keep_only(self, timeline_ids: Iterable[TimelineId]) -> None:
        """See `drop_timeline`."""

    def collect_garbage(self, timeline_id: TimelineId, cutoff_lsn: int) -> GarbageReport:
        """Remove nothing: whole layers go when images have replaced them, which compaction has to bring about."""
        return GarbageReport(cutoff_lsn)

    def close(self) -> None:
        """Stores are shut down one by one, by their timelines."""


class RocksRepository:
    """An object repository in the tenant's directory."""

    keeps_layers = False

    def __init__(self, directory: Path, *, clock: Clock) -> None:
        self._objects = ObjectRepository(lambda: RocksObjectStore(directory), clock=clock)

    def open(self) -> None:
        self._objects.open()

    def open_timeline(self, parameters: StoreParameters) -> TimelineStore:
        """Raises: CorruptDataError (the index knows a timeline, or an LSN of it, that the repository does not)."""
        timeline_id = bytes(parameters.timeline_id)
        redo = parameters.redo
        assert redo is None or isinstance(redo, _core.RedoPool), "pools are opened by the compiled engine"
        ancestor_id = None if parameters.ancestor_id is None else bytes(parameters.ancestor_id)
        if parameters.is_new:
            start = int(parameters.last_record_lsn)
            record = TimelineRecord(
                timeline_id=timeline_id,
                pg_version=parameters.pg_version,
                flavour=parameters.traits.flavour,
                hint_bits_logged=parameters.traits.hint_bits_logged,
                ancestor_id=ancestor_id,
                ancestor_lsn=int(parameters.ancestor_lsn),
                last_record_lsn=start,
                prev_record_lsn=int(parameters.prev_record_lsn),
                gc_cutoff_lsn=start,
            )
            timeline = self._objects.create_timeline(
                record, disk_consistent_lsn=int(parameters.disk_consistent_lsn), redo=redo
            )
        elif timeline_id in self._objects.timeline_ids:
            timeline = self._objects.open_timeline(
                timeline_id,
                ancestor_id=ancestor_id,
                ancestor_lsn=int(parameters.ancestor_lsn),
                disk_consistent_lsn=int(parameters.disk_consistent_lsn),
                redo=redo,
            )
        else:
            raise CorruptDataError(
                f"timeline {parameters.timeline_id} is not in the rocksdb repository of its tenant",
                hint='if it was made with repository = "layered", the setting must not change',
                timeline_id=parameters.timeline_id,
            )
        timeline.set_gc_cutoff(int(parameters.gc_cutoff_lsn))
        return timeline

    def drop_timeline(self, timeline_id: TimelineId) -> None:
        self._objects.drop_timeline(bytes(timeline_id))

    def keep_only(self, timeline_ids: Iterable[TimelineId]) -> None:
        self._objects.keep_only(bytes(each) for each in timeline_ids)

    def collect_garbage(self, timeline_id: TimelineId, cutoff_lsn: int) -> GarbageReport:
        return self._objects.collect_garbage(bytes(timeline_id), cutoff_lsn)

    def close(self) -> None:
        self._objects.close()


def check_repository(kind: Literal["layered", "rocksdb"], *, stores_layers: bool, is_sharded: bool) -> None:
    """Refuse a repository that cannot do what the server promises. Raises PreconditionFailedError."""
    if kind == "layered":
        return
    if stores_layers:
        raise PreconditionFailedError(
            'repository = "rocksdb" keeps a tenant on the local disk only and cannot be used with [remote_storage]',
            hint="leave the tenant's repository at layered, or run a server without remote storage",
        )
    if is_sharded:
        raise PreconditionFailedError('repository = "rocksdb" is for unsharded tenants only')
