"""What a slot of the tenant map holds, and how it refuses (tenants.md 3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from pageserver.errors import ConflictError, InternalError, NotFoundError, RequestError, UnavailableError
from pageserver.ids import Generation, TenantShardId
from pageserver.tenant.location import AttachMode, LocationConfig, Secondary
from pageserver.tenant.tenant import Tenant


class TenantNotFoundError(NotFoundError):
    """404: certainly not attached here."""

    def __init__(self, *, shard: TenantShardId) -> None:
        super().__init__(f"tenant {shard}", shard=shard)


class TenantNotActiveError(UnavailableError):
    """503: the slot is being changed."""

    def __init__(self) -> None:
        super().__init__("Tenant not yet active")


class TenantMapError(UnavailableError):
    """503: the map is not open."""


class SlotBusyError(ConflictError):
    """409: another `location_config` is at work on this slot."""

    def __init__(self) -> None:
        super().__init__("Tenant is already being modified")


class SlotChangingError(UnavailableError):
    """503: the same, for every other operation on a slot; callers repeat those."""

    def __init__(self) -> None:
        super().__init__("Tenant is being modified concurrently")


class NotAttachedError(InternalError):
    """500: a reset needs an attached tenant."""


class GenerationDecreaseError(RequestError):
    """400: a generation never goes back."""

    def __init__(self, *, wanted: Generation, current: Generation) -> None:
        super().__init__(f"Generation {wanted} is less than existing {current}", wanted=wanted, current=current)


class MapState(Enum):
    INITIALIZING = "initializing"
    OPEN = "open"
    SHUTTING_DOWN = "shutting down"


@dataclass(slots=True)
class SecondarySlot:
    """A location that only keeps a cache warm. Downloads come with object storage; now it remembers its
    configuration.
    """

    location: LocationConfig
    changing_config: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class InProgress:
    done: asyncio.Event = field(default_factory=asyncio.Event)


Slot = Tenant | SecondarySlot | InProgress


class Slots(dict[TenantShardId, Slot]):
    """The map itself; `writes` counts its changes."""

    writes = 0

    def __setitem__(self, shard: TenantShardId, slot: Slot) -> None:
        self.writes += 1
        super().__setitem__(shard, slot)

    def __delitem__(self, shard: TenantShardId) -> None:
        self.writes += 1
        super().__delitem__(shard)


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """How many slots are in which mode, and how often the map has changed."""

    attached: int
    secondary: int
    in_progress: int
    writes: int


@dataclass(frozen=True, slots=True)
class LocationRequest:
    """A `location_config` request after its form was checked. `mode` None means detached, `generation` None claims
    one.
    """

    mode: AttachMode | Secondary | None
    generation: int | None
    location: LocationConfig | None


def location_of(slot: Slot) -> LocationConfig | None:
    """Return a slot's location; None for one that is being changed."""
    match slot:
        case Tenant():
            return slot.effective_location()
        case SecondarySlot():
            return slot.location
        case InProgress():
            return None
