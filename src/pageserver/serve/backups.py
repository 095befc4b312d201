"""Base backups for clients of the page service: which LSN, which previous record, which bytes (page-service.md 6).

Works in a thread of its own, since making the archive blocks on reads and on a slow client.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from pageserver.errors import NotFoundError, RequestError, StoppedError
from pageserver.lsn import Lsn
from pageserver.postgres.versions import postgres_version
from pageserver.serve.basebackup import BasebackupOptions, PrevLsn, stream
from pageserver.serve.data_directory import BlockReader, DataDirectory
from pageserver.timeline import Timeline

CHUNK_BYTES = 256 << 10
_GZIP_LEVEL = 1
_GZIP_WINDOW = 31


class BackupRequest(Protocol):
    """What a client asked for; `lsn` was waited for and is not below the cutoff, None means the last record."""

    @property
    def lsn(self) -> int | None: ...
    @property
    def prev_lsn(self) -> int | None: ...
    @property
    def full(self) -> bool: ...
    @property
    def gzip(self) -> bool: ...
    @property
    def replica(self) -> bool: ...


class BackupSink(Protocol):
    """Where the archive goes; blocks while the client is slow. Raises StoppedError when the client is gone."""

    def write(self, chunk: bytes) -> None: ...
    def finish(self) -> None: ...
    def fail(self, kind: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class BackupPoint:
    """The LSN of a backup, and what is known of the record before it."""

    lsn: Lsn
    prev_lsn: PrevLsn


def backup_point(timeline: Timeline, *, lsn: Lsn | None, provided_prev_lsn: Lsn | None) -> BackupPoint:
    """Decide by page-service.md 6.2 and 6.10. Raises RequestError if the client's previous LSN is another than ours."""
    last, prev = (Lsn(value) for value in timeline.store.record_lsns())
    at = last if lsn is None else lsn
    known = prev if at == last else Lsn(0)
    if provided_prev_lsn is not None:
        if known and known != provided_prev_lsn:
            raise RequestError(f"backup_prev {known} != provided_prev_lsn {provided_prev_lsn}")
        known = provided_prev_lsn
    if known:
        return BackupPoint(at, PrevLsn.known(known))
    if at == timeline.ancestor_lsn and timeline.ancestor is not None:
        return BackupPoint(at, PrevLsn.branch_point())
    original = timeline.remote.index.lineage.original_ancestor
    if original is not None and original[1] == at:
        return BackupPoint(at, PrevLsn.branch_point())
    return BackupPoint(at, PrevLsn.unknown())


def send_backup(
    timeline: Timeline, request: BackupRequest, sink: BackupSink, *, mtime: int, lazy_slru: bool = False
) -> bool:
    """Write the archive into the sink. Blocking. A client that goes away ends it quietly, with False; other errors are
    told to the client. `lazy_slru`: the compute fetches SLRU segments when it needs them.

    Raises what was told, for the log.
    """
    try:
        for chunk in _chunks(_archive(timeline, request, mtime, lazy_slru=lazy_slru)):
            sink.write(chunk)
        sink.finish()
    except StoppedError:
        sink.fail("shutdown", "")
        return False
    except Exception as error:
        sink.fail("not_found" if isinstance(error, NotFoundError) else "error", str(error))
        raise
    return True


def _archive(timeline: Timeline, request: BackupRequest, mtime: int, *, lazy_slru: bool) -> Iterator[bytes]:
    if timeline.remote.index.archived_at is not None:
        raise NotFoundError("not found")
    if request.full and timeline.tenant_shard_id.shard_count > 1:
        raise RequestError(
            f"a full backup needs all blocks in one place, and this tenant has "
            f"{timeline.tenant_shard_id.shard_count} shards"
        )
    point = backup_point(
        timeline,
        lsn=None if request.lsn is None else Lsn(request.lsn),
        provided_prev_lsn=None if request.prev_lsn is None else Lsn(request.prev_lsn),
    )
    timeline.check_not_in_gap(point.lsn)
    snapshot = timeline.snapshot(point.lsn)
    version = postgres_version(timeline.pg_version)
    traits = None if timeline.document is None else timeline.document.traits
    directory = DataDirectory(
        snapshot,
        cast(BlockReader, timeline.store),
        version=version,
        stamp_checksums=traits is not None and traits.data_checksums,
    )
    options = BasebackupOptions(
        full=request.full,
        replica=request.replica,
        slru=not lazy_slru,
        allow_tablespaces=traits is not None and traits.flavour == "stock",
    )
    pieces = stream(directory, snapshot, options, version=version, prev_lsn=point.prev_lsn, mtime=mtime)
    return _gzipped(pieces) if request.gzip else pieces


def _gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces, so that a header does not cost a message of its own."""
    collected: list[bytes] = []
    size = 0
    for piece in pieces:
        collected.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(collected)
            collected, size = [], 0
    if collected:
        yield b"".join(collected)
