"""Running blocking work for a task without losing sight of it when the task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_blocking(
    work: Callable[[], T], *, interrupt: Callable[[], None] | None = None, executor: Executor | None = None
) -> T:
    """Run `work` in a worker thread, or in a thread of `executor`, and return its result.

    Cancellation: `interrupt`, if given, asks the work to end early; then its end is waited for, so that nothing of it
    goes on behind its owner's back.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if interrupt is not None:
            interrupt()
        while not future.done():
            await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # Read, so that nobody reports it as unheard: the cancellation wins.
        raise
