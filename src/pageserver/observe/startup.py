"""When the server reached which phase of its start (metrics.md 3.1)."""

from __future__ import annotations

from pageserver.clock import Clock
from pageserver.counts import ServerCounts
from pageserver.observe.exposition import Exposition


class StartupTimes:
    """Seconds since the process began to start. Phases are reached in the order of `PHASES`; loading all tenants may
    end after the server is ready, and is waited for by the phases behind it.
    """

    PHASES = (
        "initial",
        "initial_tenant_load_remote",
        "initial_tenant_load",
        "background_jobs_can_start",
        "complete",
    )

    def __init__(self, clock: Clock, counts: ServerCounts) -> None:
        self._clock = clock
        self._counts = counts
        self._began = clock.monotonic_seconds()
        self._generations_known: float | None = None
        self._ready: float | None = None
        self._initial: float | None = None

    def begin(self) -> None:
        """Addresses are bound, tenants not looked at."""
        self._initial = self._now()

    def generations_known(self) -> None:
        """Every tenant of the disk has its generation and begins to attach."""
        self._generations_known = self._now()

    def ready(self) -> None:
        """Requests and pages are served."""
        self._ready = self._now()

    def phases(self) -> dict[str, float]:
        """Return the phases that were reached, never decreasing."""
        reached: dict[str, float] = {}
        times = (self._initial, self._generations_known, self._tenants_loaded(), self._ready, self._ready)
        latest = 0.0
        for phase, time in zip(self.PHASES, times, strict=True):
            if time is None:
                break
            latest = reached[phase] = max(latest, time)
        return reached

    def collect(self, exposition: Exposition) -> None:
        phases = self.phases()
        exposition.gauge(
            "pageserver_startup_duration_seconds",
            "Seconds since the start at which a phase was reached",
            [({"phase": phase}, seconds) for phase, seconds in phases.items()],
        )
        exposition.gauge(
            "pageserver_startup_is_loading", "1 until the start is complete", 0 if "complete" in phases else 1
        )

    def _tenants_loaded(self) -> float | None:
        if self._generations_known is None or self._counts.startup_settled < self._counts.startup_scheduled:
            return None
        settled_at = self._counts.startup_settled_at
        return self._generations_known if settled_at is None else settled_at - self._began

    def _now(self) -> float:
        return self._clock.monotonic_seconds() - self._began
