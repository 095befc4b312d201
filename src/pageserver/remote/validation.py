"""Whether a generation is still the newest: asked after an index upload, before anything is deleted or acknowledged.

With a storage controller it answers; without one the bucket's claims do (standalone.md 1). In doubt the answer is no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import INVALID_LSN, Lsn


class GenerationValidator(Protocol):
    """Who knows which generations are current."""

    @property
    def answers_at_once(self) -> bool:
        """Whether asking is cheap, so that every index upload may be validated as soon as it is done."""
        ...

    async def validate(self, generations: Mapping[TenantShardId, Generation]) -> Mapping[TenantShardId, bool]:
        """Tell for each shard whether nobody was given a higher generation. A shard that is left out is not valid.

        Raises UnavailableError; the caller asks again.
        """
        ...

    def found_stale(self, shard: TenantShardId, generation: Generation) -> None:
        """Take note that this generation of a shard is not the newest any more."""
        ...


@dataclass(slots=True)
class VisibleLsn:
    """The `remote_consistent_lsn` that a WAL source may be told (remote-storage.md 10). It never goes back."""

    value: Lsn = INVALID_LSN

    def advance(self, lsn: Lsn) -> None:
        self.value = max(self.value, lsn)


@dataclass(slots=True)
class _ShardUpdates:
    generation: Generation
    timelines: dict[TimelineId, tuple[Lsn, VisibleLsn]]


class LsnUpdates:
    """Uploaded LSNs that wait for their generation's validation. One generation per shard: another one clears the
    shard's entries.
    """

    def __init__(self) -> None:
        self._shards: dict[TenantShardId, _ShardUpdates] = {}

    def __len__(self) -> int:
        return sum(len(updates.timelines) for updates in self._shards.values())

    def push(
        self, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, lsn: Lsn, slot: VisibleLsn
    ) -> None:
        updates = self._shards.get(shard)
        if updates is None or updates.generation != generation:
            updates = self._shards[shard] = _ShardUpdates(generation, {})
        updates.timelines[timeline_id] = (lsn, slot)

    def take(self) -> LsnUpdates:
        """Return all that waits, and wait for nothing any more."""
        taken = LsnUpdates()
        taken._shards, self._shards = self._shards, {}
        return taken

    def generations(self) -> dict[TenantShardId, Generation]:
        return {shard: updates.generation for shard, updates in self._shards.items()}

    def apply(self, valid: Mapping[TenantShardId, Generation]) -> dict[TenantShardId, int]:
        """Publish exactly the pushed LSNs of shards whose generation is the valid one; return how many of which shard
        were dropped.
        """
        dropped: dict[TenantShardId, int] = {}
        for shard, updates in self._shards.items():
            if valid.get(shard) != updates.generation:
                dropped[shard] = len(updates.timelines)
                continue
            for lsn, slot in updates.timelines.values():
                slot.advance(lsn)
        return dropped
