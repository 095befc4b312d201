"""`pagectl redo-diff` on the WAL of real servers: it finds nothing where nothing is wrong, and names what is wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pageserver.cli.pagectl import main
from pageserver.lsn import WAL_SEGMENT_SIZE
from pageserver.postgres.redo_scratch import EXTENSION_FOLDER
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer

CHECKED = {"wal_consistency_checking": "all", "full_page_writes": "off"}
PLAIN = {"full_page_writes": "on", "wal_compression": "on"}
KEEP = {"max_wal_size": "4GB", "wal_keep_size": "4GB", "wal_recycle": "off", "autovacuum": "off"}
MANAGERS = {"Heap", "Heap2", "Btree", "Hash", "Gin", "Gist", "SPGist", "BRIN", "Sequence"}


@dataclass(frozen=True)
class Run:
    """A stopped server, the directory as it was before, and the file of a table that was there before already."""

    major: int
    installation: Path
    before: Path
    after: Path
    old_table: str
    """Path below both directories. Its first block is changed by records without a full page image (if checked)."""


def load(server: PostgresServer) -> None:
    """Every access method: builds, insertions, updates, deletes, vacuum; a subtransaction, a truncation, a drop."""
    server.psql("insert into old select i, repeat('y', 50) from generate_series(1000, 1400) i")
    server.psql("update old set b = 'z' where a < 20; delete from old where a between 30 and 40; vacuum old")
    server.psql(
        "create table t (a int, b int, c text, p point, arr int[]) with (fillfactor = 80); create sequence s;"
        "create index on t (b); create index on t using hash (b); create index on t using gist (p);"
        "create index on t using spgist (p); create index on t using spgist (c); create index on t using gin (arr);"
        "create index on t using brin (a) with (pages_per_range = 2)"
    )
    for step in range(2):
        server.psql(
            "insert into t select i, (random() * 1000)::int, md5(i::text), point(random() * 100, random() * 100),"
            f" array[i % 10, i % 100, {step}] from generate_series({step} * 600, {step} * 600 + 599) i"
        )
        server.psql(f"update t set b = b + 1, arr = arr || {step} where a % 7 = {step}; select nextval('s')")
        server.psql(f"delete from t where a % 11 = {step}")
        server.psql("vacuum t")
        server.psql("checkpoint; select brin_summarize_new_values('t_a_idx'::regclass)")
    server.psql(
        "begin; select * from t where a = 900 for update; savepoint x; update t set b = 1 where a < 910; commit"
    )
    server.psql("create table gone as select * from t; create index on gone (c); drop table gone")
    server.psql("create table f as select * from t; create index on f using gist (p); vacuum (freeze) f")
    server.psql("delete from t where a > 300; vacuum t; vacuum (freeze) old")


@pytest.fixture(scope="module")
def make_run(postgres_installation: Callable[[int], Installation]) -> Iterator[Callable[[int, bool], Run]]:
    """Return a function that makes the run of a major, ordinary or with after-images, once."""
    root = Path(tempfile.mkdtemp(prefix="pageserver-test-"))
    root.chmod(0o755)
    made: dict[tuple[int, bool], Run] = {}

    def make(major: int, checked: bool) -> Run:
        if (major, checked) not in made:
            installation = postgres_installation(major)
            folder = root / f"{major}-{'checked' if checked else 'plain'}"
            folder.mkdir()
            folder.chmod(0o777)
            settings = {**KEEP, **(CHECKED if checked else PLAIN)}
            server = PostgresServer(
                major, folder / "after", checksums=not checked, settings=settings, installation=installation
            )
            server.initdb()
            with server:
                server.psql("create table old as select i a, repeat('x', 50) b from generate_series(1, 200) i")
                path = str(server.value("select pg_relation_filepath('old')"))
            shutil.copytree(server.data_dir, folder / "before", symlinks=True)
            with server:
                load(server)
            made[major, checked] = Run(major, installation.folder, folder / "before", folder / "after", path)
        return made[major, checked]

    yield make
    shutil.rmtree(root, ignore_errors=True)


def redo_diff(pgdata: Path, *arguments: object, status: int) -> str:
    """Run the command and return what it prints."""
    words = ["redo-diff", "--pgdata", str(pgdata), *(str(word) for word in arguments)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def redo_diff_json(run: Run, *arguments: object, pgdata: Path | None = None, status: int = 0) -> dict[str, Any]:
    words = ("--json", "--pg-installation", run.installation, *arguments)
    found: dict[str, Any] = json.loads(redo_diff(pgdata or run.after, *words, status=status))
    return found


def has_process(major: int) -> bool:
    return (EXTENSION_FOLDER / f"walredo-{major}.so").exists()


@pytest.mark.parametrize("major", [14, 16, 17])
def test_every_version_agrees_with_every_witness(major: int, make_run: Callable[[int, bool], Run]) -> None:
    """Goal: redo is right, for each access method, against each witness there is. Method: WAL with after-images and
    long chains; nothing may be left out.
    """
    run = make_run(major, True)
    found = redo_diff_json(run, "--base", run.before)
    assert found["different"] == 0 and found["differences"] == []
    assert found["unsupported"] == 0 and found["without_base"] == 0
    assert found["compared"] > 5000
    # Full page images (of XLOG, and forced ones of GIN and hash) have no after-image beside them; maps that heap
    # records change without naming them are seen by the next record that names them, or at the end.
    silent = {kind["rmgr"] for kind in found["kinds"] if kind["compared"] < kind["versions"]}
    assert silent <= {"Heap", "Heap2", "XLOG", "Gin", "Hash"}
    assert found["versions"] - found["compared"] < found["versions"] // 20
    assert found["witnesses"]["image"]["compared"] > 5000
    assert found["witnesses"]["file"]["compared"] > 100
    assert {name for name, counts in found["resource_managers"].items() if counts["compared"]} >= MANAGERS
    if has_process(major):
        assert found["witnesses"]["process"]["compared"] >= found["witnesses"]["image"]["compared"]
        assert found["process"] == {"skipped": None, "given_up": None}
    else:
        assert f"no wal redo process for postgresql {major}" in found["process"]["skipped"]


def test_ordinary_wal_is_proven_without_a_base(make_run: Callable[[int, bool], Run]) -> None:
    """Goal: any server's directory will do. Method: full page images, checksums, compression; no base."""
    if not has_process(16):
        pytest.skip("the WAL redo extension is not built: make walredo")
    run = make_run(16, False)
    found = redo_diff_json(run, "--process", "require")
    assert found["different"] == 0 and found["unsupported"] == 0
    assert found["witnesses"]["process"]["compared"] > 5000
    assert found["witnesses"]["file"]["compared"] > 100
    assert found["witnesses"]["image"]["compared"] == 0


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))


@pytest.fixture
def copy_of(server_dir: Path) -> Callable[[Path, str], Path]:
    """Return a function that copies a directory, to be damaged."""

    def copy(source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, server_dir / name, symlinks=True))

    return copy


def test_a_wrong_byte_in_a_data_file_is_a_difference(
    make_run: Callable[[int, bool], Run], copy_of: Callable[[Path, str], Path]
) -> None:
    """Goal: what the server itself wrote is a witness. Method: flip a bit of user data at the end of a block."""
    run = make_run(17, True)
    damaged = copy_of(run.after, "damaged")
    flip(damaged / run.old_table, 8191 - 8)
    found = redo_diff_json(run, "--base", run.before, pgdata=damaged, status=1)
    assert found["different"] == 1 and found["witnesses"]["file"]["different"] == 1
    (difference,) = found["differences"]
    assert difference["rel"] == f"1663/{'/'.join(run.old_table.split('/')[1:])}" and difference["block"] == 0
    assert difference["record"]["rmgr"] in {"Heap", "Heap2"}
    assert [line["offset"] for line in difference["lines"]] == [8176]
    text = redo_diff(damaged, "--base", run.before, "--process", "off", status=1)
    assert f"different: {difference['rel']} block 0, file, after the record at {difference['lsn']}" in text
    assert "8176 items" in text


def test_a_wrong_byte_in_a_base_page_is_a_difference(
    make_run: Callable[[int, bool], Run], copy_of: Callable[[Path, str], Path]
) -> None:
    """Goal: after-images contradict a wrong page at the first record that changes it, and only there. Method: flip a
    bit in the base; without full page images it stays.
    """
    run = make_run(17, True)
    damaged = copy_of(run.before, "damaged")
    flip(damaged / run.old_table, 8191 - 8)
    found = redo_diff_json(run, "--base", damaged, status=1)
    assert found["different"] == found["witnesses"]["image"]["different"] == 1, "the page then goes on from the image"
    (difference,) = found["differences"]
    assert difference["rel"] == f"1663/{'/'.join(run.old_table.split('/')[1:])}" and difference["block"] == 0
    assert difference["witness"] == "image"


def test_what_cannot_be_read_is_named(
    make_run: Callable[[int, bool], Run], copy_of: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    """Goal: bad input never looks like a proof. Method: one case for each."""
    run = make_run(17, True)
    assert "is not a data directory: it has no global/pg_control" in redo_diff(tmp_path, status=1)
    assert "holds no WAL segments of timeline 1" in redo_diff(run.after, "--wal", tmp_path, status=1)
    assert "no wal redo process for postgresql 17" in redo_diff(
        run.after, "--process", "require", "--pg-installation", run.installation, status=1
    )
    other = make_run(16, False)
    assert "is of another cluster" in redo_diff(run.after, "--base", other.before, status=1)

    wal = copy_of(run.after / "pg_wal", "wal")
    segments = sorted(path for path in wal.iterdir() if len(path.name) == 24)
    assert len(segments) >= 4
    flip(segments[2], 5 * 8192 + 3000)
    text = redo_diff(run.after, "--wal", wal, "--process", "off", status=1)
    assert "the WAL breaks off at 0/" in text and "but the server stopped at" in text
    segments[1].unlink()
    text = redo_diff(run.after, "--wal", wal, status=1)
    assert f"WAL segment {segments[1].name} is missing" in text
    segments[2].write_bytes(bytes(WAL_SEGMENT_SIZE // 2))
    assert f"{segments[2].name} has 8388608 bytes" in redo_diff(run.after, "--wal", wal, status=1)

    control = copy_of(run.after / "global", "unknown/global") / "pg_control"
    raw = bytearray(control.read_bytes())
    raw[12:16] = (202007201).to_bytes(4, "little")
    control.write_bytes(bytes(raw))
    assert "unrecognized catalog version 202007201" in redo_diff(control.parents[1], status=1)


def test_what_a_live_primary_writes_is_proven(make_server: Callable[..., PostgresServer]) -> None:
    """Goal: no directory is needed. Method: record a primary while it works, until an LSN behind the work."""
    server = make_server(17, settings={**KEEP, **CHECKED})
    server.psql("create table t as select i a, repeat('x', 20) b from generate_series(1, 500) i; create index on t (a)")
    server.psql("update t set b = 'y' where a % 2 = 0")
    end = server.value("select pg_current_wal_flush_lsn()")
    server.psql("update t set b = 'w' where a % 3 = 0; checkpoint")
    words = ["--json", "redo-diff", "--primary", server.conninfo(), "--seconds", "60", "--end-lsn", str(end)]
    result = CliRunner().invoke(main, [*words, "--process", "off"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["different"] == 0 and found["witnesses"]["image"]["compared"] > 100
    assert found["files"]["skipped"] == "those of a live primary change"
