"""The upload queue's life: retries, barriers, shutdown, stop (remote-storage.md 9.6, 9.7, 9.9)."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from structlog.testing import capture_logs

from pageserver.errors import UnavailableError
from pageserver.remote import IndexPart
from pageserver.remote.upload_operations import Operation, UploadIndex, UploadPolicy
from pageserver.remote.upload_queue import QueueStoppedError, UploadQueue
from tests.unit.remote.fakes import QuickClock, until
from tests.unit.remote.test_upload_operations import index, put, upload


class Uploads:
    """Plays the store: operations wait in `open` until they are let go, or fail as often as told."""

    def __init__(self) -> None:
        self.started: list[Operation] = []
        self.failures_left = 0
        self.gate: asyncio.Event | None = None
        self.indices: list[IndexPart] = []

    async def execute(self, operation: Operation) -> None:
        self.started.append(operation)
        if self.gate is not None:
            await self.gate.wait()
        if self.failures_left:
            self.failures_left -= 1
            raise UnavailableError("not now")


def queue_over(uploads: Uploads, clock: QuickClock | None = None, limit: int = 100) -> UploadQueue:
    return UploadQueue(
        index(),
        execute=uploads.execute,
        on_index_uploaded=uploads.indices.append,
        policy=UploadPolicy(limit),
        clock=clock or QuickClock(),
        log=structlog.get_logger(),
    )


async def test_failures_are_repeated_for_ever_with_growing_pauses() -> None:
    uploads, clock = Uploads(), QuickClock()
    uploads.failures_left = 20
    with capture_logs() as logs:
        queue = queue_over(uploads, clock)
        queue.schedule(put(0))
        await queue.wait_completion()
    assert clock.pauses[:5] == [0.0, 1.1, pytest.approx(1.21), pytest.approx(1.331), pytest.approx(1.4641)]
    assert clock.pauses[-1] == 3.0
    retries = [entry for entry in logs if "will retry" in entry["event"]]
    assert [entry["log_level"] for entry in retries[:4]] == ["info", "info", "info", "warning"]
    assert retries[0]["event"] == (
        "failed to perform remote task UploadMetadata(lsn: 0/100), will retry (attempt 0): not now"
    )
    assert logs[-1]["event"] == "remote task UploadMetadata(lsn: 0/100) completed successfully after 20 retries"
    assert queue.stats().failures == 20


async def test_clean_follows_what_was_uploaded() -> None:
    uploads = Uploads()
    queue = queue_over(uploads)
    assert not queue.has_uploaded_index
    newest = put(0, 1)
    queue.schedule(upload(0), put(0), upload(1), newest)
    await queue.wait_completion()
    assert queue.clean is newest.index
    assert queue.has_uploaded_index
    assert uploads.indices[-1] is newest.index


async def test_shutdown_drains_and_refuses() -> None:
    uploads = Uploads()
    uploads.gate = asyncio.Event()
    queue = queue_over(uploads)
    queue.schedule(upload(0), put(0))
    ending = asyncio.ensure_future(queue.shutdown())
    await until(lambda: len(uploads.started) == 1)
    with pytest.raises(QueueStoppedError, match="queue is shutting down"):
        queue.schedule(upload(1))
    uploads.gate.set()
    await ending
    assert [type(operation) for operation in uploads.started][1:] == [UploadIndex]
    assert uploads.indices
    with pytest.raises(QueueStoppedError, match="queue is in state Stopped"):
        await queue.wait_completion()
    await queue.shutdown()
    await queue.close()


async def test_stop_drops_what_is_queued_and_ignores_what_runs() -> None:
    uploads = Uploads()
    uploads.gate = asyncio.Event()
    queue = queue_over(uploads)
    queue.schedule(put(0), put(0, 1))
    queue.schedule(put(0, 1, 2))
    waiting = asyncio.ensure_future(queue.wait_completion())
    await until(lambda: len(uploads.started) == 1)
    queue.stop()
    with pytest.raises(QueueStoppedError, match="wait_completion aborted because upload queue was stopped"):
        await waiting
    uploads.gate.set()
    await queue.close()
    assert uploads.indices == []
    assert queue.clean == index()
    assert len(uploads.started) == 1


async def test_close_waits_for_what_runs_and_cuts_pauses_short() -> None:
    """Goal: after close nothing of this queue reaches the store. Method: one upload that is under way, one in its
    pause.
    """

    class SlowClock(QuickClock):
        async def sleep(self, seconds: float) -> None:
            self.pauses.append(seconds)
            await asyncio.sleep(3600)

    uploads, clock = Uploads(), SlowClock()
    uploads.failures_left = 1
    queue = queue_over(uploads, clock)
    queue.schedule(upload(0))
    await until(lambda: clock.pauses == [0.0])
    uploads.gate = asyncio.Event()
    queue.schedule(upload(1))
    await until(lambda: len(uploads.started) == 2)
    closing = asyncio.ensure_future(queue.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    uploads.gate.set()
    await closing
    assert queue.is_stopped
    assert len(uploads.started) == 2


async def test_a_cancelled_waiter_disturbs_nobody() -> None:
    uploads = Uploads()
    uploads.gate = asyncio.Event()
    queue = queue_over(uploads)
    queue.schedule(upload(0))
    first, second = (asyncio.ensure_future(queue.wait_completion()) for _ in range(2))
    await until(lambda: len(uploads.started) == 1)
    first.cancel()
    uploads.gate.set()
    await second
    await queue.close()


async def test_the_limit_of_running_operations_holds() -> None:
    uploads = Uploads()
    uploads.gate = asyncio.Event()
    queue = queue_over(uploads, limit=2)
    queue.schedule(*(upload(number) for number in range(5)))
    await until(lambda: len(uploads.started) == 2)
    assert (queue.stats().running, queue.stats().queued) == (2, 3)
    uploads.gate.set()
    await queue.wait_completion()
    assert len(uploads.started) == 5
