"""WAL of real servers that reaches every kind of record, for the proof of redo.

`workload.py` is what the servers do, `make_wal.py` makes runs of it, `coverage.py` counts what occurred in them.
"""
