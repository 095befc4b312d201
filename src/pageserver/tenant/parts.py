"""What the parts of one attached shard share: creations, archival, deletions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from pageserver.ids import Generation, TenantShardId
from pageserver.tenant.opening import TimelineOpener
from pageserver.tenant.resources import TenantResources
from pageserver.tenant.running import RunningTimelines
from pageserver.tenant.tasks import TaskScope


@dataclass(frozen=True, slots=True)
class TenantParts:
    """Of one attachment. Who holds `exclusion` makes, deletes or offloads timelines, or collects garbage."""

    shard: TenantShardId
    generation: Generation
    resources: TenantResources
    opener: TimelineOpener
    running: RunningTimelines
    exclusion: asyncio.Lock
    tasks: TaskScope
    log: Any
