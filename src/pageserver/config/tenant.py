"""Tenant settings: the keys of http-api.md 9.3, their defaults, and the overrides that a tenant carries.

A set of overrides is a `TenantSettings` of which only the given fields count as set; the effective settings are the
built-in defaults, overlaid with `[tenant_config]` of the server, overlaid with the tenant's own. Unknown keys are
carried along into `config-v1`, so that going back to an older release and forth again loses nothing, but they have no
effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pageserver.config.durations import Duration
from pageserver.config.validation import InvalidSettingError, describe

U8 = Annotated[int, Field(ge=0, lt=1 << 8)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
U64 = Annotated[int, Field(ge=0, lt=1 << 64)]
RepositoryKind = Literal["layered", "rocksdb"]
CHECKPOINT_DISTANCE_MAX = (1 << 35) - 1
"""What the open layer's index can address (read-path-compaction-gc.md 5)."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class CompactionAlgorithm(_Strict):
    kind: Literal["legacy", "tiered"] = "legacy"


class EvictionPolicy(_Strict):
    """`NoEviction`, or one of the threshold policies with both durations. The spelling of `OnlyImitiate` is part of the
    format.
    """

    kind: Literal["NoEviction", "LayerAccessThreshold", "OnlyImitiate"] = "NoEviction"
    period: Duration | None = None
    threshold: Duration | None = None

    @model_validator(mode="after")
    def _threshold_policies_are_complete(self) -> EvictionPolicy:
        if self.kind != "NoEviction" and (self.period is None or self.threshold is None):
            raise ValueError(f"eviction policy {self.kind} needs period and threshold")
        return self


class Throttle(_Strict):
    task_kinds: list[str] = []
    initial: U32 = 0
    refill_interval: Duration = Duration(1_000_000)
    refill_amount: Annotated[int, Field(gt=0, lt=1 << 32)] = 1
    max: U32 = 1


class SamplingRatio(_Strict):
    numerator: U64
    denominator: Annotated[int, Field(gt=0)]


class TenantSettings(_Strict):
    """All keys of http-api.md 9.3 with the built-in defaults."""

    checkpoint_distance: Annotated[int, Field(gt=0, le=CHECKPOINT_DISTANCE_MAX)] = 268_435_456
    checkpoint_timeout: Duration = Duration.parse("10m")
    compaction_target_size: U64 = 134_217_728
    compaction_period: Duration = Duration.parse("20s")
    compaction_threshold: U64 = 10
    compaction_upper_limit: U64 = 10
    compaction_algorithm: CompactionAlgorithm = CompactionAlgorithm()
    compaction_shard_ancestor: bool = True
    compaction_l0_first: bool = True
    compaction_l0_semaphore: bool = True
    l0_flush_delay_threshold: U64 | None = None
    l0_flush_stall_threshold: U64 | None = None
    gc_horizon: U64 = 67_108_864
    gc_period: Duration = Duration.parse("1h")
    image_creation_threshold: U64 = 3
    image_layer_force_creation_period: Duration | None = None
    pitr_interval: Duration = Duration.parse("7days")
    walreceiver_connect_timeout: Duration = Duration.parse("10s")
    lagging_wal_timeout: Duration = Duration.parse("10s")
    max_lsn_wal_lag: Annotated[int, Field(gt=0, lt=1 << 64)] = 1_073_741_824
    eviction_policy: EvictionPolicy = EvictionPolicy()
    min_resident_size_override: U64 | None = None
    evictions_low_residence_duration_metric_threshold: Duration = Duration.parse("1day")
    heatmap_period: Duration = Duration(0)
    lazy_slru_download: bool = False
    timeline_get_throttle: Throttle = Throttle()
    image_layer_creation_check_threshold: U8 = 2
    image_creation_preempt_threshold: U64 = 3
    lsn_lease_length: Duration = Duration.parse("10m")
    lsn_lease_length_for_ts: Duration = Duration.parse("1m")
    timeline_offloading: bool = True
    rel_size_v2_enabled: bool = False
    gc_compaction_enabled: bool = True
    gc_compaction_verification: bool = True
    gc_compaction_initial_threshold_kb: U64 = 5_242_880
    gc_compaction_ratio_percent: U64 = 100
    sampling_ratio: SamplingRatio | None = None
    relsize_snapshot_cache_capacity: U64 = 1000
    basebackup_cache_enabled: bool = False
    repository: RepositoryKind = "layered"
    """Ours: where the tenant's pages are kept. Fixed when the tenant is created (docs/decisions/0005)."""

    timelines_max: U64 | None = None
    """Ours: how many timelines the tenant may have, offloaded ones included."""
    stored_bytes_max: U64 | None = None
    """Ours: how many bytes all timelines together may take before nothing more is ingested."""

    def to_api(self) -> dict[str, Any]:
        """Return `effective_config` as the API shows it: all keys in alphabetical order, some only when they are on."""
        shown = self.model_dump(mode="json")
        shown["eviction_policy"] = {key: value for key, value in shown["eviction_policy"].items() if value is not None}
        if not self.basebackup_cache_enabled:
            del shown["basebackup_cache_enabled"]
        if self.repository == "layered":
            del shown["repository"]
        for limit in ("timelines_max", "stored_bytes_max"):
            if shown[limit] is None:
                del shown[limit]
        shown["timeline_get_throttle"] = dict(sorted(shown["timeline_get_throttle"].items()))
        return dict(sorted(shown.items()))


@dataclass(frozen=True, slots=True)
class TenantOverrides:
    """What one tenant sets for itself. `unknown` holds keys that this release does not know."""

    settings: TenantSettings = field(default_factory=TenantSettings)
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> TenantOverrides:
        """Read a `tenant_conf` object. A null means the same as an absent key. Raises InvalidSettingError with the
        key's path.
        """
        given = {key: value for key, value in document.items() if value is not None}
        known = {key: value for key, value in given.items() if key in TenantSettings.model_fields}
        try:
            settings = TenantSettings.model_validate(known)
        except ValidationError as error:
            raise InvalidSettingError(describe(error)) from error
        unknown = {key: _without_nulls(key, value) for key, value in given.items() if key not in known}
        return cls(settings=settings, unknown=unknown)

    def patched(self, document: Mapping[str, Any]) -> TenantOverrides:
        """Return the overrides after a PATCH: an absent key is unchanged, null removes one, a value sets it."""
        merged = {**self.to_document(), **document}
        return TenantOverrides.parse(merged)

    def known(self) -> dict[str, Any]:
        """Return only the set keys, in the form of JSON and TOML (durations as text)."""
        return self.settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def to_document(self) -> dict[str, Any]:
        """Return the set keys and the unknown ones, as they are written to `config-v1`."""
        return {**self.known(), **self.unknown}

    def effective(self, server_defaults: TenantOverrides) -> TenantSettings:
        """Overlay the server's `[tenant_config]`, then these overrides, over the built-in defaults."""
        return TenantSettings.model_validate({**server_defaults.known(), **self.known()})


def _without_nulls(path: str, value: Any) -> Any:
    """Return a value as TOML can hold it: a null in a table is the same as an absent key, one in a list is refused."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(f"{path}.{key}", below) for key, below in value.items() if below is not None}
    if isinstance(value, list):
        if None in value:
            raise InvalidSettingError(f"{path}: a list cannot hold null")
        return [_without_nulls(path, below) for below in value]
    return value
