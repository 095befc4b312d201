"""The SQL that makes an unmodified PostgreSQL write every kind of record, one module for each access method.

A part is a function named after what it is about; its docstring says what it wants to see in the WAL. Parts share
nothing but the server, so one can be run alone. `tests/redo/workload.py` names them all and their order.
"""
