"""The process's only way to delete objects (remote-storage.md 11).

    push_layers ─▶ ListWriter ─▶ list on disk ─▶ Validator ─▶ generation current? ─▶ Deleter ─▶ objects gone
    push_immediate ───────────────────────────────────────────────────────────────▶ Deleter

A layer object may go only when (a) an index without it was uploaded in generation g, which is why the upload queue
pushes it here after that, and (b) after (a) somebody who knows said that g is current: whoever comes later starts from
that index or a successor. Whole timelines go the immediate way: their index says `deleted_at` first.

The queue outlives the tenants. It ends with the process: what was not executed lies in lists and is taken up at the
next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pageserver.clock import Clock
from pageserver.disk_errors import DiskGuard
from pageserver.errors import StoppedError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote.deletion_list import DeletionDirectory
from pageserver.remote.deletion_stages import (
    IDLE_SECONDS,
    Deleter,
    DeletionCounters,
    ListWriter,
    PushLayers,
    Recover,
    Shared,
    Validator,
)
from pageserver.remote.retry import single_attempts
from pageserver.remote.storage import ObjectStorage
from pageserver.remote.validation import GenerationValidator, VisibleLsn


class DeletionQueueStoppedError(StoppedError):
    """The deletion queue ended before it did what was waited for."""

    def __init__(self) -> None:
        super().__init__("the deletion queue is shut down")


class DeletionQueue:
    """One per server. `start` before use; `recover` once, before anything is pushed."""

    def __init__(
        self,
        workdir: Path,
        *,
        storage: ObjectStorage,
        validator: GenerationValidator,
        clock: Clock,
        log: Any,
        idle_seconds: float = IDLE_SECONDS,
        failpoints: Failpoints | None = None,
        disk: DiskGuard | None = None,
    ) -> None:
        self._shared = Shared(
            DeletionDirectory(workdir),
            single_attempts(storage),
            validator,
            clock,
            log,
            disk or DiskGuard(log),
            idle_seconds,
            failpoints=failpoints or Failpoints.off(),
        )
        self._deleter = Deleter(self._shared)
        self._validator = Validator(self._shared, self._deleter)
        self._writer = ListWriter(self._shared, self._validator)
        self._tasks: list[asyncio.Task[None]] = []
        self._pushed: set[tuple[TenantShardId, TimelineId, Generation]] = set()

    @property
    def counters(self) -> DeletionCounters:
        return self._shared.counters

    def start(self) -> None:
        """Start the workers. Call `close` to end them."""
        loop = asyncio.get_running_loop()
        for name, work in (
            ("deletion lists", self._writer.run()),
            ("deletion validation", self._validator.run()),
            ("deletion execution", self._deleter.run()),
        ):
            task = loop.create_task(work, name=name)
            task.add_done_callback(self._worker_ended)
            self._tasks.append(task)

    async def close(self) -> None:
        """End the workers. Who waits for a flush gets DeletionQueueStoppedError."""
        self._shared.stop.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Pushing: never waits

    def recover(self, attached: Mapping[TenantShardId, Generation]) -> None:
        """Take over the lists of the last process; `attached` are the shards of this one and their generations."""
        self._writer.inbox.put_nowait(Recover(dict(attached)))

    def push_layers(
        self, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, names: Iterable[str]
    ) -> None:
        """Delete layer objects some time after `generation` was validated. Names carry the layers' own suffixes."""
        pushed = tuple(names)
        if pushed:
            self._shared.counters.submitted += len(pushed)
            self._pushed.add((shard, timeline_id, generation))
            self._writer.inbox.put_nowait(PushLayers(shard, timeline_id, generation, pushed))

    def has_pushed(self, shard: TenantShardId, timeline_id: TimelineId, generation: Generation) -> bool:
        """Return whether layers of this timeline were pushed in this generation, also if they are gone by now."""
        return (shard, timeline_id, generation) in self._pushed

    def push_lsn(
        self, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, lsn: Lsn, slot: VisibleLsn
    ) -> None:
        """Store `lsn` in `slot` once `generation` was validated, or never."""
        self._shared.lsn_updates.push(shard, timeline_id, generation, lsn, slot)
        if self._shared.validator.answers_at_once:
            self._validator.wake()

    def hurry_lsns(self) -> None:
        """Validate waiting LSNs now: somebody waits for them."""
        if len(self._shared.lsn_updates):
            self._validator.wake()

    # Waiting

    async def push_immediate(self, keys: Iterable[str]) -> None:
        """Delete objects without validation. Waits only while the worker is far behind."""
        pushed = tuple(keys)
        if pushed:
            self._shared.counters.submitted += len(pushed)
            await self._unless_stopped(self._deleter.inbox.put(pushed))

    async def flush(self) -> None:
        """Wait until everything pushed before is in a list on disk. Raises DeletionQueueStoppedError."""
        await self._unless_stopped(self._writer.flush())

    async def flush_execute(self) -> None:
        """Wait until everything pushed before is validated and executed. Raises DeletionQueueStoppedError.

        Waits as long as nobody can say which generations are current.
        """
        await self.flush()
        await self._unless_stopped(self._validator.flush())
        await self.flush_immediate()

    async def flush_immediate(self) -> None:
        """Wait until everything of `push_immediate` before is deleted. Raises DeletionQueueStoppedError."""
        await self._unless_stopped(self._deleter.flush())

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        """Await what a worker shall answer, as long as there are workers."""
        waiting = asyncio.ensure_future(work)
        stopped = asyncio.get_running_loop().create_task(self._shared.stop.wait(), name="wait for stop")
        try:
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise DeletionQueueStoppedError
            waiting.result()
        finally:
            unfinished = [task for task in (waiting, stopped) if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._shared.stop.is_set():
            # A belief about our own code was wrong. Nothing is deleted any more, and nobody shall wait for it.
            self._shared.counters.unexpected_errors += 1
            self._shared.log.critical("a worker of the deletion queue ended", error=str(error), exc_info=error)
            self._shared.stop.set()
