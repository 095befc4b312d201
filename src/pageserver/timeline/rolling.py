"""When the open layer is frozen (read-path-compaction-gc.md 5): a pure decision over what the engine reports."""

from __future__ import annotations

from dataclasses import dataclass

from pageserver.lsn import Lsn


@dataclass(frozen=True, slots=True)
class OpenLayerFacts:
    """The open layer as it is now."""

    size_bytes: int
    lsn_start: Lsn
    age_seconds: float


@dataclass(frozen=True, slots=True)
class RollLimits:
    """The tenant's settings that decide. `shard_count` is 1 for an unsharded tenant."""

    checkpoint_distance: int
    checkpoint_timeout_seconds: float
    shard_count: int = 1


def plan_roll(layer: OpenLayerFacts, *, last_record_lsn: Lsn, limits: RollLimits) -> str | None:
    """Return why the open layer should be frozen now, or None.

    The layer starts where the last freeze ended, so its start stands for `last_freeze_at`. A layer without data is
    never frozen.
    """
    if layer.size_bytes == 0 or last_record_lsn < layer.lsn_start:
        return None
    distance = last_record_lsn - layer.lsn_start
    if distance >= limits.checkpoint_distance * limits.shard_count:
        return "lsn distance"
    if layer.size_bytes >= limits.checkpoint_distance:
        return "size"
    if layer.age_seconds >= limits.checkpoint_timeout_seconds:
        return "age"
    return None
