"""The differential prover: rebuilds every page version of a log in process and holds it against witnesses.

    pgdata, WAL, base ─▶ open_log ─▶ Log (segments, start, what is known of the end)
                                      │ 16 MiB at a time
                                      ▼
                                  prove ─▶ _core.RedoDiff ─▶ Proof: counts, differences, the pages of both sides

What is decided here: where the log begins and ends, which witnesses can be had, and whether the end of what can be read
is the end of the log or damage. The comparison itself is the engine's (crates/pagestore/src/redo_diff.rs).

- The log begins at the base's last checkpoint, or, without a base, at the first record of the oldest segment.
- It ends with the shutdown checkpoint of a cleanly stopped directory. A reading that stops before is an error. Of a
  directory that was not stopped cleanly, the log ends where no record follows in its last segment.
- The files are a witness only where they are what the log leads to: stopped cleanly, and the log read to its end.
- The redo process is a witness where there is an extension for the major version; where there is none, the after-images
  of `wal_consistency_checking` are.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pageserver import _core
from pageserver.errors import CorruptDataError, PageServerError, RequestError, UnavailableError
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.data_files import read_control_file, relation_files, was_stopped_cleanly
from pageserver.postgres.redo_scratch import RedoScratch
from pageserver.postgres.versions import PostgresVersion
from pageserver.postgres.wal_directory import SegmentFile, find_log, first_record
from pageserver.postgres.wal_segment import record_end, shutdown_checkpoint_record

ProcessUse = Literal["auto", "require", "off"]
"""Whether the redo process is a witness: where it can be had, always, never."""

_EXCHANGE_TIMEOUT_SECONDS: Final = 60.0
DIFFERENCES_KEPT: Final = 100


class UnusableBaseError(RequestError):
    """The directory given as base is not the state from which the log begins. Carries ``path``."""


@dataclass(frozen=True, slots=True)
class Log:
    """What is to be proven."""

    version: PostgresVersion
    system_identifier: int
    hint_bits_logged: bool
    """The server logs hint bits (data checksums or wal_log_hints)."""
    segments: tuple[SegmentFile, ...]
    start: Lsn
    stopped_at: Lsn | None
    """End of the log, if a clean stop tells it."""
    pgdata: Path | None
    """None for the log of a live primary."""
    base: Path | None

    @property
    def end(self) -> Lsn:
        """The end of the log, or of its last segment."""
        return self.stopped_at or Lsn(self.segments[-1].start + WAL_SEGMENT_SIZE)

    def read(self, start: Lsn, end: Lsn) -> bytes:
        """Return bytes of the log, page headers included."""
        pieces = []
        for segment in self.segments:
            first, last = max(start, segment.start), min(end, segment.start + WAL_SEGMENT_SIZE)
            if first < last:
                with open(segment.path, "rb") as file:
                    file.seek(first - segment.start)
                    pieces.append(file.read(last - first))
        return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to prove it."""

    process: ProcessUse = "auto"
    pg_installation: Path | None = None
    """Holds bin/postgres of the log's major version; none: Debian's place."""
    threads: int = 4
    """That ask the redo process."""
    scratch: Path | None = None
    """Where the pages are kept, 8 KiB for each that the log touches; none: the system's temporary directory."""


@dataclass(slots=True)
class Proof:
    """What was found."""

    log: Log
    end: Lsn
    """Of the last record."""
    found: dict[str, Any]
    """The engine's report."""
    process_reason: str | None
    """Why the redo process was not asked; none if it was."""
    files_reason: str | None
    """Why data files were not compared; none if they were."""
    seconds: float = 0.0
    totals: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("records", "versions", "compared", "different", "unsupported", "without_base")
        self.totals = {name: sum(kind[name] for kind in self.found["kinds"]) for name in names}

    @property
    def is_proven(self) -> bool:
        """Whether something was compared, nothing differs, and every witness was heard to the end."""
        compared = self.totals["compared"] > 0
        return compared and self.totals["different"] == 0 and self.found["process_given_up"] is None

    def by_manager(self) -> dict[str, dict[str, int]]:
        """Return the counts of each resource manager."""
        managers: dict[str, dict[str, int]] = {}
        for kind in self.found["kinds"]:
            counts = managers.setdefault(kind["rmgr"], dict.fromkeys(self.totals, 0))
            for name in counts:
                counts[name] += kind[name]
        return managers


def open_log(pgdata: Path, *, wal: Path | None = None, base: Path | None = None) -> Log:
    """Find the log. Raises: NotADataDirectoryError, UnsupportedVersionError, UnusableBaseError, NoWalSegmentsError,
    MissingSegmentError, CorruptDataError.
    """
    control = read_control_file(pgdata)
    stopped_at = None
    if was_stopped_cleanly(pgdata, control):
        stopped_at = record_end(Lsn(control.check_point), len(shutdown_checkpoint_record(control.checkpoint)))
    start = None if base is None else _start_of(base, control)
    folder = wal or pgdata / "pg_wal"
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a directory", hint="name the directory with the WAL segments with --wal")
    segments = find_log(folder, timeline_id=control.checkpoint.this_timeline_id, start=start)
    if start is None:
        start = first_record_of(segments)
    return Log(
        version=control.version,
        system_identifier=control.system_identifier,
        hint_bits_logged=control.logs_hint_bits,
        segments=tuple(segments),
        start=start,
        stopped_at=stopped_at,
        pgdata=pgdata,
        base=base,
    )


def _start_of(base: Path, control: ControlFile) -> Lsn:
    before = read_control_file(base)
    if before.system_identifier != control.system_identifier:
        raise UnusableBaseError(
            f"{base} is of another cluster: system identifier {before.system_identifier}, "
            f"expected {control.system_identifier}",
            path=str(base),
        )
    if not was_stopped_cleanly(base, before):
        raise UnusableBaseError(
            f"{base} was not stopped cleanly", hint="a base is a copy of the data directory made while it was stopped"
        )
    return Lsn(before.checkpoint.redo)


def first_record_of(segments: list[SegmentFile]) -> Lsn:
    """Return where the first record of the log begins. Raises: CorruptDataError."""
    for segment in segments:
        found = first_record(segment.path.read_bytes(), segment.start)
        if found is not None:
            return found
    raise CorruptDataError(f"no record begins in WAL segment {segments[0].path.name} or behind it")


def prove(log: Log, settings: Settings, progress: Callable[[Lsn, str], None]) -> Proof:
    """Rebuild and compare everything. Blocks; `progress` gets the position and what is being done.

    Raises: CorruptDataError (the log breaks off, or a record does not decode), UnavailableError (no redo process
    though it is required; no room for the pages).
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        pool, process_reason = _open_pool(log, settings, stack)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="redo-diff-", dir=settings.scratch))
        engine = _core.RedoDiff(
            pg_version=log.version.major,
            start_lsn=log.start,
            system_identifier=log.system_identifier,
            hint_bits_logged=log.hint_bits_logged,
            scratch=str(Path(folder) / "pages"),
            base=None if log.base is None else _files_of(log.base, log),
            pool=pool,
            threads=settings.threads,
            differences_max=DIFFERENCES_KEPT,
        )
        _feed(engine, log, progress)
        end = Lsn(engine.lsn_end)
        files_reason = _why_not_files(log, end)
        if log.pgdata is not None and files_reason is None:
            progress(end, "comparing files")
            engine.compare_files(_files_of(log.pgdata, log))
        found = engine.report()
    return Proof(log, end, found, process_reason, files_reason, time.monotonic() - began)


def _files_of(pgdata: Path, log: Log) -> list[tuple[int, int, int, int, int, str]]:
    return [
        (rel.spcnode, rel.dbnode, rel.relnode, rel.forknum, segment, str(path))
        for rel, segment, path in relation_files(pgdata, log.version)
    ]


def _feed(engine: _core.RedoDiff, log: Log, progress: Callable[[Lsn, str], None]) -> None:
    for segment in log.segments:
        data = segment.path.read_bytes()[max(0, log.start - segment.start) :]
        stopped = engine.feed(data)
        progress(Lsn(engine.lsn_end), "replaying")
        if stopped is None:
            continue
        at, problem = Lsn(stopped[0]), stopped[1]
        is_end = at >= log.stopped_at if log.stopped_at is not None else segment is log.segments[-1]
        if is_end:
            return
        expected = "it goes on" if log.stopped_at is None else f"the server stopped at {log.stopped_at}"
        raise CorruptDataError(
            f"the WAL breaks off at {at}: {problem}, but {expected}", lsn=str(at), path=str(segment.path)
        )


def _why_not_files(log: Log, end: Lsn) -> str | None:
    if log.pgdata is None:
        return "those of a live primary change"
    if log.stopped_at is None:
        return f"{log.pgdata} was not stopped cleanly"
    if end < log.stopped_at:
        return f"the WAL ends at {end}, before the server stopped at {log.stopped_at}"
    return None


def _open_pool(log: Log, settings: Settings, stack: contextlib.ExitStack) -> tuple[_core.RedoPool | None, str | None]:
    """Return the pool, or the reason why there is none. Raises: UnavailableError (it is required)."""
    if settings.process == "off":
        return None, "not asked for"
    named = {} if settings.pg_installation is None else {str(log.version.major): str(settings.pg_installation)}
    scratch = stack.enter_context(contextlib.closing(RedoScratch(pg_installations=named)))
    try:
        scratch.command(log.version.major, log.hint_bits_logged)
    except UnavailableError as error:
        if settings.process == "require":
            raise
        return None, str(error)
    pool = _core.RedoPool(tenant="redo-diff", timeout_seconds=_EXCHANGE_TIMEOUT_SECONDS, command=scratch.command)
    stack.callback(pool.shutdown)
    return pool, None


def decode_record(log: Log, lsn: Lsn, lsn_end: Lsn) -> dict[str, Any] | None:
    """Return the record between the two as `pagectl wal decode` shows it; none if it cannot be read again."""
    try:
        decoded = _core.decode_wal(
            log.read(lsn, lsn_end), pg_version=log.version.major, flavour="stock", start_lsn=lsn, limit=1
        )
    except (PageServerError, OSError):
        return None
    return decoded.records[0] if decoded.records else None


def differing_lines(difference: dict[str, Any]) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (offset, ours, theirs) of each line of 16 bytes in which the pages differ after masking."""
    ours, theirs = difference["ours"] or b"", difference["theirs"] or b""
    for offset in difference["lines"]:
        yield offset, ours[offset : offset + 16], theirs[offset : offset + 16]
