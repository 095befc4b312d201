"""Small stand-ins for what the queues of this room work with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from pageserver.errors import UnavailableError
from pageserver.ids import Generation, TenantId, TenantShardId, TimelineId
from pageserver.remote import LocalStore
from pageserver.remote.deletion_queue import DeletionQueue

SHARD = TenantShardId(TenantId(bytes.fromhex("ad6c1a56f5680419d3a16ff55d97ec3c")))
TIMELINE = TimelineId(bytes.fromhex("be322c834ed9e709e63b5c9698691910"))


class QuickClock:
    """A clock whose pauses take no time; they are written down."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def monotonic_seconds(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


class FakeValidator:
    """Knows the newest generations; away while `is_away`."""

    def __init__(self, newest: Mapping[TenantShardId, int] | None = None, *, answers_at_once: bool = False) -> None:
        self.newest = dict(newest or {SHARD: 1})
        self.answers_at_once = answers_at_once
        self.is_away = False
        self.asked: list[dict[TenantShardId, Generation]] = []
        self.stale: list[tuple[TenantShardId, Generation]] = []

    async def validate(self, generations: Mapping[TenantShardId, Generation]) -> Mapping[TenantShardId, bool]:
        self.asked.append(dict(generations))
        if self.is_away:
            raise UnavailableError("the controller is away")
        return {
            shard: self.newest[shard] == generation.number
            for shard, generation in generations.items()
            if shard in self.newest
        }

    def found_stale(self, shard: TenantShardId, generation: Generation) -> None:
        self.stale.append((shard, generation))


def deletion_queue(
    workdir: Path, storage: LocalStore, validator: FakeValidator, *, attached: int | None = 1, **options: Any
) -> DeletionQueue:
    """Return a started queue that has recovered with SHARD attached in `attached`."""
    queue = DeletionQueue(
        workdir,
        storage=storage,
        validator=validator,
        clock=QuickClock(),
        log=structlog.get_logger(),
        **options,
    )
    queue.start()
    queue.recover({} if attached is None else {SHARD: Generation(attached)})
    return queue


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something that others bring about holds; fails after 5 seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a test watches from outside and has no event to wait for
            await asyncio.sleep(0.001)
