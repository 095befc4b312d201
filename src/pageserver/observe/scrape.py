"""What a scrape gets: a collection made for it, or, with `force_metric_collection_on_scrape = false`, the latest one
that was made in the background (metrics.md 1.2).

WHY the second: with very many series a collection may take longer than a scraper waits, and then all metrics of the
server are lost; old ones are better than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pageserver.clock import Clock
from pageserver.observe.process_metrics import ScrapeCounts

COLLECTION_PERIOD_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Collection:
    text: bytes
    collected_at: float
    seconds: float


class Scrapes:
    """Answers of `/metrics`. `run` collects in the background, and need not run where each scrape collects."""

    def __init__(
        self, render: Callable[[], bytes], *, collects_each_time: bool, counts: ScrapeCounts, clock: Clock, log: Any
    ) -> None:
        self._render = render
        self._collects_each_time = collects_each_time
        self._counts = counts
        self._clock = clock
        self._log = log
        self._latest: _Collection | None = None

    async def answer(self, *, use_latest: bool) -> bytes:
        """Return the text of one answer; empty if nothing has been collected yet."""
        began = self._clock.monotonic_seconds()
        self._counts.requests += 1
        collection = self._latest
        if self._collects_each_time:
            collection = await self._collect()
        elif use_latest:
            collection = self._latest = await self._collect()
        now = self._clock.monotonic_seconds()
        stale_millis = 0 if collection is None else round((now - collection.collected_at) * 1000)
        self._counts.stale_millis = stale_millis
        self._log.info(
            "responded /metrics",
            bytes=0 if collection is None else len(collection.text),
            total_ms=round((now - began) * 1000),
            collection_ms=0 if collection is None else round(collection.seconds * 1000),
            stalenss_ms=stale_millis,
        )
        return b"" if collection is None else collection.text

    async def run(self) -> None:
        """Collect again and again. Cancellation: safe."""
        while not self._collects_each_time:
            try:
                self._latest = await self._collect()
            except Exception as error:
                self._log.error("metrics could not be collected", error=str(error), exc_info=error)
            await self._clock.sleep(COLLECTION_PERIOD_SECONDS)

    async def _collect(self) -> _Collection:
        began = self._clock.monotonic_seconds()
        # In a thread: with many tenants it takes longer than requests should wait.
        text = await asyncio.to_thread(self._render)
        now = self._clock.monotonic_seconds()
        families = text.count(b"# TYPE ")
        self._log.info(f"Collected {families} metric families in {round((now - began) * 1000)} ms")
        return _Collection(text, now, now - began)
