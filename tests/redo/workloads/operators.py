"""Index tuples of many shapes: operator classes, included columns, nulls, several columns."""

from __future__ import annotations

from tests.redo.workloads.session import Session

TABLE = (
    "create table oc (id int, n numeric, t text, d date, r int4range, a inet, x box, g polygon, j jsonb, v tsvector,"
    ' u uuid, c "char") with (autovacuum_enabled = off)'
)
INDEXES = (
    "btree (n, t) include (d, j)",
    "btree (u) with (deduplicate_items = off)",
    "btree (c, a nulls first) with (fillfactor = 60)",
    "btree (lower(t), r desc) where id % 2 = 0",
    "hash (n)",
    "hash (a)",
    "hash (u) with (fillfactor = 30)",
    "gin (j)",
    "gin (j jsonb_path_ops) with (fastupdate = off)",
    "gin (v)",
    "gin (v, j jsonb_path_ops)",
    "gist (r)",
    "gist (a inet_ops)",
    "gist (v)",
    "gist (x, r) include (id, d)",
    "gist (g)",
    "spgist (r)",
    "spgist (a)",
    "spgist (x) include (id)",
    "spgist (g)",
    "brin (n, d, a inet_inclusion_ops) with (pages_per_range = 1)",
    "brin (r, x) with (pages_per_range = 2, autosummarize = on)",
    "brin (d date_minmax_multi_ops, t text_bloom_ops) with (pages_per_range = 1)",
)
ROWS = (
    "select i, (random() * 1000)::numeric(8,3), repeat(chr(97 + i % 26), i % 40) || i, date '2000-01-01' + i,"
    " int4range(i % 700, i % 700 + i % 30), ('10.' || i % 7 || '.' || i % 250 || '.0/' || 8 + i % 25)::inet,"
    " box(point(random(), random()), point(random() * 9, i % 5)), polygon(box(point(i % 50, random()), point(i, i))),"
    " jsonb_build_object('k' || i % 50, i % 9, 'z', array[i % 30, i]),"
    " to_tsvector('simple', md5(i::text) || ' w' || i % 40),"
    ' md5(random()::text)::uuid, chr(65 + i % 20)::"char"'
)


def operator_classes(session: Session) -> None:
    """The usual records, with index tuples of every operator class that is built in."""
    session.each(TABLE)
    for definition in INDEXES:
        session.each(f"create index on oc using {definition}")
    rows = session.rows(700)
    for first in (0, rows, 2 * rows):
        session.each(
            f"insert into oc {ROWS} from generate_series({first}, {first + rows}) i",
            f"insert into oc (id, t) select i, null from generate_series({first}, {first + rows // 10}) i",
            f"update oc set n = n + 1, c = null where id % 7 = {first % 5}",
            f"delete from oc where id % 4 = {first % 3}",
            "vacuum oc",
        )
    session.each("reindex table oc")
