"""States of a tenant shard and their JSON (tenants.md 2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class TenantStatus(Enum):
    ATTACHING = "Attaching"
    ACTIVATING = "Activating"
    ACTIVE = "Active"
    STOPPING = "Stopping"
    BROKEN = "Broken"


@dataclass(frozen=True, slots=True)
class TenantState:
    status: TenantStatus
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the adjacently tagged form of http-api.md 4.2.2."""
        body: dict[str, Any] = {"slug": self.status.value}
        if self.status is TenantStatus.ACTIVATING:
            body["data"] = "Attaching"
        elif self.status is TenantStatus.STOPPING:
            body["data"] = {}
        elif self.status is TenantStatus.BROKEN:
            body["data"] = {"reason": self.reason, "backtrace": ""}
        return body

    def attachment_json(self) -> dict[str, Any]:
        """Return `attachment_status`, which follows from the state."""
        if self.status is TenantStatus.ACTIVE:
            return {"slug": "attached"}
        if self.status is TenantStatus.BROKEN:
            return {"slug": "failed", "data": {"reason": self.reason}}
        return {"slug": "maybe"}
