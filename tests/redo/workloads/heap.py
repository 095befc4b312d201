"""Tables: rows, line pointers, locks, TOAST."""

from __future__ import annotations

import random
import threading

from tests.redo.workloads.session import Session


def inserts_updates_deletes(session: Session) -> None:
    """INSERT, MULTI_INSERT (COPY), UPDATE with shared beginnings and ends, HOT_UPDATE, DELETE, nulls, rollback."""
    session.each(
        "create table h (id int primary key, a int, b text, c numeric, d text, e int default 7) with (fillfactor = 80)",
        "insert into h select i, i % 17, repeat('x', i % 90), i * 1.5, null"
        f" from generate_series(1, {session.rows(3000)}) i",
    )
    with session.connection.cursor() as cursor, cursor.copy("copy h (id, a, b, c, d) from stdin") as copy:
        for i in range(100000, 100000 + session.rows(4000)):
            copy.write_row((i, i % 5, None if i % 3 else "copied" * (i % 20), i / 7, "tail" * (i % 11)))
    with session.connection.cursor() as cursor, cursor.copy("copy h (id, a) from stdin with (freeze false)") as copy:
        for i in range(300000, 300000 + session.rows(500)):
            copy.write_row((i, i % 5))
    session.each(
        "update h set a = a + 1 where id % 3 = 0",
        "update h set b = b || 'y' where id % 5 = 0",
        "update h set d = 'changed ' || id where id % 7 = 0",
        "update h set id = -id where id % 11 = 0",
        "delete from h where id % 13 = 0",
        "begin; insert into h select i from generate_series(500000, 500500) i;"
        " update h set a = 0 where id < 50; rollback",
        "begin; savepoint s; delete from h where id < 100;"
        " rollback to s; delete from h where id between 200 and 210; commit",
        "begin; create table f (a int, b text); truncate f",
    )
    with session.connection.cursor() as cursor, cursor.copy("copy f from stdin with (freeze true)") as copy:
        for i in range(session.rows(3000)):
            copy.write_row((i, "frozen"))
    session.each("commit", "vacuum h", "update f set b = 'thawed' where a % 10 = 0", "vacuum f", "truncate f")


def pruning_and_freezing(session: Session) -> None:
    """PRUNE on access, by VACUUM and its second pass, FREEZE_PAGE, VISIBLE, shrinking line pointer arrays."""
    session.each(
        "create table p (id int, v int, w text) with (autovacuum_enabled = off)",
        f"insert into p select i, 0, 'w' || i from generate_series(1, {session.rows(3000)}) i",
        "create index on p (id)",
    )
    for round_number in range(6):
        session.each(
            f"update p set v = v + 1 where id % 6 = {round_number}",
            "select count(*) from p where id < 500",
            f"update p set w = 'longer text ' || id where id % 11 = {round_number}",
            f"delete from p where id % 23 = {round_number}",
            "set enable_indexscan = off; select sum(v) from p; reset enable_indexscan",
            "vacuum p" if round_number % 2 else "vacuum (freeze) p",
        )
    session.each(
        "create table q (id int, v int) with (autovacuum_enabled = off, fillfactor = 50)",
        f"insert into q select i, 0 from generate_series(1, {session.rows(1000)}) i",
        "update q set v = 1; update q set v = 2; update q set v = 3",
        "delete from q where id % 2 = 0",
        "vacuum q",
        "delete from q where id > 100",
        "vacuum (freeze, disable_page_skipping) q",
        "insert into q select i, 5 from generate_series(2000, 2300) i",
        "delete from q where id between 2000 and 2100; update q set v = 9; vacuum (freeze) q",
        "vacuum (freeze) pg_class; vacuum (freeze) pg_attribute; vacuum pg_statistic; analyze",
    )


def row_locks_and_multixacts(session: Session) -> None:
    """LOCK, LOCK_UPDATED, xmax that is a multixact, and freezing of such tuples."""
    session.each(
        "create table l (id int primary key, v int, w text)",
        f"insert into l select i, 0, 'w' from generate_series(1, {session.rows(300)}) i",
    )
    with session.connect() as one, session.connect() as two, session.connect() as three:
        for lock in ("for share", "for key share", "for no key update", "for update"):
            one.execute(f"begin; select * from l where id <= 100 {lock}".encode())
            if lock in ("for share", "for key share"):
                two.execute(f"begin; select * from l where id <= 60 {lock}".encode())
                two.execute(b"commit")
            one.execute(b"commit")
        # A row that somebody updates, but not its key, may be locked FOR KEY SHARE: the lock follows the update.
        for first in (1, 101, 201):
            one.execute(f"begin; update l set v = v + 1 where id between {first} and {first + 60}".encode())
            two.execute(f"begin; select * from l where id between {first} and {first + 60} for key share".encode())
            three.execute(f"begin; select * from l where id between {first} and {first + 20} for key share".encode())
            one.execute(b"commit" if first != 101 else b"rollback")
            two.execute(b"commit")
            three.execute(b"commit")
        one.execute(
            b"begin; select * from l where id < 50 for key share; savepoint a; update l set v = 5 where id < 40"
        )
        one.execute(b"rollback to a; update l set w = 'x' where id < 30; commit")
        one.execute(b"begin; select * from l where id < 250 for key share")
        two.execute(b"update l set v = 6 where id < 250")
        two.execute(b"vacuum (freeze) l")
        one.execute(b"commit")
    session.each("delete from l where id % 4 = 0", "vacuum (freeze) l")


def speculative_insertions(session: Session) -> None:
    """CONFIRM: several sessions insert the same keys at once."""
    session.each("create table s (id int primary key, n int)")

    def insert(seed: int) -> None:
        chance = random.Random(seed)
        with session.connect() as mine:
            for _ in range(session.rows(300)):
                key = chance.randrange(60)
                if chance.random() < 0.3:
                    mine.execute("delete from s where id = %s", (key,))
                else:
                    mine.execute("insert into s values (%s, 1) on conflict (id) do update set n = s.n + 1", (key,))

    threads = [threading.Thread(target=insert, args=(session.chance.getrandbits(32),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def speculative_aborts(session: Session) -> None:
    """DELETE that takes a speculative insertion back, with its TOAST values.

    Two sessions look for the key, find nothing, and insert the row; then one of them finds the other's index entry. The
    index is over a function that sleeps, so that both are between looking and inserting at the same time.
    """
    session.each(
        "create table sa (id int, big text)",
        "alter table sa alter big set storage external",
        "create function slowly(id int) returns int language plpgsql immutable as"
        " 'begin perform pg_sleep(0.05);return id;end'",
        "create unique index on sa (slowly(id))",
    )
    for key in range(3):
        ready = threading.Barrier(2)
        threads = [threading.Thread(target=_insert_or_nothing, args=(session, key, ready)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _insert_or_nothing(session: Session, key: int, ready: threading.Barrier) -> None:
    with session.connect() as mine:
        ready.wait()
        mine.execute("insert into sa values (%s, repeat(md5('x'), 300)) on conflict (slowly(id)) do nothing", (key,))


def partition_moves(session: Session) -> None:
    """DELETE that leaves a tuple which says it has moved to another partition."""
    session.each(
        "create table m (id int, v text) partition by range (id)",
        "create table m1 partition of m for values from (0) to (1000)",
        "create table m2 partition of m for values from (1000) to (100000)",
        "insert into m select i, 'v' from generate_series(1, 900) i",
        "update m set id = id + 1000 where id % 3 = 0",
    )


def toast_and_rewrites(session: Session) -> None:
    """TOASTed values, VACUUM FULL (also of a catalog), CLUSTER, ALTER TABLE that rewrites, full page image records."""
    session.each(
        "create table t (id int primary key, big text)",
        "alter table t alter big set storage external",
        f"insert into t select i, repeat(md5(i::text), 200) from generate_series(1, {session.rows(100)}) i",
        "update t set big = big || 'more' where id % 2 = 0; delete from t where id % 5 = 0; vacuum t",
        "vacuum full t; cluster t using t_pkey;"
        " alter table t add extra int default 3; alter table t alter id type bigint",
        "vacuum full pg_description; reindex table pg_class",
        "create unlogged table ul (a int primary key, b text); insert into ul values (1, 'a')",
        "create materialized view mv as select id, length(big) n from t; refresh materialized view mv",
    )
