"""Generations from the bucket, where no storage controller is configured (standalone.md 1).

Each start and each attach claims the next number; who finds a claim above its own is stale. A location that was told to
be AttachedStale, and whose generation somebody else has overtaken, starts as a warm secondary: a claim would take the
tenant back from the other server. So does one whose bucket knows lower generations only than this disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pageserver.clock import Clock
from pageserver.errors import UnavailableError
from pageserver.ids import Generation, TenantShardId
from pageserver.remote import GenerationClaim, ObjectStorage, claim_generation, read_generations
from pageserver.remote.generations import is_newest_generation
from pageserver.remote.retry import pause_seconds
from pageserver.tenant.location import Attached, AttachMode, LocationConfig, Secondary

_CLAIMS_MAX = 16


class BucketGenerations:
    """Claims, and answers from claims. `claim` says who we are; its time is set anew for each. `on_stale` hears of
    every generation that turned out not to be the newest.
    """

    answers_at_once = True
    fences_deletions = True
    local_data_loss_suspected = False

    def __init__(self, storage: ObjectStorage, claim: GenerationClaim, *, clock: Clock, log: Any) -> None:
        self._storage = storage
        self._claim = claim
        self._clock = clock
        self._log = log
        self.on_stale: Callable[[TenantShardId, Generation], None] = lambda _shard, _generation: None

    async def start(self, found: Mapping[TenantShardId, LocationConfig]) -> Mapping[TenantShardId, LocationConfig]:
        permits = asyncio.Semaphore(_CLAIMS_MAX)

        async def start_one(shard: TenantShardId, location: LocationConfig) -> LocationConfig:
            async with permits:
                return await self._start_one(shard, location)

        async with asyncio.TaskGroup() as group:
            tasks = {
                shard: group.create_task(start_one(shard, location), name=f"claim {shard}")
                for shard, location in found.items()
            }
        return {shard: task.result() for shard, task in tasks.items()}

    async def claim(self, shard: TenantShardId, wanted: int | None) -> Generation:
        return await claim_generation(self._storage, shard, self._claim_now(), wanted=wanted)

    async def validate(self, generations: Mapping[TenantShardId, Generation]) -> Mapping[TenantShardId, bool]:
        return {
            shard: await is_newest_generation(self._storage, shard, generation)
            for shard, generation in generations.items()
        }

    def found_stale(self, shard: TenantShardId, generation: Generation) -> None:
        self.on_stale(shard, generation)

    async def _start_one(self, shard: TenantShardId, location: LocationConfig) -> LocationConfig:
        if isinstance(location.mode, Secondary):
            return location
        failures = 0
        while True:
            try:
                return await self._claim_at_start(shard, location, location.mode)
            except UnavailableError as error:
                self._log.warning(
                    "no generation could be claimed, will retry", tenant=str(shard), error=str(error), attempt=failures
                )
                await self._clock.sleep(pause_seconds(failures))
                failures += 1

    async def _claim_at_start(self, shard: TenantShardId, location: LocationConfig, mode: Attached) -> LocationConfig:
        if mode.mode is AttachMode.STALE and not await is_newest_generation(self._storage, shard, mode.generation):
            self._log.error(
                "a stale location starts as secondary: another server has the tenant",
                tenant=str(shard),
                generation=mode.generation.number,
            )
            return location.as_secondary(warm=True)
        record = await read_generations(self._storage, shard, claims_max=0)
        if mode.generation.number is not None and record.next_generation < mode.generation.number:
            # Claims are never deleted, so it is not the bucket that the tenant was attached from, or not mounted. Files
            # that only this disk has are kept, and nothing is written (remote-storage.md 4.2).
            self._log.error(
                "the bucket knows lower generations only than this disk: the tenant starts as secondary",
                tenant=str(shard),
                stored=mode.generation.number,
                next_generation=record.next_generation,
            )
            return location.as_secondary(warm=True)
        return location.with_generation(await claim_generation(self._storage, shard, self._claim_now()))

    def _claim_now(self) -> GenerationClaim:
        return replace(self._claim, claimed_at=f"{self._clock.now():%Y-%m-%dT%H:%M:%SZ}")
