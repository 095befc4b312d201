"""A copied data directory on disk: where its files go while they arrive, and what is found in it afterwards.

Files of a base backup are spooled under a temporary directory, laid out as in a data directory, tablespaces under
`pg_tblspc/<oid>/`. Whatever is not imported is not even written. `DataDirectory.scan` then lists relations, SLRU
segments and the rest in the order of their keys; `image_import.py` makes layers of them.

    tar members ──▶ Spool.take ──▶ <spool>/base/5/1259 … ──▶ DataDirectory.scan ──▶ image layers

Source: PostgreSQL manual, "Database File Layout"; spec wal.md 11, stock.md 1.4, tenants.md 10.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pageserver.errors import RequestError
from pageserver.keyspace.key import (
    DEFAULT_TABLESPACE,
    GLOBAL_TABLESPACE,
    INIT_FORK,
    PAGE_SIZE,
    RELATION_SEGMENT_BLOCKS,
    SLRU_SEGMENT_BLOCKS,
    SlruKind,
)
from pageserver.lsn import Lsn
from pageserver.postgres.relation_files import (
    RELMAP_FILE,
    RelationFileNameError,
    is_temporary,
    parse_file_name,
    parse_slru_file_name,
)
from pageserver.postgres.replication_origins import ORIGIN_CHECKPOINT_PATH, decode_origin_checkpoint
from pageserver.postgres.two_phase import (
    TwoPhaseFileIncompleteError,
    decode_twophase_file,
    parse_twophase_file_name,
)
from pageserver.wal.tar_stream import MemberKind, TarMember

_TWOPHASE_NAME: Final = re.compile(r"[0-9A-F]{8}|[0-9A-F]{16}", re.ASCII)
_SIGNAL_FILES: Final = ("zenith.signal", "neon.signal")
_SIGNAL: Final = re.compile(r"PREV LSN:\s*(\S+)")
_SIGNAL_SHOWN_MAX: Final = 40
_SINGLE_FILES: Final = frozenset(
    {"PG_VERSION", "backup_label", "tablespace_map", "global/pg_control", ORIGIN_CHECKPOINT_PATH, *_SIGNAL_FILES}
)
_NOT_RELATIONS: Final = frozenset({"pg_control", "PG_VERSION"})
_IGNORED_IN_DATABASES: Final = frozenset({"PG_VERSION", "pg_internal.init"})


class DataDirectoryError(RequestError):
    """A copied data directory is not what it must be to be imported."""


@dataclass(frozen=True, slots=True)
class RelationFork:
    """A fork, its files in order: (path, blocks)."""

    number: int
    segments: tuple[tuple[str, int], ...]

    @property
    def blocks(self) -> int:
        return sum(blocks for _, blocks in self.segments)


@dataclass(slots=True)
class DatabaseFiles:
    """What belongs to one (tablespace, database)."""

    tablespace: int
    database: int
    relmap: bytes | None = None
    relations: dict[int, dict[int, RelationFork]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlruSegment:
    kind: SlruKind
    number: int
    path: str
    pages: int


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """All that is imported, sorted by key."""

    control_file: bytes
    databases: tuple[DatabaseFiles, ...]
    slru_segments: tuple[SlruSegment, ...]
    twophase: tuple[tuple[int, bytes], ...]
    origins: tuple[tuple[int, int], ...]
    tablespaces: tuple[tuple[int, str], ...]
    backup_label: str | None
    prev_record_lsn: Lsn | None
    """What `neon.signal` says of the record before the copy, if there is one."""

    @property
    def backup_start_lsn(self) -> Lsn | None:
        """Where WAL has to be replayed from, as the `backup_label` of a base backup says; none without one.

        Raises: DataDirectoryError.
        """
        if self.backup_label is None:
            return None
        found = re.match(r"START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", self.backup_label)
        if found is None:
            raise DataDirectoryError("backup_label does not begin with the backup's START WAL LOCATION")
        return Lsn.parse(found[1])

    @property
    def total_blocks(self) -> int:
        forks = (fork for db in self.databases for forks in db.relations.values() for fork in forks.values())
        return sum(fork.blocks for fork in forks) + sum(segment.pages for segment in self.slru_segments)


class Spool:
    """Writes the members of base backup tars below one temporary directory.

    `strict`, for copies that Neon's tools make: what has no place there is an error, like tablespaces and files between
    relations that are none (tenants.md 10.1, 10.2).
    """

    def __init__(self, root: Path, *, strict: bool = False) -> None:
        self._root = root
        self._strict = strict
        self._directories: set[Path] = set()
        self.tablespaces: dict[int, str] = {}
        """Locations by oid, as told by the primary, a `tablespace_map`, or links in the archive."""

    @property
    def root(self) -> Path:
        return self._root

    def take_all(self, members: Iterable[TarMember], *, tablespace: int | None) -> None:
        """Spool one archive, of the data directory itself or of a tablespace.

        Raises: TarFormatError, DataDirectoryError.
        """
        if tablespace is not None:
            self._make_directory(self._root / "pg_tblspc" / str(tablespace))
        for member in members:
            path = member.name.removeprefix("./").rstrip("/")
            self._take(member, path if tablespace is None else f"pg_tblspc/{tablespace}/{path}")

    def _take(self, member: TarMember, path: str) -> None:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            raise DataDirectoryError(f"archive member {member.name!r} lies outside of the data directory")
        if self._strict:
            _check_strictly(member, parts)
        if member.kind is MemberKind.SYMLINK:
            if len(parts) == 2 and parts[0] == "pg_tblspc" and parts[1].isdigit():
                self.tablespaces.setdefault(int(parts[1]), member.link_target)
            return
        if member.kind is MemberKind.DIRECTORY or not is_imported(path, strict=self._strict):
            return
        target = self._root / path
        self._make_directory(target.parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for chunk in member.chunks():
                _write_all(descriptor, chunk)
        finally:
            os.close(descriptor)

    def _make_directory(self, path: Path) -> None:
        if path not in self._directories:
            path.mkdir(parents=True, exist_ok=True)
            self._directories.add(path)


def _check_strictly(member: TarMember, parts: list[str]) -> None:
    """Refuse what Neon's import refuses. Raises DataDirectoryError."""
    if parts[0] == "pg_tblspc" and member.kind is not MemberKind.DIRECTORY:
        raise DataDirectoryError("Importing pg_tblspc is not implemented", hint="for stock PostgreSQL: flavour=stock")
    if member.kind is MemberKind.SYMLINK:
        raise DataDirectoryError(f"archive member {member.name!r} is neither a file nor a directory")


def is_imported(path: str, *, strict: bool = False) -> bool:
    """Return whether a file of a data directory has a place in the key space (spec stock.md 1.4); `strict`: or is taken
    for a relation, whatever its name.
    """
    parts = path.split("/")
    name = parts[-1]
    if name.startswith(".") or any(part.startswith("pgsql_tmp") for part in parts):
        return False
    if path in _SINGLE_FILES:
        return True
    match parts:
        case ["global", _] | ["base", _, _] | ["pg_tblspc", _, _, _, _]:
            return (strict and name != "PG_VERSION") or not (is_temporary(name) or name in _IGNORED_IN_DATABASES)
        case ["pg_xact", _] | ["pg_multixact", "members" | "offsets", _] | ["pg_twophase", _]:
            return True
        case _:
            return False


def scan_data_directory(root: Path, *, tablespaces: dict[int, str], tolerant: bool) -> DataDirectory:
    """List a spooled data directory.

    `tolerant`: the copy was taken while the server ran, so a file may end within a block that WAL writes again, a
    two-phase file may be shorter than it says, and a segment behind a short one is what a truncation or extension
    left (PostgreSQL itself stops at the first short one). Otherwise these are errors. Raises: DataDirectoryError.
    """
    control = root / "global/pg_control"
    if not control.is_file():
        raise DataDirectoryError("pg_control file not found")
    tablespaces = dict(tablespaces)
    for oid, location in _read_tablespace_map(root / "tablespace_map"):
        tablespaces.setdefault(oid, location)
    for name in _list_numbers(root / "pg_tblspc"):
        tablespaces.setdefault(name, f"pg_tblspc/{name}")
    return DataDirectory(
        control_file=control.read_bytes(),
        databases=tuple(_scan_databases(root, tolerant=tolerant)),
        slru_segments=tuple(_scan_slrus(root, tolerant=tolerant)),
        twophase=tuple(_scan_twophase(root / "pg_twophase", tolerant=tolerant)),
        origins=tuple(_read_origins(root / ORIGIN_CHECKPOINT_PATH)),
        tablespaces=tuple(sorted(tablespaces.items())),
        backup_label=_read_text(root / "backup_label"),
        prev_record_lsn=_read_signal(root),
    )


# Relations.


def _scan_databases(root: Path, *, tolerant: bool) -> Iterator[DatabaseFiles]:
    """Yield databases by (tablespace, database); the shared one is database 0 of tablespace 1664."""
    for database in _list_numbers(root / "base"):
        yield _scan_database(root / "base" / str(database), DEFAULT_TABLESPACE, database, tolerant=tolerant)
    yield _scan_database(root / "global", GLOBAL_TABLESPACE, 0, tolerant=tolerant)
    for tablespace in _list_numbers(root / "pg_tblspc"):
        by_version = root / "pg_tblspc" / str(tablespace)
        versions = sorted(path for path in by_version.iterdir() if path.name.startswith("PG_"))
        if len(versions) > 1:
            raise DataDirectoryError(f"tablespace {tablespace} holds files of several versions of PostgreSQL")
        for version in versions:
            for database in _list_numbers(version):
                yield _scan_database(version / str(database), tablespace, database, tolerant=tolerant)


def _scan_database(path: Path, tablespace: int, database: int, *, tolerant: bool) -> DatabaseFiles:
    found = DatabaseFiles(tablespace, database)
    segments: dict[tuple[int, int], dict[int, tuple[str, int]]] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name == RELMAP_FILE:
                found.relmap = Path(entry.path).read_bytes()
                continue
            if entry.name in _NOT_RELATIONS or entry.name.startswith("."):
                continue
            try:
                relation, fork, number = parse_file_name(entry.name)
            except RelationFileNameError:
                if tolerant:
                    continue
                raise
            length = entry.stat().st_size
            if length % PAGE_SIZE and not tolerant:
                raise DataDirectoryError(f"length {length} of {entry.path} is not a multiple of {PAGE_SIZE}")
            segments.setdefault((relation, fork), {})[number] = (entry.path, length // PAGE_SIZE)
    for (relation, fork_number), files in sorted(segments.items()):
        fork_files = _order_segments(files, tolerant=tolerant)
        if fork_files is not None:
            found.relations.setdefault(relation, {})[fork_number] = RelationFork(fork_number, fork_files)
    for forks in found.relations.values():
        if INIT_FORK in forks:
            # Unlogged: what its other forks hold is not in the WAL and would be emptied by recovery.
            for fork_number in [number for number in forks if number != INIT_FORK]:
                del forks[fork_number]
    return found


def _order_segments(files: dict[int, tuple[str, int]], *, tolerant: bool) -> tuple[tuple[str, int], ...] | None:
    """Return the files of a fork in order up to the first short one; none if there is no first file."""
    ordered: list[tuple[str, int]] = []
    for number in range(len(files)):
        if number not in files:
            break
        path, blocks = files[number]
        if blocks > RELATION_SEGMENT_BLOCKS:
            raise DataDirectoryError(f"{path} has {blocks} blocks, more than a segment can have")
        ordered.append((path, blocks))
        if blocks < RELATION_SEGMENT_BLOCKS:
            break
    if not tolerant and any(blocks for number, (_, blocks) in files.items() if number >= len(ordered)):
        raise DataDirectoryError(f"segments of {next(iter(files.values()))[0]} are missing or too short")
    return tuple(ordered) if ordered else None


# The rest.


def _scan_slrus(root: Path, *, tolerant: bool) -> Iterator[SlruSegment]:
    for kind in SlruKind:
        directory = kind.directory
        if not (root / directory).is_dir():
            continue
        found = []
        for path in (root / directory).iterdir():
            number = parse_slru_file_name(path.name)
            if number is None:
                raise DataDirectoryError(f"invalid SLRU segment name {path}")
            pages, rest = divmod(path.stat().st_size, PAGE_SIZE)
            if (rest and not tolerant) or pages > SLRU_SEGMENT_BLOCKS:
                raise DataDirectoryError(f"SLRU segment {path} has the invalid length {path.stat().st_size}")
            found.append(SlruSegment(kind, number, str(path), pages))
        yield from sorted(found, key=lambda segment: segment.number)


def _scan_twophase(directory: Path, *, tolerant: bool) -> Iterator[tuple[int, bytes]]:
    """Yield (xid, contents without the CRC), which the value from a PREPARE record does not have (spec wal.md 11).

    A checkpoint writes such a file in place, once for each transaction that was prepared before it. The checkpoint of
    the base copy itself was over before anything was copied; so a file that is met half-written is that of a
    transaction whose PREPARE record is in the WAL of the copy, and is left to that.
    """
    if not directory.is_dir():
        return
    # Anything else there, such as the temporary name that newer minor releases write under, the server passes over too.
    files = [path for path in directory.iterdir() if _TWOPHASE_NAME.fullmatch(path.name)]
    for path in sorted(files, key=lambda path: parse_twophase_file_name(path.name)):
        try:
            yield parse_twophase_file_name(path.name), decode_twophase_file(path.read_bytes(), path.name)
        except TwoPhaseFileIncompleteError:
            if not tolerant:
                raise


def _read_origins(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (origin id, remote LSN)."""
    if path.is_file():
        yield from sorted(decode_origin_checkpoint(path.read_bytes()).items())


def _read_signal(root: Path) -> Lsn | None:
    """Return where the record before the copy begins: `PREV LSN: <lsn>`, `none` or `invalid`. Raises
    DataDirectoryError.
    """
    for name in _SIGNAL_FILES:
        text = _read_text(root / name)
        if text is None:
            continue
        match = _SIGNAL.fullmatch(text.strip())
        if match is None:
            raise DataDirectoryError(f"{name} does not say what it must: {text[:_SIGNAL_SHOWN_MAX]!r}")
        if match[1] in ("none", "invalid"):
            return None
        try:
            return Lsn.parse(match[1]) or None
        except RequestError as error:
            raise DataDirectoryError(f"{name}: {error}") from error
    return None


def _read_tablespace_map(path: Path) -> Iterator[tuple[int, str]]:
    """Lines `<oid> <location>`; a newline or backslash in a location is preceded by a backslash."""
    text = _read_text(path)
    if text is None:
        return
    for match in re.finditer(r"(\d+) ((?:\\.|[^\\\n])*)\n", text, re.DOTALL):
        yield int(match[1]), re.sub(r"\\(.)", r"\1", match[2], flags=re.DOTALL)


def _read_text(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else None


def _list_numbers(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
