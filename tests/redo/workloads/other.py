"""Sequences, and generic records."""

from __future__ import annotations

from tests.redo.workloads.session import Session


def sequences(session: Session) -> None:
    """Sequence LOG."""
    session.each(
        "create sequence q1; create sequence q2 cache 20 increment by -3; create table qs (id serial, b bigserial)",
        "insert into qs select from generate_series(1, 200)",
        "select nextval('q1') from generate_series(1, 100); select nextval('q2') from generate_series(1, 50)",
        "select setval('q1', 5000); select setval('q1', 7, false); alter sequence q2 restart with -500",
        "drop sequence q2; truncate qs restart identity; insert into qs select from generate_series(1, 5)",
    )


def generic_records(session: Session) -> None:
    """Generic WAL, written by the bloom index of contrib."""
    session.each(
        "create extension bloom",
        "create table bl (a int, b int, c int) with (autovacuum_enabled = off)",
        "create index bl_i on bl using bloom (a, b, c)",
        f"insert into bl select i, i % 10, i % 33 from generate_series(1, {session.rows(5000)}) i",
        "delete from bl where a % 3 = 0",
        "vacuum bl",
        f"insert into bl select i, i, i from generate_series(1, {session.rows(3000)}) i",
    )
