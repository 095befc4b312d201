"""Metrics of the process itself (metrics.md 2): build, memory, time, log lines."""

from __future__ import annotations

import resource
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from pageserver.observe.exposition import Exposition

_BLOCK_BYTES = 512
_LEVELS = ("critical", "error", "warn", "info", "debug", "trace")
_NAMES = {"warning": "warn", "exception": "error"}


class EventCounts:
    """Log lines by level. A critical one also counts as an error."""

    def __init__(self) -> None:
        self.by_level = dict.fromkeys(_LEVELS, 0)

    def processor(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Count a line on its way through structlog."""
        level = _NAMES.get(method, method)
        if level in self.by_level:
            self.by_level[level] += 1
        if level == "critical":
            self.by_level["error"] += 1
        return event


@dataclass(slots=True)
class ScrapeCounts:
    """Requests for metrics, and how old the metrics were that the last one got."""

    requests: int = 0
    stale_millis: int = 0


@dataclass(slots=True)
class HttpCounts:
    """Connections to the management API, and what went wrong with them."""

    connections: int = 0
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("tcp", "tls", "http", "https", "panic"), 0))

    def panicked(self) -> None:
        """Compiled code broke down while it answered."""
        self.errors["panic"] += 1


class ProcessMetrics:
    """Of one process; made at its start."""

    def __init__(self, *, launched_at_millis: int, events: EventCounts) -> None:
        self.scrapes = ScrapeCounts()
        self.http = HttpCounts()
        self._launched_at_millis = launched_at_millis
        self._events = events
        self._process = ProcessCollector(registry=CollectorRegistry())

    def collect(self, exposition: Exposition) -> None:
        """Add all families."""
        exposition.counter(
            "libmetrics_metric_handler_requests_total", "Number of metric requests made", self.scrapes.requests
        )
        exposition.gauge(
            "metrics_metrics_stale_milliseconds",
            "The age of the metrics that the previous request was answered with",
            self.scrapes.stale_millis,
        )
        exposition.counter(
            "http_server_connection_started_total",
            "Connections to the management API",
            [({"scheme": "http"}, self.http.connections), ({"scheme": "https"}, 0)],
        )
        exposition.counter(
            "http_server_connection_errors_total",
            "Connections to the management API that went wrong",
            [({"type": kind}, count) for kind, count in self.http.errors.items()],
        )
        exposition.gauge(
            "libmetrics_launch_timestamp", "Timestamp (ms) at which the process was launched", self._launched_at_millis
        )
        exposition.counter(
            "libmetrics_tracing_event_count",
            "Number of log lines, by level",
            [({"level": level}, count) for level, count in self._events.by_level.items()],
        )
        usage = resource.getrusage(resource.RUSAGE_SELF)
        exposition.gauge(
            "libmetrics_disk_io_bytes_total",
            "Bytes written and read from disk, grouped by the operation (read|write)",
            [
                ({"io_operation": "read"}, usage.ru_inblock * _BLOCK_BYTES),
                ({"io_operation": "write"}, usage.ru_oublock * _BLOCK_BYTES),
            ],
        )
        exposition.gauge("libmetrics_maxrss_kb", "Memory usage (Maximum Resident Set Size)", usage.ru_maxrss)
        exposition.gauge(
            "libmetrics_process_cpu_seconds_highres", "CPU time with fraction", usage.ru_utime + usage.ru_stime
        )
        self._collect_proc(exposition)

    def _collect_proc(self, exposition: Exposition) -> None:
        for family in self._process.collect():
            add = exposition.counter if family.type == "counter" else exposition.gauge
            for sample in family.samples:
                add(sample.name, family.documentation, sample.value)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        exposition.gauge("process_threads", "Number of OS threads in the process.", int(status["Threads"]))
        exposition.gauge(
            "libmetrics_process_status_vmlck", "Locked memory in bytes", int(status["VmLck"].split()[0]) * 1024
        )
