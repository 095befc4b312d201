"""What `pagectl verify` masks because of which file it is, and what it must never mask (spec stock.md 4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.keyspace.key import PAGE_SIZE, VM_FORK
from pageserver.postgres.control_file import ClusterState, ControlFile
from pageserver.serve.verify_compare import Comparison, UncleanDirectoryError
from tests.unit.test_postgres_facts import CONTROL_15

TEMPLATE, COPY = "base/4", "base/16400"
CATALOG, COPIED_TABLE, OWN_TABLE = 1259, 16390, 16410


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    """A cleanly stopped directory with a template and a copy of it, without relations yet."""
    for folder in ("global", TEMPLATE, COPY, "pg_xact", "pg_multixact/offsets", "pg_multixact/members", "pg_twophase"):
        (tmp_path / folder).mkdir(parents=True)
    control = ControlFile(CONTROL_15).replaced(state=ClusterState.SHUTDOWNED)
    (tmp_path / "global/pg_control").write_bytes(control.raw)
    return tmp_path


def visibility_map(bits: bytes) -> bytes:
    header = b"\0" * 4 + b"\x07\0\0\0" + b"\0" * 4 + (24).to_bytes(2, "little") + (8192).to_bytes(2, "little") * 2
    return (header + (0x2004).to_bytes(2, "little") + b"\0" * 4 + bits).ljust(PAGE_SIZE, b"\0")


def verdicts(pgdata: Path, path: str, *, ours: bytes, theirs: bytes) -> tuple[list[str], dict[str, int]]:
    (pgdata / path).write_bytes(visibility_map(theirs))
    comparison = Comparison(pgdata)
    header = {"path": path, "kind": "relation", "fork": VM_FORK, "first": 0, "count": 1, "blocks": 1, "failed": {}}
    comparison.take(header, visibility_map(ours))
    report = comparison.finish()
    return [verdict for kind, verdict in report.counts if kind == "visibility map"], dict(report.reasons)


def test_bits_that_a_copied_database_has_and_its_wal_has_not_are_masked(pgdata: Path) -> None:
    """Goal: CREATE DATABASE STRATEGY wal_log is no difference.

    Lost was: 37 pages of each database so made. Its images of visibility maps have their bits in the hole.
    """
    expected = (["masked"], {"bits not copied": 1})
    assert verdicts(pgdata, f"{COPY}/{CATALOG}_vm", ours=b"\0\x03", theirs=b"\xff\x03") == expected
    (pgdata / f"{COPY}/{CATALOG}_vm").unlink()
    (pgdata / f"{TEMPLATE}/{COPIED_TABLE}_vm").write_bytes(b"")
    assert verdicts(pgdata, f"{COPY}/{COPIED_TABLE}_vm", ours=b"", theirs=b"\xff") == expected


@pytest.mark.parametrize(
    ("path", "ours", "theirs"),
    [
        pytest.param(f"{COPY}/{CATALOG}_vm", b"\x03", b"\0\x03", id="a bit that only the timeline has"),
        pytest.param(f"{COPY}/{OWN_TABLE}_vm", b"\0\x03", b"\xff\x03", id="a table of that database alone"),
        pytest.param(f"{TEMPLATE}/{CATALOG}_vm", b"\0\x03", b"\xff\x03", id="a database that initdb made"),
    ],
)
def test_other_bits_of_visibility_maps_are_differences(pgdata: Path, path: str, ours: bytes, theirs: bytes) -> None:
    assert verdicts(pgdata, path, ours=ours, theirs=theirs) == (["different"], {})


def test_a_directory_that_was_not_stopped_is_refused(pgdata: Path) -> None:
    (pgdata / "postmaster.pid").write_text("1")
    with pytest.raises(UncleanDirectoryError):
        Comparison(pgdata)
