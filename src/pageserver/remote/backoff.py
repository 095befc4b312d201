"""Pauses between attempts (remote-storage.md 9.6; http-api.md 6): none before the first retry, then growing to 3
seconds.

Loops that retry for ever say so at info for the first failures and at warning afterwards, so that a hiccup is no alarm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pageserver.clock import Clock
from pageserver.errors import StoppedError

WARN_AFTER = 3
_PAUSE_SECONDS_MAX = 3.0
_GROWTH = 1.1

T = TypeVar("T")


def pause_seconds(failures: int) -> float:
    """Return the pause before the next attempt, after `failures` failures before the last one: 0, 1.1, 1.21, … 3."""
    return 0.0 if failures == 0 else min(_GROWTH ** min(failures, 100), _PAUSE_SECONDS_MAX)


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
            tell(f"{what} failed, will retry (attempt {failures})", error=str(error))
            await pause_unless(stop, clock, pause_seconds(failures))
            failures += 1
            continue
        if failures:
            log.info(f"{what} succeeded after {failures} retries")
        return result
    raise StoppedError(f"{what}: cancelled, shutting down")
