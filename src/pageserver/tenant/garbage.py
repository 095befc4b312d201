"""When versions become garbage, and the loop that collects it (read-path-compaction-gc.md 12.1-12.3).

    cutoffs by size and by age ─▶ new cutoff into the index ─▶ repository.collect_garbage

The cutoff is durable, and reads below it are refused, before anything is removed. For tenants whose repository removes
versions; a layered repository gives layers up elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

from pageserver.clock import Clock
from pageserver.config import TenantSettings
from pageserver.errors import PageServerError
from pageserver.failpoints import Failpoints
from pageserver.keyspace.time_search import Future, Present, find_lsn_for_timestamp, to_postgres_time
from pageserver.lsn import Lsn
from pageserver.repository import GarbageReport
from pageserver.timeline import Repository, Timeline, TimelineStatus

_PITR_DEFAULT_SECONDS = 7 * 24 * 3600.0
_DISABLED_CHECK_SECONDS = 10.0
_RECORD_ALIGNMENT = 8
"""Who searches by time looks at multiples of this."""


def plan_cutoff(
    *,
    last_record_lsn: Lsn,
    disk_consistent_lsn: Lsn,
    applied: Lsn,
    gc_horizon: int,
    has_pitr: bool,
    at_pitr: Lsn | None,
) -> Lsn:
    """Return the new cutoff; it never goes back.

    `at_pitr`: where the time line was `pitr_interval` ago (or the default, if that is 0), if the history tells.
    """
    space = Lsn(max(0, last_record_lsn - gc_horizon))
    time = applied
    if not has_pitr:
        time, space = last_record_lsn, max(at_pitr or Lsn(0), space)
    elif at_pitr is not None:
        time = space = at_pitr
    wanted = min(space, time, disk_consistent_lsn)
    return max(applied, Lsn(wanted // _RECORD_ALIGNMENT * _RECORD_ALIGNMENT))


class GarbageCollector:
    """Collects the garbage of one tenant. `exclusion` keeps branches from being made at what is going away."""

    def __init__(
        self,
        repository: Repository,
        *,
        timelines: Callable[[], list[Timeline]],
        settings: Callable[[], TenantSettings],
        may_delete: Callable[[], bool],
        exclusion: asyncio.Lock,
        clock: Clock,
        log: Any,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._repository = repository
        self._timelines = timelines
        self._settings = settings
        self._may_delete = may_delete
        self._exclusion = exclusion
        self._clock = clock
        self._log = log
        self._random = Random()
        self._failpoints = failpoints or Failpoints.off()

    @property
    def removes_versions(self) -> bool:
        """Whether the repository removes versions, and not whole layers."""
        return not self._repository.keeps_layers

    async def collect(self, timeline: Timeline, *, gc_horizon: int | None = None) -> GarbageReport:
        """Move the timeline's cutoff and remove what only reads below it need. `gc_horizon` None: the tenant's. Nothing
        where the location is not AttachedSingle (14.2).

        Cancellation: safe; what is left is found the next time.
        """
        if not self._may_delete():
            self._log.info("no garbage is collected: not AttachedSingle", timeline=str(timeline.timeline_id))
            return GarbageReport(timeline.gc_cutoff_lsn)
        await self._failpoints.fail("before-timeline-gc")
        async with self._exclusion:
            started = self._clock.monotonic_seconds()
            await self._failpoints.sleep("gc_iteration_internal_after_getting_gc_timelines")
            cutoff = await self._find_cutoff(timeline, gc_horizon)
            await timeline.advance_gc_cutoff(cutoff)
            report = await asyncio.to_thread(self._repository.collect_garbage, timeline.timeline_id, cutoff)
            timeline.note_operation("gc", self._clock.monotonic_seconds() - started)
        self._log.info(
            "garbage collected",
            timeline=str(timeline.timeline_id),
            cutoff=str(cutoff),
            versions=report.versions_seen,
            removed=report.versions_removed,
        )
        return report

    async def run(self) -> None:
        """Collect every `gc_period`, until cancelled. The settings are read afresh each time; 0 turns it off."""
        part = self._random.random()  # Many tenants that attach together do not collect together.
        while True:
            if not self._is_on():
                await self._clock.sleep(_DISABLED_CHECK_SECONDS)
                continue
            await self._clock.sleep(self._settings().gc_period.seconds * part)
            part = 1.0
            for timeline in self._timelines():
                if timeline.state.status is not TimelineStatus.ACTIVE or not (self._may_delete() and self._is_on()):
                    continue
                try:
                    await self.collect(timeline)
                except PageServerError as error:
                    # The next round tries again: nothing depends on garbage being gone.
                    self._log.error("garbage collection failed", timeline=str(timeline.timeline_id), error=str(error))

    def _is_on(self) -> bool:
        settings = self._settings()
        return bool(settings.gc_period.seconds and settings.gc_horizon)

    def ended(self, error: Exception) -> None:
        self._log.error("garbage collection ended", error=str(error), exc_info=error)

    async def _find_cutoff(self, timeline: Timeline, gc_horizon: int | None) -> Lsn:
        await self._failpoints.pause("Timeline::find_gc_cutoffs-pausable")
        settings = self._settings()
        pitr_seconds = settings.pitr_interval.seconds
        wanted = self._clock.now() - timedelta(seconds=pitr_seconds or _PITR_DEFAULT_SECONDS)
        last_record_lsn = timeline.last_record_lsn
        found = await asyncio.to_thread(
            find_lsn_for_timestamp,
            timeline.store,
            to_postgres_time(wanted),
            min_lsn=max(timeline.gc_cutoff_lsn, timeline.ancestor_lsn),
            last_record_lsn=last_record_lsn,
        )
        return plan_cutoff(
            last_record_lsn=last_record_lsn,
            disk_consistent_lsn=timeline.disk_consistent_lsn,
            applied=timeline.gc_cutoff_lsn,
            gc_horizon=settings.gc_horizon if gc_horizon is None else gc_horizon,
            has_pitr=pitr_seconds > 0,
            at_pitr={Present: found.lsn, Future: last_record_lsn}.get(type(found)),
        )
