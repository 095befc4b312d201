"""What differs between the major versions of PostgreSQL that we serve (spec wal.md 1.2, 5.5, 10; page-service.md 6.5;
stock.md 2).

Source: ``catversion.h``, ``xlog_internal.h``, ``pg_control.h`` of 15, 16 and 18, and data directories made by
``initdb`` of all five.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pageserver.errors import RequestError

_DIRECTORIES: Final = (
    "global",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "base",
    "base/1",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
    "pg_xact",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
)


class UnsupportedVersionError(RequestError):
    """A major version, or a number that should identify one, is not known. Carries ``got``."""

    def __init__(self, *, what: str, got: int) -> None:
        super().__init__(f"{what} {got}", hint="PostgreSQL 14 to 18 are supported", got=got)


@dataclass(frozen=True, slots=True)
class PostgresVersion:
    """One major version."""

    major: int
    wal_magic: int
    """First two bytes of every WAL page."""
    control_version: int
    catalog_version: int
    control_crc_offset: int
    """Where ``pg_control`` ends in its CRC."""
    relmap_size: int
    """Bytes of ``pg_filenode.map``."""

    @property
    def has_full_xids(self) -> bool:
        """Return whether prepared transactions and SLRU pages are named by 64-bit numbers."""
        return self.major >= 17

    @property
    def tracks_wal_level(self) -> bool:
        """Return whether the CheckPoint structure holds ``wal_level``."""
        return self.major >= 17

    @property
    def data_directories(self) -> tuple[str, ...]:
        """Return the directories that a server expects to exist, parents of listed ones partly implied."""
        if self.major < 17:
            return _DIRECTORIES
        return (*_DIRECTORIES[:2], "pg_wal/summaries", *_DIRECTORIES[2:])

    @property
    def version_file(self) -> bytes:
        """Return the contents of ``PG_VERSION`` as ``initdb`` writes it."""
        return b"%d\n" % self.major

    @property
    def neon_version_file(self) -> bytes:
        """Return the contents of ``PG_VERSION`` in Neon's base backups: no newline for 14 and 15 (page-service.md
        6.7.1).
        """
        return b"%d" % self.major if self.major < 16 else self.version_file

    @property
    def tablespace_directory(self) -> str:
        """Return the name of the directory that a server makes in a tablespace's location."""
        return f"PG_{self.major}_{self.catalog_version}"


VERSIONS: Final = {
    version.major: version
    for version in (
        PostgresVersion(14, 0xD10D, 1300, 202107181, 288, 512),
        PostgresVersion(15, 0xD110, 1300, 202209061, 288, 512),
        PostgresVersion(16, 0xD113, 1300, 202307071, 288, 524),
        PostgresVersion(17, 0xD116, 1700, 202406281, 288, 524),
        PostgresVersion(18, 0xD118, 1800, 202506291, 292, 524),
    )
}


def postgres_version(major: int) -> PostgresVersion:
    """Return what is known of a major version. Raises: UnsupportedVersionError."""
    version = VERSIONS.get(major)
    if version is None:
        raise UnsupportedVersionError(what="unsupported PostgreSQL version", got=major)
    return version


def version_of_catalog(catalog_version: int) -> PostgresVersion:
    """Return the major version that a catalog version number identifies. Raises: UnsupportedVersionError."""
    for version in VERSIONS.values():
        if version.catalog_version == catalog_version:
            return version
    raise UnsupportedVersionError(what="unrecognized catalog version", got=catalog_version)
