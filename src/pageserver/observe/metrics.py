"""The text of `/metrics`, encoded by hand because Neon's names are not the Prometheus client's (design.md 9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pageserver.remote.request_stats import BOUNDS_SECONDS, Histogram, RequestStats
from pageserver.tenant import TenantManager
from pageserver.tenant.manager import MapState


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    kind: str
    text: str
    samples: Sequence[tuple[dict[str, str], float]]
    """Label `__suffix` is no label but the end of the sample's name."""


#: Redo (metrics.md 3.7), by name: the label of a family of counters, the help text.
_REDO: Mapping[str, tuple[str, str]] = {
    "pageserver_wal_redo_seconds": ("", "Time of replaying a run of WAL records, natively or by a process"),
    "pageserver_wal_redo_records_histogram": ("", "Records in a request to a WAL redo process"),
    "pageserver_wal_redo_bytes_histogram": ("", "Bytes of records in a request to a WAL redo process"),
    "pageserver_replayed_wal_records_total": ("", "Records sent to WAL redo processes"),
    "pageserver_wal_redo_process_records_total": ("rmgr", "Records sent to WAL redo processes, by resource manager"),
    "pageserver_wal_redo_process_launch_duration": ("", "Time of starting a WAL redo process"),
    "pageserver_wal_redo_process_started_total": ("", "WAL redo processes started"),
    "pageserver_wal_redo_process_stopped_total": ("cause", "WAL redo processes stopped, by cause"),
    "pageserver_walredo_stderr_logger_tasks_started_total": ("", "Readers of a WAL redo process's errors started"),
    "pageserver_walredo_stderr_logger_tasks_finished_total": ("", "Readers of a WAL redo process's errors finished"),
}


def render_metrics(
    manager: TenantManager,
    ignored_items: Sequence[str],
    version: str,
    *,
    store: RequestStats | None = None,
    redo: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the exposition text of what is counted so far; ``redo`` is what `CoreEngine.redo_counts` returns."""
    families = [
        _Family(
            "libmetrics_build_info", "gauge", "Build/version information", [({"revision": version, "build_tag": ""}, 1)]
        ),
        _Family(
            "pageserver_config_ignored_items",
            "gauge",
            "TOML items present in the on-disk configuration file but ignored by the pageserver config parser.",
            [({"item": ""}, 0), *(({"item": item}, 1) for item in ignored_items)],
        ),
    ]
    if manager.map_state is not MapState.INITIALIZING:
        families += _tenant_families(manager)
        families += _deletion_families(manager)
    if store is not None:
        families += _store_families(store)
    return "".join([*_encode(families), *_encode_redo(redo or {})]).encode()


def _tenant_families(manager: TenantManager) -> list[_Family]:
    states: dict[str, float] = {}
    last: list[tuple[dict[str, str], float]] = []
    consistent: list[tuple[dict[str, str], float]] = []
    size: list[tuple[dict[str, str], float]] = []
    evictions: list[tuple[dict[str, str], float]] = []
    paused: list[tuple[dict[str, str], float]] = []
    stalled: list[tuple[dict[str, str], float]] = []
    flush_failures: list[tuple[dict[str, str], float]] = []
    offloaded: list[tuple[dict[str, str], float]] = []
    for tenant in manager.attached():
        states[tenant.state.status.value] = states.get(tenant.state.status.value, 0) + 1
        shard_labels = {"tenant_id": str(tenant.shard.tenant_id), "shard_id": tenant.shard.slug()}
        offloaded.append((shard_labels, len(tenant.archival.offloaded)))
        for timeline in tenant.open_timelines():
            labels = {
                "tenant_id": str(tenant.shard.tenant_id),
                "shard_id": tenant.shard.slug(),
                "timeline_id": str(timeline.timeline_id),
            }
            info = timeline.detail()
            last.append((labels, float(info.last_record_lsn)))
            consistent.append((labels, float(info.disk_consistent_lsn)))
            size.append((labels, float(timeline.resident_bytes())))
            evictions.append((labels, float(timeline.residence.evictions)))
            paused.append((labels, float(info.source.paused is not None)))
            stalled.append((labels, float(info.ingest_stalled is not None)))
            flush_failures.append((labels, float(timeline.flush_failures)))
    return [
        _Family(
            "pageserver_tenant_states_count",
            "gauge",
            "Count of tenants per state",
            [({"state": state}, count) for state, count in sorted(states.items())],
        ),
        _Family("pageserver_last_record_lsn", "gauge", "Last record LSN grouped by timeline", last),
        _Family(
            "pageserver_wal_source_paused",
            "gauge",
            "1 while a timeline's source ingests nothing because its tenant has reached stored_bytes_max",
            paused,
        ),
        _Family("pageserver_disk_consistent_lsn", "gauge", "Disk consistent LSN grouped by timeline", consistent),
        _Family(
            "pageserver_remote_ondemand_downloaded_layers_total",
            "counter",
            "Total on-demand downloaded layers",
            [({}, manager.downloads.layers)],
        ),
        _Family(
            "pageserver_remote_ondemand_downloaded_bytes_total",
            "counter",
            "Total bytes of layers on-demand downloaded",
            [({}, manager.downloads.bytes)],
        ),
        _Family("pageserver_evictions", "counter", "Number of layers evicted from the pageserver", evictions),
        _Family(
            "pageserver_ingest_stalled", "gauge", "1 while WAL cannot be taken or not be made durable here", stalled
        ),
        _Family("pageserver_flush_failures_total", "counter", "Flushes of a layer that failed", flush_failures),
        _Family("pageserver_resident_physical_size", "gauge", "The size of the layer files present on disk", size),
        _Family("pageserver_tenant_offloaded_timelines", "gauge", "Offloaded timelines of a tenant", offloaded),
    ]


def _deletion_families(manager: TenantManager) -> list[_Family]:
    counters = manager.deletions.counters
    counted = {
        "submitted": ("Number of objects submitted for deletion", counters.submitted),
        "dropped": ("Number of object deletions dropped due to stale generation.", counters.dropped),
        "executed": ("Number of objects deleted.", counters.executed),
        "validated": ("Number of keys validated for deletion.", counters.validated),
        "dropped_lsn_updates": (
            "Updates to remote_consistent_lsn dropped due to stale generation number.",
            counters.dropped_lsn_updates,
        ),
        "unexpected_errors": ("Unexpected conditions that may stall the queue", counters.unexpected_errors),
    }
    return [
        *(
            _Family(f"pageserver_deletion_queue_{name}_total", "counter", text, [({}, value)])
            for name, (text, value) in counted.items()
        ),
        _Family(
            "pageserver_deletion_queue_remote_errors_total",
            "counter",
            "Retryable remote I/O errors while executing deletions",
            [({"op_kind": "execute"}, counters.remote_errors), ({"op_kind": "failpoint"}, counters.failpoint_errors)],
        ),
        _Family(
            "pageserver_local_data_loss_suspected",
            "gauge",
            "Non-zero value indicates that pageserver local data loss is suspected",
            [({}, float(manager.local_data_loss_suspected))],
        ),
    ]


def _store_families(store: RequestStats) -> list[_Family]:
    """Return what requests to object storage cost (metrics.md); all children exist from the start."""
    requests: list[tuple[dict[str, str], float]] = []
    for (kind, result), histogram in store.requests.items():
        requests += _histogram({"request_type": kind.value, "result": result.value}, histogram)
    waits: list[tuple[dict[str, str], float]] = []
    for kind, histogram in store.waits.items():
        waits += _histogram({"request_type": kind.value}, histogram)
    cancelled = [({"request_type": kind.value}, float(count)) for kind, count in store.cancelled_waits.items()]
    return [
        _Family("remote_storage_s3_request_seconds", "histogram", "Seconds to complete a request", requests),
        _Family("remote_storage_s3_wait_seconds", "histogram", "Seconds rate limited", waits),
        _Family(
            "remote_storage_s3_cancelled_waits_total", "counter", "Times a semaphore wait was cancelled", cancelled
        ),
        _Family(
            "remote_storage_s3_deleted_objects_total",
            "counter",
            "Amount of deleted objects in total",
            [({}, store.deleted_objects)],
        ),
    ]


def _histogram(labels: dict[str, str], histogram: Histogram) -> Iterable[tuple[dict[str, str], float]]:
    below = 0
    for bound, count in zip((*BOUNDS_SECONDS, None), histogram.counts, strict=True):
        below += count
        yield {"__suffix": "_bucket", **labels, "le": "+Inf" if bound is None else f"{bound:g}"}, below
    yield {"__suffix": "_sum", **labels}, histogram.sum_seconds
    yield {"__suffix": "_count", **labels}, below


def _encode_redo(counts: Mapping[str, Any]) -> Iterable[str]:
    """A count is a number, numbers by a label's value, or a histogram (bounds, cumulative counts, sum)."""
    for name, count in counts.items():
        label, text = _REDO[name]
        if isinstance(count, tuple):
            bounds, cumulative, total = count
            yield f"# HELP {name} {text}\n# TYPE {name} histogram\n"
            for bound, below in zip([*(f"{bound:g}" for bound in bounds), "+Inf"], cumulative, strict=True):
                yield f'{name}_bucket{{le="{bound}"}} {below}\n'
            yield f"{name}_sum {total:g}\n{name}_count {cumulative[-1]}\n"
        else:
            by_label = count if isinstance(count, dict) else {"": count}
            samples = [({label: value} if label else {}, float(number)) for value, number in by_label.items()]
            yield from _encode([_Family(name, "counter", text, samples)])


def _encode(families: Iterable[_Family]) -> Iterable[str]:
    for family in families:
        yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
        for labels, value in family.samples:
            shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items() if key != "__suffix")
            braced = f"{{{shown}}}" if shown else ""
            name = family.name + labels.get("__suffix", "")
            yield f"{name}{braced} {int(value) if value == int(value) else format(value, 'g')}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
