"""The open timelines of one attached shard at work: their loops, their WAL sources, and their place with page requests.

A timeline starts as *run* (its loop of flushes and uploads), *serve* (it becomes Active and is found by page requests),
*follow* (its source); it stops the other way round. A loop that fails breaks its timeline alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from pageserver.errors import PageServerError
from pageserver.ids import TimelineId
from pageserver.tenant.resources import PageRegistry
from pageserver.tenant.source_slot import SourceSlot
from pageserver.tenant.sources import TenantSources
from pageserver.tenant.tasks import TaskScope, end_tasks
from pageserver.timeline import Timeline, TimelineStatus

_DRAIN_SECONDS_MAX: Final = 30.0
"""How long a graceful stop waits for one timeline's flush and uploads."""


class RunningTimelines:
    """Starts and stops timelines that are open. `slot_of` gives the place that a timeline's source fills."""

    def __init__(
        self,
        pages: PageRegistry,
        sources: TenantSources,
        tasks: TaskScope,
        *,
        slot_of: Callable[[Timeline], SourceSlot],
        log: Any,
    ) -> None:
        self._pages = pages
        self._sources = sources
        self._tasks = tasks
        self._slot_of = slot_of
        self._log = log
        self._loops: dict[TimelineId, asyncio.Task[None]] = {}

    def start(self, timeline: Timeline) -> None:
        """Run, serve, follow."""
        self.run(timeline)
        self.serve(timeline)
        self.follow(timeline)

    def run(self, timeline: Timeline) -> None:
        self._loops[timeline.timeline_id] = self._tasks.spawn(
            timeline.run(),
            name=f"timeline {timeline.timeline_id}",
            on_failure=lambda error: self._break(timeline, error),
        )

    def serve(self, timeline: Timeline) -> None:
        timeline.activate()
        self._pages.attach(timeline)

    def follow(self, timeline: Timeline) -> None:
        """Follow what the timeline's document describes, if anything."""
        self._sources.start(self._slot_of(timeline))

    async def stop(self, timeline: Timeline) -> None:
        """Stop source, loop and readers, without a flush, and close the timeline."""
        await self._sources.stop(timeline.timeline_id)
        await self.halt(timeline, flush=False)
        await timeline.close()

    async def halt(self, timeline: Timeline, *, flush: bool) -> None:
        """Stop loop and readers. The timeline stays open: its children may be reading through it."""
        if flush and timeline.state.status is TimelineStatus.ACTIVE and timeline.remote.index.archived_at is None:
            await self._flush_and_upload(timeline)
        self._pages.detach(timeline)
        await timeline.stop()
        loop = self._loops.pop(timeline.timeline_id, None)
        if loop is not None:
            await end_tasks(loop)

    async def _flush_and_upload(self, timeline: Timeline) -> None:
        """Make everything durable, but do not wait long for a store that is away: the rest was not acknowledged."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS_MAX):
                await timeline.freeze_and_flush()
                await timeline.remote.shutdown()
        except (PageServerError, OSError, TimeoutError) as error:
            reason = str(error) or f"uploads were not finished in {_DRAIN_SECONDS_MAX:g} s"
            self._log.warning("flush at shutdown failed", timeline=str(timeline.timeline_id), error=reason)

    def _break(self, timeline: Timeline, error: Exception) -> None:
        self._log.critical("timeline broken", timeline=str(timeline.timeline_id), error=str(error), exc_info=error)
        timeline.break_because(str(error))
        self._pages.detach(timeline)
        self._sources.cancel(timeline.timeline_id)
