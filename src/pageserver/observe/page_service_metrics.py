"""Metrics of the page service and of base backups (metrics.md 3.4). Counting is compiled; names are given here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pageserver.config import ServerSettings
from pageserver.ids import ShardIndex, TenantShardId, TimelineId
from pageserver.observe.exposition import Buckets, Exposition, Labels
from pageserver.serve.page_service import PageServiceMetrics

_BATCH_BOUNDS = tuple(range(1, 33))
_TIMELINE_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32)
_GET_PAGE = {"smgr_query_type": "get_page_at_lsn"}
_MICROS = 1_000_000


def collect_page_service(exposition: Exposition, metrics: PageServiceMetrics) -> None:
    """Add all families of the service and of the timelines that it serves."""
    service = metrics.service
    connection = {"pageserver_connection_kind": "page_service"}
    for name in ("started", "finished"):
        exposition.counter(
            f"pageserver_live_connections_{name}",
            f"Number of network connections that were {name}",
            [(connection, service[f"connections_{name}"])],
        )
    exposition.counter("pageserver_compute_commands", "Commands of computes", _by("command", service["commands"]))
    exposition.counter(
        "pageserver_pagestream_handler_results_total",
        "Requests of page streams by outcome",
        _by("outcome", service["outcomes"]),
    )
    exposition.counter(
        "pageserver_misrouted_pagestream_requests_total",
        "Requests for a shard or tenant that is not attached here",
        service["misrouted_requests"],
    )
    exposition.counter(
        "pageserver_page_service_pagestream_flush_in_progress_micros_global",
        "Microseconds spent writing answers to sockets",
        service["flush_micros"],
    )
    exposition.histogram(
        "pageserver_page_service_pagestream_batch_wait_time_seconds_global",
        "Time of getpage requests from the end of the throttle to the execution of their batch",
        [({}, _micros(service["batch_wait_seconds"]))],
    )
    exposition.counter(
        "pageserver_page_service_questions_dropped_total",
        "Questions and log lines of the page service that were dropped since too many waited for the event loop",
        _by("kind", service["questions_dropped"]),
    )
    exposition.counter(
        "pageserver_smgr_query_started_global_count",
        "Number of requests received",
        _by("smgr_query_type", {name: n for name, n in service["requests_started"].items() if name != "test"}),
    )
    exposition.histogram(
        "pageserver_smgr_query_seconds_global",
        "Time spent executing requests",
        [
            ({"smgr_query_type": name}, _micros(found))
            for name, found in service["request_seconds"].items()
            if name != "test"
        ],
    )
    exposition.histogram(
        "pageserver_page_service_batch_size_global",
        "Sizes of batches of getpage requests",
        [({}, _sizes(service["batch_sizes"], _BATCH_BOUNDS))],
    )
    exposition.counter(
        "pageserver_page_service_batch_break_reason_global",
        "Why batches were closed",
        _by("reason", service["batch_breaks"]),
    )
    exposition.histogram(
        "pageserver_wait_lsn_seconds", "Time of waits for an LSN", [({}, _micros(service["wait_lsn_seconds"]))]
    )
    exposition.counter(
        "pageserver_wait_lsn_in_progress_micros_global",
        "Microseconds spent waiting for LSNs, those that last included",
        service["wait_lsn_micros"],
    )
    exposition.histogram(
        "pageserver_basebackup_query_seconds",
        "Time of base backups",
        [({"result": result}, Buckets.of(histogram)) for result, histogram in metrics.backup_seconds.items()],
    )
    _collect_throttles(exposition, service)
    _collect_timelines(exposition, metrics.timelines)


def collect_pipelining(exposition: Exposition, settings: ServerSettings) -> None:
    """Add how batches are made; one series."""
    pipelining = settings.page_service_pipelining
    is_serial = pipelining.mode == "serial"
    exposition.gauge(
        "pageserver_page_service_config_max_batch_size",
        "Configured maximum size of batches",
        [
            (
                {
                    "mode": pipelining.mode,
                    "execution": "-" if is_serial else pipelining.execution,
                    "batching": "-" if is_serial else pipelining.batching,
                },
                1 if is_serial else pipelining.max_batch_size,
            )
        ],
    )


def _collect_throttles(exposition: Exposition, service: Mapping[str, Any]) -> None:
    """Add what throttles did, of the shards that are here and of all that ever were. Requests of a shard without a
    throttle do not enter one.
    """
    kind = {"kind": "pagestream"}
    shards = [
        ({**kind, "tenant_id": tenant.hex(), "shard_id": str(ShardIndex.from_bytes(bytes((number, count))))}, counts)
        for (tenant, number, count), counts in service["throttle_of_shards"].items()
    ]
    for place, (name, text) in enumerate(
        (
            ("count_accounted_start", "Requests that entered a throttle"),
            ("count_accounted_finish", "Requests that left a throttle"),
            ("count", "Requests that had to wait"),
            ("wait_usecs_sum", "Microseconds that they had to wait"),
        )
    ):
        samples = [(labels, counts[place]) for labels, counts in shards]
        exposition.counter(f"pageserver_tenant_throttling_{name}", text, samples)
        every = service["throttle"][place]
        exposition.counter(f"pageserver_tenant_throttling_{name}_global", f"{text}, all", [(kind, every)])


def _collect_timelines(
    exposition: Exposition, timelines: Mapping[tuple[TenantShardId, TimelineId], Mapping[str, Any]]
) -> None:
    def each() -> Iterator[tuple[Labels, Mapping[str, Any]]]:
        for (shard, timeline_id), found in sorted(timelines.items()):
            yield timeline_labels(shard, timeline_id), found

    exposition.counter(
        "pageserver_smgr_query_started_count",
        "Number of getpage requests received",
        [({**labels, **_GET_PAGE}, found["get_page_started"]) for labels, found in each()],
    )
    exposition.histogram(
        "pageserver_smgr_query_seconds",
        "Time spent executing getpage requests",
        [({**labels, **_GET_PAGE}, _micros(found["get_page_seconds"])) for labels, found in each()],
    )
    exposition.histogram(
        "pageserver_page_service_pagestream_batch_wait_time_seconds",
        "Time of getpage requests from the end of the throttle to the execution of their batch",
        [(labels, _micros(found["batch_wait_seconds"])) for labels, found in each()],
    )
    exposition.counter(
        "pageserver_page_service_pagestream_flush_in_progress_micros",
        "Microseconds spent writing answers to sockets",
        [(labels, found["flush_micros"]) for labels, found in each()],
    )
    exposition.histogram(
        "pageserver_page_service_batch_size",
        "Sizes of batches of getpage requests",
        [(labels, _sizes(found["batch_sizes"], _TIMELINE_BATCH_BOUNDS)) for labels, found in each()],
    )
    exposition.counter(
        "pageserver_page_service_batch_break_reason",
        "Why batches were closed",
        [
            ({**labels, "reason": reason}, count)
            for labels, found in each()
            for reason, count in found["batch_breaks"].items()
        ],
    )
    for name, key, text in (
        ("wait_lsn_started_count", "wait_lsn_started", "Waits for an LSN that began"),
        ("wait_lsn_finished_count", "wait_lsn_finished", "Waits for an LSN that ended"),
        ("wait_lsn_in_progress_micros", "wait_lsn_micros", "Microseconds spent waiting, those that last included"),
    ):
        exposition.counter(f"pageserver_{name}", text, [(labels, found[key]) for labels, found in each()])


def timeline_labels(shard: TenantShardId, timeline_id: TimelineId) -> dict[str, str]:
    return {"tenant_id": str(shard.tenant_id), "shard_id": shard.slug(), "timeline_id": str(timeline_id)}


def _by(label: str, counts: Mapping[str, int]) -> list[tuple[Labels, float]]:
    return [({label: name}, count) for name, count in counts.items()]


def _micros(histogram: Mapping[str, Any]) -> Buckets:
    bounds = [bound / _MICROS for bound in histogram["bounds_micros"]]
    return Buckets(bounds, histogram["counts"], histogram["sum_micros"] / _MICROS)


def _sizes(sizes: Sequence[int], bounds: Sequence[int]) -> Buckets:
    """Gather how many batches had 1, 2, … members by upper bound."""
    counts, position = [], 0
    for bound in bounds:
        counts.append(sum(sizes[position:bound]))
        position = bound
    counts.append(sum(sizes[position:]))
    return Buckets(bounds, counts, sum(count * size for size, count in enumerate(sizes, 1)))
