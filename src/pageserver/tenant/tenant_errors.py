"""Why a tenant or one of its timelines cannot be used; the management API turns each into a status."""

from __future__ import annotations

from pageserver.errors import InternalError, NotFoundError, StoppedError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.timeline import TimelineState


class TimelineNotFoundError(NotFoundError):
    """404: this tenant has no such timeline."""

    def __init__(self, *, shard: TenantShardId, timeline_id: TimelineId) -> None:
        super().__init__(f"Timeline {shard}/{timeline_id} was not found", shard=shard, timeline_id=timeline_id)


class TimelineNotActiveError(NotFoundError):
    """404, as Neon answers it: the timeline is there, but not (or no longer) usable."""

    def __init__(self, *, shard: TenantShardId, timeline_id: TimelineId, state: TimelineState) -> None:
        super().__init__(
            f"Timeline {shard}/{timeline_id} is not active, state: {state.status.value}", timeline_id=timeline_id
        )


class TenantBrokenError(InternalError):
    """500: the attach failed; the reason says why."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"tenant is broken: {reason}", reason=reason)


class FencedError(StoppedError):
    """503, with the reason: another server has the tenant in a newer generation, and decides what is asked for here."""

    def __init__(self, what_is_not_done: str, *, shard: TenantShardId, generation: Generation) -> None:
        super().__init__(
            f"tenant {shard} is attached elsewhere in a newer generation than {generation}: {what_is_not_done}",
            hint="send the request to the server that has it",
            shard=shard,
            generation=generation,
        )


class TenantStoppingError(StoppedError):
    """503 `Shutting down`."""

    def __init__(self) -> None:
        super().__init__("Shutting down")
