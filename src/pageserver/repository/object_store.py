"""What the object repository asks of a key-value store: versions of objects, and one record for each timeline.

An object is (timeline, key, LSN) -> encoded value (layer-files.md 10). Ids are 16 raw bytes, keys 18, LSNs integers.

Required of a store: `write` is atomic, and after a crash the store shows the writes up to some moment and none behind
it (a prefix); `sync` moves that moment behind everything written so far. A view shows one moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

from pageserver.errors import CorruptDataError

MAX_LSN = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TimelineRecord:
    """One timeline as the store knows it. It changes with every commit, in the same write as the values.

    `gc_cutoff_lsn`: reads of this timeline below it are over; nothing that only they need is kept.
    """

    timeline_id: bytes
    pg_version: int
    flavour: Literal["neon", "stock"]
    hint_bits_logged: bool
    ancestor_id: bytes | None
    ancestor_lsn: int
    last_record_lsn: int
    prev_record_lsn: int
    gc_cutoff_lsn: int

    def encode(self) -> bytes:
        """Return JSON; ids as hexadecimal digits."""
        document = asdict(self)
        document["timeline_id"] = self.timeline_id.hex()
        document["ancestor_id"] = None if self.ancestor_id is None else self.ancestor_id.hex()
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, content: bytes) -> TimelineRecord:
        """Read what `encode` wrote. Raises CorruptDataError."""
        try:
            document = json.loads(content)
            ancestor_id = document.pop("ancestor_id")
            return cls(
                timeline_id=bytes.fromhex(document.pop("timeline_id")),
                ancestor_id=None if ancestor_id is None else bytes.fromhex(ancestor_id),
                **document,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptDataError(f"record of a timeline does not decode: {error}", content=content[:200]) from error


@dataclass(slots=True)
class Changes:
    """One atomic write.

    `unfinished` values belong to a record that is not committed yet: a timeline that is opened again forgets them.
    `finished` names timelines whose unfinished values are good now.
    """

    puts: list[tuple[bytes, bytes, int, bytes]] = field(default_factory=list)
    """(timeline, key, LSN, value)."""
    unlinks: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    records: list[TimelineRecord] = field(default_factory=list)
    unfinished: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    finished: list[bytes] = field(default_factory=list)


class ObjectView(Protocol):
    """The store at one moment. Raises: UnavailableError, CorruptDataError (what the store itself finds damaged)."""

    def versions(self, timeline_id: bytes, key: bytes, max_lsn: int) -> Iterator[tuple[int, bytes]]:
        """Yield (LSN, value) at or below `max_lsn`, newest first."""
        ...

    def entries(self, timeline_id: bytes, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (key, LSN, value) of all keys from `start` up to `end` (none: all), by key, then newest first."""
        ...


class ObjectStore(Protocol):
    """A store of objects, open. Safe for many threads. Raises as `ObjectView` does."""

    def view(self) -> AbstractContextManager[ObjectView]:
        """Look at one moment, from one thread; to be left before the store is closed. Of its listings, each ends the
        one before.
        """
        ...

    def write(self, changes: Changes) -> None:
        """Do all of it or nothing. Survives the end of the process; that of the machine after `sync`."""
        ...

    def sync(self) -> None:
        """Make all writes so far durable."""
        ...

    def records(self) -> list[TimelineRecord]:
        """Return the records of all timelines."""
        ...

    def unfinished(self, timeline_id: bytes) -> list[tuple[bytes, int]]:
        """Return (key, LSN) of unfinished values."""
        ...

    def drop_timeline(self, timeline_id: bytes) -> None:
        """Remove a timeline's record and objects, durably. Absence is fine."""
        ...

    def size_bytes(self) -> int:
        """Return about how many bytes the store takes on disk."""
        ...

    def close(self) -> None: ...
