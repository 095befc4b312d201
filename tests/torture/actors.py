"""The sessions of the torture load, one kind of work each (issue 3, acceptance 2).

An actor does one small piece of work in `step` and leaves its session outside of a transaction, so that a step boundary
is a moment without a write of its own in flight. Randomness comes from the generator that the actor is given.

| actor | what it exercises |
|---|---|
| IndexActor | tables with one index of each of the six kinds: inserts, deletes, updates, VACUUM, REINDEX |
| TableActor | CREATE, DROP, TRUNCATE, rolled-back DDL, rewrites, unlogged tables, matviews |
| ToastActor | rows of many sizes, compressed and not, replaced in parts |
| MaintenanceActor | VACUUM FULL (also of catalogs), CLUSTER, VACUUM FREEZE, ANALYZE, CHECKPOINT, segment switches |
| SavepointActor | subtransactions, deep and wide, released and rolled back |
| LockActor | rows locked by several sessions at once: multixacts |
| PreparedActor | prepared transactions, committed or rolled back later by another step, a few left open |
| SequenceActor | sequences: nextval, setval, ALTER |
| DatabaseActor | CREATE and DROP DATABASE by both strategies |
| TablespaceActor | tables and indexes in a tablespace, moves between tablespaces |
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[Any, ...]]

INDEX_KINDS = ("btree", "hash", "gist", "spgist", "gin", "brin")
_BUSY_ERRORS = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.ObjectInUse,
    psycopg.errors.UniqueViolation,
)
"""What concurrent work may legitimately end in; the step is rolled back and counts as done."""


class Actor:
    """One session. `setup` runs once before the load, `step` again and again."""

    def __init__(self, connection: Connection, rng: random.Random, *, number: int = 0) -> None:
        self.connection = connection
        self.rng = rng
        self.number = number
        self.steps = 0
        self.refused = 0

    @property
    def name(self) -> str:
        return f"{type(self).__name__.removesuffix('Actor').lower()}{self.number}"

    def setup(self) -> None:
        """Create what the steps work on."""

    def step(self) -> None:
        """Do one piece of work and end outside of a transaction."""
        raise NotImplementedError

    def run_step(self) -> None:
        """Do a step; what concurrency refuses is rolled back."""
        try:
            self.step()
        except _BUSY_ERRORS:
            self.refused += 1
            if not self.connection.closed:
                self.connection.rollback()
        self.steps += 1

    def execute(self, query: str, parameters: Sequence[object] | None = None) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement that this module wrote."""
        return self.connection.execute(query.encode(), parameters)

    def pick(self, *choices: tuple[int, Any]) -> Any:
        """Choose by weight."""
        return self.rng.choices([choice for _, choice in choices], [weight for weight, _ in choices])[0]


class IndexActor(Actor):
    """One table, six index kinds, all kinds of changes to them."""

    def setup(self) -> None:
        self.table = f"indexed_{self.number}"
        self.execute(
            f"CREATE TABLE {self.table} (id bigserial PRIMARY KEY, number int, word text, spot point, area box,"
            " tags int[], document tsvector, moment timestamptz)"
        )
        self.execute(f"ALTER TABLE {self.table} SET (autovacuum_enabled = false, fillfactor = 80)")
        for kind in INDEX_KINDS:
            self._create_index(kind)

    def _create_index(self, kind: str) -> None:
        column = {
            "btree": "number, word",
            "hash": "word",
            "gist": "area",
            "spgist": self.rng.choice(("spot", "word")),
            "gin": self.rng.choice(("tags", "document")),
            "brin": "moment",
        }[kind]
        options = {"gin": "WITH (fastupdate = on, gin_pending_list_limit = 64)", "brin": "WITH (pages_per_range = 4)"}
        self.execute(
            f"CREATE INDEX {self.table}_{kind} ON {self.table} USING {kind} ({column}) {options.get(kind, '')}"
        )

    def step(self) -> None:
        self.pick(
            (30, self._insert),
            (15, self._update),
            (10, self._delete_range),
            (5, self._delete_and_vacuum),
            (4, self._vacuum),
            (2, self._rebuild_one),
            (1, self._reindex),
            (2, self._summarize),
        )()

    def _insert(self) -> None:
        rows = self.rng.choice((1, 10, 100, 400))
        self.execute(
            f"INSERT INTO {self.table} (number, word, spot, area, tags, document, moment)"
            " SELECT n, md5(n::text), point(n %% 1000, n %% 777),"
            " box(point(n %% 500, n %% 300), point(n %% 600, n %% 400)),"
            " ARRAY[n %% 10, n %% 100, n %% 1000], to_tsvector('simple', md5(n::text) || ' ' || (n %% 50)),"
            " '2024-01-01'::timestamptz + n * interval '1 minute'"
            " FROM (SELECT (random() * 1e6)::int AS n FROM generate_series(1, %s)) AS numbers",
            (rows,),
        )

    def _update(self) -> None:
        column = self.rng.choice(
            (
                "number = number + 1",
                "word = md5(word)",
                "spot = point(id % 97, id % 89)",
                "tags = tags || 7",
                "moment = now()",
            )
        )
        self.execute(
            f"UPDATE {self.table} SET {column} WHERE id IN (SELECT id FROM {self.table} ORDER BY random() LIMIT 50)"
        )

    def _delete_range(self) -> None:
        self.execute(
            f"DELETE FROM {self.table} WHERE id BETWEEN (SELECT coalesce(min(id), 0) FROM {self.table})"
            f" AND (SELECT coalesce(min(id), 0) + %s FROM {self.table})",
            (self.rng.randrange(300),),
        )

    def _delete_and_vacuum(self) -> None:
        self.execute(f"DELETE FROM {self.table} WHERE id %% %s = 0", (self.rng.randint(2, 9),))
        self._vacuum()

    def _vacuum(self) -> None:
        self.execute(f"VACUUM {self.rng.choice(('', '(FREEZE)', '(ANALYZE)', '(TRUNCATE off)'))} {self.table}")

    def _rebuild_one(self) -> None:
        kind = self.rng.choice(INDEX_KINDS)
        self.execute(f"DROP INDEX {self.table}_{kind}")
        self._create_index(kind)

    def _reindex(self) -> None:
        self.execute(f"REINDEX TABLE {self.rng.choice(('', 'CONCURRENTLY'))} {self.table}")

    def _summarize(self) -> None:
        self.execute(f"SELECT brin_summarize_new_values('{self.table}_brin')")
        self.execute(f"SELECT gin_clean_pending_list('{self.table}_gin')")


class TableActor(Actor):
    """Tables come and go."""

    def setup(self) -> None:
        self._tables: list[str] = []
        self._next = 0

    def step(self) -> None:
        self.pick(
            (10, self._create),
            (6, self._drop),
            (8, self._fill),
            (5, self._truncate),
            (4, self._rewrite),
            (4, self._rolled_back),
            (3, self._unlogged),
            (2, self._temporary),
        )()

    def _new_name(self) -> str:
        self._next += 1
        return f"table_{self.number}_{self._next}"

    def _any(self) -> str | None:
        return self.rng.choice(self._tables) if self._tables else None

    def _create(self) -> None:
        if len(self._tables) >= 12:
            self._drop()
        name = self._new_name()
        with self.connection.transaction():
            self.execute(f"CREATE TABLE {name} (a int PRIMARY KEY, b text, c numeric DEFAULT random())")
            self.execute(
                f"INSERT INTO {name} (a, b) SELECT n, repeat('x', n %% 50) FROM generate_series(1, %s) n",
                (self.rng.randrange(2000),),
            )
        self._tables.append(name)

    def _drop(self) -> None:
        if (name := self._any()) is not None:
            self.execute(f"DROP TABLE {name}")
            self._tables.remove(name)

    def _fill(self) -> None:
        if (name := self._any()) is not None:
            self.execute(
                f"INSERT INTO {name} (a, b) SELECT n, 'filled' FROM generate_series(1, 3000) n"
                " ON CONFLICT (a) DO UPDATE SET b = excluded.b || 'again'"
            )

    def _truncate(self) -> None:
        if (name := self._any()) is None:
            return
        if self.rng.random() < 0.5:
            self.execute(f"TRUNCATE {name}")
            return
        # A heap that shrinks at its end is truncated by VACUUM, block by block and not by a new file.
        self.execute(f"DELETE FROM {name} WHERE a > %s", (self.rng.randrange(1000),))
        self.execute(f"VACUUM {name}")

    def _rewrite(self) -> None:
        if (name := self._any()) is not None:
            change = self.rng.choice(
                (
                    "ALTER COLUMN a TYPE bigint",
                    "ADD COLUMN IF NOT EXISTS d float DEFAULT random()",
                    "SET LOGGED",
                    "SET UNLOGGED",
                )
            )
            self.execute(f"ALTER TABLE {name} {change}")

    def _rolled_back(self) -> None:
        name = self._new_name()
        with self.connection.transaction(force_rollback=True):
            self.execute(f"CREATE TABLE {name} AS SELECT generate_series(1, 500) AS a")
            self.execute(f"CREATE INDEX ON {name} (a)")
            if (other := self._any()) is not None:
                self.execute(f"TRUNCATE {other}")

    def _unlogged(self) -> None:
        name = self._new_name()
        self.execute(f"CREATE UNLOGGED TABLE {name} (a int PRIMARY KEY, b text, c numeric)")
        self.execute(f"INSERT INTO {name} (a) SELECT generate_series(1, 200)")
        self._tables.append(name)

    def _temporary(self) -> None:
        self.execute("CREATE TEMPORARY TABLE IF NOT EXISTS scratch (a int, b text)")
        self.execute("INSERT INTO scratch SELECT n, md5(n::text) FROM generate_series(1, 500) n")


class ToastActor(Actor):
    """Values that do not fit a page."""

    def setup(self) -> None:
        self.table = f"toasted_{self.number}"
        self.execute(f"CREATE TABLE {self.table} (id serial PRIMARY KEY, packed text, plain text)")
        self.execute(f"ALTER TABLE {self.table} ALTER COLUMN plain SET STORAGE EXTERNAL")

    def step(self) -> None:
        self.pick((10, self._insert), (6, self._update), (4, self._delete), (1, self._vacuum))()

    def _insert(self) -> None:
        size = self.rng.choice((10, 200, 2000, 20000, 200000))
        self.execute(
            f"INSERT INTO {self.table} (packed, plain)"
            " SELECT repeat(md5(random()::text), %s), repeat(md5(random()::text), %s) FROM generate_series(1, 5)",
            (size // 8, size // 64),
        )

    def _update(self) -> None:
        column = self.rng.choice(
            ("packed = packed || 'more'", "plain = repeat(md5(random()::text), 300)", "packed = NULL")
        )
        self.execute(
            f"UPDATE {self.table} SET {column} WHERE id IN (SELECT id FROM {self.table} ORDER BY random() LIMIT 10)"
        )

    def _delete(self) -> None:
        self.execute(f"DELETE FROM {self.table} WHERE id IN (SELECT id FROM {self.table} ORDER BY id LIMIT 8)")

    def _vacuum(self) -> None:
        self.execute(f"VACUUM {self.table}")


class MaintenanceActor(Actor):
    """What an administrator does at night."""

    def setup(self) -> None:
        self.execute("CREATE TABLE clustered (id serial PRIMARY KEY, word text)")
        self.execute("INSERT INTO clustered (word) SELECT md5(n::text) FROM generate_series(1, 3000) n")
        self.execute("CREATE INDEX clustered_word ON clustered (word)")

    def step(self) -> None:
        self.execute("SET lock_timeout = '3s'")
        self.pick(
            (4, self._cluster),
            (3, self._vacuum_full),
            (2, self._vacuum_full_catalog),
            (2, self._freeze),
            (2, self._analyze),
            (2, self._checkpoint),
            (1, self._switch_segment),
            (1, self._logical_message),
        )()

    def _cluster(self) -> None:
        self.execute("UPDATE clustered SET word = md5(word) WHERE id %% 7 = %s", (self.rng.randrange(7),))
        self.execute("CLUSTER clustered USING clustered_word")

    def _vacuum_full(self) -> None:
        self.execute("DELETE FROM clustered WHERE id % 13 = 0")
        self.execute("INSERT INTO clustered (word) SELECT md5(random()::text) FROM generate_series(1, 200)")
        self.execute("VACUUM FULL clustered")

    def _vacuum_full_catalog(self) -> None:
        catalog = self.rng.choice(("pg_class", "pg_attribute", "pg_statistic", "pg_index", "pg_depend", "pg_database"))
        self.execute(f"VACUUM FULL {catalog}")

    def _freeze(self) -> None:
        self.execute("VACUUM (FREEZE) pgbench_accounts" if self.rng.random() < 0.3 else "VACUUM (FREEZE) clustered")

    def _analyze(self) -> None:
        self.execute("ANALYZE")

    def _checkpoint(self) -> None:
        self.execute("CHECKPOINT")

    def _switch_segment(self) -> None:
        self.execute("SELECT pg_switch_wal()")

    def _logical_message(self) -> None:
        self.execute("SELECT pg_logical_emit_message(%s, 'torture', repeat('m', 3000))", (self.rng.random() < 0.5,))


class SavepointActor(Actor):
    """Subtransactions."""

    def setup(self) -> None:
        self.table = f"savepoints_{self.number}"
        self.execute(f"CREATE TABLE {self.table} (id serial, depth int, note text)")

    def step(self) -> None:
        depth = self.rng.choice((1, 3, 10, 70))
        with self.connection.transaction():
            for level in range(depth):
                self.execute(f"SAVEPOINT level{level}")
                self.execute(f"INSERT INTO {self.table} (depth, note) VALUES (%s, 'kept')", (level,))
                if self.rng.random() < 0.3:
                    self.execute(f"ROLLBACK TO SAVEPOINT level{level}")
                elif self.rng.random() < 0.5:
                    self.execute(f"RELEASE SAVEPOINT level{level}")
        if self.rng.random() < 0.1:
            self.execute(f"DELETE FROM {self.table} WHERE id % 3 = 0")


class LockActor(Actor):
    """Several sessions lock the same rows in share mode, so the rows carry multixacts. Has sessions of its own."""

    def __init__(
        self, connection: Connection, rng: random.Random, *, number: int = 0, others: Sequence[Connection] = ()
    ) -> None:
        super().__init__(connection, rng, number=number)
        self._others = others

    def setup(self) -> None:
        self.table = f"locked_{self.number}"
        self.execute(f"CREATE TABLE {self.table} (id int PRIMARY KEY, value int)")
        self.execute(f"INSERT INTO {self.table} SELECT n, 0 FROM generate_series(1, 500) n")
        self.execute(f"CREATE TABLE {self.table}_child (id serial, parent int REFERENCES {self.table})")

    def step(self) -> None:
        first = self.rng.randrange(1, 480)
        sessions = (self.connection, *self._others)
        modes = ("FOR KEY SHARE", "FOR SHARE", "FOR KEY SHARE")
        try:
            for session in sessions:
                session.execute("BEGIN")
                session.execute("SET LOCAL lock_timeout = '2s'")
                mode = self.rng.choice(modes)
                query = f"SELECT 1 FROM {self.table} WHERE id BETWEEN %s AND %s {mode}"
                session.execute(query.encode(), (first, first + 15))
            # An update of a column that is no key goes together with locks of others that only protect the key.
            with self.connection.transaction():
                if self.rng.random() < 0.3:
                    self.execute(f"UPDATE {self.table} SET value = value + 1 WHERE id = %s", (500,))
                self.execute(f"INSERT INTO {self.table}_child (parent) VALUES (%s)", (first,))
            for session in sessions:
                session.execute("COMMIT" if self.rng.random() < 0.8 else "ROLLBACK")
        finally:
            for session in sessions:
                if not session.closed:
                    session.execute("ROLLBACK")


class PreparedActor(Actor):
    """Prepared transactions: later steps end them, but from the first step on one to `open_max` are open."""

    open_max = 6

    def setup(self) -> None:
        self.table = f"prepared_{self.number}"
        self.open: list[str] = []
        self._next = 0
        self.execute(f"CREATE TABLE {self.table} (id int, note text)")

    def step(self) -> None:
        if len(self.open) >= self.open_max or (len(self.open) > 1 and self.rng.random() < 0.4):
            name = self.open.pop(self.rng.randrange(len(self.open)))
            self.execute(f"{self.rng.choice(('COMMIT', 'ROLLBACK'))} PREPARED '{name}'")
            if self.rng.random() < 0.8:
                self.execute(f"DROP TABLE IF EXISTS {self.table}_{name.rsplit('_', 1)[1]}")
            return
        self._next += 1
        name = f"open_{self.number}_{self._next}"
        self.execute("BEGIN")
        self.execute(
            f"INSERT INTO {self.table} SELECT n, '{name}' FROM generate_series(1, %s) n", (self.rng.randrange(50),)
        )
        if self.rng.random() < 0.4:
            self.execute("SAVEPOINT inside")
            self.execute(f"INSERT INTO {self.table} VALUES (0, '{name}')")
        if self.rng.random() < 0.3:
            self.execute(f"CREATE TABLE {self.table}_{self._next} AS SELECT generate_series(1, 100) AS a")
        self.execute(f"PREPARE TRANSACTION '{name}'")
        self.open.append(name)


class SequenceActor(Actor):
    """Sequences log ahead of what they give out."""

    def setup(self) -> None:
        self.sequence = f"sequence_{self.number}"
        self.execute(f"CREATE SEQUENCE {self.sequence} CACHE 1")

    def step(self) -> None:
        self.pick((20, self._next), (3, self._set), (1, self._alter), (1, self._create_and_drop))()

    def _next(self) -> None:
        self.execute(f"SELECT nextval('{self.sequence}') FROM generate_series(1, %s)", (self.rng.choice((1, 30, 100)),))

    def _set(self) -> None:
        self.execute(f"SELECT setval('{self.sequence}', %s)", (self.rng.randint(1, 10**9),))

    def _alter(self) -> None:
        self.execute(f"ALTER SEQUENCE {self.sequence} RESTART WITH {self.rng.randint(1, 1000)}")

    def _create_and_drop(self) -> None:
        self.execute("CREATE SEQUENCE short_lived")
        self.execute("SELECT nextval('short_lived')")
        self.execute("DROP SEQUENCE short_lived")


class DatabaseActor(Actor):
    """Databases come and go, copied as files or block by block. Works in a database of its own making."""

    kept_max = 2

    def setup(self) -> None:
        self.databases: list[str] = []
        self._next = 0

    def step(self) -> None:
        if len(self.databases) >= self.kept_max:
            # Refused while a moment's sums are computed in it; then it is tried again later.
            self.execute(f"DROP DATABASE {self.databases[0]}")
            self.databases.pop(0)
            return
        self._next += 1
        name = f"database_{self.number}_{self._next}"
        strategies = (
            ["", " STRATEGY file_copy", " STRATEGY wal_log"] if self.connection.info.server_version >= 150000 else [""]
        )
        source = self.rng.choice(("template0", "template1"))
        self.execute(f"CREATE DATABASE {name} TEMPLATE {source}{self.rng.choice(strategies)}")
        self.databases.append(name)
        with psycopg.connect(self._conninfo_of(name), autocommit=True) as other:
            other.execute("CREATE TABLE inside AS SELECT n, md5(n::text) AS word FROM generate_series(1, 2000) n")
            other.execute("CREATE INDEX ON inside (word)")
            other.execute("VACUUM inside")

    def _conninfo_of(self, database: str) -> str:
        return psycopg.conninfo.make_conninfo(self.connection.info.dsn, dbname=database)


class TablespaceActor(Actor):
    """Tables and indexes in a tablespace at `location`, an empty directory of the server's user."""

    def __init__(self, connection: Connection, rng: random.Random, *, number: int = 0, location: str) -> None:
        super().__init__(connection, rng, number=number)
        self._location = location
        self._next = 0
        self._tables: list[str] = []

    def setup(self) -> None:
        self.execute("DROP TABLESPACE IF EXISTS elsewhere")
        location = sql.Literal(self._location)
        self.connection.execute(sql.SQL("CREATE TABLESPACE elsewhere LOCATION {}").format(location))

    def step(self) -> None:
        self.pick((6, self._create), (4, self._drop), (3, self._move), (6, self._fill))()

    def _create(self) -> None:
        if len(self._tables) >= 5:
            self._drop()
        self._next += 1
        name = f"spaced_{self.number}_{self._next}"
        self.execute(f"CREATE TABLE {name} (a int, b text) TABLESPACE elsewhere")
        self.execute(f"CREATE INDEX ON {name} (a) TABLESPACE {self.rng.choice(('elsewhere', 'pg_default'))}")
        self._tables.append(name)

    def _drop(self) -> None:
        if self._tables:
            self.execute(f"DROP TABLE {self._tables.pop(0)}")

    def _move(self) -> None:
        if self._tables:
            target = self.rng.choice(("elsewhere", "pg_default"))
            self.execute(f"ALTER TABLE {self.rng.choice(self._tables)} SET TABLESPACE {target}")

    def _fill(self) -> None:
        if self._tables:
            self.execute(
                f"INSERT INTO {self.rng.choice(self._tables)}"
                " SELECT n, repeat('y', n %% 100) FROM generate_series(1, %s) n",
                (self.rng.randrange(500),),
            )
