"""States of a timeline and what may follow what (tenants.md 7.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class TimelineStatus(Enum):
    LOADING = "Loading"
    ACTIVE = "Active"
    STOPPING = "Stopping"
    BROKEN = "Broken"


@dataclass(frozen=True, slots=True)
class TimelineState:
    """A status, and for a broken timeline why."""

    status: TimelineStatus
    reason: str = ""

    def may_become(self, next_status: TimelineStatus) -> bool:
        """Return whether the transition is allowed: nothing returns to Loading, Broken is sticky, Stopping never
        becomes Active.
        """
        if self.status is TimelineStatus.BROKEN or next_status is TimelineStatus.LOADING:
            return False
        return not (self.status is TimelineStatus.STOPPING and next_status is TimelineStatus.ACTIVE)

    def to_json(self) -> Any:
        """Return the API's form: a word, or for Broken an object."""
        if self.status is TimelineStatus.BROKEN:
            return {"Broken": {"reason": self.reason, "backtrace": ""}}
        return self.status.value


LOADING = TimelineState(TimelineStatus.LOADING)
ACTIVE = TimelineState(TimelineStatus.ACTIVE)
STOPPING = TimelineState(TimelineStatus.STOPPING)
