"""Bringing layers to this disk when a read needs them, once for all who wait (remote-storage.md 12).

    reader's thread ─fetch─▶ event loop: one task a layer ─▶ storage ─▶ temporary name, size checked ─▶ rename, fsync
                    ◀─────────── everybody who waits for that layer goes on, or gets its error

Invariants: a file under a layer's final name is complete and has the size that the index says; a download that fails
or is cancelled leaves nothing, a crash a temporary file, which the next start removes; a reader that gives up does not
stop the download of others. After `close` nothing is brought any more and every waiter has been told.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pageserver.disk_errors import DiskGuard
from pageserver.errors import InternalError, StoppedError, UnavailableError
from pageserver.remote import IndexPart, LayerEntry
from pageserver.remote.local_store import sync_directory

FETCH_TIMEOUT_SECONDS = 600.0
"""How long a reader's thread waits; far above what one layer takes, so that it ends only what hangs."""

CANCELLED_EVICTIONS = (
    "layer_gone",
    "timeline_gone",
    "version_check_fail",
    "file_not_found",
    "remove_failed",
    "already_reinitialized",
    "lost_to_download",
    "upgraded_back_on_access",
    "unexpected_evicted_state",
)
"""Why Neon's server gives up an eviction (metrics.md 3.9); here only the first and `remove_failed` occur."""


@dataclass(slots=True)
class DownloadCounts:
    """What was brought, and evicted, since the process started, for all timelines."""

    layers: int = 0
    bytes: int = 0
    evictions_started: int = 0
    evictions: int = 0
    evictions_cancelled: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CANCELLED_EVICTIONS, 0))
    """Those that began and did not end, by reason; each eviction that began is here or in `evictions`."""


class LayerSource(Protocol):
    """Where layers come from: the timeline, which knows its index and its store."""

    @property
    def index(self) -> IndexPart: ...
    async def download_layer(self, name: str, entry: LayerEntry, temporary_number: int) -> Path: ...


class LayerDownloads:
    """The downloads of one timeline. Made on the event loop; `fetch` is for other threads."""

    def __init__(
        self, source: LayerSource, directory: Path, counts: DownloadCounts, *, disk: DiskGuard | None = None
    ) -> None:
        self._disk = disk
        self._source = source
        self._directory = directory
        self.counts = counts
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)
        self._closed = False

    def fetch(self, name: str) -> None:
        """Block until the layer is in the directory.

        Raises: UnavailableError, CorruptDataError (another size than the index says), StoppedError.
        """
        if threading.get_ident() == self._loop_thread:
            raise InternalError(f"layer {name} is asked for on the event loop, which would have to bring it")
        try:
            waiting = asyncio.run_coroutine_threadsafe(self.download(name), self._loop)
        except RuntimeError as error:  # the loop is closed
            raise StoppedError("the server is shutting down") from error
        try:
            waiting.result(FETCH_TIMEOUT_SECONDS)
        except concurrent.futures.TimeoutError as error:
            waiting.cancel()
            raise UnavailableError(f"layer {name} did not arrive within {FETCH_TIMEOUT_SECONDS:g} s") from error
        except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
            raise StoppedError(f"the download of layer {name} was stopped") from error

    async def download(self, name: str) -> None:
        """Bring a layer; join the download that is under way, if any. Cancellation leaves the download running.

        Raises: as `fetch`.
        """
        if self._closed:
            raise StoppedError("timeline shutting down")
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = self._loop.create_task(self._bring(name), name=f"download {name}")
            task.add_done_callback(lambda done: self._forget(name, done))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StoppedError(f"the download of layer {name} was stopped") from None
            raise

    async def close(self) -> None:
        """Stop all downloads and refuse new ones."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring(self, name: str) -> None:
        entry = self._source.index.layers.get(name)
        if entry is None:
            raise UnavailableError(f"layer {name} is no longer part of the timeline")
        try:
            await self._source.download_layer(name, entry, next(self._numbers))
            await asyncio.to_thread(sync_directory, self._directory)
        except OSError as error:  # of the local disk: the store's are errors of ours
            if self._disk is not None:
                self._disk.check(error)
            raise
        self.counts.layers += 1
        self.counts.bytes += entry.file_size

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if not task.cancelled():
            task.exception()  # seen, also if everybody who waited has gone
