"""What a server writes only for logical decoding (`wal_level = logical`)."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def decoded_tables(session: Session) -> None:
    """Rows in full, old keys and old rows, TRUNCATE, NEW_CID and INVALIDATION (changes of catalogs)."""
    n = session.rows(400)
    session.each(
        "create table lk (id int primary key, v text)",
        "create table lf (id int, v text, w int)",
        "alter table lf replica identity full",
        f"insert into lk select i, repeat('v', i % 50) from generate_series(1, {n}) i",
        f"insert into lf select i, repeat('w', i % 50), 0 from generate_series(1, {n}) i",
        "update lk set v = v || 'changed' where id % 2 = 0",
        "update lk set id = -id where id % 5 = 0",
        "update lf set w = w + 1 where id % 3 = 0; update lf set v = repeat('long', 300) where id % 10 = 0",
        "delete from lk where id % 7 = 0; delete from lf where id % 7 = 0",
        "vacuum lk; vacuum lf",
        "create table lt (id int primary key, s serial); create table lr (id int references lt)",
        "insert into lt select generate_series(1, 20)",
        "truncate lt restart identity cascade",
        "begin; create table nc (a int); alter table nc add b int; alter table nc add c int; insert into nc values (1)",
        "drop table nc; create table nc (z text); commit",
    )
    with session.connection.cursor() as cursor, cursor.copy("copy lk (id, v) from stdin") as copy:
        for i in range(1_000_000, 1_000_000 + n):
            copy.write_row((i, "copied" * (i % 9)))


def catalog_rewrites(session: Session) -> None:
    """REWRITE: while a logical slot needs old catalogs, a rewrite of one maps old places of rows to new ones."""
    session.each(
        "select pg_create_logical_replication_slot('rewrites', 'pgoutput')",
        "create table cr (a int); create index on cr (a); alter table cr add b text",
        "vacuum full pg_class; vacuum full pg_attribute; cluster pg_class using pg_class_oid_index",
        "create table uc (a int primary key, b text) with (user_catalog_table = true)",
        "insert into uc select i, 'u' || i from generate_series(1, 300) i",
        "update uc set b = b || 'x' where a % 2 = 0; vacuum full uc",
        "select pg_drop_replication_slot('rewrites')",
    )


def messages_and_origins(session: Session) -> None:
    """Logical MESSAGE; replication origins SET and DROP, and transactions that carry one."""
    session.each(
        "select pg_logical_emit_message(true, 'prefix', 'content')",
        "select pg_logical_emit_message(false, 'prefix', repeat('content', 500))",
        "create table og (a int)",
        "select pg_replication_origin_create('away')",
        "select pg_replication_origin_advance('away', '0/1234567')",
        "select pg_replication_origin_session_setup('away')",
        "begin; select pg_replication_origin_xact_setup('0/2345678', now()); insert into og values (1); commit",
        "select pg_replication_origin_session_reset()",
        "select pg_replication_origin_drop('away')",
    )
