"""The directory's side of `pagectl verify`: compares a cleanly stopped data directory with the frames of
`verify_stream`.

Every block of every permanent relation (main, visibility map and init forks), pg_xact, pg_multixact, relation maps
and two-phase files get exactly one verdict:

    equal         the same bytes
    masked        the same after a mask of spec walredo.md 16, or one of the legitimate differences of stock.md 4,
    counted by reason different     anything else
    missing       the timeline has it, the directory does not
    extra         the directory has it, the timeline does not
    unsupported   the timeline could not make the page without a redo process that is not there

Pages are compared by `_core.compare_blocks`; what is decided here is which files count, and one difference that
needs to know about files: CREATE DATABASE with STRATEGY wal_log logs each copied page as an image with a hole where a
page of the usual layout is empty. The bits of a visibility map lie in that hole, so they are not in the WAL, and a
standby does not have them either. Bits that only the directory has are masked, as "bits not copied", in relations
that came with such a copy and nowhere else; a bit that only the timeline has is always a difference.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pageserver import _core
from pageserver.errors import CorruptDataError, RequestError
from pageserver.keyspace.key import PAGE_SIZE, RELATION_SEGMENT_BLOCKS, VM_FORK
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ClusterState, ControlFile
from pageserver.postgres.relation_files import RELMAP_FILE
from pageserver.postgres.wal_segment import record_end, shutdown_checkpoint_record
from pageserver.serve.data_directory import CHUNK_BLOCKS
from pageserver.serve.verify_slru import PAGES_PER_SEGMENT, LiveEntries

DIFFERENCES_KEPT: Final = 50
VERDICTS: Final = ("equal", "masked", "different", "missing", "extra", "unsupported")

_RELATION_FILE: Final = re.compile(r"(\d+)(?:_(vm|init|fsm))?(?:\.\d+)?", re.ASCII)
_SLRU_FILE: Final = re.compile(r"[0-9A-F]{4,}", re.ASCII)
_FIRST_NORMAL_OID: Final = 16384
"""Below it are the oids that initdb gives (`access/transam.h`)."""
_PAGE_HEADER_BYTES: Final = 24
_SLRU_DIRECTORIES: Final = ("pg_xact", "pg_multixact/offsets", "pg_multixact/members")


class UncleanDirectoryError(RequestError):
    """The data directory was not stopped cleanly: its files say less than its WAL."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A block that did not compare, for the report."""

    path: str
    block: int
    verdict: str
    kind: str
    detail: str


@dataclass(slots=True)
class Report:
    """Counts by (kind, verdict), masked blocks by reason, and the first differences."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, path: str, block: int, kind: str, verdict: str, *, reason: str = "", detail: str = "") -> None:
        """Count one block."""
        self.counts[kind, verdict] += 1
        if verdict == "masked":
            self.reasons[reason] += 1
        elif verdict != "equal" and len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference(path, block, verdict, kind, detail))

    def total(self, verdict: str) -> int:
        """Return how many blocks got this verdict."""
        return sum(count for (_, v), count in self.counts.items() if v == verdict)

    def is_clean(self) -> bool:
        """Return whether nothing is different, missing or extra."""
        return not (self.total("different") or self.total("missing") or self.total("extra"))

    def to_json(self) -> dict[str, Any]:
        """Return totals, totals by kind, masked blocks by reason, the first differences."""
        kinds = sorted({kind for kind, _ in self.counts})
        return {
            **{verdict: self.total(verdict) for verdict in VERDICTS},
            "masked_by_reason": dict(sorted(self.reasons.items())),
            "kinds": {kind: {verdict: self.counts[kind, verdict] for verdict in VERDICTS} for kind in kinds},
            "differences": [
                {"path": d.path, "block": d.block, "verdict": d.verdict, "kind": d.kind, "detail": d.detail}
                for d in self.differences
            ],
        }


class Comparison:
    """Takes frames, from several threads; `finish` looks for what the directory has beyond them."""

    def __init__(self, pgdata: Path) -> None:
        self._pgdata = pgdata
        self._report = Report()
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        control = ControlFile((pgdata / "global" / "pg_control").read_bytes())
        if control.state != ClusterState.SHUTDOWNED or (pgdata / "postmaster.pid").exists():
            raise UncleanDirectoryError(
                f"{pgdata} was not stopped cleanly", hint="stop the server with `pg_ctl stop -m fast` and try again"
            )
        self._control = control
        last = control.checkpoint
        self._live = LiveEntries(
            oldest_xid=last.oldest_xid,
            next_xid=last.next_xid & 0xFFFF_FFFF,
            oldest_multi=last.oldest_multi,
            next_multi=last.next_multi,
            next_multi_offset=last.next_multi_offset,
        )

    @property
    def stopped_at(self) -> Lsn:
        """The end of the shutdown checkpoint: the LSN at which the timeline must be the same as the directory."""
        return record_end(Lsn(self._control.check_point), len(shutdown_checkpoint_record(self._control.checkpoint)))

    def take(self, header: dict[str, Any], payload: bytes) -> None:
        """Compare one frame."""
        path = header["path"]
        with self._lock:
            self._seen.add(path)
        match header["kind"]:
            case "relation":
                self._take_blocks(path, header, payload)
            case "slru":
                self._take_slru(path, header["segno"], payload)
            case "file":
                self._take_file(path, payload)
            case other:
                raise CorruptDataError(f"unknown kind {other!r} in the verify stream")

    def finish(self) -> Report:
        """Count what only the directory has, and return the report."""
        for path in self._permanent_relation_files():
            if path not in self._seen:
                self._compare_tail(path, 0, fork=VM_FORK if "_vm" in path else 0)
        for directory in _SLRU_DIRECTORIES:
            for file in sorted((self._pgdata / directory).iterdir()):
                path = f"{directory}/{file.name}"
                if _SLRU_FILE.fullmatch(file.name) and path not in self._seen:
                    self._take_slru(path, int(file.name, 16), b"")
        for path, kind in self._single_files():
            if path not in self._seen:
                self._add(path, 0, kind, "extra", detail="not in the timeline")
        return self._report

    # -- relations

    def _take_blocks(self, path: str, header: dict[str, Any], ours: bytes) -> None:
        first, count, fork = header["first"], header["count"], header["fork"]
        at = first % RELATION_SEGMENT_BLOCKS
        theirs = self._read(path, at * PAGE_SIZE, count * PAGE_SIZE)
        failed = {int(block): reason for block, reason in header["failed"].items()}
        self._compare(path, ours, theirs, fork=fork, first=first, failed=failed)
        if at + count == header["blocks"]:
            self._compare_tail(path, header["blocks"], fork=fork)

    def _compare_tail(self, path: str, block: int, *, fork: int) -> None:
        """Compare what the file has beyond the timeline's blocks: nothing, or pages that were never used."""
        while theirs := self._read(path, block * PAGE_SIZE, CHUNK_BLOCKS * PAGE_SIZE):
            self._compare(path, b"", theirs, fork=fork, first=block, failed={})
            block += CHUNK_BLOCKS

    def _compare(self, path: str, ours: bytes, theirs: bytes, *, fork: int, first: int, failed: dict[int, str]) -> None:
        for block, kind, verdict, reason, detail in _core.compare_blocks(ours, theirs, fork, first, failed):
            if verdict == "different" and fork == VM_FORK and block not in failed:
                cut = slice((block - first) * PAGE_SIZE + _PAGE_HEADER_BYTES, (block - first + 1) * PAGE_SIZE)
                if _only_lacks_bits(ours[cut], theirs[cut]) and self._was_copied(path):
                    verdict, reason, detail = "masked", "bits not copied", ""
            self._add(path, block, kind, verdict, reason=reason, detail=detail)

    def _was_copied(self, path: str) -> bool:
        """Return whether a file came with a copy of a database: initdb numbered it, or another database has it too."""
        folder, name = path.rsplit("/", 1)
        database = folder.rsplit("/", 1)[-1]
        if not database.isdigit() or int(database) < _FIRST_NORMAL_OID:
            return False
        others = (other for other in self._database_folders() if other not in (folder, "global"))
        return int(name.split("_")[0]) < _FIRST_NORMAL_OID or any((self._pgdata / o / name).exists() for o in others)

    def _read(self, path: str, offset: int, size: int) -> bytes:
        try:
            with open(self._pgdata / path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            return b""

    # -- SLRUs and single files

    def _take_slru(self, path: str, segno: int, ours: bytes) -> None:
        kind = path.rsplit("/", 1)[0]
        theirs = self._read(path, 0, PAGES_PER_SEGMENT * PAGE_SIZE)
        for page in range(max(len(ours), len(theirs)) // PAGE_SIZE):
            cut = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
            a, b = ours[cut], theirs[cut]
            if a == b:
                self._add(path, page, kind, "equal")
                continue
            number = segno * PAGES_PER_SEGMENT + page
            blank = bytes(PAGE_SIZE)
            if self._live.masked(kind, number, a or blank) == self._live.masked(kind, number, b or blank):
                reason = "offset of nextMulti" if kind.endswith("offsets") and a and b else "beyond the last used entry"
                self._add(path, page, kind, "masked", reason=reason)
            else:
                self._add(path, page, kind, "different" if a and b else "extra" if b else "missing")

    def _take_file(self, path: str, ours: bytes) -> None:
        kind = _single_file_kind(path)
        if kind is None:
            return
        try:
            theirs = (self._pgdata / path).read_bytes()
        except FileNotFoundError:
            self._add(path, 0, kind, "missing", detail="not in the directory")
            return
        verdict = "equal" if ours == theirs else "different"
        self._add(path, 0, kind, verdict, detail=f"{len(ours)} bytes in the timeline, {len(theirs)} in the directory")

    # -- what the directory has

    def _permanent_relation_files(self) -> Iterator[str]:
        """Yield main, visibility-map and init forks; of an unlogged relation only the init fork, of a
        temporary one nothing.
        """
        for folder in self._database_folders():
            names = sorted(entry.name for entry in (self._pgdata / folder).iterdir() if entry.is_file())
            matches = [(name, match) for name in names if (match := _RELATION_FILE.fullmatch(name))]
            unlogged = {match[1] for _, match in matches if match[2] == "init"}
            for name, match in matches:
                if match[2] == "init" or (match[2] != "fsm" and match[1] not in unlogged):
                    yield f"{folder}/{name}"

    def _single_files(self) -> Iterator[tuple[str, str]]:
        for folder in self._database_folders():
            if (self._pgdata / folder / RELMAP_FILE).exists():
                yield f"{folder}/{RELMAP_FILE}", "relation map"
        for file in sorted((self._pgdata / "pg_twophase").iterdir()):
            yield f"pg_twophase/{file.name}", "two-phase file"

    def _database_folders(self) -> Iterator[str]:
        yield "global"
        for database in sorted((self._pgdata / "base").iterdir()):
            if database.name.isdigit():
                yield f"base/{database.name}"
        for database in sorted(self._pgdata.glob("pg_tblspc/*/PG_*/*")):
            if database.name.isdigit():
                yield str(database.relative_to(self._pgdata))

    def _add(self, path: str, block: int, kind: str, verdict: str, *, reason: str = "", detail: str = "") -> None:
        with self._lock:
            self._report.add(path, block, kind, verdict, reason=reason, detail=detail)


def _only_lacks_bits(ours: bytes, theirs: bytes) -> bool:
    """Return whether the timeline's part of a visibility map has no bit that the directory's does not have."""
    a, b = int.from_bytes(ours, "little"), int.from_bytes(theirs, "little")
    return len(ours) == len(theirs) and a & ~b == 0


def _single_file_kind(path: str) -> str | None:
    if path.endswith(RELMAP_FILE):
        return "relation map"
    if path.startswith("pg_twophase/"):
        return "two-phase file"
    return None
