"""How full this server is, for whoever places tenants (http-api.md 5.7).

The storage controller asks every few seconds, which is also its heartbeat; what it gets is at most a second old.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from pageserver.clock import Clock

SHARDS_MAX = 2500
_I64_MAX = (1 << 63) - 1
_FULL = 1_000_000
_KEPT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Utilization:
    """One measurement. `utilization_score` is 1,000,000 for a full server; `captured_at` has milliseconds and `Z`."""

    disk_usage_bytes: int
    free_space_bytes: int
    disk_wanted_bytes: int
    disk_usable_pct: int
    shard_count: int
    max_shard_count: int
    utilization_score: int
    captured_at: str

    def encode(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def measure(directory: Path, *, wanted_bytes: int, usable_pct: int, shards: int, now: datetime) -> Utilization:
    """Look at the disk below `directory`. `wanted_bytes` is what would be there if everything were. Raises OSError."""
    found = os.statvfs(directory)
    size = found.f_frsize or found.f_bsize
    return evaluate(
        used_bytes=(found.f_blocks - found.f_bfree) * size,
        free_bytes=found.f_bavail * size,
        wanted_bytes=wanted_bytes,
        usable_pct=usable_pct,
        shards=shards,
        now=now,
    )


def evaluate(
    *, used_bytes: int, free_bytes: int, wanted_bytes: int, usable_pct: int, shards: int, now: datetime
) -> Utilization:
    """Weigh bytes and shards: whichever is nearer to its end counts."""
    usable_bytes = (used_bytes + free_bytes) * usable_pct // 100
    by_bytes = wanted_bytes * _FULL // max(usable_bytes, 1)
    return Utilization(
        disk_usage_bytes=min(used_bytes, _I64_MAX),
        free_space_bytes=min(free_bytes, _I64_MAX),
        disk_wanted_bytes=min(wanted_bytes, _I64_MAX),
        disk_usable_pct=usable_pct,
        shard_count=shards,
        max_shard_count=SHARDS_MAX,
        utilization_score=max(by_bytes, shards * _FULL // SHARDS_MAX),
        captured_at=f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z",
    )


class UtilizationSampler:
    """Measures at most once per second; in between the same bytes are answered again."""

    def __init__(
        self,
        directory: Path,
        *,
        usable_pct: int,
        count_shards: Callable[[], int],
        sum_wanted: Callable[[], int],
        clock: Clock,
    ) -> None:
        self.score = 0
        """Of the last measurement."""
        self._directory = directory
        self._usable_pct = usable_pct
        self._count_shards = count_shards
        self._sum_wanted = sum_wanted
        self._clock = clock
        self._measuring = asyncio.Lock()
        self._measured_at = 0.0
        self._latest = b""

    async def answer(self) -> bytes:
        """Return the JSON text. Raises OSError."""
        async with self._measuring:
            now = self._clock.monotonic_seconds()
            if not self._latest or now - self._measured_at >= _KEPT_SECONDS:
                found = await asyncio.to_thread(self._measure, self._count_shards())
                self.score, self._latest, self._measured_at = found.utilization_score, found.encode(), now
            return self._latest

    def _measure(self, shards: int) -> Utilization:
        return measure(
            self._directory,
            wanted_bytes=self._sum_wanted(),
            usable_pct=self._usable_pct,
            shards=shards,
            now=self._clock.now(),
        )
