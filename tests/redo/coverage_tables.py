"""The tables of what occurred: for a terminal, and docs/redo-coverage.md."""

from __future__ import annotations

from typing import Any

from tests.redo.record_counts import Coverage
from tests.redo.record_types import MAJORS, kinds_of
from tests.redo.record_variants import variants_of


def table_rows(coverages: list[Coverage]) -> list[list[str]]:
    """Return the table: manager, info, name or variant, a count a version ("–": there is none), why it is not there."""
    majors = {coverage.major for coverage in coverages}
    rows = []
    kinds = sorted(
        {(kind.rmgr, kind.name, kind.info, kind.unreachable) for major in majors for kind in kinds_of(major)},
        key=_manager_order,
    )
    for rmgr, name, info, unreachable in kinds:
        cells = []
        for coverage in coverages:
            there = any((k.rmgr, k.name, k.info) == (rmgr, name, info) for k in kinds_of(coverage.major))
            cells.append(f"{coverage.kinds[rmgr, name, info]:,}" if there else "–")
        rows.append([rmgr, f"0x{info:02X}", name, *cells, unreachable])
        if name.endswith("+INIT"):
            continue
        variants = dict.fromkeys(
            (v.rmgr, v.names, v.text, v.unreachable)
            for major in sorted(majors)
            for v in variants_of(major)
            if v.rmgr == rmgr and v.names[0] == name
        )
        for variant_rmgr, names, text, excuse in variants:
            cells = []
            for coverage in coverages:
                there = any(
                    (v.rmgr, v.names, v.text) == (variant_rmgr, names, text) for v in variants_of(coverage.major)
                )
                cells.append(f"{coverage.variants[variant_rmgr, names, text]:,}" if there else "–")
            rows.append(["", "", f"  {text}", *cells, excuse])
    return rows


def _manager_order(kind: tuple[str, str, int, str]) -> tuple[int, int, int, int]:
    managers = list(dict.fromkeys(k.rmgr for major in MAJORS for k in kinds_of(major)))
    first = min(major for major in MAJORS for k in kinds_of(major) if (k.rmgr, k.name, k.info) == kind[:3])
    operation = kind[2] & 0x7F if "+INIT" in kind[1] else kind[2]
    return managers.index(kind[0]), operation, first, kind[2]


def as_text(coverages: list[Coverage]) -> str:
    """Return the table for a terminal."""
    header = ["manager", "info", "record", *(str(coverage.major) for coverage in coverages), ""]
    rows = [header, *table_rows(coverages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(widths[i]) if i < 3 or i == len(row) - 1 else cell.rjust(widths[i]) for i, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(coverages: list[Coverage]) -> str:
    """Return docs/redo-coverage.md: how it was made, the runs, then what occurred in them."""
    columns = [str(coverage.major) for coverage in coverages]
    lines = [
        _PREAMBLE,
        "| PostgreSQL | mode | scale | seed | WAL, MiB | s | records | page versions | compared | different |"
        " by after-image | by process | by file |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for coverage in coverages:
        lines += [_run_row(str(run.get("version", coverage.major)), [run]) for run in coverage.runs]
        if len(coverage.runs) > 1:
            lines.append(_run_row(f"**{coverage.major}, all**", coverage.runs))
    lines += ["", "## Differences", "", *_differences(coverages)]
    lines += [
        "",
        "## What occurred",
        "",
        "A dot marks a variant: a path of redo that some records of the kind above it take. A dash: the version does"
        " not have it.",
        "",
        f"| manager | info | record | {' | '.join(columns)} | why not |",
        f"|---|---|---|{'--:|' * len(columns)}---|",
    ]
    for rmgr, info, name, *rest in table_rows(coverages):
        shown = f"· {name.strip()}" if name.startswith(" ") else name
        lines.append(f"| {rmgr} | {info} | {shown} | {' | '.join(rest)} |")
    return "\n".join(lines)


def _differences(coverages: list[Coverage]) -> list[str]:
    """One line for each kind that differed in a run, with the first difference as `redo-diff` tells it."""
    lines = [
        f"- {run['version']} {run['mode']}, {name}: {count:,} by {witness}, the first: {detail}"
        for coverage in coverages
        for run in coverage.runs
        for name, count, witness, detail in run.get("redo_diff", {}).get("found", [])
    ]
    return lines or ["None."]


def _run_row(title: str, runs: list[dict[str, Any]]) -> str:
    """One line of the table of runs; several runs are summed up, their mode, scale and seed left out."""
    proofs = [run["redo_diff"] for run in runs if "redo_diff" in run]
    alone = runs[0] if len(runs) == 1 else {}
    cells = [title, *(str(alone.get(name, "")) for name in ("mode", "scale", "seed"))]
    cells += [f"{sum(run.get('wal_bytes', 0) for run in runs) >> 20:,}"]
    cells += [f"{sum(run.get('seconds', 0) for run in runs):.0f}"]
    cells += [f"{sum(run[name] for run in runs):,}" for name in ("records", "page_versions")]
    for name in ("compared", "different"):
        cells.append(f"{sum(proof[name] for proof in proofs):,}" if proofs else "")
    for witness in ("image", "process", "file"):
        compared = sum(proof["witnesses"].get(witness, {}).get("compared", 0) for proof in proofs)
        cells.append(f"{compared:,}" if compared else "")
    return f"| {' | '.join(cells)} |"


_PREAMBLE = """# Coverage of redo

Redo in process is proven on WAL that unmodified servers wrote, all of PostgreSQL 14 to 18, under a workload that
reaches every kind of record that SQL can reach. This page is what one long run gave; the tools write it:

    python -m tests.redo.long_run OUT     # make, prove, count, delete; up to 12 GiB of disk
    python -m tests.redo.coverage OUT/*.json --markdown > docs/redo-coverage.md

A test runs a small workload on two of the versions and fails if anything in the table below is missing
(`tests/redo/test_coverage.py`).

## The runs

*Page versions* are the block references of all records, the free space map left out; *compared* are those that
`pagectl redo-diff` compared with at least one witness: the page after each change, which the server itself put into its
WAL (`wal_consistency_checking = all`), the WAL redo process (15, 16 and 18), and the files of the stopped server.
`checked` runs have after-images and no full page images, `plain` runs full page images, `chains` runs neither.
"""
