"""The object repository: every version of every key is one object of a key-value store. No layers, no compaction.

    ObjectRepository ── one tenant: timelines, branches, garbage collection
      └ ObjectTimeline ── one branch: writes from WAL, reads, relation sizes
          └ ObjectStore ── put, versions of a key, unlink; `RocksObjectStore` keeps them in RocksDB

In come values and LSNs, out go pages as of an LSN. It is simple on purpose: small installations without object storage
use it, and tests ask it what the layered repository should have answered (docs/decisions/0005). It may be slow, and
loops in Python. This room knows neither tenants nor where WAL comes from.
"""

from pageserver.repository.garbage import GarbageReport
from pageserver.repository.object_repository import ObjectRepository
from pageserver.repository.object_store import Changes, ObjectStore, ObjectView, TimelineRecord
from pageserver.repository.object_timeline import ObjectTimeline
from pageserver.repository.rocksdb import RocksObjectStore

__all__ = [
    "Changes",
    "GarbageReport",
    "ObjectRepository",
    "ObjectStore",
    "ObjectTimeline",
    "ObjectView",
    "RocksObjectStore",
    "TimelineRecord",
]
