"""The CheckPoint value: 88 bytes of PostgreSQL's C structure, and how records move it forward (spec wal.md 6).

It is tracked after every record, not only at checkpoints, so that a server can be started at any LSN. The Rust core
has the same rules for frequent records; here are those that decisions in Python need. ``redo`` keeps a convention of
ours: the end LSN of a shutdown checkpoint record, 0 after an online one.
"""

from __future__ import annotations

from typing import Final

from pageserver.errors import CorruptDataError
from pageserver.postgres.c_struct import CStruct, Field

CHECKPOINT_SIZE: Final = 88
FIRST_NORMAL_XID: Final = 3
XID_ROUNDING: Final = 1024
"""nextXid is kept rounded up to a multiple, which saves writing the value with every transaction."""
_U32: Final = 0xFFFF_FFFF


class CheckpointDecodeError(CorruptDataError):
    """The bytes are not a CheckPoint structure."""


class Checkpoint(CStruct):
    """``CheckPoint`` of ``pg_control.h``; the same layout in PostgreSQL 14 to 18, ``wal_level`` being padding before
    17.
    """

    redo = Field(0, "Q")
    this_timeline_id = Field(8, "I")
    previous_timeline_id = Field(12, "I")
    full_page_writes = Field(16, "B")
    wal_level = Field(20, "i")
    next_xid = Field(24, "Q")
    next_oid = Field(32, "I")
    next_multi = Field(36, "I")
    next_multi_offset = Field(40, "I")
    oldest_xid = Field(44, "I")
    oldest_xid_db = Field(48, "I")
    oldest_multi = Field(52, "I")
    oldest_multi_db = Field(56, "I")
    time = Field(64, "q")
    oldest_commit_ts_xid = Field(72, "I")
    newest_commit_ts_xid = Field(76, "I")
    oldest_active_xid = Field(80, "I")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != CHECKPOINT_SIZE:
            raise CheckpointDecodeError(f"checkpoint value has {len(raw)} bytes where {CHECKPOINT_SIZE} are needed")
        if raw[16] > 1:
            raise CheckpointDecodeError(f"checkpoint value has fullPageWrites {raw[16]}")
        super().__init__(raw)

    def with_xid(self, xid: int) -> Checkpoint:
        """Return the value after a record of transaction ``xid``: nextXid never goes back, and is rounded up."""
        following = max(xid + 1 & _U32, FIRST_NORMAL_XID)
        following = (following + XID_ROUNDING - 1) // XID_ROUNDING * XID_ROUNDING & _U32
        epoch, low = self.next_xid >> 32, self.next_xid & _U32
        if not is_ahead(following, low):
            return self
        if following < low:
            epoch = epoch + 1 & _U32
        return self.replaced(next_xid=epoch << 32 | following)

    def with_multixact(self, next_multi: int, next_offset: int) -> Checkpoint:
        """Return the value after a new multixact: both counters only go forward, each on its own."""
        changed: dict[str, int] = {}
        if is_ahead(next_multi, self.next_multi):
            changed["next_multi"] = next_multi & _U32
        if is_ahead(next_offset, self.next_multi_offset):
            changed["next_multi_offset"] = next_offset & _U32
        return self.replaced(**changed) if changed else self

    def full_xid(self, xid: int) -> int:
        """Return the 64-bit id of a transaction that is older than nextXid. Raises: CheckpointDecodeError
        (wraparound).
        """
        epoch, low = self.next_xid >> 32, self.next_xid & _U32
        if xid > low:
            if epoch == 0:
                raise CheckpointDecodeError(
                    f"apparent XID wraparound with prepared transaction XID {xid}, nextXid is {self.next_xid}"
                )
            epoch -= 1
        return epoch << 32 | xid


def is_ahead(left: int, right: int) -> bool:
    """Return whether ``left`` is after ``right`` on the circle of 32-bit numbers (signed difference above 0)."""
    return 0 < (left - right & _U32) < 0x8000_0000
