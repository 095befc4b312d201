"""A page server for PostgreSQL: takes its write-ahead log, keeps every version of every page, answers "this block, at
that LSN".

What comes in: WAL (and base backups). What goes out: pages, base backups, restored data directories. The rooms and the
direction of imports between them are drawn in ``docs/architecture.md``; the shared words are ``lsn``, ``ids``,
``errors`` and ``clock``, which import nothing else of ours.
"""

__version__ = "0.1.0"
