"""Metrics of object storage, of the deletion queue and of redo (metrics.md 2, 3.7, 3.10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pageserver.observe.exposition import Buckets, Exposition
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.request_stats import RequestStats

Counted = tuple[Sequence[int], Sequence[int], int]
"""Bounds, counts, sum."""

#: Redo, by name: the label of a family of counters, the help text.
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


def collect_store(exposition: Exposition, store: RequestStats) -> None:
    """Add what requests to object storage cost; all children exist from the start."""
    exposition.histogram(
        "remote_storage_s3_request_seconds",
        "Seconds to complete a request",
        [
            ({"request_type": kind.value, "result": result.value}, Buckets.of(times))
            for (kind, result), times in store.requests.items()
        ],
    )
    exposition.histogram(
        "remote_storage_s3_wait_seconds",
        "Seconds rate limited",
        [({"request_type": kind.value}, Buckets.of(times)) for kind, times in store.waits.items()],
    )
    exposition.counter(
        "remote_storage_s3_cancelled_waits_total",
        "Times a semaphore wait was cancelled",
        [({"request_type": kind.value}, count) for kind, count in store.cancelled_waits.items()],
    )
    exposition.counter(
        "remote_storage_s3_deleted_objects_total", "Amount of deleted objects in total", store.deleted_objects
    )


def collect_deletions(exposition: Exposition, deletions: DeletionQueue) -> None:
    counters = deletions.counters
    for name, text, value in (
        ("submitted", "Number of objects submitted for deletion", counters.submitted),
        ("dropped", "Number of object deletions dropped due to stale generation.", counters.dropped),
        ("executed", "Number of objects deleted.", counters.executed),
        ("validated", "Number of keys validated for deletion.", counters.validated),
        (
            "dropped_lsn_updates",
            "Updates to remote_consistent_lsn dropped due to stale generation number.",
            counters.dropped_lsn_updates,
        ),
        ("unexpected_errors", "Unexpected conditions that may stall the queue", counters.unexpected_errors),
    ):
        exposition.counter(f"pageserver_deletion_queue_{name}_total", text, value)
    exposition.counter(
        "pageserver_deletion_queue_remote_errors_total",
        "Retryable remote I/O errors while executing deletions",
        [({"op_kind": "execute"}, counters.remote_errors), ({"op_kind": "failpoint"}, counters.failpoint_errors)],
    )


def collect_redo(exposition: Exposition, counts: Mapping[str, Any]) -> None:
    """Add redo. A count is a number, numbers by a label's value, or a histogram (bounds, cumulative counts, sum)."""
    for name, count in counts.items():
        label, text = _REDO[name]
        if isinstance(count, tuple):
            bounds, cumulative, total = count
            each = [second - first for first, second in pairwise((0, *cumulative))]
            exposition.histogram(name, text, [({}, Buckets(bounds, each, total))])
        elif isinstance(count, dict):
            exposition.counter(name, text, [({label: value}, number) for value, number in count.items()])
        else:
            exposition.counter(name, text, count)


def collect_reads(exposition: Exposition, reads: Mapping[str, Counted]) -> None:
    """Add what reads cost that went to layers; pages of the page cache go through none."""
    for name, key, text in (
        ("layers_per_read_global", "layers", "Layers visited per read, all of its batch"),
        ("layers_per_read_batch_global", "layers_of_batch", "Layers visited per batch"),
        ("layers_per_read_amortized_global", "layers_amortized", "Layers visited by a batch, shared among its reads"),
        ("deltas_per_read_global", "deltas", "Records applied per page"),
    ):
        exposition.histogram(f"pageserver_{name}", text, [({}, Buckets(*reads[key]))])


def collect_caches(exposition: Exposition, caches: Mapping[str, tuple[int, int, int, int]], *, blocks_max: int) -> None:
    """Add the cache of index blocks of layer files, which is what Neon's page cache holds."""
    _, _, _, weight = caches["blocks"]
    exposition.gauge(
        "pageserver_page_cache_size_current_bytes",
        "Bytes of index blocks of layer files in memory",
        [({"key_kind": "immutable"}, weight)],
    )
    exposition.gauge("pageserver_page_cache_size_max_bytes", "Its bound", blocks_max)
