"""A data directory that no server writes to: its control file, and which files hold its relations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pageserver.errors import RequestError
from pageserver.keyspace.key import RelTag
from pageserver.lsn import WAL_SEGMENT_SIZE
from pageserver.postgres.control_file import ClusterState, ControlFile
from pageserver.postgres.relation_files import RelationFileNameError, parse_relation_path
from pageserver.postgres.versions import PostgresVersion

_CONTROL_FILE: Final = "global/pg_control"


class NotADataDirectoryError(RequestError):
    """A path is not that of a PostgreSQL data directory that we can read. Carries ``path``."""


def read_control_file(pgdata: Path) -> ControlFile:
    """Return the control file. Raises: NotADataDirectoryError, UnsupportedVersionError, ControlFileError."""
    try:
        control = ControlFile((pgdata / _CONTROL_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotADataDirectoryError(
            f"{pgdata} is not a data directory: it has no {_CONTROL_FILE}", path=str(pgdata)
        ) from error
    if control.wal_segment_size != WAL_SEGMENT_SIZE:
        raise NotADataDirectoryError(
            f"{pgdata} has WAL segments of {control.wal_segment_size} bytes",
            hint="only 16 MiB can be read",
            path=str(pgdata),
        )
    return control


def was_stopped_cleanly(pgdata: Path, control: ControlFile) -> bool:
    """Return whether the files hold everything that the log says."""
    return control.state == ClusterState.SHUTDOWNED and not (pgdata / "postmaster.pid").exists()


def relation_files(pgdata: Path, version: PostgresVersion) -> Iterator[tuple[RelTag, int, Path]]:
    """Yield (fork, segment number, file) of every permanent or unlogged relation, also in tablespaces."""
    folders = [pgdata / "global", *sorted((pgdata / "base").glob("[0-9]*"))]
    folders += sorted(pgdata.glob(f"pg_tblspc/[0-9]*/{version.tablespace_directory}/[0-9]*"))
    for folder in folders:
        for path in sorted(folder.iterdir()):
            try:
                found = parse_relation_path(str(path.relative_to(pgdata)))
            except RelationFileNameError:
                # pg_control, relation maps, temporary relations.
                continue
            if found is not None:
                yield found.rel, found.segment, path
