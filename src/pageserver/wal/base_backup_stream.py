"""BASE_BACKUP over a replication connection: what the primary sends, as events, the same for all major versions.

    14:   row (start, tli) · rows of tablespaces · one COPY OUT per tablespace, a tar without its closing blocks ·
          row (end, tli)
    15+:  row (start, tli) · rows of tablespaces · one COPY OUT with messages `n` new archive, `d` data, `p` progress,
          `m` manifest follows (not asked for) · row (end, tli)

WAL is not asked for: the stream from our slot brings it. The primary does not verify page checksums while it copies.
Source: PostgreSQL manual, "Streaming Replication Protocol", BASE_BACKUP; spec stock.md 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from psycopg import pq

from pageserver.lsn import Lsn
from pageserver.wal.primary import PrimaryConnection, Row, quote_literal, row_of
from pageserver.wal.source_errors import SourceRefusedError
from pageserver.wal.tar_stream import Closing, TarReader

_SILENCE_SECONDS_MAX: Final = 300.0
"""Longer than a checkpoint of a busy server that was asked for speed, or a look at all sizes, should take."""


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace in the backup. The data directory itself is the one without an oid."""

    oid: int | None
    location: str
    size_kib: int | None


@dataclass(frozen=True, slots=True)
class BackupPoint:
    """An end of the backup: position and timeline of the primary."""

    lsn: Lsn
    pg_tli: int


@dataclass(frozen=True, slots=True)
class BackupArchive:
    """One tar of the backup; `members` must be used up before the next archive is asked for."""

    tablespace: Tablespace
    members: TarReader


class BaseBackupStream:
    """One BASE_BACKUP, read in order: `start` and `tablespaces` are there at once, then `archives`, then `end`.

    `on_bytes` hears how many bytes of tar have arrived.
    """

    def __init__(
        self, connection: PrimaryConnection, *, label: str, fast: bool = True, on_bytes: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self._on_bytes = on_bytes
        self._bytes = 0
        self.end: BackupPoint | None = None
        connection.send(_command(connection.major, label=label, fast=fast))
        self.start = self._read_point()
        self.tablespaces = [_tablespace(row) for row in self._read_rows()]

    @property
    def size_bytes(self) -> int:
        """The primary's estimate of what will be sent."""
        return sum((space.size_kib or 0) * 1024 for space in self.tablespaces)

    def archives(self) -> Iterator[BackupArchive]:
        """Yield the archives, and read the end of the backup behind the last."""
        if self._connection.major >= 15:
            yield from self._archives_in_one_copy()
        else:
            for tablespace in self.tablespaces:
                self._expect_copy()
                yield BackupArchive(tablespace, TarReader(self._copy_messages(), closing=Closing.NOTHING))
        self.end = self._read_point()
        while self._next_result() is not None:
            pass

    # 14: messages are bytes of the tar.

    def _copy_messages(self) -> Iterator[memoryview]:
        while (data := self._connection.next_copy_data(timeout_seconds=_SILENCE_SECONDS_MAX)) is not None:
            self._count(len(data))
            yield data

    # 15 and later: messages have a kind.

    def _archives_in_one_copy(self) -> Iterator[BackupArchive]:
        self._expect_copy()
        by_name = {"base.tar" if space.oid is None else f"{space.oid}.tar": space for space in self.tablespaces}
        pending = self._first_archive_name()
        while pending is not None:
            if pending not in by_name:
                raise SourceRefusedError(f"the primary sent an archive {pending!r} that it had not announced")
            members = _ArchiveMessages(self._connection, self._count)
            yield BackupArchive(by_name[pending], TarReader(members, closing=Closing.ZERO_BLOCKS))
            for _ in members:
                raise SourceRefusedError(f"archive {pending!r} goes on behind its end")
            pending = members.next_name

    def _first_archive_name(self) -> str | None:
        messages = _ArchiveMessages(self._connection, self._count)
        for _ in messages:
            raise SourceRefusedError("the primary sent data before the name of an archive")
        return messages.next_name

    # Result sets around the archives.

    def _next_result(self) -> pq.abc.PGresult | None:
        return self._connection.next_result(timeout_seconds=_SILENCE_SECONDS_MAX)

    def _read_rows(self) -> list[Row]:
        result = self._next_result()
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            raise SourceRefusedError("the primary's answer to BASE_BACKUP lacks a result set")
        return [row_of(result, index) for index in range(result.ntuples)]

    def _read_point(self) -> BackupPoint:
        rows = self._read_rows()
        if len(rows) != 1:
            raise SourceRefusedError("the primary's answer to BASE_BACKUP lacks a position")
        return BackupPoint(Lsn.parse(rows[0].text(0)), int(rows[0].text(1)))

    def _expect_copy(self) -> None:
        result = self._next_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise SourceRefusedError("the primary's answer to BASE_BACKUP lacks an archive")

    def _count(self, length: int) -> None:
        self._bytes += length
        self._on_bytes(self._bytes)


class _ArchiveMessages:
    """Iterates over the data of one archive; afterwards `next_name` says which one follows, none at the end."""

    def __init__(self, connection: PrimaryConnection, count: Callable[[int], None]) -> None:
        self._connection = connection
        self._count = count
        self._ended = False
        self.next_name: str | None = None

    def __iter__(self) -> Iterator[memoryview]:
        while not self._ended:
            message = self._connection.next_copy_data(timeout_seconds=_SILENCE_SECONDS_MAX)
            if message is None:
                self._ended = True
                return
            match bytes(message[:1]):
                case b"d":
                    self._count(len(message) - 1)
                    yield message[1:]
                case b"n":
                    self.next_name = bytes(message[1:]).split(b"\0", 1)[0].decode()
                    self._ended = True
                case b"p":
                    pass
                case other:
                    raise SourceRefusedError(f"the primary sent a message of unknown kind {other!r} in a base backup")


def _command(major: int, *, label: str, fast: bool) -> str:
    if major >= 15:
        checkpoint = "fast" if fast else "spread"
        return (
            f"BASE_BACKUP (LABEL {quote_literal(label)}, PROGRESS true, CHECKPOINT '{checkpoint}', WAIT false, "
            "VERIFY_CHECKSUMS false)"
        )
    return f"BASE_BACKUP LABEL {quote_literal(label)} PROGRESS {'FAST ' if fast else ''}NOWAIT NOVERIFY_CHECKSUMS"


def _tablespace(row: Row) -> Tablespace:
    oid, location, size = row.columns[0], row.columns[1], row.columns[2]
    return Tablespace(None if oid is None else int(oid), location or "", None if size is None else int(size))
