"""``global/pg_control``: reading, changing and writing it again (spec wal.md 10; page-service.md 6.11; stock.md 2, 3).

The file has 8192 bytes: PostgreSQL's ControlFileData, which ends in a CRC-32C of all before it, then zeros. Offsets
are the same in PostgreSQL 14 to 17; 18 has one more field before the nonce, which moves the nonce and the CRC.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from pageserver import _core
from pageserver.errors import CorruptDataError
from pageserver.lsn import Lsn
from pageserver.postgres.c_struct import CStruct, Field
from pageserver.postgres.checkpoint import CHECKPOINT_SIZE, Checkpoint
from pageserver.postgres.versions import PostgresVersion, version_of_catalog

CONTROL_FILE_SIZE: Final = 8192
_CHECKPOINT_OFFSET: Final = 40
_RESTORED_UNLOGGED_LSN: Final = 1000
"""What PostgreSQL's own ``pg_resetwal`` starts the counter of unlogged relations from."""


class ControlFileError(CorruptDataError):
    """The bytes are not a valid control file."""


class ClusterState(IntEnum):
    """``DBState``."""

    STARTUP = 0
    SHUTDOWNED = 1
    SHUTDOWNED_IN_RECOVERY = 2
    SHUTDOWNING = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6


class ControlFile(CStruct):
    """``ControlFileData`` with its zeros, always with a right CRC."""

    __slots__ = ("version",)

    version: PostgresVersion

    system_identifier = Field(0, "Q")
    control_version = Field(8, "I")
    catalog_version = Field(12, "I")
    state = Field(16, "I")
    time = Field(24, "q")
    check_point = Field(32, "Q")
    unlogged_lsn = Field(128, "Q")
    min_recovery_point = Field(136, "Q")
    min_recovery_point_tli = Field(144, "I")
    backup_start_point = Field(152, "Q")
    backup_end_point = Field(160, "Q")
    backup_end_required = Field(168, "B")
    wal_level = Field(172, "i")
    wal_log_hints = Field(176, "B")
    max_connections = Field(180, "i")
    max_worker_processes = Field(184, "i")
    max_wal_senders = Field(188, "i")
    max_prepared_xacts = Field(192, "i")
    max_locks_per_xact = Field(196, "i")
    track_commit_timestamp = Field(200, "B")
    block_size = Field(216, "I")
    relation_segment_blocks = Field(220, "I")
    wal_block_size = Field(224, "I")
    wal_segment_size = Field(228, "I")
    data_checksum_version = Field(252, "I")

    def __init__(self, raw: bytes) -> None:
        """Check length, version and CRC. Raises: ControlFileError, UnsupportedVersionError."""
        if len(raw) < 296:
            raise ControlFileError("control file is too short")
        version = version_of_catalog(int.from_bytes(raw[12:16], "little"))
        end = version.control_crc_offset
        stored = int.from_bytes(raw[end : end + 4], "little")
        expected = _core.crc32c(raw[:end])
        if stored != expected:
            raise ControlFileError(f"invalid CRC in control file: expected {expected:08X}, was {stored:08X}")
        super().__init__(raw[: end + 4].ljust(CONTROL_FILE_SIZE, b"\0"))
        object.__setattr__(self, "version", version)

    @property
    def checkpoint(self) -> Checkpoint:
        """Return ``checkPointCopy``, the last checkpoint."""
        return Checkpoint(self.raw[_CHECKPOINT_OFFSET : _CHECKPOINT_OFFSET + CHECKPOINT_SIZE])

    @property
    def has_data_checksums(self) -> bool:
        return self.data_checksum_version != 0

    @property
    def logs_hint_bits(self) -> bool:
        """Return whether the server logs hint bits, so that HEAP2_VISIBLE sets the heap page's LSN (walredo.md 6.2)."""
        return self.has_data_checksums or self.wal_log_hints != 0

    def with_checkpoint(self, checkpoint: Checkpoint) -> ControlFile:
        """Return a copy with another ``checkPointCopy``."""
        end = _CHECKPOINT_OFFSET + CHECKPOINT_SIZE
        return self._from_changed(self.raw[:_CHECKPOINT_OFFSET] + checkpoint.raw + self.raw[end:])

    def for_basebackup(self, checkpoint: Checkpoint, lsn: Lsn) -> ControlFile:
        """Return what a Neon compute starts from at ``lsn``: no checkpoint pointer, a clean state (page-service.md
        6.11).
        """
        return self.with_checkpoint(checkpoint.replaced(redo=lsn.normalised())).replaced(
            check_point=0, state=ClusterState.SHUTDOWNED
        )

    def for_restore(self, checkpoint: Checkpoint) -> ControlFile:
        """Return what an unmodified server starts from: a clean shutdown at ``checkpoint.redo`` (stock.md 3)."""
        return self.with_checkpoint(checkpoint).replaced(
            state=ClusterState.SHUTDOWNED,
            check_point=checkpoint.redo,
            min_recovery_point=0,
            min_recovery_point_tli=0,
            backup_start_point=0,
            backup_end_point=0,
            backup_end_required=0,
            unlogged_lsn=_RESTORED_UNLOGGED_LSN,
        )

    @classmethod
    def _from_changed(cls, raw: bytes) -> ControlFile:
        """Put the CRC right. The catalog version is not among the fields that change."""
        end = version_of_catalog(int.from_bytes(raw[12:16], "little")).control_crc_offset
        return cls(raw[:end] + _core.crc32c(raw[:end]).to_bytes(4, "little") + raw[end + 4 :])
