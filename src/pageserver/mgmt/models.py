"""Bodies of requests (http-api.md 4.2.1, 5.1). Strict in types; unknown keys are errors only where the specification
says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pageserver.config import TenantOverrides
from pageserver.ids import Generation, ShardIdentity, TimelineId
from pageserver.lsn import Lsn
from pageserver.mgmt.errors import bad_request
from pageserver.tenant import Attached, AttachMode, LocationConfig, Secondary
from pageserver.tenant.slots import LocationRequest

U8 = Annotated[int, Field(ge=0, lt=1 << 8)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class SecondaryConf(_Body):
    warm: bool


class GcBody(_Body):
    """`PUT do_gc`."""

    gc_horizon: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None


class DownloadLayersBody(_Body):
    """`POST download_remote_layers`."""

    max_concurrent_downloads: Annotated[int, Field(ge=1)]


class LocationConfigBody(BaseModel):
    """`PUT location_config`: an unknown key at the top level is an error, inside `tenant_conf` it is kept and
    ignored.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    mode: Literal["AttachedSingle", "AttachedMulti", "AttachedStale", "Secondary", "Detached"]
    generation: U32 | None = None
    secondary_conf: SecondaryConf | None = None
    shard_number: U8 = 0
    shard_count: U8 = 0
    shard_stripe_size: U32 = 0
    tenant_conf: dict[str, Any]

    def to_request(self, *, claims_generations: bool) -> LocationRequest:
        """Check what the types cannot (tenants.md 4.2). Raises ApiError 400, RequestError, InvalidSettingError."""
        overrides = TenantOverrides.parse(self.tenant_conf)
        if self.mode == "Detached":
            return LocationRequest(mode=None, generation=None, location=None)
        # Without a count the number means nothing.
        number = self.shard_number if self.shard_count else 0
        identity = ShardIdentity.from_parts(number, self.shard_count, self.shard_stripe_size)
        if self.mode == "Secondary":
            if self.generation is not None:
                raise bad_request("Generation must not be set when in secondary mode")
            secondary = Secondary(warm=self.secondary_conf is not None and self.secondary_conf.warm)
            return LocationRequest(secondary, None, LocationConfig(secondary, identity, overrides))
        if self.generation is None and not claims_generations:
            raise bad_request("Generation must be set when attaching")
        mode = AttachMode(self.mode.removeprefix("Attached"))
        location = LocationConfig(Attached(Generation(self.generation or 0), mode), identity, overrides)
        return LocationRequest(mode, self.generation, location)


class TimelineCreateBody(_Body):
    """`POST timeline`. The first shape that fits wins: branch, import, primary (ours), bootstrap. `flavour` (ours) says
    whose PostgreSQL made an existing initdb archive, `name` (ours) what the timeline is called.
    """

    new_timeline_id: str
    ancestor_timeline_id: str | None = None
    ancestor_start_lsn: str | None = None
    import_pgdata: dict[str, Any] | None = None
    primary: dict[str, Any] | None = None
    existing_initdb_timeline_id: str | None = None
    pg_version: Annotated[int, Field(ge=14, le=18)] | None = None
    read_only: bool = False
    flavour: Literal["neon", "stock"] | None = None
    name: str | None = None

    def new_id(self) -> TimelineId:
        return TimelineId.parse(self.new_timeline_id)

    def ancestor_id(self) -> TimelineId | None:
        return None if self.ancestor_timeline_id is None else TimelineId.parse(self.ancestor_timeline_id)

    def existing_initdb_id(self) -> TimelineId | None:
        text = self.existing_initdb_timeline_id
        return None if text is None else TimelineId.parse(text)

    def start_lsn(self) -> Lsn | None:
        return None if self.ancestor_start_lsn is None else Lsn.parse(self.ancestor_start_lsn)


class NameBody(_Body):
    """`PUT name/{name}` (ours)."""

    timeline_id: str

    def id(self) -> TimelineId:
        return TimelineId.parse(self.timeline_id)


class RenameBody(_Body):
    """`POST name/{name}/rename` (ours)."""

    new_name: str


class SourceBody(_Body):
    """`PUT source` (ours)."""

    conninfo: str


class ResyncBody(_Body):
    """`POST source/resync` (ours)."""

    force: bool = False


class ArchivalBody(_Body):
    """`PUT archival_config`."""

    state: Literal["Archived", "Unarchived"]


class WaitTimeout(_Body):
    secs: Annotated[int, Field(ge=0)]
    nanos: Annotated[int, Field(ge=0)]

    @property
    def seconds(self) -> float:
        return self.secs + self.nanos / 1e9
