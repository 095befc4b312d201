"""Which entries of pg_xact and pg_multixact pages a comparison may look at (spec stock.md 4).

Entries at or beyond the next transaction, multixact or member offset mean nothing yet; a timeline and a data
directory may differ there: the server writes the offset of nextMulti ahead, and zeroes pages at other moments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pageserver.keyspace.key import PAGE_SIZE

PAGES_PER_SEGMENT: Final = 32
CLOG_XIDS_PER_PAGE: Final = 32768
OFFSETS_PER_PAGE: Final = 2048
MEMBERS_PER_PAGE: Final = 1636
MEMBER_GROUP_BYTES: Final = 20
HALF: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class LiveEntries:
    """The counters of a checkpoint between which SLRU entries mean something."""

    oldest_xid: int
    next_xid: int
    oldest_multi: int
    next_multi: int
    next_multi_offset: int

    def masked(self, kind: str, page_number: int, page: bytes) -> bytes:
        """Return the page with all meaningless entries zeroed. Shape: 8192 bytes in and out; `kind` is the
        directory's name.
        """
        per_page, is_live, clear = self._rules(kind)
        out = bytearray(page)
        first = page_number * per_page
        for entry in range(per_page):
            if not is_live((first + entry) & 0xFFFF_FFFF):
                clear(out, entry)
        if kind == "pg_multixact/members":
            out[MEMBERS_PER_PAGE // 4 * MEMBER_GROUP_BYTES :] = bytes(
                PAGE_SIZE - MEMBERS_PER_PAGE // 4 * MEMBER_GROUP_BYTES
            )
        return bytes(out)

    def _rules(self, kind: str) -> tuple[int, Callable[[int], bool], Callable[[bytearray, int], None]]:
        match kind:
            case "pg_xact":
                return CLOG_XIDS_PER_PAGE, lambda x: _between(self.oldest_xid, x, self.next_xid), _clear_status
            case "pg_multixact/offsets":
                return OFFSETS_PER_PAGE, lambda m: _between(self.oldest_multi, m, self.next_multi), _clear_offset
            case "pg_multixact/members":
                return MEMBERS_PER_PAGE, lambda o: 0 < (self.next_multi_offset - o) % (1 << 32) <= HALF, _clear_member
            case _:
                raise ValueError(f"{kind} is not an SLRU directory that is kept")


def _between(oldest: int, value: int, following: int) -> bool:
    """Return whether oldest <= value < following in the circular order of 32-bit counters."""
    return (value - oldest) % (1 << 32) < (following - oldest) % (1 << 32)


def _clear_status(page: bytearray, entry: int) -> None:
    page[entry // 4] &= ~(3 << 2 * (entry % 4)) & 0xFF


def _clear_offset(page: bytearray, entry: int) -> None:
    page[4 * entry : 4 * entry + 4] = bytes(4)


def _clear_member(page: bytearray, entry: int) -> None:
    group = entry // 4 * MEMBER_GROUP_BYTES
    page[group + entry % 4] = 0
    at = group + 4 + 4 * (entry % 4)
    page[at : at + 4] = bytes(4)
