"""SP-GiST indexes."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def trees(session: Session) -> None:
    """Quad, k-d and radix trees with nulls: picksplit, node and tuple splits, leaf moves, redirects, vacuum."""
    session.each(
        "create table sp (id int, p point, t text) with (autovacuum_enabled = off)",
        "create index sp_q on sp using spgist (p)",
        "create index sp_k on sp using spgist (p kd_point_ops)",
        "create index sp_t on sp using spgist (t)",
        f"insert into sp select i, point(random(), random()), md5((i % 900)::text)"
        f" from generate_series(1, {session.rows(4000)}) i",
        f"insert into sp select i, null, null from generate_series(1, {session.rows(500, least=450)}) i",
        f"insert into sp select i, point(i, i), repeat('long prefix ', i % 30) || i"
        f" from generate_series(1, {session.rows(2000)}) i",
        "insert into sp select i, point(1, 1), chr(65 + i % 60) || 'suffix' from generate_series(1, 900) i",
        "delete from sp where id % 3 = 0",
        "vacuum sp",
        f"insert into sp select i, point(random(), random()), 'p' || i from generate_series(1, {session.rows(3000)}) i",
        "delete from sp where p is null; delete from sp where id < 1500",
        "vacuum sp",
        "vacuum sp",
        "insert into sp select i, point(random() * 2, random()), repeat('z', i % 2000) from generate_series(1, 300) i",
        "create table sr (id int, t text) with (autovacuum_enabled = off); create index sr_t on sr using spgist (t)",
        "insert into sr select i, 'r' || i from generate_series(1, 50) i; delete from sr; vacuum sr",
        "insert into sr select i, repeat(chr(97 + i % 26), 1 + i % 7) || i from generate_series(1, 3000) i",
        "insert into sr select i, 'r' || chr(200 + i) || 'x' from generate_series(1, 400) i",
    )


def long_prefixes(session: Session) -> None:
    """SPLIT_TUPLE: values that part from a long common beginning at ever earlier places."""
    session.each(
        "create table sl (t text) with (autovacuum_enabled = off); create index sl_t on sl using spgist (t)",
        "insert into sl select repeat('abcdefghij', 200) || i from generate_series(1, 300) i",
    )
    for length in range(1950, 50, -25):
        session.connection.execute(
            b"insert into sl select substr(repeat('abcdefghij', 200), 1, %d) || 'X' || i from generate_series(1, 12) i"
            % length
        )


def dead_chains(session: Session) -> None:
    """MOVE_LEAFS of nothing but a dead tuple: a chain is emptied, its page fills up, and a long value comes back."""
    session.each(
        "create table sd (t text) with (autovacuum_enabled = off)",
        "create index sd_t on sd using spgist (t)",
    )
    for letter in "abcdefghij":
        # Ten chains of four values share two or three leaf pages.
        session.connection.execute(
            "insert into sd select %s || md5(random()::text) || repeat(md5(random()::text), 7)"
            " from generate_series(1, 4) i",
            (letter,),
        )
    session.each("delete from sd where t < 'b' or t between 'd' and 'e' or t between 'g' and 'h'", "vacuum sd")
    for letter in "bcefhij":
        session.connection.execute(
            "insert into sd select %s || md5(random()::text) || repeat(md5(random()::text), 12)"
            " from generate_series(1, 2) i",
            (letter,),
        )
    for letter in "adg":
        session.connection.execute(
            "insert into sd select %s || md5(random()::text) || repeat(md5(random()::text), 110)", (letter,)
        )


def growing_nodes(session: Session) -> None:
    """ADD_NODE that moves an inner tuple to another page, SPLIT_TUPLE whose halves stay on one page.

    Sixty inner tuples share their pages; each gets ninety nodes more. Half of them have a prefix, which is split.
    """
    session.each(
        "create table sn (t text) with (autovacuum_enabled = off)",
        "create index sn_t on sn using spgist (t)",
    )
    groups = "select chr(48 + g) || case when g % 2 = 0 then 'common' else '' end p, g from generate_series(0, 59) g"
    session.each(
        # Nine kilobytes a group: too much for one page of leaves, so each group gets an inner tuple.
        "insert into sn select p || chr(97 + i % 4) || repeat(md5(random()::text), 9)"
        f" from ({groups}) q, generate_series(1, 30) i",
        f"insert into sn select substr(p, 1, 4) || 'X' || i from ({groups}) q, generate_series(1, 2) i where g % 4 = 0",
        f"insert into sn select p || chr(32 + i) || i from generate_series(1, 94) i, ({groups}) q order by i, g",
        "delete from sn where random() < 0.3",
        "vacuum sn",
    )
