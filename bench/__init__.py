"""Benchmarks of the whole server: `python -m bench`, or `python -m bench getpage|ingest|redo`.

In: a fresh PostgreSQL and a fresh page server on this machine, in a temporary directory. Out: one JSON line per figure,
each with its ceiling or peer measured in the same run, the absolute numbers, the ratio, and what it was measured on.

    world.py     the primary, the page server, the machine's facts
    getpage.py   GetPage over loopback beside an echo of the same bytes
    ingest.py    WAL to flushed layers beside PostgreSQL's own replay
    redo.py      chains of records through native redo beside the WAL redo process

Never: a figure without what it is compared with, or one that a faster machine alone would improve.
"""
