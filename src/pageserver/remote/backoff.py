"""Repeating for ever until an event says stop (remote-storage.md 9.6; http-api.md 6), with the pauses of `retry`.

Loops that retry for ever say so at info for the first failures and at warning afterwards, so that a hiccup is no alarm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pageserver.clock import Clock
from pageserver.errors import StoppedError
from pageserver.remote.retry import pause_seconds

WARN_AFTER = 3

T = TypeVar("T")


async def pause_unless(stop: asyncio.Event, clock: Clock, seconds: float) -> None:
    """Wait, but not after `stop` is set. Cancellation: safe."""
    await run_unless(stop, clock.sleep(seconds))


async def run_unless(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Await `work`, or cancel it when `stop` is set and return None."""
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(work)
    stopping = loop.create_task(stop.wait(), name="wait for stop")
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        ended = [task for task in (working, stopping) if not task.done()]
        for task in ended:
            task.cancel()
        if ended:
            await asyncio.wait(ended)


async def retry_for_ever(
    work: Callable[[], Awaitable[T]], *, what: str, stop: asyncio.Event, clock: Clock, log: Any
) -> T:
    """Repeat `work` until it succeeds. Raises StoppedError once `stop` is set; a running attempt is not cut short.

    Every Exception counts as a failure that may pass: whoever retries for ever has nobody to hand it to.
    """
    failures = 0
    while not stop.is_set():
        try:
            result = await work()
        except Exception as error:
            tell = log.info if failures < WARN_AFTER else log.warning
            tell(f"{what} failed, will retry (attempt {failures}): {error}")
            await pause_unless(stop, clock, pause_seconds(failures))
            failures += 1
            continue
        if failures:
            log.info(f"{what} succeeded after {failures} retries")
        return result
    raise StoppedError(f"{what}: cancelled, shutting down")
