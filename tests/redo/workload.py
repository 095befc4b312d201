"""A workload that makes an unmodified PostgreSQL write nearly every kind of record that changes a page.

Each part is a function named after what it wants to see in the WAL. They share nothing but the connection, so one can
be run alone.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable

import psycopg

Connection = psycopg.Connection[tuple[object, ...]]
Connect = Callable[[], Connection]


def run(connect: Connect, scale: int = 1) -> None:
    """Run all parts, one after the other. `scale` multiplies the number of rows of the larger ones."""
    for part in (
        heap_inserts_updates_deletes,
        pruning_and_freezing,
        row_locks_and_multixacts,
        speculative_insertions,
        partition_moves,
        sequences,
        btree_duplicates,
        btree_long_keys,
        btree_page_deletion,
        btree_killed_items,
        toast_and_rewrites,
        hash_index,
        gin_index,
        gin_page_deletion,
        gist_index,
        gist_three_levels,
        spgist_index,
        spgist_long_prefixes,
        brin_index,
        generic_records,
    ):
        with connect() as connection:
            connection.execute("set synchronous_commit = off")
            print(f"  {part.__name__}", flush=True)
            part(connection, connect, scale)


def _each(connection: Connection, *scripts: str) -> None:
    """Run statements one by one: several in one message would be one transaction, in which VACUUM cannot run."""
    for script in scripts:
        for statement in script.split("; "):
            connection.execute(statement.encode())


def heap_inserts_updates_deletes(connection: Connection, connect: Connect, scale: int) -> None:
    """INSERT, MULTI_INSERT (COPY), UPDATE with shared beginnings and ends, HOT_UPDATE, DELETE, nulls, rollback."""
    _each(
        connection,
        "create table h (id int primary key, a int, b text, c numeric, d text, e int default 7) with (fillfactor = 80)",
        f"insert into h select i, i % 17, repeat('x', i % 90), i * 1.5, null from generate_series(1, {3000 * scale}) i",
    )
    with connection.cursor() as cursor, cursor.copy("copy h (id, a, b, c, d) from stdin") as copy:
        for i in range(100000, 100000 + 4000 * scale):
            copy.write_row((i, i % 5, None if i % 3 else "copied" * (i % 20), i / 7, "tail" * (i % 11)))
    with connection.cursor() as cursor, cursor.copy("copy h (id, a) from stdin with (freeze false)") as copy:
        for i in range(300000, 300000 + 500 * scale):
            copy.write_row((i, i % 5))
    _each(
        connection,
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
    with connection.cursor() as cursor, cursor.copy("copy f from stdin with (freeze true)") as copy:
        for i in range(3000 * scale):
            copy.write_row((i, "frozen"))
    _each(connection, "commit", "vacuum h", "update f set b = 'thawed' where a % 10 = 0", "vacuum f", "truncate f")


def pruning_and_freezing(connection: Connection, connect: Connect, scale: int) -> None:
    """PRUNE on access, by VACUUM and its second pass, FREEZE_PAGE, VISIBLE, shrinking line pointer arrays."""
    _each(
        connection,
        "create table p (id int, v int, w text) with (autovacuum_enabled = off)",
        f"insert into p select i, 0, 'w' || i from generate_series(1, {3000 * scale}) i",
        "create index on p (id)",
    )
    for round_number in range(6):
        _each(
            connection,
            f"update p set v = v + 1 where id % 6 = {round_number}",
            "select count(*) from p where id < 500",
            f"update p set w = 'longer text ' || id where id % 11 = {round_number}",
            f"delete from p where id % 23 = {round_number}",
            "set enable_indexscan = off; select sum(v) from p; reset enable_indexscan",
            "vacuum p" if round_number % 2 else "vacuum (freeze) p",
        )
    _each(
        connection,
        "create table q (id int, v int) with (autovacuum_enabled = off, fillfactor = 50)",
        f"insert into q select i, 0 from generate_series(1, {1000 * scale}) i",
        "update q set v = 1; update q set v = 2; update q set v = 3",
        "delete from q where id % 2 = 0",
        "vacuum q",
        "delete from q where id > 100",
        "vacuum (freeze, disable_page_skipping) q",
        "insert into q select i, 5 from generate_series(2000, 2300) i",
        "delete from q where id between 2000 and 2100; update q set v = 9; vacuum (freeze) q",
        "vacuum (freeze) pg_class; vacuum (freeze) pg_attribute; vacuum pg_statistic; analyze",
    )


def row_locks_and_multixacts(connection: Connection, connect: Connect, scale: int) -> None:
    """LOCK, LOCK_UPDATED, xmax that is a multixact, and freezing of such tuples."""
    _each(
        connection,
        "create table l (id int primary key, v int, w text)",
        f"insert into l select i, 0, 'w' from generate_series(1, {300 * scale}) i",
    )
    with connect() as one, connect() as two, connect() as three:
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
    _each(connection, "delete from l where id % 4 = 0", "vacuum (freeze) l")


def speculative_insertions(connection: Connection, connect: Connect, scale: int) -> None:
    """CONFIRM, and with luck super-deletion: several sessions insert the same keys at once."""
    _each(connection, "create table s (id int primary key, n int)")

    def session(seed: int) -> None:
        chance = random.Random(seed)
        with connect() as mine:
            for _ in range(300 * scale):
                key = chance.randrange(60)
                if chance.random() < 0.3:
                    mine.execute("delete from s where id = %s", (key,))
                else:
                    mine.execute("insert into s values (%s, 1) on conflict (id) do update set n = s.n + 1", (key,))

    threads = [threading.Thread(target=session, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def partition_moves(connection: Connection, connect: Connect, scale: int) -> None:
    """DELETE that leaves a tuple which says it has moved to another partition."""
    _each(
        connection,
        "create table m (id int, v text) partition by range (id)",
        "create table m1 partition of m for values from (0) to (1000)",
        "create table m2 partition of m for values from (1000) to (100000)",
        "insert into m select i, 'v' from generate_series(1, 900) i",
        "update m set id = id + 1000 where id % 3 = 0",
    )


def sequences(connection: Connection, connect: Connect, scale: int) -> None:
    """Sequence LOG."""
    _each(
        connection,
        "create sequence q1; create sequence q2 cache 20 increment by -3; create table qs (id serial, b bigserial)",
        "insert into qs select from generate_series(1, 200)",
        "select nextval('q1') from generate_series(1, 100); select nextval('q2') from generate_series(1, 50)",
        "select setval('q1', 5000); select setval('q1', 7, false); alter sequence q2 restart with -500",
        "drop sequence q2; truncate qs restart identity; insert into qs select from generate_series(1, 5)",
    )


def btree_duplicates(connection: Connection, connect: Connect, scale: int) -> None:
    """DEDUP, posting lists that are split (INSERT_POST) and shrink (VACUUM, DELETE with updates)."""
    n = 12000 * scale
    _each(
        connection,
        "create table d (k int, t text, u int) with (autovacuum_enabled = off)",
        "create index d_k on d (k); create index d_t on d (t); create index d_n on d (u, k)",
        f"insert into d select (random() * 40)::int, 'key ' || i % 9, i % 3 from generate_series(1, {n}) i",
        f"delete from d where ctid in (select ctid from d where k % 3 = 0 order by random() limit {n // 8})",
        "vacuum d",
        f"insert into d select (random() * 40)::int, 'key ' || i % 9, null from generate_series(1, {n // 3}) i",
        "delete from d where k = 7 and u = 1; delete from d where t = 'key 3' and k % 2 = 0",
        "vacuum d",
        f"insert into d select i % 40, 'key ' || i % 9, i % 2 from generate_series(1, {n // 3}) i",
    )
    # Updates that change no key of an index but the tuple's place make duplicates: bottom-up deletion.
    _each(
        connection,
        "create table v (id int primary key, k int, n int) with (autovacuum_enabled = off)",
        "create index v_k on v (k); create index v_n on v (n)",
        "insert into v select i, i % 10, 0 from generate_series(1, 2000) i",
    )
    for _ in range(12):
        _each(connection, "update v set n = n + 1")


def btree_long_keys(connection: Connection, connect: Connect, scale: int) -> None:
    """Splits of leaf and inner pages on all levels, new roots, keys of very different lengths, ascending and random."""
    chance = random.Random(1)
    connection.execute(b"create table k (id serial, t text)")
    connection.execute(b"create index k_t on k (t text_pattern_ops)")
    for _ in range(6):
        rows = ["".join(chance.choices("abcdefghij", k=chance.choice((5, 40, 300, 900)))) for _ in range(400 * scale)]
        connection.execute("insert into k (t) select unnest(%s::text[])", (rows,))
    _each(
        connection,
        "create table a (id bigint primary key, r float8)",
        "create index a_r on a (r); create index a_desc on a (id desc)",
        f"insert into a select i, random() from generate_series(1, {9000 * scale}) i",
        f"insert into a select -i, random() from generate_series(1, {3000 * scale}) i",
        "create index a_built on a (r, id); reindex index a_r",
        f"insert into a select i, random() from generate_series(1000000, {1000000 + 2000 * scale}) i",
    )


def btree_page_deletion(connection: Connection, connect: Connect, scale: int) -> None:
    """MARK_PAGE_HALFDEAD, UNLINK_PAGE of leaves and of whole subtrees, META_CLEANUP, reuse of deleted pages."""
    _each(
        connection,
        "create table z (t text) with (autovacuum_enabled = off)",
        "create index z_t on z (t)",
        f"insert into z select repeat(md5(i::text), 12) || i from generate_series(1, {4000 * scale}) i",
        "delete from z where t between '2' and 'd'",
        "vacuum z",
        "vacuum z",
        f"insert into z select repeat(md5(i::text), 11) || i from generate_series(1, {1500 * scale}) i",
        "vacuum z",
        "delete from z",
        "vacuum z",
        "vacuum z",
        f"insert into z select repeat(md5(i::text), 11) || i from generate_series(1, {1500 * scale}) i",
        # A tree that shrinks to one chain of pages gets a fast root, and then grows again.
        "create table y (id int) with (autovacuum_enabled = off)",
        "create index y_id on y (id)",
        f"insert into y select generate_series(1, {30000 * scale})",
        f"delete from y where id < {29990 * scale}",
        "vacuum y",
        "vacuum y",
        f"insert into y select generate_series({30000 * scale}, {45000 * scale})",
        f"delete from y where id > {30010 * scale}",
        "vacuum y",
        "insert into y select generate_series(1, 3000)",
    )


def btree_killed_items(connection: Connection, connect: Connect, scale: int) -> None:
    """DELETE: scans mark index entries as dead, the next insertion into a full page removes them."""
    _each(
        connection,
        "create table x (id int, t text) with (autovacuum_enabled = off)",
        "create index x_id on x (id)",
        "insert into x select i % 500, 'x' from generate_series(1, 6000) i",
    )
    for i in range(5):
        _each(
            connection,
            f"delete from x where id % 5 = {i} and ctid < '(20,0)'",
            "set enable_seqscan = off; set enable_bitmapscan = off",
            "select count(t) from x where id >= 0",
            "reset enable_seqscan; reset enable_bitmapscan",
            "insert into x select i % 500, 'y' from generate_series(1, 1500) i",
        )


def toast_and_rewrites(connection: Connection, connect: Connect, scale: int) -> None:
    """TOASTed values, VACUUM FULL (also of a catalog), CLUSTER, ALTER TABLE that rewrites, full page image records."""
    _each(
        connection,
        "create table t (id int primary key, big text)",
        "alter table t alter big set storage external",
        f"insert into t select i, repeat(md5(i::text), 200) from generate_series(1, {100 * scale}) i",
        "update t set big = big || 'more' where id % 2 = 0; delete from t where id % 5 = 0; vacuum t",
        "vacuum full t; cluster t using t_pkey;"
        " alter table t add extra int default 3; alter table t alter id type bigint",
        "vacuum full pg_description; reindex table pg_class",
        "create unlogged table ul (a int primary key, b text); insert into ul values (1, 'a')",
        "create materialized view mv as select id, length(big) n from t; refresh materialized view mv",
    )


def hash_index(connection: Connection, connect: Connect, scale: int) -> None:
    """Buckets that overflow, split and are squeezed; killed items; bitmap pages."""
    _each(
        connection,
        "create table hx (k int, t text) with (autovacuum_enabled = off)",
        "create index hx_k on hx using hash (k)",
        "create index hx_t on hx using hash (t) with (fillfactor = 20)",
        f"insert into hx select i, 't' || i % 50 from generate_series(1, {8000 * scale}) i",
        f"insert into hx select 7, 'same' from generate_series(1, {3000 * scale}) i",
        "delete from hx where k = 7 or k % 3 = 0",
        "vacuum hx",
        f"insert into hx select i, 't' || i % 50 from generate_series(1, {8000 * scale}) i",
        "delete from hx where k % 2 = 0",
        "vacuum hx",
        # Half-empty overflow pages: what they hold moves forward in more than one step.
        f"insert into hx select 11, 'other' from generate_series(1, {5000 * scale}) i",
        "delete from hx where k = 11 and random() < 0.3",
        "vacuum hx",
        "create table hk (k int) with (autovacuum_enabled = off); create index hk_k on hk using hash (k)",
        "insert into hk select 5 from generate_series(1, 400)",
    )
    for _ in range(4):
        _each(
            connection,
            "delete from hk where ctid in (select ctid from hk limit 200)",
            "set enable_seqscan = off; set enable_bitmapscan = off; select count(*) from hk where k = 5",
            "reset enable_seqscan; reset enable_bitmapscan",
            "insert into hk select 5 from generate_series(1, 300)",
        )


def gin_index(connection: Connection, connect: Connect, scale: int) -> None:
    """Entry and posting trees, splits, the pending list, recompression of posting lists."""
    _each(
        connection,
        "create table g (id int, a int[], v tsvector) with (autovacuum_enabled = off)",
        f"insert into g select i, array[i % 7, i], null from generate_series(1, {1000 * scale}) i",
        "create index g_a on g using gin (a) with (fastupdate = off)",
        "create index g_v on g using gin (v) with (fastupdate = on, gin_pending_list_limit = 64)",
    )
    for i in range(6):
        first = 10000 * (i + 1)
        _each(
            connection,
            f"insert into g select i, array[i % 5, i % 100, i, {i}], to_tsvector('simple', 'word' || i % 400 || ' all')"
            f" from generate_series({first}, {first + 3000 * scale}) i",
            f"delete from g where id % 9 = {i}",
            "vacuum g" if i % 2 else "select gin_clean_pending_list('g_v')",
        )
    _each(
        connection,
        f"insert into g select i, array(select generate_series(i, i + 60)) from generate_series(1, {300 * scale}) i",
        f"update g set a = a || 999999 where id < {2000 * scale}",
    )


def gin_page_deletion(connection: Connection, connect: Connect, scale: int) -> None:
    """A posting tree of many pages that is emptied: pages are deleted."""
    _each(
        connection,
        "create table gd (id int, a int[]) with (autovacuum_enabled = off)",
        "create index gd_a on gd using gin (a) with (fastupdate = off)",
        "insert into gd select i, '{1,2}' from generate_series(1, 40000) i",
        "delete from gd where id between 6000 and 36000",
        "vacuum gd",
        "insert into gd select i, '{1,3}' from generate_series(1, 3000) i",
        "vacuum gd",
        "delete from gd; vacuum gd",
    )


def gist_index(connection: Connection, connect: Connect, scale: int) -> None:
    """Splits (also of the root), parent updates, killed items, page deletion, sorted and buffered builds."""
    _each(
        connection,
        "create table gi (id int, p point, b box) with (autovacuum_enabled = off)",
        "create index gi_p on gi using gist (p)",
        "create index gi_b on gi using gist (b)",
        f"insert into gi select i, point(random(), random()), box(point(i, i), point(i + 2, i + random()))"
        f" from generate_series(1, {5000 * scale}) i",
        "create index gi_built on gi using gist (p) with (buffering = on)",
        "update gi set p = point(random(), random()) where id % 5 = 0",
        "delete from gi where id between 500 and 3500",
        "vacuum gi",
        "vacuum gi",
        f"insert into gi select i, point(random(), random()), box(point(i, i), point(i + 2, i + 3))"
        f" from generate_series(1, {3000 * scale}) i",
        "vacuum gi",
    )
    for i in range(4):
        _each(
            connection,
            f"delete from gi where p <@ box '(0,0),(0.5,{0.2 * (i + 1)})'",
            "set enable_seqscan = off; set enable_bitmapscan = off",
            "select count(*) from gi where p <@ box '(0,0),(1,1)'",
            "reset enable_seqscan; reset enable_bitmapscan",
            "insert into gi select i, point(random() / 2, random() / 2) from generate_series(1, 2000) i",
        )


def gist_three_levels(connection: Connection, connect: Connect, scale: int) -> None:
    """Splits of inner pages that are not the root, which finish the split of a page below."""
    _each(
        connection,
        # Four boxes in a tuple: about 60 tuples on a page.
        "create table g3 (a box, b box, c box, d box) with (autovacuum_enabled = off)",
        "create index g3_i on g3 using gist (a, b, c, d)",
        f"insert into g3 select p, p, p, p from (select box(point(random(), random()), point(2, 2)) p"
        f" from generate_series(1, {8000 * scale})) q",
    )


def spgist_long_prefixes(connection: Connection, connect: Connect, scale: int) -> None:
    """SPLIT_TUPLE: values that part from a long common beginning at ever earlier places."""
    _each(
        connection,
        "create table sl (t text) with (autovacuum_enabled = off); create index sl_t on sl using spgist (t)",
        "insert into sl select repeat('abcdefghij', 200) || i from generate_series(1, 300) i",
    )
    for length in range(1950, 50, -25):
        connection.execute(
            b"insert into sl select substr(repeat('abcdefghij', 200), 1, %d) || 'X' || i from generate_series(1, 12) i"
            % length
        )


def spgist_index(connection: Connection, connect: Connect, scale: int) -> None:
    """Quad, k-d and radix trees with nulls: picksplit, node and tuple splits, leaf moves, redirects, vacuum."""
    _each(
        connection,
        "create table sp (id int, p point, t text) with (autovacuum_enabled = off)",
        "create index sp_q on sp using spgist (p)",
        "create index sp_k on sp using spgist (p kd_point_ops)",
        "create index sp_t on sp using spgist (t)",
        f"insert into sp select i, point(random(), random()), md5((i % 900)::text)"
        f" from generate_series(1, {4000 * scale}) i",
        f"insert into sp select i, null, null from generate_series(1, {500 * scale}) i",
        f"insert into sp select i, point(i, i), repeat('long prefix ', i % 30) || i"
        f" from generate_series(1, {2000 * scale}) i",
        "insert into sp select i, point(1, 1), chr(65 + i % 60) || 'suffix' from generate_series(1, 900) i",
        "delete from sp where id % 3 = 0",
        "vacuum sp",
        f"insert into sp select i, point(random(), random()), 'p' || i from generate_series(1, {3000 * scale}) i",
        "delete from sp where p is null; delete from sp where id < 1500",
        "vacuum sp",
        "vacuum sp",
        "insert into sp select i, point(random() * 2, random()), repeat('z', i % 2000) from generate_series(1, 300) i",
        "create table sr (id int, t text) with (autovacuum_enabled = off); create index sr_t on sr using spgist (t)",
        "insert into sr select i, 'r' || i from generate_series(1, 50) i; delete from sr; vacuum sr",
        "insert into sr select i, repeat(chr(97 + i % 26), 1 + i % 7) || i from generate_series(1, 3000) i",
        "insert into sr select i, 'r' || chr(200 + i) || 'x' from generate_series(1, 400) i",
    )


def brin_index(connection: Connection, connect: Connect, scale: int) -> None:
    """Summaries that are inserted, updated in place and moved; the revmap grows; desummarising."""
    _each(
        connection,
        "create table b (id int, t text) with (autovacuum_enabled = off, fillfactor = 10)",
        "create index b_i on b using brin (id) with (pages_per_range = 1)",
        "create index b_t on b using brin (t) with (pages_per_range = 2, autosummarize = off)",
        f"insert into b select i, repeat('b', i % 300) from generate_series(1, {9000 * scale}) i",
        "vacuum b",
        f"insert into b select -i, md5(i::text) from generate_series(1, {2000 * scale}) i",
        "update b set t = repeat('zz', id % 600) where id % 7 = 0",
        "select brin_desummarize_range('b_i', 5), brin_desummarize_range('b_t', 8), brin_desummarize_range('b_t', 0)",
        "select brin_summarize_new_values('b_i'), brin_summarize_new_values('b_t')",
        f"insert into b select i, repeat('c', i % 2000) from generate_series(1, {2000 * scale}) i",
        "vacuum b",
    )


def generic_records(connection: Connection, connect: Connect, scale: int) -> None:
    """Generic WAL, written by the bloom index of contrib; nothing where contrib is not installed."""
    with contextlib.suppress(psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
        connection.execute(b"create extension bloom")
        _each(
            connection,
            "create table bl (a int, b int, c int) with (autovacuum_enabled = off)",
            "create index bl_i on bl using bloom (a, b, c)",
            f"insert into bl select i, i % 10, i % 33 from generate_series(1, {5000 * scale}) i",
            "delete from bl where a % 3 = 0",
            "vacuum bl",
            "insert into bl select i, i, i from generate_series(1, 3000) i",
        )
