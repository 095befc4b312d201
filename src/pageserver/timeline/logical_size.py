"""How large the databases of a timeline are now (spec read-path-compaction-gc.md 16).

    computed once, at an LSN that ingest has told  ─┐
                                                    ├─▶ bytes now
    what ingest has added and removed since then   ─┘

Ingest tells, from its thread and after each commit, up to which LSN it has counted and how much all forks have grown up
to there; the two change together. Invariant: `initial` belongs to the same count that `growth` continues, so that
their sum is the size at the LSN that was told last. A base that came by another way (an import, a resync) starts the
count anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pageserver.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Growth:
    """Up to where ingest has counted, and by how many bytes all forks have grown since the count began."""

    lsn: Lsn
    bytes: int
    count: int = 0
    """Which count: they are numbered."""


class CurrentLogicalSize:
    """The size of one timeline, as far as it is known. One thread writes growth; everybody reads."""

    def __init__(self, lsn: Lsn) -> None:
        self._growth = Growth(lsn, 0)
        self._initial: tuple[int, int] | None = None
        """Number of a count, and the size at its beginning."""
        self.on_restart: Callable[[], None] = lambda: None
        """Called when the size has to be computed anew."""

    @property
    def growth(self) -> Growth:
        """What to compute the size at: hand it to `learn` with the size at its LSN."""
        return self._growth

    @property
    def is_accurate(self) -> bool:
        return self._initial is not None and self._initial[0] == self._growth.count

    @property
    def size_bytes(self) -> int:
        """Return the size; before it is known, what was added since the timeline was opened."""
        growth, initial = self._growth, self._initial
        if initial is None or initial[0] != growth.count:
            return max(0, growth.bytes)
        return max(0, initial[1] + growth.bytes)

    def note_growth(self, lsn: Lsn, grown_bytes: int) -> None:
        """Take note that everything up to `lsn` was ingested, which made `grown_bytes`; negative ones too."""
        growth = self._growth
        self._growth = Growth(lsn, growth.bytes + grown_bytes, growth.count)

    def learn(self, at: Growth, size_bytes: int) -> None:
        """Take note of the size at the LSN of `at`, a `growth` of earlier; one of another count is of no use."""
        self._initial = (at.count, size_bytes - at.bytes)

    def restart(self, lsn: Lsn) -> None:
        """Begin a new count at `lsn`: what is there did not come by ingest. Not while ingest runs."""
        self._growth = Growth(lsn, 0, self._growth.count + 1)
        self.on_restart()
