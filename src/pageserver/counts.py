"""Things that are counted while they happen, to be read by metrics: numbers and histograms, no names of series.

What belongs to a timeline is counted by the timeline's own objects and goes with them; `ServerCounts` outlives tenants.
Counting is done on the event loop; a reader in another thread may see one number newer than another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

CRIT_BOUNDS: Final = (0.000001, 0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
OPERATION_BOUNDS: Final = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
REQUEST_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DOWNLOAD_BOUNDS: Final = (
    *(number / 100 for number in range(1, 10)),
    *(number / 10 for number in range(1, 10)),
    *(float(number) for number in range(1, 10)),
    *(float(number) for number in range(10, 61, 10)),
)
STARTUP_BOUNDS: Final = tuple(
    millis / 1000
    for millis in (
        *(5, 10, 20, 30, 50, 70, 100, 120, 150, 200, 250, 300, 350, 400, 450, 500, 600, 800, 1000, 1500, 2000),
        *(2500, 3000, 5000, 10_000, 20_000, 40_000, 60_000),
    )
)


class Histogram:
    """Observed values by upper bound. `counts[i]` are those not above `bounds[i]` and above the bound before; the last
    one counts what is above all.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


def histograms(keys: Iterable[str], bounds: Sequence[float]) -> dict[str, Histogram]:
    return {key: Histogram(bounds) for key in keys}


CLIENT_OPERATIONS: Final = (
    ("layer", "upload"),
    ("layer", "download"),
    ("layer", "delete"),
    ("index", "upload"),
    ("index", "download"),
)
"""What the remote client of a timeline does: kind of file, operation."""

SIZE_ATTEMPTS: Final = ("first", "retry")
SIZE_CIRCUMSTANCES: Final = ("EmptyInitial", "SkippedConcurrencyLimiter", "AfterBackgroundTasksRateLimit")
"""Why a computation of a logical size could start (metrics.md 3.8). None is known to be empty before it was counted."""


def _client_seconds() -> dict[tuple[str, str, str], Histogram]:
    return {
        (file, operation, status): Histogram(REQUEST_BOUNDS)
        for file, operation in CLIENT_OPERATIONS
        for status in ("success", "failure")
    }


@dataclass(slots=True)
class SizeCalculations:
    """First computations of a timeline's logical size."""

    started: dict[tuple[str, str], int] = field(
        default_factory=lambda: {(attempt, how): 0 for attempt in SIZE_ATTEMPTS for how in SIZE_CIRCUMSTANCES}
    )
    """By attempt and circumstances."""
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIZE_ATTEMPTS, 0))
    """Started and not finished, by attempt."""
    finished: int = 0
    results_dropped: int = 0
    """Sizes that went with their timelines."""


@dataclass(slots=True)
class ServerCounts:
    """Since the process started, over all tenants, also those that are gone."""

    startup_scheduled: int = 0
    startup_complete: int = 0
    startup_settled: int = 0
    """Attached or broken."""
    startup_settled_at: float | None = None
    """When the last of them settled, by the monotonic clock."""
    activation_seconds: Histogram = field(default_factory=lambda: Histogram(CRIT_BOUNDS))
    preload_seconds: Histogram = field(default_factory=lambda: Histogram(CRIT_BOUNDS))
    attach_seconds: Histogram = field(default_factory=lambda: Histogram(CRIT_BOUNDS))
    heatmaps_uploaded: int = 0
    heatmaps_failed: int = 0
    heatmap_seconds: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS))
    initdb_seconds: Histogram = field(default_factory=lambda: Histogram(OPERATION_BOUNDS))
    wal_records: int = 0
    wal_bytes: int = 0
    wal_connections: int = 0
    client_seconds: dict[tuple[str, str, str], Histogram] = field(default_factory=_client_seconds)
    """One attempt, by file, operation and status."""
    operation_seconds: dict[str, Histogram] = field(
        default_factory=lambda: histograms(("layer flush", "gc", "logical size"), OPERATION_BOUNDS)
    )
    """Background operations that this release has."""
    size_calculations: SizeCalculations = field(default_factory=SizeCalculations)

    def note_startup(self, at: float, *, is_active: bool) -> None:
        """A tenant that was found at the start is attached, or broken."""
        self.startup_settled += 1
        self.startup_complete += is_active
        self.startup_settled_at = at


class WalCounts:
    """WAL that one timeline got from its source; the server's sums grow with it."""

    __slots__ = ("_server", "records")

    def __init__(self, server: ServerCounts) -> None:
        self.records = 0
        self._server = server

    def connected(self) -> None:
        self._server.wal_connections += 1

    def ingested(self, *, records: int, size_bytes: int) -> None:
        self.records += records
        self._server.wal_records += records
        self._server.wal_bytes += size_bytes
