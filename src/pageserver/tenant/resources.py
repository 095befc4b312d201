"""What tenants are handed: components made once by `server.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pageserver.clock import Clock
from pageserver.config import ServerSettings, TenantSettings
from pageserver.counts import ServerCounts
from pageserver.disk_errors import DiskGuard
from pageserver.failpoints import Failpoints
from pageserver.ids import TenantShardId
from pageserver.remote import ObjectStorage
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.upload_operations import UploadPolicy
from pageserver.tenant.generation_source import GenerationSource
from pageserver.tenant.location import LocationConfig
from pageserver.tenant.state import TenantState
from pageserver.tenant.way_in import WayIn
from pageserver.timeline import DownloadCounts, Engine, Timeline
from pageserver.turns import TurnQueue

_SIZES_AT_ONCE = 1
"""Logical sizes that are computed in the background at a time (tenants.md 26: what threads are left for it)."""


class TenantFacts(Protocol):
    """What the page service must know about a tenant shard; `Tenant` has it."""

    @property
    def shard(self) -> TenantShardId: ...
    @property
    def location(self) -> LocationConfig: ...
    @property
    def state(self) -> TenantState: ...
    def settings(self) -> TenantSettings: ...


class PageRegistry(Protocol):
    """Where page requests find timelines (the compiled page service)."""

    def tenant_changed(self, tenant: TenantFacts) -> None:
        """Take note of a tenant's state and settings; it is called for every change, first before any of its
        timelines is attached.
        """
        ...

    def tenant_gone(self, shard: TenantShardId) -> None: ...
    def shard_in_transition(self, shard: TenantShardId) -> None:
        """Let requests for the shard wait until `transition_over`; until then the end of its old tenant is no news."""
        ...

    def transition_over(self, shard: TenantShardId, tenant: TenantFacts | None) -> None:
        """Serve what is in the slot now."""
        ...

    def attach(self, timeline: Timeline) -> None: ...
    def detach(self, timeline: Timeline) -> None: ...


@dataclass(frozen=True, slots=True)
class TenantResources:
    """Shared by all tenants of one server. `stores_layers` is false where the local disk is the only copy
    (standalone.md 2).
    """

    workdir: Path
    node_id: int
    settings: ServerSettings
    storage: ObjectStorage
    stores_layers: bool
    engine: Engine
    pages: PageRegistry
    way_in: WayIn
    downloads: DownloadCounts
    generations: GenerationSource
    deletions: DeletionQueue
    clock: Clock
    log: Any
    disk: DiskGuard
    uploads: UploadPolicy = field(default_factory=UploadPolicy)
    failpoints: Failpoints = field(default_factory=Failpoints.off)
    counts: ServerCounts = field(default_factory=ServerCounts)
    size_turns: TurnQueue = field(default_factory=lambda: TurnQueue(_SIZES_AT_ONCE))
