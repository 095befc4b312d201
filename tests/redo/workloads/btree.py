"""B-tree indexes."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def duplicates(session: Session) -> None:
    """DEDUP, posting lists that are split (INSERT_POST) and shrink (VACUUM, DELETE with updates)."""
    n = session.rows(12000)
    session.each(
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
    session.each(
        "create table v (id int primary key, k int, n int) with (autovacuum_enabled = off)",
        "create index v_k on v (k); create index v_n on v (n)",
        "insert into v select i, i % 10, 0 from generate_series(1, 2000) i",
    )
    for _ in range(12):
        session.each("update v set n = n + 1")


def posting_list_splits(session: Session) -> None:
    """SPLIT_L and SPLIT_R in the middle of a posting list.

    Building the index packs posting lists into full pages. Rows that then fill the holes in the middle of the table
    have places between those of a list, which must be split, and with it the page. If the page is cut right after that
    list, it is SPLIT_R. PostgreSQL avoids to cut between equal keys unless a page has no others: so there are few keys.
    They are long, so that a list has three or four places and a page ten lists. Without deduplication a full page is
    split at once.
    """
    session.each(
        "create table ps (k text, n int) with (autovacuum_enabled = off)",
        # The columns of an index are compressed as their table's are: not here.
        "alter table ps alter k set storage external",
        "insert into ps select 'key ' || i % 20 || repeat('-', 765), i from generate_series(1, 9600) i"
        " order by random()",
        "delete from ps where ctid between '(220,0)' and '(460,0)' and random() < 0.9",
        "vacuum ps",
        "create index ps_k on ps (k) with (fillfactor = 100)",
        "alter index ps_k set (deduplicate_items = off)",
        "insert into ps select 'key ' || (random() * 20)::int || repeat('-', 765), i from generate_series(1, 1800) i",
    )


def long_keys(session: Session) -> None:
    """Splits of leaf and inner pages on all levels, new roots, keys of very different lengths, ascending and random."""
    chance = session.chance
    session.connection.execute(b"create table k (id serial, t text)")
    session.connection.execute(b"create index k_t on k (t text_pattern_ops)")
    for _ in range(6):
        rows = [
            "".join(chance.choices("abcdefghij", k=chance.choice((5, 40, 300, 900)))) for _ in range(session.rows(400))
        ]
        session.connection.execute("insert into k (t) select unnest(%s::text[])", (rows,))
    session.each(
        "create table a (id bigint primary key, r float8)",
        "create index a_r on a (r); create index a_desc on a (id desc)",
        f"insert into a select i, random() from generate_series(1, {session.rows(9000)}) i",
        f"insert into a select -i, random() from generate_series(1, {session.rows(3000)}) i",
        "create index a_built on a (r, id); reindex index a_r",
        f"insert into a select i, random() from generate_series(1000000, {1000000 + session.rows(2000)}) i",
    )


def page_deletion(session: Session) -> None:
    """MARK_PAGE_HALFDEAD, UNLINK_PAGE of leaves and of whole subtrees, META_CLEANUP, reuse of deleted pages."""
    session.each(
        "create table z (t text) with (autovacuum_enabled = off)",
        "create index z_t on z (t)",
        f"insert into z select repeat(md5(i::text), 12) || i from generate_series(1, {session.rows(4000)}) i",
        "delete from z where t between '2' and 'd'",
        "vacuum z",
        "vacuum z",
        f"insert into z select repeat(md5(i::text), 11) || i from generate_series(1, {session.rows(1500)}) i",
        "vacuum z",
        "delete from z",
        "vacuum z",
        "vacuum z",
        f"insert into z select repeat(md5(i::text), 11) || i from generate_series(1, {session.rows(1500)}) i",
        # A tree that shrinks to one chain of pages gets a fast root, and then grows again.
        "create table y (id int) with (autovacuum_enabled = off)",
        "create index y_id on y (id)",
        f"insert into y select generate_series(1, {session.rows(30000)})",
        f"delete from y where id < {session.rows(29990)}",
        "vacuum y",
        "vacuum y",
        f"insert into y select generate_series({session.rows(30000)}, {session.rows(45000)})",
        f"delete from y where id > {session.rows(30010)}",
        "vacuum y",
        "insert into y select generate_series(1, 3000)",
    )


def killed_items(session: Session) -> None:
    """DELETE: scans mark index entries as dead, the next insertion into a full page removes them."""
    session.each(
        "create table x (id int, t text) with (autovacuum_enabled = off)",
        "create index x_id on x (id)",
        "insert into x select i % 500, 'x' from generate_series(1, 6000) i",
    )
    for i in range(5):
        session.each(
            f"delete from x where id % 5 = {i} and ctid < '(20,0)'",
            "set enable_seqscan = off; set enable_bitmapscan = off",
            "select count(t) from x where id >= 0",
            "reset enable_seqscan; reset enable_bitmapscan",
            "insert into x select i % 500, 'y' from generate_series(1, 1500) i",
        )
