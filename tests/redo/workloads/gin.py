"""GIN indexes."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def entries_and_lists(session: Session) -> None:
    """Entry and posting trees, splits, the pending list, recompression of posting lists."""
    session.each(
        "create table g (id int, a int[], v tsvector) with (autovacuum_enabled = off)",
        f"insert into g select i, array[i % 7, i], null from generate_series(1, {session.rows(1000)}) i",
        "create index g_a on g using gin (a) with (fastupdate = off)",
        "create index g_v on g using gin (v) with (fastupdate = on, gin_pending_list_limit = 64)",
    )
    for i in range(6):
        first = 10000 * (i + 1)
        session.each(
            f"insert into g select i, array[i % 5, i % 100, i, {i}], to_tsvector('simple', 'word' || i % 400 || ' all')"
            f" from generate_series({first}, {first + session.rows(3000)}) i",
            f"delete from g where id % 9 = {i}",
            "vacuum g" if i % 2 else "select gin_clean_pending_list('g_v')",
        )
    session.each(
        "insert into g select i, array(select generate_series(i, i + 60))"
        f" from generate_series(1, {session.rows(300)}) i",
        f"update g set a = a || 999999 where id < {session.rows(2000)}",
    )


def long_entries(session: Session) -> None:
    """An entry tree of three levels: a dozen keys on a page, so that inner pages and the root split."""
    session.each(
        "create table gl (id int, t text[]) with (autovacuum_enabled = off)",
        "create index gl_t on gl using gin (t) with (fastupdate = off)",
    )
    # Keys of hexadecimal digits are cut in half by the compression of index tuples.
    for first in range(0, 400, 100):
        session.connection.execute(
            "insert into gl select i, array[k, k || 'x'] from (select i,"
            " (select string_agg(md5(random()::text || i || j), '') from generate_series(1, 40) j) k"
            " from generate_series(%s::int, %s::int) i) q",
            (first, first + 99),
        )
    session.each("delete from gl where id % 3 = 0", "vacuum gl")


def page_deletion(session: Session) -> None:
    """A posting tree of many pages that is emptied: pages are deleted."""
    session.each(
        "create table gd (id int, a int[]) with (autovacuum_enabled = off)",
        "create index gd_a on gd using gin (a) with (fastupdate = off)",
        "insert into gd select i, '{1,2}' from generate_series(1, 40000) i",
        "delete from gd where id between 6000 and 36000",
        "vacuum gd",
        "insert into gd select i, '{1,3}' from generate_series(1, 3000) i",
        "vacuum gd",
        "delete from gd; vacuum gd",
    )
