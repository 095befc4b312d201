"""What an unmodified server, started on a restored moment, must be able to do (issue 3, acceptance 3).

In this order, so that each step sees what the ones before it left: the sums of all tables in every database, prepared
transactions as they were open, `pg_amcheck --heapallindexed`, answers of every index against those of a sequential
scan, commits of the prepared transactions, new writes, a crash and the recovery from it, the sums again, a stricter
`pg_amcheck`, a clean stop, `pg_checksums --check`, and a log without a complaint.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pageserver import _core
from pageserver.keyspace.key import PAGE_SIZE, RELATION_SEGMENT_BLOCKS
from pageserver.postgres.versions import postgres_version
from tests.postgres.server import PostgresServer
from tests.torture.workload import Moment, TableSums, databases, table_sums

INDEXED: Final = "indexed_0"
"""The table of the first IndexActor; it has one index of each kind."""

_CONDITIONS: Final = (
    "number = (SELECT number FROM {table} WHERE id = {id})",
    "word = (SELECT word FROM {table} WHERE id = {id})",
    "area && (SELECT area FROM {table} WHERE id = {id})",
    "spot <@ (SELECT box(point(0, 0), spot) FROM {table} WHERE id = {id})",
    "tags @> (SELECT tags FROM {table} WHERE id = {id})",
    "document @@ (SELECT plainto_tsquery('simple', word) FROM {table} WHERE id = {id})",
    "moment BETWEEN (SELECT moment FROM {table} WHERE id = {id}) AND '2025-01-01'",
)
"""One per index kind that may serve it, and both columns of those kinds that change theirs."""
_SAMPLES: Final = 5

_RELATION_FILE: Final = re.compile(r"\d+(_(vm|fsm|init))?(\.\d+)?", re.ASCII)
_COMPLAINT: Final = re.compile(r"\b(?:ERROR|PANIC|WARNING):", re.MULTILINE)


class RestoreDiffersError(AssertionError):
    """A restored server is not what the source was."""


@dataclass(frozen=True, slots=True)
class RestoredFigures:
    """What was checked on one restored server."""

    lsn: str
    databases: int
    tables: int
    relations_checked_by_amcheck: int
    prepared_committed: int
    index_answers: int
    checksums_checked: bool
    tablespaces_mapped: bool
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class StepClock:
    """How long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def note(self, step: str) -> None:
        """Say that a step is over and the next one begins."""
        now = time.monotonic()
        self.seconds[step] = round(now - self._last, 1)
        self._last = now


def check_restored(server: PostgresServer, moment: Moment, *, checksums: bool, mapped: bool) -> RestoredFigures:
    """Start a server on a restored directory, check it, stop it.

    Raises: RestoreDiffersError, ServerError with the end of its log if it does not start.
    """
    clock = StepClock()
    expected = moment.checksums()
    server.start()
    clock.note("start")
    try:
        _require_equal(expected, table_sums(server), "restored")
        clock.note("sums")
        prepared = _prepared(server)
        if prepared != moment.open_prepared:
            raise RestoreDiffersError(f"open are {prepared}, were {moment.open_prepared}")
        checked = _amcheck(server, "--all")
        clock.note("amcheck")
        answers = _check_index_answers(server)
        clock.note("index answers")
        for name in prepared:
            server.sql(f"COMMIT PREPARED '{name}'")
        _write(server)
        before = table_sums(server)
        clock.note("writes")
        server.crash()
        server.start()
        clock.note("recovery")
        _require_equal(before, table_sums(server), "recovered from a crash")
        answers += _check_index_answers(server)
        clock.note("sums and answers again")
        # Nothing is prepared any more, so nobody holds the locks that a check of parents has to wait for.
        _amcheck(server, "--database", "postgres", "--parent-check", "--rootdescend")
        clock.note("strict amcheck")
        server.stop("fast")
        if checksums:
            _check_page_checksums(server)
        clock.note("stop and page checksums")
    finally:
        if server.is_running():
            server.stop("immediate")
    if complaint := _COMPLAINT.search(server.log_text()):
        raise RestoreDiffersError(f"the restored server complains: {server.log_text()[complaint.start() :][:1000]}")
    return RestoredFigures(
        lsn=moment.lsn,
        databases=len(expected),
        tables=sum(map(len, expected.values())),
        relations_checked_by_amcheck=checked,
        prepared_committed=len(prepared),
        index_answers=answers,
        checksums_checked=checksums,
        tablespaces_mapped=mapped,
        seconds=clock.seconds,
    )


def _require_equal(expected: TableSums, got: TableSums, what: str) -> None:
    if expected == got:
        return
    wrong = [
        f"{database}.{table}"
        for database in sorted(expected.keys() | got.keys())
        for table in sorted(expected.get(database, {}).keys() | got.get(database, {}).keys())
        if expected.get(database, {}).get(table) != got.get(database, {}).get(table)
    ]
    raise RestoreDiffersError(f"{what}: databases {sorted(got)}, expected {sorted(expected)}; tables differ: {wrong}")


def _prepared(server: PostgresServer) -> list[str]:
    return [str(gid) for (gid,) in server.sql("SELECT gid FROM pg_prepared_xacts ORDER BY gid")]


def _amcheck(server: PostgresServer, *options: str) -> int:
    """Run pg_amcheck; return how many relations all databases have for it. Raises: RestoreDiffersError."""
    done = server.program("pg_amcheck", "--heapallindexed", "--install-missing", "--jobs", "2", *options, check=False)
    if done.returncode != 0:
        raise RestoreDiffersError(f"pg_amcheck {' '.join(options)}: {done.stdout[-2000:]}{done.stderr[-1000:]}")
    query = "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'm', 't', 'S') OR (relkind = 'i' AND relam = 403)"
    return sum(int(server.value(query, dbname=database)) for database in databases(server))


def _check_page_checksums(server: PostgresServer) -> None:
    """Run pg_checksums on the stopped server; where there is none for its control file (17), compute the checksums.

    The tool may be of another major than the server, and looks into tablespaces by the name that its own major gives
    their folder: that gets a link.
    """
    version = server.program("pg_checksums", "--version").stdout.removeprefix("pg_checksums (PostgreSQL) ")
    own, asked = postgres_version(server.major), postgres_version(int(version.split(".")[0]))
    if own.control_version != asked.control_version:
        _compute_page_checksums(server)
        return
    if asked.tablespace_directory != own.tablespace_directory:
        for tablespace in (server.data_dir / "pg_tblspc").iterdir():
            (tablespace / asked.tablespace_directory).symlink_to(own.tablespace_directory)
    server.program("pg_checksums", "--check", "-D", str(server.data_dir))


def _compute_page_checksums(server: PostgresServer) -> None:
    checked = 0
    for folder in ("base", "global", "pg_tblspc"):
        # Tablespaces are links, which a walk follows only when it is told to.
        for directory, _, names in os.walk(server.data_dir / folder, followlinks=True):
            for name in filter(_RELATION_FILE.fullmatch, names):
                pages = (Path(directory) / name).read_bytes()
                segment = int(name.partition(".")[2] or 0)
                if _core.stamp_checksums(pages, segment * RELATION_SEGMENT_BLOCKS) != pages:
                    raise RestoreDiffersError(f"a page of {directory}/{name} has a wrong checksum")
                checked += len(pages) // PAGE_SIZE
    assert checked > 0


def _check_index_answers(server: PostgresServer) -> int:
    """Ask the same questions of the indexes and of the table. pg_amcheck looks into B-trees only."""
    asked = 0
    with server.connect() as connection:
        ids = connection.execute(f"SELECT id FROM {INDEXED} ORDER BY random() LIMIT {_SAMPLES}".encode()).fetchall()
        for (number,) in ids:
            for condition in _CONDITIONS:
                where = condition.format(table=INDEXED, id=int(str(number)))
                query = f"SELECT count(*), sum(id) FROM {INDEXED} WHERE {where}"
                answers = []
                for wanted in ("on", "off"):
                    connection.execute(f"SET enable_indexscan = {wanted}".encode())
                    connection.execute(f"SET enable_indexonlyscan = {wanted}".encode())
                    connection.execute(f"SET enable_bitmapscan = {wanted}".encode())
                    connection.execute(f"SET enable_seqscan = {'off' if wanted == 'on' else 'on'}".encode())
                    answers.append(connection.execute(query.encode()).fetchone())
                if answers[0] != answers[1]:
                    raise RestoreDiffersError(f"an index says {answers[0]}, the table {answers[1]}: {query}")
                asked += 1
    return asked


def _write(server: PostgresServer) -> None:
    """Write to everything that was restored: before and after a checkpoint, so that a crash has something to replay."""
    server.pgbench("-n", "-c", "2", "-t", "50")
    server.sql(f"DELETE FROM {INDEXED} WHERE id % 5 = 0")
    server.sql(f"VACUUM {INDEXED}")
    server.sql("CHECKPOINT")
    server.pgbench("-n", "-c", "2", "-t", "50")
    server.sql(
        f"INSERT INTO {INDEXED} (number, word, spot, area, tags, document, moment)"
        " SELECT n, md5(n::text), point(n, n), box(point(n, n), point(n + 9, n + 9)), ARRAY[n],"
        " to_tsvector('simple', md5(n::text)), '2024-06-01' FROM generate_series(1, 500) AS n"
    )
    server.sql("SELECT nextval('sequence_0'); CREATE TABLE made_later AS SELECT n FROM generate_series(1, 1000) AS n")
    server.sql("UPDATE locked_0 SET value = value + 1; INSERT INTO toasted_0 (packed) SELECT repeat(md5('x'), 9999)")
    for database in databases(server):
        server.sql("CREATE TABLE made_here (a int PRIMARY KEY); INSERT INTO made_here VALUES (1)", dbname=database)
    server.sql("CREATE DATABASE made_later TEMPLATE template0")
