"""Computes the size that a timeline has when it is opened, in the background (spec read-path-compaction-gc.md 16).

    activate, or a new count ─▶ are all layers here? ──no──▶ wait a minute
                                        │ yes                        │
                                        ▼                            │
         a turn among the background work of the process ◀──────────┘
                                        │
                                        ▼
              read every relation's size at the LSN that ingest has told ──fails──▶ again after about an hour

`hurry` skips all that waits: somebody wants the exact size now. A server that comes up with an empty disk answers its
first requests before it fetches layers for a number that nobody asked for.

Invariant: who waits in `hurry` is answered by the end of the next attempt, or of `run`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from pageserver.clock import Clock
from pageserver.counts import SizeCalculations
from pageserver.errors import PageServerError, StoppedError
from pageserver.lsn import Lsn
from pageserver.remote.backoff import pause_unless
from pageserver.timeline.logical_size import CurrentLogicalSize
from pageserver.turns import TurnQueue

_DOWNLOAD_DELAY_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 3600.0
_RETRY_JITTER_SECONDS: Final = 600.0


class SizeCalculation:
    """Makes `size` accurate whenever it is not, from the first `want` on. `run` must be running.

    `compute` returns the bytes at an LSN, and `is_here` whether that needs no download; both block.
    """

    def __init__(
        self,
        size: CurrentLogicalSize,
        *,
        compute: Callable[[Lsn], int],
        is_here: Callable[[], bool],
        turns: TurnQueue,
        counts: SizeCalculations,
        note_seconds: Callable[[float], None],
        clock: Clock,
        log: Any,
    ) -> None:
        self._size = size
        self._compute = compute
        self._is_here = is_here
        self._turns = turns
        self._counts = counts
        self._note_seconds = note_seconds
        self._clock = clock
        self._log = log
        self._wanted = asyncio.Event()
        self._hurried = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._is_ended = False

    def want(self) -> None:
        """Have the size computed by and by."""
        self._wanted.set()

    async def hurry(self) -> None:
        """Wait until the size is accurate, or until one attempt has failed.

        Raises what the attempt raised; StoppedError if the timeline stops. Cancellation: the computation goes on.
        """
        if self._size.is_accurate:
            return
        if self._is_ended:
            raise StoppedError("the timeline is stopping")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._hurried.set()
        self._wanted.set()
        await waiter

    async def run(self) -> None:
        """Compute whenever it is wanted, until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                await self._wait_for_layers()
                is_retry = False
                while not self._size.is_accurate:
                    error = await self._attempt(is_retry=is_retry)
                    self._hurried.clear()
                    self._answer(error)
                    if error is None:
                        continue
                    is_retry = True
                    pause = _RETRY_SECONDS + random.uniform(-_RETRY_JITTER_SECONDS, _RETRY_JITTER_SECONDS)
                    # What nobody foresaw comes with where it was raised.
                    trace = None if isinstance(error, PageServerError | OSError) else error
                    self._log.warning(
                        "logical size cannot be computed", error=str(error), again_in_seconds=pause, exc_info=trace
                    )
                    await pause_unless(self._hurried, self._clock, pause)
                self._hurried.clear()
                self._answer(None)
        finally:
            self._is_ended = True
            self._answer(StoppedError("the timeline is stopping"))

    async def _wait_for_layers(self) -> None:
        try:
            is_here = await asyncio.to_thread(self._is_here)
        except Exception as error:
            self._log.warning("layers cannot be listed for a size", error=str(error), exc_info=error)
            is_here = True
        if not is_here and not self._hurried.is_set():
            await pause_unless(self._hurried, self._clock, _DOWNLOAD_DELAY_SECONDS)

    async def _attempt(self, *, is_retry: bool) -> Exception | None:
        """Compute once. Returns the error that a later attempt may not meet."""
        async with self._turns.turn(self._hurried):
            attempt = "retry" if is_retry else "first"
            how = "SkippedConcurrencyLimiter" if self._hurried.is_set() else "AfterBackgroundTasksRateLimit"
            self._counts.started[attempt, how] += 1
            growth, started = self._size.growth, self._clock.monotonic_seconds()
            try:
                found = await asyncio.to_thread(self._compute, growth.lsn)
            except Exception as error:
                # Whatever it is: a timeline that serves does not end over a number.
                self._counts.dropped[attempt] += 1
                return error
            except BaseException:
                self._counts.dropped[attempt] += 1
                raise
        seconds = self._clock.monotonic_seconds() - started
        self._size.learn(growth, found)
        self._counts.finished += 1
        self._note_seconds(seconds)
        self._log.info("logical size", bytes=found, lsn=str(growth.lsn), seconds=round(seconds, 3))
        return None

    def _answer(self, error: Exception | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
