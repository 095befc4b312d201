"""BRIN indexes."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def summaries(session: Session) -> None:
    """Summaries that are inserted, updated in place and moved; the revmap grows; desummarising."""
    session.each(
        "create table b (id int, t text) with (autovacuum_enabled = off, fillfactor = 10)",
        "create index b_i on b using brin (id) with (pages_per_range = 1)",
        "create index b_t on b using brin (t) with (pages_per_range = 2, autosummarize = off)",
        f"insert into b select i, repeat('b', i % 300) from generate_series(1, {session.rows(9000)}) i",
        "vacuum b",
        f"insert into b select -i, md5(i::text) from generate_series(1, {session.rows(2000)}) i",
        "update b set t = repeat('zz', id % 600) where id % 7 = 0",
        "select brin_desummarize_range('b_i', 5), brin_desummarize_range('b_t', 8), brin_desummarize_range('b_t', 0)",
        "select brin_summarize_new_values('b_i'), brin_summarize_new_values('b_t')",
        f"insert into b select i, repeat('c', i % 2000) from generate_series(1, {session.rows(2000)}) i",
        "vacuum b",
    )
