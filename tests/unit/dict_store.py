"""A dictionary that plays the timeline store: every put is kept with its LSN (stands in for
``_core.TimelineStore``).
"""

from __future__ import annotations

from bisect import bisect_right, insort

from pageserver.errors import MissingKeyError


class DictStore:
    """Versions of values by key. A read sees the newest version at or below its LSN; empty sparse values are absent."""

    def __init__(self) -> None:
        self._versions: dict[bytes, list[tuple[int, bytes]]] = {}

    def put(self, key: bytes, lsn: int, value: bytes) -> None:
        versions = self._versions.setdefault(bytes(key), [])
        versions[:] = [version for version in versions if version[0] != lsn]
        insort(versions, (lsn, value))

    def find(self, key: bytes, lsn: int) -> bytes | None:
        versions = self._versions.get(bytes(key), [])
        at = bisect_right(versions, lsn, key=lambda version: version[0])
        return versions[at - 1][1] if at else None

    def get(self, key: bytes, lsn: int) -> bytes:
        value = self.find(key, lsn)
        if value is None:
            raise MissingKeyError(key=key, lsn=lsn)
        return value

    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]:
        return [self.find(key, lsn) for key in keys]

    def scan(self, start: bytes, end: bytes, lsn: int) -> list[tuple[bytes, bytes]]:
        assert start[0] >= 0x60 and end[0] <= 0x7F, "only metadata keyspace can be scanned"
        found = ((key, self.find(key, lsn)) for key in sorted(self._versions) if start <= key < end)
        return [(key, value) for key, value in found if value]

    def versions(self, key: bytes) -> list[tuple[int, bytes]]:
        return list(self._versions.get(bytes(key), []))

    def keys(self) -> list[bytes]:
        return sorted(self._versions)
