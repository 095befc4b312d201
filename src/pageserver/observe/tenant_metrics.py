"""Metrics of tenants, their timelines, layers and remote clients (metrics.md 3.2, 3.3, 3.6, 3.8 to 3.10).

Everything is read from the objects as they are: a tenant or timeline that has gone leaves no series behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pageserver._core import TimelineStore
from pageserver.counts import ServerCounts, SizeCalculations
from pageserver.observe.exposition import Buckets, Exposition, Labels
from pageserver.observe.page_service_metrics import timeline_labels
from pageserver.remote.client_counts import Started
from pageserver.tenant import Tenant, TenantManager
from pageserver.tenant.state import TenantStatus
from pageserver.timeline import Timeline
from pageserver.timeline.state import TimelineStatus

_Samples = list[tuple[Labels, float]]
_Timelines = list[tuple[Labels, Timeline]]


@dataclass(slots=True)
class _Layers:
    """What one timeline's layers add up to."""

    resident_bytes: int = 0
    all_bytes: int = 0
    count: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, timeline: Timeline) -> _Layers:
        found = cls()
        for layer in timeline.store.layers():
            place = ("l0" if layer.is_l0 else "l1", layer.kind)
            found.count[place] += 1
            found.bytes[place] += layer.file_size
            found.all_bytes += layer.file_size
            found.resident_bytes += layer.file_size if layer.is_resident else 0
        if frozen := timeline.store.frozen_layers():
            found.count["frozen", "delta"] = frozen
        return found


def collect_tenants(exposition: Exposition, manager: TenantManager) -> None:
    """Add all families. The map must be open."""
    tenants = manager.attached()
    _collect_states(exposition, manager, tenants)
    _collect_server(exposition, manager.counts)
    pairs = [(tenant, timeline) for tenant in tenants for timeline in list(tenant.open_timelines())]
    timelines: _Timelines = [
        (timeline_labels(tenant.shard, timeline.timeline_id), timeline) for tenant, timeline in pairs
    ]
    _collect_lsns(exposition, timelines)
    _collect_sizes(exposition, manager.counts.size_calculations, timelines)
    _collect_layers(exposition, timelines)
    _collect_clients(exposition, timelines)
    _collect_downloads(exposition, manager)


def _collect_states(exposition: Exposition, manager: TenantManager, tenants: list[Tenant]) -> None:
    states = Counter(tenant.state.status for tenant in tenants)
    exposition.gauge(
        "pageserver_tenant_states_count",
        "Count of tenants per state",
        [({"state": status.value}, states[status]) for status in TenantStatus],
    )
    exposition.gauge(
        "pageserver_broken_tenants_count",
        "Set of broken tenants",
        [
            ({"tenant_id": str(tenant.shard), "shard_id": tenant.shard.slug()}, 1)
            for tenant in tenants
            if tenant.state.status is TenantStatus.BROKEN
        ],
    )
    active = sum(
        timeline.state.status is TimelineStatus.ACTIVE for tenant in tenants for timeline in tenant.open_timelines()
    )
    offloaded = [
        ({"tenant_id": str(tenant.shard.tenant_id), "shard_id": tenant.shard.slug()}, len(tenant.archival.offloaded))
        for tenant in tenants
    ]
    exposition.gauge(
        "pageserver_timeline_states_count",
        "Count of timelines per state",
        [({"state": "active"}, active), ({"state": "offloaded"}, sum(count for _, count in offloaded))],
    )
    exposition.gauge("pageserver_tenant_offloaded_timelines", "Offloaded timelines of a tenant", offloaded)
    slots = manager.slot_counts()
    exposition.gauge(
        "pageserver_tenant_manager_slots",
        "How many slots of the tenant map are in which mode",
        [
            ({"mode": "attached"}, slots.attached),
            ({"mode": "secondary"}, slots.secondary),
            ({"mode": "inprogress"}, slots.in_progress),
        ],
    )
    exposition.gauge(
        "pageserver_utilization_score", "How full the server is; 1,000,000 is full", manager.utilization.score
    )
    exposition.counter("pageserver_tenant_manager_slot_writes", "Writes to slots of the tenant map", slots.writes)


def _collect_server(exposition: Exposition, counts: ServerCounts) -> None:
    for name, text, value in (
        ("tenant_startup_scheduled", "Number of tenants found at the start", counts.startup_scheduled),
        ("tenant_startup_complete", "Number of those that became active", counts.startup_complete),
        ("secondary_upload_heatmap", "Heatmaps uploaded", counts.heatmaps_uploaded),
        ("secondary_upload_heatmap_errors", "Heatmaps that could not be made", counts.heatmaps_failed),
        ("walreceiver_started_connections_total", "Connections to WAL sources", counts.wal_connections),
        ("wal_ingest_records_received", "WAL records received", counts.wal_records),
        ("wal_ingest_bytes_received", "Bytes of WAL received", counts.wal_bytes),
    ):
        exposition.counter(f"pageserver_{name}", text, value)
    for name, text, histogram in (
        ("tenant_activation_seconds", "Time from construction to Active", counts.activation_seconds),
        ("tenant_preload_seconds", "Time of reading documents and indices", counts.preload_seconds),
        ("tenant_attach_seconds", "Time of opening timelines", counts.attach_seconds),
        ("secondary_upload_heatmap_duration", "Time of uploading a heatmap", counts.heatmap_seconds),
        ("initdb_seconds_global", "Time of initdb", counts.initdb_seconds),
    ):
        exposition.histogram(f"pageserver_{name}", text, [({}, Buckets.of(histogram))])
    exposition.histogram(
        "pageserver_remote_timeline_client_seconds_global",
        "Time of one attempt of a remote operation",
        [
            ({**_call_labels(file, operation), "task_kind": _task_kind(operation), "status": status}, Buckets.of(times))
            for (file, operation, status), times in counts.client_seconds.items()
        ],
    )
    exposition.histogram(
        "pageserver_storage_operations_seconds_global",
        "Time of background operations that ended well",
        [({"operation": name}, Buckets.of(times)) for name, times in counts.operation_seconds.items()],
    )


def _collect_sizes(exposition: Exposition, counts: SizeCalculations, timelines: _Timelines) -> None:
    sizes = [(labels, timeline.current_logical_size) for labels, timeline in timelines]
    exposition.gauge("pageserver_current_logical_size", "Size of all relations by timeline, as far as known", sizes)
    name = "pageserver_initial_logical_size"
    exposition.counter(
        f"{name}_start_calculation",
        "First computations of a timeline's size that began",
        [({"attempt": attempt, "circumstances": how}, number) for (attempt, how), number in counts.started.items()],
    )
    exposition.counter(
        f"{name}_drop_calculation",
        "Those that did not end well",
        [({"attempt": attempt}, number) for attempt, number in counts.dropped.items()],
    )
    exposition.counter(f"{name}_finish_calculation", "Sizes found", counts.finished)
    exposition.counter(
        f"{name}_drop_finished_calculation", "Sizes that went with their timelines", counts.results_dropped
    )


def _collect_lsns(exposition: Exposition, timelines: _Timelines) -> None:
    lsns: dict[str, _Samples] = {"last_record": [], "disk_consistent": [], "projected_remote_consistent": []}
    for labels, timeline in timelines:
        lsns["last_record"].append((labels, int(timeline.last_record_lsn)))
        lsns["disk_consistent"].append((labels, int(timeline.disk_consistent_lsn)))
        lsns["projected_remote_consistent"].append((labels, int(timeline.remote.projected_lsn)))
    for name, text in (
        ("standby_horizon", "LSN of standbys that holds garbage collection back; 0 is none"),
        ("valid_lsn_lease_count", "Leases of LSNs; none are granted"),
    ):
        exposition.gauge(f"pageserver_{name}", text, [(labels, 0) for labels, _ in timelines])
    exposition.gauge(
        "pageserver_pitr_history_size",
        "WAL from the cutoff to the last record; until there is a cutoff, all of it",
        [(labels, int(timeline.last_record_lsn)) for labels, timeline in timelines],
    )
    for name, samples in lsns.items():
        exposition.gauge(f"pageserver_{name}_lsn", f"{name.replace('_', ' ').capitalize()} LSN by timeline", samples)
    exposition.counter(
        "pageserver_timeline_wal_records_received",
        "WAL records received by timeline",
        [(labels, timeline.wal_counts.records) for labels, timeline in timelines],
    )
    details = [(labels, timeline, timeline.detail()) for labels, timeline in timelines]
    sources = [(labels, info.source) for labels, _, info in details if info.source.slot is not None]
    exposition.gauge(
        "pageserver_wal_source_slot_retained_bytes",
        "WAL that a primary keeps for the replication slot of a timeline, as far as it told",
        [(labels, source.slot_retained_bytes) for labels, source in sources if source.slot_retained_bytes is not None],
    )
    exposition.gauge(
        "pageserver_wal_source_slot_lost",
        "1 if a primary no longer has the WAL that a timeline needs next: a resync is needed",
        [(labels, float(source.is_lost)) for labels, source in sources],
    )
    exposition.gauge(
        "pageserver_wal_source_paused",
        "1 while a timeline's source ingests nothing because its tenant has reached stored_bytes_max",
        [(labels, int(info.source.paused is not None)) for labels, _, info in details],
    )
    exposition.gauge(
        "pageserver_ingest_stalled",
        "1 while WAL cannot be taken or not be made durable here",
        [(labels, int(info.ingest_stalled is not None)) for labels, _, info in details],
    )
    exposition.counter(
        "pageserver_flush_failures_total",
        "Flushes of a layer that failed",
        [(labels, timeline.flush_failures) for labels, timeline, _ in details],
    )
    exposition.gauge(
        "pageserver_walreceiver_active_managers",
        "Timelines that follow a WAL source",
        sum(info.source.connection is not None for _, _, info in details),
    )


def _collect_layers(exposition: Exposition, timelines: _Timelines) -> None:
    found = [(labels, timeline, _Layers.of(timeline)) for labels, timeline in timelines]
    resident = [(labels, layers.resident_bytes) for labels, _, layers in found]
    remote = [(labels, timeline.remote.remote_size_bytes()) for labels, timeline, _ in found]
    exposition.gauge("pageserver_resident_physical_size", "The size of the layer files present on disk", resident)
    exposition.gauge("pageserver_resident_physical_size_global", "The same, of all", sum(size for _, size in resident))
    exposition.gauge("pageserver_remote_physical_size", "Layers that the index in the store names", remote)
    exposition.gauge("pageserver_remote_physical_size_global", "The same, of all", sum(size for _, size in remote))
    exposition.gauge(
        "pageserver_visible_physical_size",
        "Layers that reads at the ends of branches need: until layers are compacted, all of them",
        [(labels, layers.all_bytes) for labels, _, layers in found],
    )
    for name in ("count", "bytes"):
        exposition.gauge(
            f"pageserver_layer_{name}",
            f"Layers, resident or not: {name}",
            [
                ({**labels, "level": level, "kind": kind}, number)
                for labels, _, layers in found
                for (level, kind), number in sorted(getattr(layers, name).items())
            ],
        )
    exposition.histogram(
        "pageserver_layers_per_read",
        "Layers visited per read, all of its batch",
        [
            (labels, Buckets(*timeline.store.layers_per_read()))
            for labels, timeline, _ in found
            if isinstance(timeline.store, TimelineStore)
        ],
    )
    exposition.counter(
        "pageserver_evictions",
        "Number of layers evicted from the pageserver",
        [(labels, timeline.residence.evictions) for labels, timeline, _ in found],
    )
    early = [(labels, timeline.residence.early_evictions()) for labels, timeline, _ in found]
    exposition.counter(
        "pageserver_evictions_with_low_residence_duration",
        "Layers evicted after a shorter residence than the tenant's threshold",
        [
            ({**labels, "residence_duration_data_source": "mtime", "low_threshold_secs": str(int(threshold))}, count)
            for labels, (threshold, count) in early
        ],
    )
    for part in ("sum", "count"):
        exposition.counter(
            f"pageserver_storage_operations_seconds_{part}",
            f"Background operations that ended well: {part}",
            [
                ({**labels, "operation": name}, times.total if part == "sum" else times.count)
                for labels, timeline, _ in found
                for name, times in timeline.operations.items()
            ],
        )


def _collect_clients(exposition: Exposition, timelines: _Timelines) -> None:
    """Queues: calls and bytes that were scheduled and those that are done; and what waits."""
    counts = [(labels, timeline.remote.queue.counts) for labels, timeline in timelines]
    calls = [(labels, call, number) for labels, found in counts for call, number in sorted(found.calls.items())]
    sizes = [(labels, call, number) for labels, found in counts for call, number in sorted(found.bytes.items())]
    for unit, numbers in (("calls", calls), ("bytes", sizes)):
        for part in ("started", "finished"):
            exposition.counter(
                f"pageserver_remote_timeline_client_{unit}_{part}",
                f"Remote operations by timeline: {unit} {part}",
                _started_samples(numbers, part),
            )


def _collect_downloads(exposition: Exposition, manager: TenantManager) -> None:
    exposition.counter(
        "pageserver_remote_ondemand_downloaded_layers_total",
        "Total on-demand downloaded layers",
        manager.downloads.layers,
    )
    exposition.counter(
        "pageserver_remote_ondemand_downloaded_bytes_total",
        "Total bytes of layers on-demand downloaded",
        manager.downloads.bytes,
    )
    exposition.counter(
        "pageserver_layer_started_evictions", "Evictions that began", manager.downloads.evictions_started
    )
    exposition.counter("pageserver_layer_completed_evictions", "Evictions that ended well", manager.downloads.evictions)
    exposition.counter(
        "pageserver_layer_cancelled_evictions_count",
        "Evictions that began and did not end, by reason",
        [({"reason": reason}, count) for reason, count in manager.downloads.evictions_cancelled.items()],
    )
    exposition.gauge(
        "pageserver_local_data_loss_suspected",
        "Non-zero value indicates that pageserver local data loss is suspected",
        int(manager.local_data_loss_suspected),
    )


def _started_samples(numbers: Iterable[tuple[Labels, tuple[str, str], Started]], part: str) -> _Samples:
    return [({**labels, **_call_labels(*call)}, getattr(number, part)) for labels, call, number in numbers]


def _call_labels(file: str, operation: str) -> dict[str, str]:
    return {"file_kind": file, "op_kind": operation}


def _task_kind(operation: str) -> str:
    """Uploads and deletions are the queue's; who waits for a download is not known here."""
    return "unknown" if operation == "download" else "RemoteUploadTask"
