"""The workload reaches every kind of record, and the tool that says so notices when it does not.

Two versions run here: 15 has the oldest layouts of records (those of 14), 18 the newest (those of 17); 16 is between
them, with single fields of its own. Both have a pg_waldump to compare with. A quarter of the usual size is enough for
all kinds and variants; one version takes a quarter of a minute. All five are in the long run of docs/redo-coverage.md.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postgres.provision import Installation
from tests.redo.coverage_tables import as_markdown, as_text
from tests.redo.make_wal import make_run
from tests.redo.record_counts import Coverage, RunError, as_json, measure, read_records, summarise_proof
from tests.redo.record_types import MAJORS, kinds_of
from tests.redo.record_variants import variants_of


@pytest.mark.slow
@pytest.mark.parametrize("major", [15, 18])
def test_the_workload_reaches_every_kind_of_record(
    major: int, postgres_installation: Callable[[int], Installation], server_dir: Path
) -> None:
    """Goal: complete coverage, counted right. Method: a small run; the counts are those of pg_waldump."""
    installation = postgres_installation(major)
    run = make_run(server_dir, installation, "plain", scale=0.25, seed=1)
    (coverage,) = measure([run])
    assert coverage.complaints() == []
    counted = Counter({f"{rmgr}/{name}": count for (rmgr, name, _), count in coverage.kinds.items()})
    assert counted == _count_with_waldump(run, installation.tools / "pg_waldump")


def _count_with_waldump(run: Path, waldump: Path) -> Counter[str]:
    control = (run / "before" / "global" / "pg_control").read_bytes()
    redo = int.from_bytes(control[40:48], "little")
    command = [str(waldump), "--stats=record", "-p", str(run / "after" / "pg_wal"), "-s", f"{redo >> 32:X}/{redo:X}"]
    # It complains about the end of the WAL, after it has printed the numbers.
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    lines = re.findall(r"^(\w+/[\w+]+) +(\d+) \(", printed, re.MULTILINE)
    return Counter({name: int(count) for name, count in lines if int(count)})


@pytest.mark.slow
def test_a_run_whose_wal_ends_early_is_refused(
    postgres_installation: Callable[[int], Installation], server_dir: Path
) -> None:
    """Goal: a hole in the WAL is not taken for a small run. Method: the last segment is removed."""
    run = make_run(server_dir, postgres_installation(15), "chains", scale=0.1, seed=2, parts=["other.sequences"])
    assert len(list(read_records(run))) > 100
    segments = sorted((run / "after" / "pg_wal").glob("0000000100000*"))
    segments[-1].unlink()
    with pytest.raises(RunError, match="not with the checkpoint at"):
        list(read_records(run))


def _complete(major: int) -> Coverage:
    coverage = Coverage(major)
    for kind in kinds_of(major):
        coverage.kinds[kind.rmgr, kind.name, kind.info] = 0 if kind.unreachable else 3
    for variant in variants_of(major):
        coverage.variants[variant.rmgr, variant.names, variant.text] = 0 if variant.unreachable else 2
    return coverage


@pytest.mark.parametrize("major", MAJORS)
def test_all_that_can_occur_is_complete(major: int) -> None:
    """Goal: nothing is asked for that a version cannot write."""
    assert _complete(major).complaints() == []


@pytest.mark.parametrize("major", MAJORS)
def test_each_missing_kind_and_variant_is_named(major: int) -> None:
    """Goal: none of them can be forgotten silently. Method: take each away in turn."""
    for kind in kinds_of(major):
        if not kind.unreachable:
            coverage = _complete(major)
            del coverage.kinds[kind.rmgr, kind.name, kind.info]
            assert coverage.complaints() == [f"{kind.rmgr} {kind.name}: did not occur"]
    for variant in variants_of(major):
        if not variant.unreachable:
            coverage = _complete(major)
            del coverage.variants[variant.rmgr, variant.names, variant.text]
            (complaint,) = coverage.complaints()
            assert complaint.endswith(f"{variant.text}: did not occur")


def test_a_kind_that_is_not_in_the_table_is_named() -> None:
    """Goal: a server that writes something new is noticed, by its name or by its code."""
    coverage = _complete(17)
    coverage.kinds["Heap2", "FREEZE_PAGE", 0x30] = 1
    coverage.kinds["Btree", "DEDUP", 0xF0] = 1
    assert coverage.complaints() == [
        "Heap2 FREEZE_PAGE (0x30): not in the table",
        "Btree DEDUP (0xf0): not in the table",
    ]


def test_a_kind_called_unreachable_that_occurred_is_named() -> None:
    """Goal: an excuse that is wrong does not stay."""
    coverage = _complete(16)
    coverage.kinds["Gist", "ASSIGN_LSN", 0x70] = 1
    (complaint,) = coverage.complaints()
    assert complaint.startswith("Gist ASSIGN_LSN: occurred, though: only with wal_level = minimal")


def test_the_kinds_of_a_version_are_all_different() -> None:
    """Goal: one line a kind, and codes that tell kinds apart."""
    for major in MAJORS:
        codes = [(kind.rmgr, kind.info) for kind in kinds_of(major)]
        assert len(codes) == len(set(codes))
        names = [(kind.rmgr, kind.name) for kind in kinds_of(major)]
        assert len(names) == len(set(names))
        for variant in variants_of(major):
            assert {(variant.rmgr, name) for name in variant.names} <= set(names)


def test_the_table_has_a_column_for_each_version() -> None:
    """Goal: what a version does not know is a dash, not a zero; reasons are in the last column."""
    coverages = [_complete(16), _complete(17)]
    text = as_text(coverages)
    assert re.search(r"^Heap2 +0x30  FREEZE_PAGE +3 +–$", text, re.MULTILINE)
    assert re.search(r"^Heap2 +0x30  PRUNE_VACUUM_CLEANUP +– +3$", text, re.MULTILINE)
    assert re.search(r"^XLOG +0x20  NOOP +0 +0  nothing in the server writes it$", text, re.MULTILINE)
    assert "| Heap2 | 0x30 | FREEZE_PAGE | 3 | – |  |" in as_markdown(coverages)
    assert as_json(coverages)["17"]["complaints"] == []


def test_counts_that_were_written_down_can_be_taken_instead_of_a_run(tmp_path: Path) -> None:
    """Goal: runs that are too large to lie on disk together still give one table."""
    first, second = _complete(16), _complete(16)
    first.runs.append({"version": "16.14", "mode": "checked", "records": 70, "page_versions": 80, "wal_bytes": 3 << 20})
    second.runs.append({"version": "16.14", "mode": "plain", "records": 5, "page_versions": 6, "seconds": 9})
    paths = []
    for number, coverage in enumerate((first, second, _complete(14))):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(as_json([coverage])))
    older, both = measure(paths)
    assert (older.major, both.major) == (14, 16)
    assert both.complaints() == []
    assert both.kinds["Heap", "INSERT", 0] == 6
    assert "| **16, all** |  |  |  | 3 | 9 | 75 | 86 |" in as_markdown([older, both])


def test_the_page_names_what_differed() -> None:
    """Goal: a proof that failed cannot be published as one that succeeded."""
    record = {"rmgr": "Heap", "type": "INPLACE"}
    report = {
        "compared": 10,
        "different": 2,
        "unsupported": 0,
        "witnesses": {"process": {"compared": 10, "different": 2}},
        "kinds": [
            {"rmgr": "Heap", "type": "INSERT", "different": 0},
            {"rmgr": "Heap", "type": "INPLACE", "different": 2},
        ],
        "differences": [{"witness": "process", "detail": "1 bytes differ", "record": record}],
    }
    coverage = _complete(18)
    run = {"version": "18.4", "mode": "plain", "records": 5, "page_versions": 11}
    coverage.runs.append({**run, "redo_diff": summarise_proof(report)})
    page = as_markdown([coverage])
    assert "- 18.4 plain, Heap INPLACE: 2 by process, the first: 1 bytes differ\n" in page
    assert "| 18.4 | plain |  |  | 0 | 0 | 5 | 11 | 10 | 2 |  | 10 |  |" in page
    assert "## Differences\n\nNone.\n" in as_markdown([_complete(18)])
