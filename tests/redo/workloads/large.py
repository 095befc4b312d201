"""What takes many million rows: run by name only (`make_wal --part`), never as a part of the ordinary workload."""

from __future__ import annotations

from tests.redo.workloads.session import Session

OVERFLOW_PAGES_OF_A_BITMAP = 32768
TUPLES_OF_A_HASH_PAGE = 407


def hash_second_bitmap(session: Session) -> None:
    """ADD_OVFL_PAGE that makes a second bitmap page.

    Every insertion walks its bucket's whole chain, so the overflow pages are spread over keys: ten for each.
    """
    keys = OVERFLOW_PAGES_OF_A_BITMAP // 10 + 30
    rows = keys * (10 * TUPLES_OF_A_HASH_PAGE + TUPLES_OF_A_HASH_PAGE // 2)
    session.each(
        "create table hb (k int) with (autovacuum_enabled = off)",
        f"insert into hb select i % {keys} from generate_series(1, {rows}) i",
        "create index hb_k on hb using hash (k)",
    )


def gin_high_posting_tree(session: Session) -> None:
    """SPLIT of a posting tree's root that is not a leaf: one key in every row."""
    session.each(
        "create table gh (a int[]) with (autovacuum_enabled = off)",
        "create index gh_a on gh using gin (a) with (fastupdate = off)",
        "insert into gh select '{1}' from generate_series(1, 6000000) i",
    )
