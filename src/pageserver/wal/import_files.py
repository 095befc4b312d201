"""Histories that come as files: a base backup's tar, then a tar of WAL segments.

The tar of a data directory goes the way of a base backup (spool, scan, image layers). WAL segments are ingested in
sequence, up to and including the first record that ends behind the asked LSN.

    body (async) ─▶ ChunkPipe ─▶ worker thread: TarReader ─▶ Spool │ WalApplier

Source: spec tenants.md 10.2, wal.md 11, stock.md 1.7.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final

from pageserver.errors import RequestError
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.wal_segment import segment_file_name
from pageserver.wal.ingest import IngestStep, WalApplier
from pageserver.wal.tar_stream import MemberKind, TarMember
from pageserver.wal.threads import run_blocking

_PIPE_CHUNKS_MAX: Final = 16
_PIPE_CHUNK_BYTES: Final = 1024 * 1024
"""An HTTP server hands out 64 KiB at most; a thread switch for each of them, and not the work, would set the pace."""
_FEED_BYTES: Final = 128 * 1024
"""A step of the engine: what it copies from buffer to buffer stays in the processor's cache."""
_STEP_BYTES: Final = 8
"""Records begin at multiples of this."""


class WalImportError(RequestError):
    """The archive does not hold the WAL that was announced."""


class ImportCancelledError(RequestError):
    """The body of the request ended early because the request went away."""


class ChunkPipe:
    """Hands chunks from the event loop to one blocking reader, a few at a time."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._room = asyncio.Semaphore(_PIPE_CHUNKS_MAX)
        self._loop = asyncio.get_running_loop()
        self._broken = False

    async def fill(self, body: AsyncIterator[bytes]) -> None:
        """Pass on the whole body."""
        pieces: list[bytes] = []
        size = 0
        async for chunk in body:
            pieces.append(chunk)
            size += len(chunk)
            if size >= _PIPE_CHUNK_BYTES:
                await self._room.acquire()
                self._queue.put(b"".join(pieces))
                pieces.clear()
                size = 0
        if size:
            await self._room.acquire()
            self._queue.put(b"".join(pieces))
        self._queue.put(None)

    def break_off(self) -> None:
        """End the reader with ImportCancelledError."""
        self._broken = True
        self._queue.put(None)

    def __iter__(self) -> Iterator[bytes]:
        """Read in a worker thread."""
        while True:
            chunk = self._queue.get()
            if self._broken:
                raise ImportCancelledError("the archive was cut off")
            if chunk is None:
                return
            self._loop.call_soon_threadsafe(self._room.release)
            yield chunk


async def read_in_thread(body: AsyncIterator[bytes], work: Callable[[Iterable[bytes]], None]) -> None:
    """Run `work` over the chunks of `body` in a worker thread.

    Raises: what the work or the body raises. Cancellation: the work is broken off and waited for.
    """
    pipe = ChunkPipe()
    filling = asyncio.ensure_future(pipe.fill(body))
    try:
        working = asyncio.ensure_future(run_blocking(lambda: work(pipe), interrupt=pipe.break_off))
        try:
            await asyncio.wait([filling, working], return_when=asyncio.FIRST_COMPLETED)
            if filling.done() and (failure := filling.exception()) is not None:
                pipe.break_off()
                await asyncio.wait([working])
                working.exception()
                raise failure
            await working
        except asyncio.CancelledError:
            working.cancel()
            await asyncio.wait([working])
            raise
    finally:
        filling.cancel()
        await asyncio.wait([filling])


class WalSegments:
    """Feeds the segments of a WAL archive to an applier, in sequence (blocking).

    `skip_before`: segments that lie wholly before `start` are passed over (stock flavour, spec stock.md 1.7); otherwise
    the first one must be the one with `start`.
    """

    def __init__(
        self, applier: WalApplier, *, start: Lsn, end: Lsn, pg_tli: int, skip_before: bool, roll: Callable[[], None]
    ) -> None:
        self._applier = applier
        self._end = end
        self._pg_tli = pg_tli
        self._skip_before = skip_before
        self._roll = roll
        self._position = start.normalised()
        """Where the next byte to feed lies."""
        self._history_ended = False

    def take_all(self, members: Iterable[TarMember]) -> list[str]:
        """Ingest what is needed. Returns: names that were passed over. Raises: WalImportError, CorruptDataError."""
        passed_over = []
        for member in members:
            if member.kind is not MemberKind.FILE:
                continue
            name = member.name.rsplit("/", 1)[-1]
            expected = segment_file_name(self._pg_tli, self._position.segment_number())
            if self._is_done() or name != expected:
                if not self._is_done() and not self._may_skip(name, expected):
                    raise WalImportError(f"expected WAL segment {expected}, the archive has {name}")
                passed_over.append(name)
                continue
            if member.size > WAL_SEGMENT_SIZE:
                raise WalImportError(f"WAL segment {name} has {member.size} bytes")
            self._take_segment(member)
        if not self._is_done():
            raise WalImportError(f"expected more wal: the archive ends at {self._applier.lsn}, before {self._end}")
        return passed_over

    def _may_skip(self, name: str, expected: str) -> bool:
        if name.endswith(".history") or not _is_segment_name(name):
            return self._skip_before
        return self._skip_before and name < expected

    def _is_done(self) -> bool:
        return self._applier.lsn > self._end or self._history_ended

    def _take_segment(self, member: TarMember) -> None:
        """Feed the segment from our position to its end, or until the end of the wanted history lies behind us."""
        skip = self._position - self._position.segment_start()
        for chunk in member.chunks():
            dropped = min(skip, len(chunk))
            skip -= dropped
            for at in range(dropped, len(chunk), _FEED_BYTES):
                if self._is_done():
                    return
                self._feed(bytes(chunk[at : at + _FEED_BYTES]))

    def _feed(self, data: bytes) -> None:
        """Feed up to the wanted end at once, then in small steps until one record ends behind it."""
        at = min(len(data), max(0, self._end - self._position))
        self._take(data[:at])
        while at < len(data) and not self._is_done():
            if self._is_end_of_history(data, at):
                self._history_ended = True
                return
            step = data[at : at + _STEP_BYTES - self._position % _STEP_BYTES]
            self._take(step)
            at += len(step)

    def _is_end_of_history(self, data: bytes, at: int) -> bool:
        """Zeros where a record would begin, exactly at the wanted end: nothing was written behind it."""
        between_records = self._applier.lsn.normalised() == self._position
        return self._applier.lsn == self._end and between_records and not any(data[at : at + _STEP_BYTES])

    def _take(self, data: bytes) -> None:
        if not data:
            return
        self._position = self._position + len(data)
        step = self._applier.take(data)
        while step is IngestStep.ROLL:
            self._roll()
            step = self._applier.go_on()


def _is_segment_name(name: str) -> bool:
    return len(name) == 24 and all(digit in "0123456789ABCDEF" for digit in name)
