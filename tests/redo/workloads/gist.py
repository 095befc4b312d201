"""GiST indexes."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def splits_and_deletions(session: Session) -> None:
    """Splits (also of the root), parent updates, killed items, page deletion, sorted and buffered builds."""
    session.each(
        "create table gi (id int, p point, b box) with (autovacuum_enabled = off)",
        "create index gi_p on gi using gist (p)",
        "create index gi_b on gi using gist (b)",
        f"insert into gi select i, point(random(), random()), box(point(i, i), point(i + 2, i + random()))"
        f" from generate_series(1, {session.rows(5000)}) i",
        "create index gi_built on gi using gist (p) with (buffering = on)",
        "update gi set p = point(random(), random()) where id % 5 = 0",
        "delete from gi where id between 500 and 3500",
        "vacuum gi",
        "vacuum gi",
        f"insert into gi select i, point(random(), random()), box(point(i, i), point(i + 2, i + 3))"
        f" from generate_series(1, {session.rows(3000)}) i",
        "vacuum gi",
    )
    for i in range(4):
        session.each(
            f"delete from gi where p <@ box '(0,0),(0.5,{0.2 * (i + 1)})'",
            "set enable_seqscan = off; set enable_bitmapscan = off",
            "select count(*) from gi where p <@ box '(0,0),(1,1)'",
            "reset enable_seqscan; reset enable_bitmapscan",
            "insert into gi select i, point(random() / 2, random() / 2) from generate_series(1, 2000) i",
        )


def three_levels(session: Session) -> None:
    """Splits of inner pages that are not the root, which finish the split of a page below."""
    session.each(
        # Four boxes in a tuple: about 60 tuples on a page.
        "create table g3 (a box, b box, c box, d box) with (autovacuum_enabled = off)",
        "create index g3_i on g3 using gist (a, b, c, d)",
        f"insert into g3 select p, p, p, p from (select box(point(random(), random()), point(2, 2)) p"
        f" from generate_series(1, {session.rows(8000, least=7000)})) q",
    )
