"""Facts about PostgreSQL: versions, control file, checkpoints, WAL segments, relation file names, installations.

What differs between major versions is said here and nowhere else. Bytes of PostgreSQL's structures are little-endian.
This room knows nothing of timelines or storage.
"""
