"""What a part of the workload works with: a connection to a real server, its own source of chance, and a size."""

from __future__ import annotations

import random
import zlib
from types import TracebackType

import psycopg

from tests.postgres.server import PostgresServer

Connection = psycopg.Connection[tuple[object, ...]]

JITTER = 0.1
"""By how much, up or down, the seed changes the numbers of rows: runs differ in where pages end, not only in keys."""


class Session:
    """One part's view of the server.

    The seed decides all that is random in the part, here and in the server's `random()`. It does not make a run
    repeatable to the byte: several sessions, autovacuum and checkpoints go at their own pace.
    """

    def __init__(self, server: PostgresServer, part: str, *, scale: float, seed: int) -> None:
        self.server = server
        self.chance = random.Random(zlib.crc32(f"{part} {seed}".encode()))
        self._factor = scale * self.chance.uniform(1 - JITTER, 1 + JITTER)
        self.connection = self.connect()
        self.connection.execute("select setseed(%s)", (self.chance.uniform(-1, 1),))

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def connect(self, dbname: str = "postgres") -> Connection:
        """Open one more connection, which commits each statement and does not wait for the disk; the caller closes
        it.
        """
        connection = self.server.connect(dbname)
        connection.execute(b"set synchronous_commit = off")
        return connection

    def rows(self, count: int, *, least: int = 1) -> int:
        """Scale a number of rows; in one part larger ones stay larger. `least` is what the records wanted need."""
        return max(least, round(count * self._factor))

    def each(self, *scripts: str) -> None:
        """Run statements one by one: several in one message would be one transaction, in which VACUUM cannot run."""
        each(self.connection, *scripts)


def each(connection: Connection, *scripts: str) -> None:
    """Run the statements of scripts, which are separated by a semicolon and a blank, one by one."""
    for script in scripts:
        for statement in script.split("; "):
            connection.execute(statement.encode())
