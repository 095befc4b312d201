"""`initdb.tar.zst`: the data directory that a timeline began with (remote-storage.md 8).

    make      data directory ─▶ tar, sorted, headers that depend on nothing else ─▶ zstd ─▶ temporary file ─▶ object
    use       object, or the preserved one ─▶ temporary file ─▶ zstd ─▶ tar ─▶ data directory
    preserve  object ─▶ its copy, which outlives the timeline

The object lies below the unsharded tenant and has no generation: two runs of initdb never make the same cluster, so
whoever makes a timeline of that id again, or another shard of it, must begin with this one.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from pageserver.clock import Clock
from pageserver.errors import CorruptDataError, PreconditionFailedError
from pageserver.ids import TenantId, TimelineId
from pageserver.remote import paths
from pageserver.remote.retry import FOR_EVER, retry, single_attempts
from pageserver.remote.storage import ObjectNotFoundError, ObjectStorage

USUAL_SIZE_BYTES_MAX = 2 * 1024 * 1024
"""An archive that is larger is not what initdb makes; it is used all the same."""
_LEVEL = 3
_WINDOW_LOG = 27
"""Long-distance matching over 128 MiB: the three databases of a new cluster are nearly the same."""
_WINDOW_BYTES_MAX = 1 << 31
_MODE_PROGRAM = 0o755
_MODE_FILE = 0o644


class InitdbArchiveMissingError(PreconditionFailedError):
    """The timeline was not made by initdb, or has been deleted without its archive being preserved."""

    def __init__(self, *, timeline_id: TimelineId) -> None:
        super().__init__(
            f"there is no initdb archive of timeline {timeline_id}",
            hint="a timeline that follows a primary, was imported or is a branch has none; deleting a timeline removes "
            "its archive unless it was preserved",
            timeline_id=timeline_id,
        )


class InitdbArchiveError(CorruptDataError):
    """The archive cannot be unpacked."""


def pack(directory: Path, archive: Path) -> int:
    """Write the archive of a data directory and return its size. The same directory gives the same bytes.

    Raises OSError; CorruptDataError for anything that is neither a file nor a directory.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, enable_ldm=True, window_log=_WINDOW_LOG)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with (
        archive.open("xb") as raw,
        compressor.stream_writer(raw, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CorruptDataError(f"{path} is neither a file nor a directory", path=str(path))
            if path.is_dir():
                tar.addfile(_header(name, path))
            else:
                with path.open("rb") as content:
                    tar.addfile(_header(name, path), content)
    return archive.stat().st_size


def unpack(archive: Path, directory: Path) -> None:
    """Make the data directory of an archive, whatever the headers say about owners, modes and times.

    Raises InitdbArchiveError; OSError.
    """
    directory.mkdir(mode=0o700)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
    try:
        with (
            archive.open("rb") as raw,
            decompressor.stream_reader(raw, read_across_frames=True) as content,
            tarfile.open(fileobj=content, mode="r|") as tar,
        ):
            tar.extractall(directory, members=_members(tar), filter="data")
    except (zstandard.ZstdError, tarfile.TarError, EOFError) as error:
        raise InitdbArchiveError(f"initdb archive {archive.name} cannot be unpacked: {error}") from error


async def upload(
    storage: ObjectStorage, tenant_id: TenantId, timeline_id: TimelineId, archive: Path, *, clock: Clock, log: Any
) -> None:
    """Store the archive of a timeline, however long that takes. Raises OSError about the file."""
    key = paths.initdb_key(tenant_id, timeline_id)
    # One layer of attempts: ours, without end.
    target = single_attempts(storage)
    await retry(lambda: target.upload(key, archive), what=f"upload {key}", policy=FOR_EVER, clock=clock, log=log)


async def copy_to_timeline(
    storage: ObjectStorage, tenant_id: TenantId, *, source: TimelineId, target: TimelineId
) -> None:
    """Give another timeline the archive of `source`. Raises InitdbArchiveMissingError, UnavailableError."""
    for key in _places(tenant_id, source):
        try:
            await storage.copy(key, paths.initdb_key(tenant_id, target))
        except ObjectNotFoundError:
            continue
        return
    raise InitdbArchiveMissingError(timeline_id=source)


async def download(storage: ObjectStorage, tenant_id: TenantId, timeline_id: TimelineId, target: Path) -> None:
    """Fetch a timeline's archive, else the one that was preserved. Raises InitdbArchiveMissingError, UnavailableError,
    CorruptDataError (checksum).
    """
    for key in _places(tenant_id, timeline_id):
        try:
            await storage.download(key, target)
        except ObjectNotFoundError:
            continue
        return
    raise InitdbArchiveMissingError(timeline_id=timeline_id)


async def preserve(storage: ObjectStorage, tenant_id: TenantId, timeline_id: TimelineId) -> None:
    """Keep a copy that outlives the timeline. May be repeated. Raises InitdbArchiveMissingError, UnavailableError."""
    try:
        await storage.copy(paths.initdb_key(tenant_id, timeline_id), paths.preserved_initdb_key(tenant_id, timeline_id))
    except ObjectNotFoundError as error:
        raise InitdbArchiveMissingError(timeline_id=timeline_id) from error


def _places(tenant_id: TenantId, timeline_id: TimelineId) -> tuple[str, str]:
    return paths.initdb_key(tenant_id, timeline_id), paths.preserved_initdb_key(tenant_id, timeline_id)


def _header(name: str, path: Path) -> tarfile.TarInfo:
    """Return a header of which only kind, size and the right to execute come from the file."""
    header = tarfile.TarInfo(name)
    found = path.stat()
    if path.is_dir():
        header.type, header.mode = tarfile.DIRTYPE, _MODE_PROGRAM
    else:
        header.size, header.mode = found.st_size, _MODE_PROGRAM if found.st_mode & 0o100 else _MODE_FILE
    return header


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if not (member.isfile() or member.isdir()):
            raise InitdbArchiveError(f"member {member.name!r} of an initdb archive is neither a file nor a directory")
        member.mode = 0o700 if member.isdir() else 0o600
        yield member
