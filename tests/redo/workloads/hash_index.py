"""Hash indexes."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def buckets(session: Session) -> None:
    """Buckets that overflow, split and are squeezed; killed items; bitmap pages."""
    session.each(
        "create table hx (k int, t text) with (autovacuum_enabled = off)",
        "create index hx_k on hx using hash (k)",
        "create index hx_t on hx using hash (t) with (fillfactor = 20)",
        f"insert into hx select i, 't' || i % 50 from generate_series(1, {session.rows(8000)}) i",
        f"insert into hx select 7, 'same' from generate_series(1, {session.rows(3000)}) i",
        "delete from hx where k = 7 or k % 3 = 0",
        "vacuum hx",
        f"insert into hx select i, 't' || i % 50 from generate_series(1, {session.rows(8000)}) i",
        "delete from hx where k % 2 = 0",
        "vacuum hx",
        # Half-empty overflow pages: what they hold moves forward in more than one step.
        f"insert into hx select 11, 'other' from generate_series(1, {session.rows(5000)}) i",
        "delete from hx where k = 11 and random() < 0.3",
        "vacuum hx",
        "create table hk (k int) with (autovacuum_enabled = off); create index hk_k on hk using hash (k)",
        "insert into hk select 5 from generate_series(1, 400)",
    )
    for _ in range(4):
        session.each(
            "delete from hk where ctid in (select ctid from hk limit 200)",
            "set enable_seqscan = off; set enable_bitmapscan = off; select count(*) from hk where k = 5",
            "reset enable_seqscan; reset enable_bitmapscan",
            "insert into hk select 5 from generate_series(1, 300)",
        )
