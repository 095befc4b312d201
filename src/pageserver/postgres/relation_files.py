"""Names of relation and SLRU files in a data directory (spec keyspace.md 3; wal.md 11; stock.md 2).

global/<rel>                                           shared catalogs
base/<db>/<rel>                                        default tablespace
pg_tblspc/<oid>/PG_<major>_<catalog>/<db>/<rel>        user tablespaces
each with _fsm, _vm or _init for a fork, and .<n> for the n-th segment of 1 GiB
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pageserver.errors import CorruptDataError
from pageserver.keyspace.key import (
    DEFAULT_TABLESPACE,
    FORK_NAMES,
    GLOBAL_TABLESPACE,
    MAIN_FORK,
    RELATION_SEGMENT_BLOCKS,
    RelTag,
)
from pageserver.postgres.versions import PostgresVersion

RELMAP_FILE: Final = "pg_filenode.map"
_NAME: Final = re.compile(r"(\d+)(?:_([a-z]+))?(?:\.(\d+))?", re.ASCII)
_TEMPORARY: Final = re.compile(r"t\d+_\d+(?:_[a-z]+)?(?:\.\d+)?", re.ASCII)
_SLRU_NAME: Final = re.compile(r"[0-9A-F]{4,}", re.ASCII)
_FORKS: Final = {name: number for number, name in FORK_NAMES.items()}
_U32: Final = 0xFFFF_FFFF


class RelationFileNameError(CorruptDataError):
    """A file's name is not that of a relation's data. Carries ``name``."""

    def __init__(self, *, reason: str, name: str) -> None:
        super().__init__(f"{reason}: {name!r}", name=name)


@dataclass(frozen=True, slots=True)
class RelationFile:
    """One segment file of one fork."""

    rel: RelTag
    segment: int

    @property
    def first_block(self) -> int:
        return self.segment * RELATION_SEGMENT_BLOCKS


def parse_file_name(name: str) -> tuple[int, int, int]:
    """Return (relation, fork, segment) of a file name without its directory. Raises: RelationFileNameError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise RelationFileNameError(reason="invalid relation data file name", name=name)
    relnode, fork, segment = int(match[1]), match[2] or "", int(match[3] or 0)
    if fork not in _FORKS or match[2] == "":
        raise RelationFileNameError(reason="invalid relation fork name", name=name)
    if relnode > _U32 or (segment + 1) * RELATION_SEGMENT_BLOCKS > _U32 + 1:
        raise RelationFileNameError(reason="invalid relation data file name", name=name)
    return relnode, _FORKS[fork], segment


def is_temporary(name: str) -> bool:
    """Return whether a file name is that of a temporary relation (``t<backend>_<oid>``), which is never kept."""
    return _TEMPORARY.fullmatch(name) is not None


def file_name(rel: RelTag, segment: int = 0) -> str:
    """Return the file's name without its directory."""
    fork = "" if rel.forknum == MAIN_FORK else f"_{FORK_NAMES[rel.forknum]}"
    return f"{rel.relnode}{fork}{f'.{segment}' if segment else ''}"


def database_directory(spcnode: int, dbnode: int, version: PostgresVersion) -> str:
    """Return the directory, below the data directory, that holds the relations of a database in a tablespace."""
    if spcnode == GLOBAL_TABLESPACE:
        return "global"
    if spcnode == DEFAULT_TABLESPACE:
        return f"base/{dbnode}"
    return f"pg_tblspc/{spcnode}/{version.tablespace_directory}/{dbnode}"


def relation_path(rel: RelTag, version: PostgresVersion, segment: int = 0) -> str:
    """Return the path of a segment file below the data directory."""
    return f"{database_directory(rel.spcnode, rel.dbnode, version)}/{file_name(rel, segment)}"


def parse_database_directory(path: str) -> tuple[int, int] | None:
    """Return (tablespace, database) of a directory that holds relations; none for any other directory."""
    parts = path.strip("/").split("/")
    match parts:
        case ["global"]:
            return GLOBAL_TABLESPACE, 0
        case ["base", dbnode] if _is_oid(dbnode):
            return DEFAULT_TABLESPACE, int(dbnode)
        case ["pg_tblspc", spcnode, version, dbnode] if _is_oid(spcnode) and _is_oid(dbnode) and version[:3] == "PG_":
            return int(spcnode), int(dbnode)
        case _:
            return None


def parse_relation_path(path: str) -> RelationFile | None:
    """Return what a path below the data directory holds; none if it is not in a directory of relations.

    Raises: RelationFileNameError (it is in one, but its name is not a relation's; see also ``is_temporary``).
    """
    directory, _, name = path.rpartition("/")
    database = parse_database_directory(directory)
    if database is None:
        return None
    relnode, forknum, segment = parse_file_name(name)
    return RelationFile(RelTag(*database, relnode, forknum), segment)


def slru_file_name(segno: int) -> str:
    """Return the name of an SLRU segment file: at least 4 upper-case hexadecimal digits."""
    return f"{segno:04X}"


def parse_slru_file_name(name: str) -> int | None:
    """Return the number of an SLRU segment file; none for any other file."""
    return int(name, 16) if _SLRU_NAME.fullmatch(name) and int(name, 16) <= _U32 else None


def _is_oid(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= _U32
