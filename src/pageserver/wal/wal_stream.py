"""A stream of WAL from a primary, driven by the event loop: frames in, standby status updates out.

After START_REPLICATION the connection is in COPY BOTH. `receive` waits for the socket and returns what has arrived;
`send_status` writes a status update. Neither blocks on the other, so keep-alives are answered while WAL is being
ingested in another thread.

    server ── w start(8) end(8) time(8) WAL… ─▶     ── k end(8) time(8) reply(1) ─▶
           ◀── r write(8) flush(8) apply(8) time(8) reply(1) ──   (big-endian; 34 bytes with the tag)

The end of the streamed PostgreSQL timeline comes as CopyDone; `finish` answers it and reads which one follows.
Source: PostgreSQL manual, "Streaming Replication Protocol"; spec wal-receiver.md 7, 10.2, 10.3, 10.4.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from psycopg import Error as PsycopgError
from psycopg import pq

from pageserver.lsn import Lsn
from pageserver.wal.primary import PrimaryConnection, Row, error_of_result, row_of
from pageserver.wal.source_errors import SourceUnavailableError, StreamGapError

_WAL_HEADER: Final = struct.Struct(">cQQq")
_KEEPALIVE: Final = struct.Struct(">cQqB")
_STATUS: Final = struct.Struct(">cQQQqB")
_POSTGRES_EPOCH_MICROSECONDS: Final = 946_684_800_000_000
"""2000-01-01 UTC in microseconds since 1970."""
_RECEIVE_BYTES: Final = 4 * 1024 * 1024
"""Enough to keep an ingest step busy; what else has arrived waits in the socket."""


@dataclass(frozen=True, slots=True)
class Received:
    """What arrived since the last call: WAL (possibly none) that continues the stream, and what the server said."""

    wal: bytes
    server_end: Lsn | None
    """End of WAL on the server, as of the newest message; none if no message came."""
    reply_requested: bool
    ended: bool
    """The server ended the stream: its timeline ends here. Call `finish`."""


@dataclass(frozen=True, slots=True)
class NextTimeline:
    """Where the server's history goes on."""

    pg_tli: int
    start: Lsn


def encode_status(
    *, write: Lsn, flush: Lsn, apply: Lsn, unix_microseconds: int, reply_requested: bool = False
) -> bytes:
    """Return a standby status update, 34 bytes (spec wal-receiver.md 10.3)."""
    time = unix_microseconds - _POSTGRES_EPOCH_MICROSECONDS
    return _STATUS.pack(b"r", write, flush, apply, time, reply_requested)


def next_timeline_of(row: Row) -> NextTimeline:
    """Read the row that follows the end of a timeline."""
    return NextTimeline(int(row.text(0)), Lsn.parse(row.text(1)))


class WalStream:
    """One stream, from `start` on. Owned by one task; `close` the connection to end it."""

    def __init__(self, connection: PrimaryConnection, *, start: Lsn, now_microseconds: Callable[[], int]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._now_microseconds = now_microseconds
        self._ended = False
        self.received_lsn = start
        """End of the bytes received; the next frame must begin here."""

    async def receive(self, *, timeout_seconds: float) -> Received:
        """Wait until something arrives, at most `timeout_seconds`, and return all of it (bounded).

        Raises: StreamGapError, SourceUnavailableError (connection lost), or what `error_of_result` makes of an error
        of the server. Cancellation: safe, nothing is lost.
        """
        received = self._take_arrived()
        if received is None:
            await self._wait_readable(timeout_seconds)
            received = self._take_arrived()
        return received or Received(b"", None, reply_requested=False, ended=False)

    async def send_status(self, *, write: Lsn, flush: Lsn, apply: Lsn, reply_requested: bool = False) -> None:
        """Send a status update. Raises: SourceUnavailableError."""
        message = encode_status(
            write=write,
            flush=flush,
            apply=apply,
            unix_microseconds=self._now_microseconds(),
            reply_requested=reply_requested,
        )
        try:
            while self._pgconn.put_copy_data(message) == 0:
                await self._wait_writable()
        except PsycopgError as error:
            raise _lost(error) from error
        await self._flush()

    async def finish(self, *, timeout_seconds: float) -> NextTimeline | None:
        """End the stream in order and return the timeline that follows, if the server's history goes on.

        Raises: SourceUnavailableError, or what `error_of_result` makes of an error of the server.
        """
        try:
            self._pgconn.put_copy_end()
        except PsycopgError as error:
            raise _lost(error) from error
        await self._flush()
        following: NextTimeline | None = None
        async with asyncio.timeout(timeout_seconds):
            if not self._ended:
                await self._drop_rest()
            while (result := await self._next_result()) is not None:
                if result.status == pq.ExecStatus.FATAL_ERROR:
                    raise error_of_result(result)
                if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples:
                    following = next_timeline_of(row_of(result, 0))
        return following

    # What has arrived.

    def _take_arrived(self) -> Received | None:
        """Take messages out of libpq's buffer; none if it holds no complete one."""
        pieces: list[memoryview] = []
        size = 0
        server_end: Lsn | None = None
        reply_requested = False
        try:
            self._pgconn.consume_input()
            while size < _RECEIVE_BYTES and not self._ended:
                length, data = self._pgconn.get_copy_data(1)
                if length == 0:
                    break
                if length < 0:
                    self._note_end()
                    break
                match data[:1]:
                    case b"w":
                        _, start, server_end_raw, _ = _WAL_HEADER.unpack_from(data)
                        if start != self.received_lsn:
                            raise StreamGapError(expected=self.received_lsn, got=Lsn(start))
                        wal = data[_WAL_HEADER.size :]
                        pieces.append(wal)
                        size += len(wal)
                        self.received_lsn = self.received_lsn + len(wal)
                        server_end = Lsn(server_end_raw)
                    case b"k":
                        _, server_end_raw, _, reply = _KEEPALIVE.unpack_from(data)
                        server_end = Lsn(server_end_raw)
                        reply_requested = reply_requested or bool(reply)
                    case _:
                        pass  # Kinds that we do not know carry nothing that we need (spec wal-receiver.md 6.1).
        except PsycopgError as error:
            raise _lost(error) from error
        except struct.error as error:
            raise SourceUnavailableError(f"the primary sent a malformed message: {error}") from error
        if server_end is None and not self._ended:
            return None
        return Received(b"".join(pieces), server_end, reply_requested=reply_requested, ended=self._ended)

    def _note_end(self) -> None:
        """COPY BOTH is over: either the server sent CopyDone, or an error."""
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_of_result(result)
        if result is None or result.status != pq.ExecStatus.COPY_IN:
            raise SourceUnavailableError("the primary ended the stream in an unexpected way")
        self._ended = True

    async def _drop_rest(self) -> None:
        """Drop what the server still had on its way when we ended the stream."""
        try:
            while (length := self._pgconn.get_copy_data(1)[0]) >= 0:
                if length == 0:
                    await self._wait_readable(None)
                    self._pgconn.consume_input()
        except PsycopgError as error:
            raise _lost(error) from error

    async def _next_result(self) -> pq.abc.PGresult | None:
        try:
            while self._pgconn.is_busy():
                await self._wait_readable(None)
                self._pgconn.consume_input()
            return self._pgconn.get_result()
        except PsycopgError as error:
            raise _lost(error) from error

    # Waiting for the socket.

    async def _flush(self) -> None:
        try:
            while self._pgconn.flush():
                await self._wait_writable()
        except PsycopgError as error:
            raise _lost(error) from error

    async def _wait_readable(self, timeout_seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        descriptor = self._socket()
        ready = asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            async with asyncio.timeout(timeout_seconds):
                await ready.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(descriptor)

    async def _wait_writable(self) -> None:
        loop = asyncio.get_running_loop()
        descriptor = self._socket()
        ready = asyncio.Event()
        loop.add_writer(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)

    def _socket(self) -> int:
        try:
            return self._pgconn.socket
        except PsycopgError as error:
            raise _lost(error) from error


def _lost(error: Exception) -> SourceUnavailableError:
    return SourceUnavailableError(f"connection to the primary is lost: {' '.join(str(error).split())}")
