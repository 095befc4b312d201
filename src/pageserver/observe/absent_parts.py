"""Families of parts that this server does not have, with value 0 (metrics.md 3.12).

WHY they are here at all: a rule on `rate()` or `increase()` of a series that does not exist says nothing, and a
dashboard shows a gap; that nothing of the kind has happened is what these zeros say, and it is true. What happens here
and is not counted has no family, and is listed in `tests/integration/metrics_not_built.py`.
"""

from __future__ import annotations

from pageserver.observe.exposition import Buckets, Exposition

_POWERS = tuple(float(1 << n) for n in range(11))
_RARE_EVENTS = (
    "remove_on_drop_failed",
    "init_completed_without",
    "download_failed_without",
    "raced_wanted_evicted",
    "init_needed_no_download",
    "permanent_loading_failure",
    "evicted_with_waiters",
)
_URING = "tokio_epoll_uring_pageserver_thread_local_launch"

#: Name without prefix: what it would count, its label (or none) and the label's values.
_COUNTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "walreceiver_broker_updates_total": ("Messages of a storage broker", "", ()),
    "walreceiver_candidates_events_total": ("Safekeepers to choose from", "event", ("add", "remove")),
    "circuit_breaker_broken": ("Compaction was stopped after failures", "", ()),
    "circuit_breaker_unbroken": ("Compaction began again after failures", "", ()),
    "tenant_manager_unexpected_errors_total": ("Slots found in a state that cannot be", "", ()),
    "unexpected_ondemand_downloads_count": ("Downloads by tasks that should not need one", "", ()),
    "basebackup_cache_read_total": ("Base backups from a cache", "result", ("hit", "miss", "error")),
    "basebackup_cache_prepare_total": ("Base backups made for a cache", "result", ("ok", "skip", "error")),
    "layer_started_deletes": ("Garbage layers that compaction removes", "", ()),
    "layer_completed_deletes": ("Garbage layers that compaction removed", "", ()),
    "layer_failed_deletes_count": (
        "Garbage layers that could not be removed",
        "reason",
        ("timeline_gone", "delete_scheduling_failed"),
    ),
    "layer_assumed_rare_count": ("Odd ways of a layer", "event", _RARE_EVENTS),
    "layer_inits_cancelled_count": ("Downloads that nobody waited for any more", "", ()),
    "disk_usage_based_eviction_collected_layers_total": ("Eviction by disk usage: layers looked at", "", ()),
    "disk_usage_based_eviction_select_layers_total": ("Eviction by disk usage: layers chosen", "", ()),
    "disk_usage_based_eviction_evicted_layers_total": ("Eviction by disk usage: layers evicted", "", ()),
    "disk_usage_based_eviction_evicted_bytes_total": ("Eviction by disk usage: bytes evicted", "", ()),
    f"{_URING}_success_count": ("Instances of io_uring started", "", ()),
    f"{_URING}_failures_count": ("Instances of io_uring that did not start", "", ()),
}
_GAUGES: dict[str, str] = {
    "basebackup_cache_entries_total": "Base backups in a cache",
    "basebackup_cache_size_bytes": "Their bytes",
    "basebackup_cache_prepare_queue_size": "Base backups to be made for a cache",
    "tokio_epoll_uring_systems_created": "Instances of io_uring",
    "tokio_epoll_uring_systems_destroyed": "Instances of io_uring that are gone",
}
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "tokio_epoll_uring_slots_submission_queue_depth": ("Requests in a queue of io_uring", _POWERS),
    "layer_eviction_held_permit_seconds": ("Time of an eviction", (0.001, 0.01, 0.1, 0.5, 1.0, 5.0)),
    "disk_usage_based_eviction_tenant_collection_seconds": (
        "Eviction by disk usage: time of looking at a tenant",
        (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0),
    ),
    "disk_usage_based_eviction_tenant_collected_layers": (
        "Eviction by disk usage: layers of a tenant",
        (5.0, 50.0, 500.0, 5000.0, 50000.0),
    ),
}


def collect_absent_parts(exposition: Exposition) -> None:
    """Add all families, with nothing counted."""
    for name, (text, label, values) in _COUNTERS.items():
        exposition.counter(f"pageserver_{name}", text, [({label: value}, 0) for value in values] if label else 0)
    for name, text in _GAUGES.items():
        exposition.gauge(f"pageserver_{name}", text, 0)
    for name, (text, bounds) in _HISTOGRAMS.items():
        nothing = Buckets(bounds, [0] * (len(bounds) + 1), 0)
        exposition.histogram(f"pageserver_{name}", text, [({}, nothing)])
