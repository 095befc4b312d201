"""The WAL sources of one tenant's timelines: their tasks, and what they say about themselves.

A source that fails stops alone: its timeline stays readable and shows the error. A source is started again only with
its tenant.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from pageserver.errors import PageServerError
from pageserver.ids import TimelineId
from pageserver.tenant.source_slot import SourceSlot
from pageserver.tenant.tasks import TaskScope, end_tasks
from pageserver.tenant.way_in import WalSource, WayIn
from pageserver.timeline import SourceStatus


class TenantSources:
    """At most one running source for each timeline; the tasks belong to the tenant's scope."""

    def __init__(self, way_in: WayIn, tasks: TaskScope, log: Any) -> None:
        self._way_in = way_in
        self._tasks = tasks
        self._log = log
        self._running: dict[TimelineId, asyncio.Task[None]] = {}
        self._sources: dict[TimelineId, WalSource] = {}
        self._errors: dict[TimelineId, str] = {}

    def start(self, slot: SourceSlot) -> None:
        """Run the source that the slot's document describes, if it describes one."""
        source = self._way_in.open_source(slot)
        if source is None:
            return
        timeline_id = slot.timeline_id
        self._sources[timeline_id] = source
        self._errors.pop(timeline_id, None)
        if slot.timeline is not None:
            slot.timeline.source_status = lambda: self.status(timeline_id)
        self._running[timeline_id] = self._tasks.spawn(
            source.run(), name=f"source {timeline_id}", on_failure=lambda error: self._failed(timeline_id, error)
        )

    def has(self, timeline_id: TimelineId) -> bool:
        """Return whether the timeline follows something."""
        return timeline_id in self._sources

    def status(self, timeline_id: TimelineId) -> SourceStatus:
        """Return what the API shows."""
        source = self._sources.get(timeline_id)
        status = SourceStatus() if source is None else source.status()
        error = self._errors.get(timeline_id)
        return status if error is None else replace(status, text=f"stopped: {error}", error=error)

    def cancel(self, timeline_id: TimelineId) -> None:
        """Have a source end soon: its timeline is broken."""
        task = self._running.get(timeline_id)
        if task is not None:
            task.cancel()

    async def stop(self, timeline_id: TimelineId) -> None:
        """End one source and forget it."""
        task = self._running.pop(timeline_id, None)
        if task is not None:
            await end_tasks(task)
        self._sources.pop(timeline_id, None)

    async def stop_all(self) -> None:
        """End all sources; what they said stays to be asked for."""
        await end_tasks(*self._running.values())

    def _failed(self, timeline_id: TimelineId, error: Exception) -> None:
        expected = isinstance(error, PageServerError)
        self._log.error(
            "wal source stopped", timeline=str(timeline_id), error=str(error), exc_info=None if expected else error
        )
        self._errors[timeline_id] = str(error)
