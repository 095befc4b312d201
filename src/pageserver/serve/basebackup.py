"""Base backups and full backups for the page service: the tar that a compute starts from.

In: a timeline's data directory at an LSN. Out: tar bytes, in the order of spec page-service.md 6.4; pg_control comes
near the end, so that a truncated archive cannot be started by accident. Nothing here knows about the connection: the
caller takes pieces and may stop at any of them.

A *basebackup* has no relation data but init forks; a *fullbackup* has everything and needs `pg_resetwal` before an
unmodified server starts (6.13). Restores that start at once are made by `restore.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pageserver.errors import CorruptDataError, RequestError
from pageserver.keyspace.key import DEFAULT_TABLESPACE, GLOBAL_TABLESPACE
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.checkpoint import Checkpoint
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.relation_files import RELMAP_FILE, database_directory
from pageserver.postgres.replication_origins import ORIGIN_CHECKPOINT_PATH, encode_origin_checkpoint
from pageserver.postgres.versions import PostgresVersion
from pageserver.postgres.wal_segment import basebackup_segment
from pageserver.serve import tar
from pageserver.serve.data_directory import PG_HBA, DataDirectory, Entry, Forks, SmallFile

SLOT_RESTART_LSN_AT = 96
"""Where a replication slot's state file holds restart_lsn (6.8)."""


class BasebackupError(RequestError):
    """The backup that was asked for cannot be made."""


@dataclass(frozen=True, slots=True)
class BasebackupOptions:
    """What kind of backup: `full` with relation data, `replica` without replication slots, `slru` with SLRU
    segments.
    """

    full: bool = False
    replica: bool = False
    slru: bool = True
    allow_tablespaces: bool = False


@dataclass(frozen=True, slots=True)
class PrevLsn:
    """The start of the record before the backup's LSN, as the signal file says it (6.10)."""

    text: str

    @classmethod
    def known(cls, lsn: Lsn) -> "PrevLsn":
        return cls(f"PREV LSN: {lsn}")

    @classmethod
    def branch_point(cls) -> "PrevLsn":
        """Nothing was written before it on this branch: the compute writes 0."""
        return cls("PREV LSN: none")

    @classmethod
    def unknown(cls) -> "PrevLsn":
        """The compute can only start read-only."""
        return cls("PREV LSN: invalid")


def stream(
    directory: DataDirectory,
    snapshot: Snapshot,
    options: BasebackupOptions,
    *,
    version: PostgresVersion,
    prev_lsn: PrevLsn,
    mtime: int,
) -> Iterator[bytes]:
    """Yield the archive. Blocking: drive it in a thread.

    Raises: BasebackupError, CorruptDataError and whatever a read raises, possibly after the first pieces: then the
    archive has no end marker and must be thrown away.
    """
    for name in version.data_directories:
        yield tar.directory_header(name, mtime)
    yield from _file(SmallFile("pg_hba.conf", PG_HBA), directory, mtime)
    for name in ("pg_ident.conf", "postgresql.auto.conf"):
        yield from _file(SmallFile(name, b""), directory, mtime)
    if options.slru or options.full:
        for slru in directory.slru_entries():
            yield from _file(slru, directory, mtime)
    yield from _databases(directory, snapshot, options, version, mtime)
    control = ControlFile(snapshot.control_file())
    checkpoint = Checkpoint(snapshot.checkpoint())
    clean_start = checkpoint.redo == snapshot.lsn
    yield from _aux_files(directory, snapshot, options, clean_start, mtime)
    for entry in directory.two_phase_entries():
        yield from _file(entry, directory, mtime)
    if origins := snapshot.origins():
        yield from _file(SmallFile(ORIGIN_CHECKPOINT_PATH, encode_origin_checkpoint(origins)), directory, mtime)
    for name in ("neon.signal", "zenith.signal"):
        yield from _file(SmallFile(name, prev_lsn.text.encode()), directory, mtime)
    yield from _file(
        SmallFile("global/pg_control", control.for_basebackup(checkpoint, snapshot.lsn).raw), directory, mtime
    )
    segment = basebackup_segment(snapshot.lsn, system_identifier=control.system_identifier, version=version)
    yield from _file(SmallFile(f"pg_wal/{segment.name}", segment.content), directory, mtime)
    yield tar.END_OF_ARCHIVE


def _databases(
    directory: DataDirectory, snapshot: Snapshot, options: BasebackupOptions, version: PostgresVersion, mtime: int
) -> Iterator[bytes]:
    forks = Forks.ALL if options.full else Forks.NONE
    for (spc, db), has_relmap in sorted(snapshot.databases().items()):
        if spc not in (DEFAULT_TABLESPACE, GLOBAL_TABLESPACE) and not options.allow_tablespaces:
            if not has_relmap and not snapshot.relation_sizes(spc, db):
                continue
            raise BasebackupError(
                f"spcnode != DEFAULTTABLESPACE_OID, spcnode={spc}",
                hint="a base backup holds no user tablespaces; use pagectl restore",
            )
        for entry in _database_files(snapshot, spc, db, has_relmap, version):
            if isinstance(entry, str):
                yield tar.directory_header(entry, mtime)
            else:
                yield from _file(entry, directory, mtime)
        for relation in directory.relation_entries(spc, db, forks):
            yield from _file(relation, directory, mtime)


def _database_files(
    snapshot: Snapshot, spc: int, db: int, has_relmap: bool, version: PostgresVersion
) -> Iterator[SmallFile | str]:
    folder = database_directory(spc, db, version)
    if spc == GLOBAL_TABLESPACE:
        yield SmallFile("PG_VERSION", version.neon_version_file)
    else:
        yield folder
        if has_relmap or spc != DEFAULT_TABLESPACE:
            yield SmallFile(f"{folder}/PG_VERSION", version.neon_version_file)
    if has_relmap:
        content = snapshot.relmap(spc, db)
        if len(content) != version.relmap_size:
            raise CorruptDataError(
                f"relation map of {spc}/{db} has {len(content)} bytes: img.len() != SIZE_OF_RELMAPFILE"
            )
        yield SmallFile(f"{folder}/{RELMAP_FILE}", content)


def _aux_files(
    directory: DataDirectory, snapshot: Snapshot, options: BasebackupOptions, clean_start: bool, mtime: int
) -> Iterator[bytes]:
    """Yield what the compute stored under paths of its own, by the filters of 6.8, then restart.lsn."""
    not_sent = {ORIGIN_CHECKPOINT_PATH} if clean_start else {ORIGIN_CHECKPOINT_PATH, "pg_stat/pgstat.stat"}
    restart_lsns = []
    for path, content in sorted(snapshot.aux_files().items()):
        if path.startswith("pg_replslot"):
            if options.replica:
                continue
            restart_lsns.append(_restart_lsn(path, content))
        elif path in not_sent or path.startswith("pg_tblspc/"):
            continue
        yield from _file(SmallFile(path, content), directory, mtime)
    if restart_lsns:
        yield from _file(SmallFile("restart.lsn", min(restart_lsns).to_bytes(8, "little")), directory, mtime)


def _restart_lsn(path: str, content: bytes) -> int:
    if len(content) < SLOT_RESTART_LSN_AT + 8:
        raise CorruptDataError(f"replication slot file {path} has only {len(content)} bytes")
    return int.from_bytes(content[SLOT_RESTART_LSN_AT : SLOT_RESTART_LSN_AT + 8], "little")


def _file(entry: Entry, directory: DataDirectory, mtime: int) -> Iterator[bytes]:
    yield tar.file_header(entry.path, entry.size, mtime)
    yield from directory.read(entry)
    if tail := tar.padding(entry.size):
        yield tail
