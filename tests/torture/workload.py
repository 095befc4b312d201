"""Runs the torture load and holds it still at barriers (issue 3, acceptance 2 and 3).

    with TortureLoad(server, seed=1, scale=10, tablespace=folder) as load:
        load.prepare()                # pgbench tables, the actors' tables
        load.start()
        for _ in range(10):
            load.run_for(5)
            moments.append(load.hold())     # position, snapshots taken, released; checksums follow in the background
        load.stop()                   # writers end between two steps; prepared transactions stay open
    moments[i].checksums()            # waits until they are computed

A barrier: every writer stops between two steps, pgbench between two transactions, background writers of WAL
that no session of ours controls (autovacuum) are off. Then nothing is in flight: the insert position is noted, one
repeatable-read snapshot is opened in each database and takes ACCESS SHARE on every permanent table, the writers go on,
and the tables are summed up in those snapshots. A restore at the position must give the same sums.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, cast

from psycopg import sql

from tests.postgres.server import PostgresServer
from tests.torture.actors import (
    Actor,
    Connection,
    DatabaseActor,
    IndexActor,
    LockActor,
    MaintenanceActor,
    PreparedActor,
    SavepointActor,
    SequenceActor,
    TableActor,
    TablespaceActor,
    ToastActor,
)

SERVER_SETTINGS: Final = {
    "max_prepared_transactions": "30",
    "max_connections": "80",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "100",
    "checkpoint_timeout": "30s",
    "max_wal_size": "256MB",
}
"""What a server under this load needs. Autovacuum writes when nobody asked it to; the actors vacuum instead."""
_GATE_LOCK: Final = 7_203_115
_GATED_TPCB: Final = f"""\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
BEGIN;
SELECT pg_advisory_xact_lock_shared({_GATE_LOCK});
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
COMMIT;
"""
"""pgbench's built-in transaction (TPC-B like), behind a gate."""
_HOLD_TIMEOUT_SECONDS: Final = 120.0

TableSums = dict[str, dict[str, str]]
"""database -> schema-qualified table -> digest of its rows in any order."""


class TortureError(Exception):
    """A writer failed in a way that concurrency does not explain."""


@dataclass(frozen=True, slots=True)
class PgbenchLoad:
    """How much pgbench goes on beside the actors; as fast as it can, unless it has a rate."""

    scale: int = 10
    clients: int = 4
    transactions_per_second: int | None = None


@dataclass(slots=True)
class Moment:
    """A position of the log without a write in flight, and what every permanent table holds there."""

    lsn: str
    open_prepared: list[str]
    _sums: Future[TableSums] = field(repr=False)

    def checksums(self, timeout_seconds: float = 600.0) -> TableSums:
        """Wait for the sums. Raises what computing them raised."""
        return self._sums.result(timeout_seconds)


class Gate:
    """Lets writers through one step at a time, or holds them all between two steps."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = False
        self._inside = 0
        self.failure: BaseException | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def held(self, timeout_seconds: float) -> Iterator[None]:
        """Hold all writers; inside, none is within a step."""
        with self._changed:
            self._held = True
            if not self._changed.wait_for(lambda: self._inside == 0, timeout_seconds):
                self._held = False
                self._changed.notify_all()
                raise TortureError(f"writers did not come to rest within {timeout_seconds:g} s")
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()


class PgbenchProcess:
    """pgbench itself, running a script of its own transaction with a shared advisory lock around it.

    Whoever takes that lock alone knows that no transaction of pgbench is begun, or not yet visible: a transaction's
    locks go after its effects are visible to snapshots.
    """

    def __init__(self, server: PostgresServer, load: PgbenchLoad, *, seed: int) -> None:
        self._server = server
        folder = Path(tempfile.mkdtemp(prefix="pageserver-pgbench-"))
        script = folder / "gated.sql"
        script.write_text(_GATED_TPCB)
        self._folder = folder
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}
        arguments = ["-n", "-f", str(script), "-c", str(load.clients), "-j", "2", "-T", "86400", "-s", str(load.scale)]
        if load.transactions_per_second is not None:
            arguments += ["-R", str(load.transactions_per_second)]
        self._log = open(folder / "log", "wb")  # noqa: SIM115 - closed in `_forget`
        self._process = subprocess.Popen(
            [str(server.tool("pgbench")), *arguments, "--random-seed", str(seed), server.conninfo()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep all transactions of pgbench from beginning."""
        with self._server.connect() as connection:
            connection.execute("SET statement_timeout = '60s'")
            connection.execute("SELECT pg_advisory_lock(%s)", (_GATE_LOCK,))
            yield

    def check(self) -> None:
        """Raise if pgbench ended by itself."""
        if self._process.poll() is not None:
            text = (self._folder / "log").read_text(errors="replace")
            raise TortureError(f"pgbench ended with {self._process.returncode}: {text[-2000:]}")

    def stop(self) -> None:
        """End pgbench while none of its transactions is begun, and wait until its sessions are gone."""
        self.check()
        with self.held():
            self.kill()
            while self._server.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") != "0":
                self._server.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'"
                )
                time.sleep(0.05)

    def kill(self) -> None:
        """End the process at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class TortureLoad:
    """All actors against one server. Every choice comes from `seed`; the order of concurrent steps does not."""

    def __init__(
        self,
        server: PostgresServer,
        *,
        seed: int,
        pgbench: PgbenchLoad | None = None,
        tablespace: Path | None = None,
        pause_seconds: float = 0.0,
        copies: int = 1,
    ) -> None:
        """`tablespace` is an empty directory of the server's user; `copies` multiplies the actors that allow it;
        `pause_seconds` between two steps of an actor makes the load lighter.
        """
        self._server = server
        self._seed = seed
        self._pgbench = pgbench or PgbenchLoad()
        self._tablespace = tablespace
        self._pause_seconds = pause_seconds
        self._copies = copies
        self._gate = Gate()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connections: list[Connection] = []
        self._actors: list[Actor] = []
        self._summing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="torture sums")
        self._bench: PgbenchProcess | None = None

    def __enter__(self) -> TortureLoad:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._bench is not None:
            self._bench.kill()
        for thread in self._threads:
            thread.join(_HOLD_TIMEOUT_SECONDS)
        self._summing.shutdown(wait=True, cancel_futures=kind is not None)
        self._close_connections()

    # The course of a run.

    def prepare(self) -> None:
        """Fill pgbench's tables and make the actors and theirs."""
        self._server.pgbench("-i", "-q", "-s", str(self._pgbench.scale))
        self._actors = list(self._make_actors())
        for actor in self._actors:
            actor.setup()

    def start(self) -> None:
        """Start all writers."""
        assert not self._threads, "the load runs already"
        for actor in self._actors:
            self._spawn(actor.name, self._loop_of(actor))
        self._bench = PgbenchProcess(self._server, self._pgbench, seed=self._seed)

    def run_for(self, seconds: float) -> None:
        """Let the load go on for a while. Raises: TortureError if a writer failed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        self.check()

    def check(self) -> None:
        """Raise what a writer failed with."""
        if self._bench is not None:
            self._bench.check()
        if self._gate.failure is not None:
            raise TortureError(f"a writer failed: {self._gate.failure!r}") from self._gate.failure

    def hold(self) -> Moment:
        """Bring all writers to rest, note the position, open snapshots, let the writers go on."""
        with self._gate.held(_HOLD_TIMEOUT_SECONDS), self._hold_pgbench():
            self.check()
            before = _transactions(self._server)
            lsn = self._server.value("SELECT pg_current_wal_insert_lsn()")
            snapshots = _open_snapshots(self._server)
            # The log may grow meanwhile, by pages that reading cleans up and by checkpoints, but not by a transaction.
            after = _transactions(self._server)
            if after != before or before.writing_pids:
                for snapshot in snapshots:
                    snapshot.close()
                raise TortureError(f"something wrote while all writers were held: {before} became {after}")
        return Moment(lsn, list(before.prepared), self._summing.submit(_sum_up, snapshots))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep all writers at rest inside of the block. Raises: TortureError."""
        with self._gate.held(_HOLD_TIMEOUT_SECONDS), self._hold_pgbench():
            self.check()
            yield
            self.check()

    def stop(self) -> None:
        """End all writers between two steps and wait until their sessions are gone: one that ends drops its temporary
        tables, in a transaction. Prepared transactions stay open. Raises: TortureError.
        """
        if self._bench is not None:
            self._bench.stop()
            self._bench = None
        self._stopping.set()
        for thread in self._threads:
            thread.join(_HOLD_TIMEOUT_SECONDS)
            if thread.is_alive():
                raise TortureError(f"{thread.name} did not end")
        self._threads.clear()
        sessions = [connection.info.backend_pid for connection in self._connections]
        self._close_connections()
        self._wait_until_gone(sessions)
        self.check()

    def _wait_until_gone(self, sessions: list[int]) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"
        deadline = time.monotonic() + _HOLD_TIMEOUT_SECONDS
        while self._server.value(query, (sessions,)) != "0":
            if time.monotonic() > deadline:
                raise TortureError(f"sessions did not end within {_HOLD_TIMEOUT_SECONDS:g} s")
            time.sleep(0.05)

    @contextmanager
    def _hold_pgbench(self) -> Iterator[None]:
        if self._bench is None:
            yield
            return
        with self._bench.held():
            yield

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return actor -> (steps, steps that concurrency refused)."""
        return {actor.name: (actor.steps, actor.refused) for actor in self._actors}

    # Writers.

    def _make_actors(self) -> Iterator[Actor]:
        def rng(name: str) -> random.Random:
            return random.Random(f"{self._seed}/{name}")

        for number in range(self._copies):
            for kind in (IndexActor, TableActor, ToastActor, SavepointActor, SequenceActor, PreparedActor):
                yield kind(self._connect(), rng(f"{kind.__name__}{number}"), number=number)
            yield LockActor(
                self._connect(),
                rng(f"locks{number}"),
                number=number,
                others=[self._connect() for _ in range(2)],
            )
        yield MaintenanceActor(self._connect(), rng("maintenance"))
        yield DatabaseActor(self._connect(), rng("databases"))
        if self._tablespace is not None:
            yield TablespaceActor(self._connect(), rng("tablespace"), location=str(self._tablespace))

    def _loop_of(self, actor: Actor) -> Callable[[], None]:
        def loop() -> None:
            while not self._stopping.is_set():
                with self._gate.step():
                    actor.run_step()
                if self._pause_seconds:
                    self._stopping.wait(self._pause_seconds)

        return loop

    def _spawn(self, name: str, loop: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                loop()
            except BaseException as error:
                if not self._stopping.is_set():
                    error.add_note(f"in {name}")
                    self._gate.failure = error
                    self._stopping.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _connect(self) -> Connection:
        connection = self._server.connect()
        self._connections.append(connection)
        return connection

    def _close_connections(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()


# Sums of tables.


def table_sums(server: PostgresServer) -> TableSums:
    """Sum up every permanent table of every database of a server as it is now (of a restored one, say)."""
    return _sum_up(_open_snapshots(server))


class _Snapshot:
    """A repeatable-read transaction with ACCESS SHARE on every permanent table of one database."""

    def __init__(self, database: str, connection: Connection, tables: list[tuple[str, str, str]]) -> None:
        self.database = database
        self._connection = connection
        self._tables = tables

    @classmethod
    def open(cls, server: PostgresServer, database: str) -> _Snapshot:
        connection = server.connect(database)
        try:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            tables = [
                (str(schema), str(name), str(kind))
                for schema, name, kind in connection.execute(
                    "SELECT n.nspname, c.relname, c.relkind"
                    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                    " WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence = 'p'"
                    " AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1, 2"
                ).fetchall()
            ]
            for schema, name, kind in tables:
                if kind == "S":
                    continue  # LOCK TABLE refuses sequences, and what they log runs ahead of what they say.
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(schema, name)))
        except BaseException:
            connection.close()
            raise
        return cls(database, connection, [table for table in tables if table[2] != "S"])

    def sums(self) -> dict[str, str]:
        """Return table -> digest; rows are hashed one by one and added up, so their order does not matter."""
        found: dict[str, str] = {}
        for schema, name, _ in self._tables:
            query = sql.SQL(
                "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {} AS t"
            ).format(sql.Identifier(schema, name))
            row = self._connection.execute(query).fetchone()
            found[f"{schema}.{name}"] = hashlib.sha256(repr(tuple(map(str, row or ()))).encode()).hexdigest()[:32]
        return found

    def close(self) -> None:
        self._connection.close()


def _open_snapshots(server: PostgresServer) -> list[_Snapshot]:
    """Open one snapshot in each database; all, or none if one fails."""
    with ExitStack() as opened:
        snapshots = []
        for database in databases(server):
            snapshots.append(_Snapshot.open(server, database))
            opened.callback(snapshots[-1].close)
        opened.pop_all()
    return snapshots


def _sum_up(snapshots: list[_Snapshot]) -> TableSums:
    try:
        return {snapshot.database: snapshot.sums() for snapshot in snapshots}
    finally:
        for snapshot in snapshots:
            snapshot.close()


def databases(server: PostgresServer) -> list[str]:
    """Return all that hold data of ours. One whose DROP was not finished is invalid (datconnlimit -2, as a moment in
    the middle of the DROP has it), and takes no connections.
    """
    rows = server.sql(
        "SELECT datname FROM pg_database"
        " WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 ORDER BY datname"
    )
    return [str(name) for (name,) in rows]


@dataclass(frozen=True, slots=True)
class _Transactions:
    """Those of a server at one moment: the id after the last that ended, those prepared, who is within one."""

    after_last_ended: str
    prepared: tuple[str, ...]
    writing_pids: tuple[int, ...]


def _transactions(server: PostgresServer) -> _Transactions:
    """Return them. A snapshot alone would not do: what it lists as in progress ends at the last id that *ended*, so
    that the newest of all is missing while it is prepared.
    """
    ((after_last_ended, prepared, pids),) = server.sql(
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text,"
        " ARRAY(SELECT gid FROM pg_prepared_xacts ORDER BY gid),"
        " ARRAY(SELECT pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY pid)"
    )
    return _Transactions(str(after_last_ended), tuple(cast(list[str], prepared)), tuple(cast(list[int], pids)))
