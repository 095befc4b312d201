"""When metrics are collected for an answer, and when an older collection is sent (metrics.md 1.2)."""

from __future__ import annotations

import asyncio
from itertools import count

import structlog

from pageserver.clock import SystemClock
from pageserver.observe import ScrapeCounts, Scrapes
from tests.unit.world import eventually


def make(*, collects_each_time: bool) -> tuple[Scrapes, ScrapeCounts]:
    numbers, counts = count(1), ScrapeCounts()
    log, clock = structlog.get_logger(), SystemClock()
    scrapes = Scrapes(
        lambda: f"# TYPE x gauge\nx {next(numbers)}\n".encode(),
        collects_each_time=collects_each_time,
        counts=counts,
        clock=clock,
        log=log,
    )
    return scrapes, counts


async def number(scrapes: Scrapes, *, use_latest: bool = False) -> int | None:
    text = await scrapes.answer(use_latest=use_latest)
    return int(text.split()[-1]) if text else None


async def test_each_scrape_collects_unless_told_otherwise() -> None:
    scrapes, counts = make(collects_each_time=True)
    assert [await number(scrapes), await number(scrapes, use_latest=True), await number(scrapes)] == [1, 2, 3]
    assert (counts.requests, counts.stale_millis) == (3, 0)
    await scrapes.run()  # there is nothing to do


async def test_an_older_collection_is_sent_until_the_next_or_until_somebody_insists() -> None:
    scrapes, counts = make(collects_each_time=False)
    assert await number(scrapes) is None, "nothing was collected yet"
    running = asyncio.ensure_future(scrapes.run())

    async def is_collected() -> bool:
        return await number(scrapes) is not None

    await eventually(is_collected)
    assert [await number(scrapes), await number(scrapes)] == [1, 1]
    assert await number(scrapes, use_latest=True) == 2
    assert await number(scrapes) == 2
    await asyncio.sleep(0.02)
    await number(scrapes)
    assert counts.stale_millis > 0
    running.cancel()
