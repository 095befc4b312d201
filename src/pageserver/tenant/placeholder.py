"""Timelines that a tenant knows but has not open: still importing, broken at load, on their way out."""

from __future__ import annotations

from dataclasses import dataclass

from pageserver.ids import TenantShardId, TimelineId
from pageserver.remote.source_document import Flavour
from pageserver.tenant.source_slot import SourceSlot
from pageserver.timeline import SourceStatus, Timeline, TimelineInfo, TimelineState


@dataclass(slots=True)
class Placeholder:
    """A timeline that is known but not open. `slot` is its source's."""

    timeline_id: TimelineId
    state: TimelineState
    pg_version: int = 0
    flavour: Flavour = "neon"
    slot: SourceSlot | None = None


def describe(entry: Timeline | Placeholder, shard: TenantShardId, source: SourceStatus) -> TimelineInfo:
    """Describe a timeline in any state (http-api.md 5.3). `source` counts for one that is not open."""
    if isinstance(entry, Timeline):
        return entry.detail()
    return TimelineInfo.without_engine(
        shard,
        entry.timeline_id,
        state=entry.state,
        source=source,
        pg_version=entry.pg_version,
        flavour=entry.flavour,
    )
