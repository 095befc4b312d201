"""The upload queue of one loaded timeline: starts what may start, repeats what fails, completes in order
(remote-storage.md 9).

    schedule ──▶ queued ──choose_next──▶ running ──▶ completed     index: clean := uploaded, then tell the owner
                    └─ Shutdown stays at the head                 barrier: its waiter is woken

States: running → shutting down (scheduling fails, the queue drains) → stopped (nothing is started any more; what runs
is ignored at its end). Nothing here is persistent: after a crash the index in the store is the truth, and everything
later is ingested or computed again.

Invariants: at most `policy.limit` operations run; one index upload at a time, in scheduling order; `clean` is an index
that is in the store, and a later one never gets replaced by an earlier one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pageserver.clock import Clock
from pageserver.counts import ServerCounts
from pageserver.errors import StoppedError
from pageserver.remote.backoff import WARN_AFTER, pause_unless
from pageserver.remote.client_counts import ClientCounts, call_of
from pageserver.remote.index_part import IndexPart
from pageserver.remote.retry import pause_seconds
from pageserver.remote.upload_operations import Barrier, Operation, Shutdown, UploadIndex, UploadPolicy, choose_next


class QueueStoppedError(StoppedError):
    """The queue takes nothing any more: its timeline is shutting down."""


@dataclass(frozen=True, slots=True)
class UploadQueueStats:
    """For metrics and tests. `failures` counts attempts that failed, `coalesced` indices that were left out."""

    queued: int
    running: int
    failures: int
    coalesced: int


class UploadQueue:
    """Runs the operations of one timeline. Calls do not wait unless they are coroutines."""

    def __init__(
        self,
        clean: IndexPart,
        *,
        execute: Callable[[Operation], Awaitable[None]],
        on_index_uploaded: Callable[[IndexPart], None],
        policy: UploadPolicy,
        clock: Clock,
        log: Any,
        counts: ServerCounts | None = None,
    ) -> None:
        self.counts = ClientCounts()
        self._server_counts = counts or ServerCounts()
        self.clean = clean
        """The index that is known to be in the store, or that a new timeline begins with."""
        self.has_uploaded_index = False
        self._clean_number = 0
        self._execute = execute
        self._on_index_uploaded = on_index_uploaded
        self._policy = policy
        self._clock = clock
        self._log = log
        self._queued: list[Operation] = []
        self._running: dict[int, Operation] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_shutting_down = False
        self._is_stopped = False
        self._drained = asyncio.Event()
        self._cancelled = asyncio.Event()
        self._failures = 0
        self._coalesced = 0

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when nothing shall be tried again."""
        return self._cancelled

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def stats(self) -> UploadQueueStats:
        return UploadQueueStats(len(self._queued), len(self._running), self._failures, self._coalesced)

    def check_accepts(self) -> None:
        """Raise QueueStoppedError if scheduling would fail."""
        if self._is_stopped:
            raise QueueStoppedError("queue is in state Stopped")
        if self._is_shutting_down:
            raise QueueStoppedError("queue is shutting down")

    def schedule(self, *operations: Operation) -> None:
        """Append operations and start what may start. Raises QueueStoppedError."""
        self.check_accepts()
        for operation in operations:
            self.counts.schedule(operation)
        self._queued.extend(operations)
        self._launch()

    async def wait_completion(self) -> None:
        """Wait until everything scheduled so far is done. Raises QueueStoppedError. Cancellation: nothing else ends."""
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.schedule(Barrier(reached))
        await reached

    def stop(self) -> None:
        """Drop what is queued, fail who waits, ignore what runs. A second call changes nothing."""
        if self._is_stopped:
            return
        self._is_stopped = True
        for operation in (*self._queued, *self._running.values()):
            self.counts.end(operation)
        for operation in self._queued:
            if isinstance(operation, Barrier) and not operation.reached.done():
                operation.reached.set_exception(
                    QueueStoppedError("wait_completion aborted because upload queue was stopped")
                )
        self._queued.clear()
        self._running.clear()
        self._drained.set()

    def begin_shutdown(self) -> None:
        """Refuse whatever comes from now on; what was scheduled is still done."""
        if not self._is_shutting_down and not self._is_stopped:
            self._is_shutting_down = True
            self._queued.append(Shutdown())
            self._launch()

    async def shutdown(self) -> None:
        """Do everything that was scheduled, then stop."""
        self.begin_shutdown()
        await self._drained.wait()
        self.stop()

    async def close(self) -> None:
        """Stop at once and wait until no upload of this queue can reach the store any more."""
        self._cancelled.set()
        self.stop()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _launch(self) -> None:
        limit = self._policy.limit
        while not self._is_stopped and (limit == 0 or len(self._running) < limit):
            choice = choose_next(self._running.values(), self._queued, self.clean, self._policy)
            if choice is None:
                return
            if isinstance(choice.operation, Shutdown):
                self._drained.set()
                return
            del self._queued[choice.position : choice.position + len(choice.coalesced) + 1]
            self._coalesced += len(choice.coalesced)
            for index in choice.coalesced:
                self.counts.end(index)
            if isinstance(choice.operation, Barrier):
                if not choice.operation.reached.done():
                    choice.operation.reached.set_result(None)
                continue
            self._start(next(self._numbers), choice.operation)

    def _start(self, number: int, operation: Operation) -> None:
        self._running[number] = operation
        task = asyncio.get_running_loop().create_task(self._perform(number, operation), name=str(operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, number: int, operation: Operation) -> None:
        """Try until it works. A running attempt is never aborted: its outcome would be unknown."""
        failures = 0
        while True:
            if self._cancelled.is_set():
                self.stop()
                return
            started = self._clock.monotonic_seconds()
            try:
                await self._execute(operation)
            except Exception as error:
                self._observe(operation, started, "failure")
                tell = self._log.info if failures < WARN_AFTER else self._log.warning
                tell(f"failed to perform remote task {operation}, will retry (attempt {failures}): {error}")
                self._failures += 1
                await pause_unless(self._cancelled, self._clock, pause_seconds(failures))
                failures += 1
                continue
            break
        self._observe(operation, started, "success")
        if failures:
            self._log.info(f"remote task {operation} completed successfully after {failures} retries")
        self._complete(number, operation)

    def _observe(self, operation: Operation, started: float, status: str) -> None:
        """Note how long one attempt took."""
        call = call_of(operation)
        if call is not None:
            self._server_counts.client_seconds[*call, status].observe(self._clock.monotonic_seconds() - started)

    def _complete(self, number: int, operation: Operation) -> None:
        if self._is_stopped:
            return
        del self._running[number]
        self.counts.end(operation)
        if isinstance(operation, UploadIndex):
            assert number > self._clean_number, "indices are uploaded in order"
            self.clean, self._clean_number, self.has_uploaded_index = operation.index, number, True
            self._on_index_uploaded(operation.index)
        self._launch()
