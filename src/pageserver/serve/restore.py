"""What an unmodified PostgreSQL needs to start at one LSN, cut into parts that stream in parallel.

In: a timeline's data directory at L and the source's PostgreSQL timeline history. Out: a manifest (what will come,
how large) and tar streams. The recipe is spec stock.md 3: a made-up shutdown checkpoint at P = normalise(L) on a new
PostgreSQL timeline, a control file that names it, one or two WAL segments that hold it. So the server starts at
once, without recovery, and its WAL can never be mistaken for the source's.

Order of the steps that make a start possible: relation files first, pg_control in the last member of the last part.
A stream that was cut off therefore lacks it; the receiver refuses such a stream anyway.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pageserver.errors import RequestError
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.checkpoint import Checkpoint
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.relation_files import database_directory
from pageserver.postgres.replication_origins import ORIGIN_CHECKPOINT_PATH, encode_origin_checkpoint
from pageserver.postgres.timeline_history import HistoryEntry, branch_history, encode_history, history_file_name
from pageserver.postgres.versions import PostgresVersion
from pageserver.postgres.wal_segment import restore_checkpoint, restore_segments
from pageserver.serve import tar
from pageserver.serve.data_directory import PG_HBA, DataDirectory, Entry, Forks, SmallFile

REASON = "restored by pageserver"


class RestoreError(RequestError):
    """The restore that was asked for cannot be made."""


@dataclass(frozen=True, slots=True)
class PgHistory:
    """The PostgreSQL timelines of the source: its current id, and where its ancestors ended."""

    current_tli: int
    entries: Sequence[HistoryEntry] = ()

    @property
    def highest_tli(self) -> int:
        """The highest id that the source is known to have used."""
        return max([self.current_tli, *(entry.timeline_id for entry in self.entries)])


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Everything a restored directory holds; `parts` are balanced by size."""

    lsn: Lsn
    version: PostgresVersion
    pg_tli: int
    data_checksums: bool
    tablespaces: dict[int, str]
    directories: list[str]
    parts: list[list[Entry]]

    @property
    def files(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for part in self.parts for entry in part)


def plan(
    directory: DataDirectory,
    snapshot: Snapshot,
    history: PgHistory,
    *,
    lsn: Lsn,
    version: PostgresVersion,
    parts: int,
    tli: int | None = None,
) -> RestorePlan:
    """Decide what the directory restored at `lsn` contains. Reads metadata, no relation pages.

    The snapshot may be older than `lsn` by a WAL page header (stock.md 3.6).

    Raises: RestoreError if `tli` is not above every PostgreSQL timeline id of the source.
    """
    pg_tli = history.highest_tli + 1 if tli is None else tli
    if pg_tli <= history.highest_tli:
        raise RestoreError(
            f"timeline id {pg_tli} is not above {history.highest_tli}, the highest one of the source",
            hint=f"leave --tli out or give at least {history.highest_tli + 1}",
        )
    control = ControlFile(snapshot.control_file())
    checkpoint = restore_checkpoint(Checkpoint(snapshot.checkpoint()), lsn, timeline_id=pg_tli)
    two_phase = directory.two_phase_entries()
    large = [*directory.database_entries(Forks.FOR_STOCK), *directory.slru_entries()]
    small: list[Entry] = [
        SmallFile("PG_VERSION", version.version_file),
        SmallFile("postgresql.conf", _postgresql_conf(control, len(two_phase))),
        SmallFile("postgresql.auto.conf", b""),
        SmallFile("pg_hba.conf", PG_HBA),
        SmallFile("pg_ident.conf", b""),
        *two_phase,
    ]
    if origins := snapshot.origins():
        small.append(SmallFile(ORIGIN_CHECKPOINT_PATH, encode_origin_checkpoint(origins)))
    for segment in restore_segments(checkpoint, system_identifier=control.system_identifier, version=version):
        small.append(SmallFile(f"pg_wal/{segment.name}", segment.content))
    lines = branch_history(history.entries, history.current_tli, lsn, reason=REASON)
    small.append(SmallFile(f"pg_wal/{history_file_name(pg_tli)}", encode_history(lines).encode()))
    small.append(SmallFile("global/pg_control", control.for_restore(checkpoint).raw))
    return RestorePlan(
        lsn=lsn,
        version=version,
        pg_tli=pg_tli,
        data_checksums=control.has_data_checksums,
        tablespaces=snapshot.tablespaces(),
        directories=_directories(snapshot, version),
        parts=_balanced(large, small, parts),
    )


def stream(directory: DataDirectory, part: list[Entry], mtime: int) -> Iterator[bytes]:
    """Yield one part as a tar archive. Blocking: drive it in a thread. A failure leaves the archive without
    its end marker.
    """
    for entry in part:
        yield tar.file_header(entry.path, entry.size, mtime)
        yield from directory.read(entry)
        if tail := tar.padding(entry.size):
            yield tail
    yield tar.END_OF_ARCHIVE


def _balanced(large: list[Entry], small: list[Entry], count: int) -> list[list[Entry]]:
    """Spread the entries over `count` parts of about one size; the last part ends with the small files,
    pg_control last.
    """
    parts: list[list[Entry]] = [[] for _ in range(count)]
    sizes = [0] * count
    for entry in sorted(large, key=lambda e: -e.size):
        least = sizes.index(min(sizes))
        parts[least].append(entry)
        sizes[least] += entry.size + tar.BLOCK
    parts[-1].extend(small)
    return parts


def _directories(snapshot: Snapshot, version: PostgresVersion) -> list[str]:
    databases = {database_directory(spc, db, version) for spc, db in snapshot.databases()}
    return [*version.data_directories, *sorted(databases)]


def _postgresql_conf(control: ControlFile, prepared: int) -> bytes:
    """Settings with which the restored server starts: nothing leaves the machine, and no limit is below what
    its state needs.
    """
    settings = {
        "listen_addresses": "'127.0.0.1'",
        "archive_mode": "off",
        "max_connections": max(control.max_connections, 20),
        "max_worker_processes": max(control.max_worker_processes, 8),
        "max_wal_senders": max(control.max_wal_senders, 0),
        "max_prepared_transactions": max(control.max_prepared_xacts, prepared),
        "max_locks_per_transaction": max(control.max_locks_per_xact, 64),
        "track_commit_timestamp": "off",
        "wal_level": "replica",
    }
    text = "# Written by the restore; put your own settings below.\n" + "".join(
        f"{key} = {value}\n" for key, value in settings.items()
    )
    return text.encode()
