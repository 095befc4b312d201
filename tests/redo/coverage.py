"""Counts what occurred in the WAL of runs, and says what is missing.

    python -m tests.redo.coverage RUN_DIR… [--json | --markdown]

A run is what `tests.redo.make_wal` makes. Runs of the same version are taken together. The table has a line for each
kind of record (`record_types.py`) and each variant (`record_variants.py`), and a column for each version. It ends with
status 1 if, in a version that is there,

- a kind or variant that is not excused did not occur,
- a kind occurred that the table does not know, or that it calls unreachable.

The decoder is the product's own, the one of `pagectl wal decode`; `test_coverage.py` compares it with pg_waldump.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageserver._core import decode_wal
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from tests.redo.record_types import MAJORS, Kind, kinds_of
from tests.redo.record_variants import Variant, variants_of

FSM_FORK = "_fsm"


class RunError(Exception):
    """A run is not complete: its WAL ends before the shutdown checkpoint that its control file names."""


def major_of(run: Path) -> int:
    """Return the version of the server that made a run."""
    return int((run / "before" / "PG_VERSION").read_text())


def read_records(run: Path) -> Iterator[dict[str, Any]]:
    """Yield all records between the two data directories of a run, as `decode_wal` shows them.

    Begins where redo would, at the checkpoint of `before`; ends with the shutdown checkpoint of `after`. Raises:
    RunError if that one is not reached.
    """
    major = major_of(run)
    at = _control_lsn(run / "before", offset=40)
    end = _control_lsn(run / "after", offset=32)
    last, pending = 0, b""
    for number in range(at // WAL_SEGMENT_SIZE, end // WAL_SEGMENT_SIZE + 2):
        segment = run / "after" / "pg_wal" / f"{1:08X}{number >> 8:08X}{number & 0xFF:08X}"
        if not segment.exists():
            break
        data = segment.read_bytes()
        pending = pending + data if last else data[at % WAL_SEGMENT_SIZE :]
        decoded = decode_wal(pending, pg_version=major, flavour="stock", start_lsn=at)
        for record in decoded.records:
            last = record["lsn"]
            yield record
        if decoded.error is not None:
            break
        pending = pending[decoded.lsn_end - at :]
        at = decoded.lsn_end
    if last != end:
        raise RunError(f"{run}: the WAL ends with the record at {Lsn(last)}, not with the checkpoint at {Lsn(end)}")


def _control_lsn(data_dir: Path, offset: int) -> int:
    """Read an LSN of pg_control: 32 is the last checkpoint's record, 40 where its redo begins (spec wal.md 6)."""
    control = (data_dir / "global" / "pg_control").read_bytes()
    return int.from_bytes(control[offset : offset + 8], "little")


@dataclass(slots=True)
class Coverage:
    """What occurred in the runs of one version."""

    major: int
    runs: list[dict[str, Any]] = field(default_factory=list)
    """`run.json` of each, and its numbers of records, of page versions and of pages that the WAL itself shows."""

    kinds: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By resource manager, name and info."""

    variants: Counter[tuple[str, tuple[str, ...], str]] = field(default_factory=Counter)

    def add_run(self, run: Path) -> None:
        """Count the records of a run."""
        tests: dict[tuple[str, str], list[Variant]] = {}
        for variant in variants_of(self.major):
            for name in variant.names:
                tests.setdefault((variant.rmgr, name), []).append(variant)
        records = page_versions = shown = 0
        for record in read_records(run):
            records += 1
            rmgr, name, info = record["rmgr"], record["type"], record["info"]
            self.kinds[rmgr, name, _naming_bits(rmgr, info)] += 1
            for block in record["blocks"]:
                page_versions += not block["rel"].endswith(FSM_FORK)
                shown += block["image"] is not None and not block["image"]["apply"]
            candidates = tests.get((rmgr, name.removesuffix("+INIT")))
            if candidates:
                main = bytes.fromhex(record["main_data"])
                blocks = {block["id"]: block for block in record["blocks"]}
                for variant in candidates:
                    if variant.test(main, blocks):
                        self.variants[variant.rmgr, variant.names, variant.text] += 1
        about = run / "run.json"
        facts = json.loads(about.read_text()) if about.exists() else {"major": self.major, "mode": run.name}
        self.runs.append({**facts, "records": records, "page_versions": page_versions, "pages_shown": shown})

    def count_kind(self, kind: Kind) -> int:
        """Return how often a kind occurred."""
        return self.kinds[kind.rmgr, kind.name, kind.info]

    def count_variant(self, variant: Variant) -> int:
        """Return how often a variant occurred."""
        return self.variants[variant.rmgr, variant.names, variant.text]

    def complaints(self) -> list[str]:
        """Say what keeps the coverage from being complete; empty if nothing does."""
        known = {(kind.rmgr, kind.name, kind.info) for kind in kinds_of(self.major)}
        found = [
            f"{kind.rmgr} {kind.name}: did not occur"
            for kind in kinds_of(self.major)
            if not kind.unreachable and not self.count_kind(kind)
        ]
        found += [
            f"{kind.rmgr} {kind.name}: occurred, though: {kind.unreachable}"
            for kind in kinds_of(self.major)
            if kind.unreachable and self.count_kind(kind)
        ]
        found += [
            f"{rmgr} {name} ({info:#04x}): not in the table"
            for rmgr, name, info in self.kinds
            if (rmgr, name, info) not in known
        ]
        found += [
            f"{label(variant)}: did not occur"
            for variant in variants_of(self.major)
            if not variant.unreachable and not self.count_variant(variant)
        ]
        return found


def _naming_bits(rmgr: str, info: int) -> int:
    """Keep the bits of an info byte that tell the kind: transactions use the highest one for something else."""
    return info & (0x70 if rmgr == "Transaction" else 0xF0)


def label(variant: Variant) -> str:
    """Return the name of a variant for people."""
    return f"{variant.rmgr} {' or '.join(variant.names)}, {variant.text}"


def measure(runs: list[Path]) -> list[Coverage]:
    """Count the records of runs, by version in ascending order. Raises: RunError."""
    found: dict[int, Coverage] = {}
    for run in runs:
        major = major_of(run)
        found.setdefault(major, Coverage(major)).add_run(run)
    return [found[major] for major in sorted(found)]


# Ways to show it ------------------------------------------------------------------------------------------------------


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
    """Return the tables of docs/redo-coverage.md: the runs, then what occurred in them."""
    lines = [
        "| PostgreSQL | mode | scale | seed | WAL, MiB | seconds | records | page versions | with after-image |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for coverage in coverages:
        for run in coverage.runs:
            lines.append(
                f"| {run.get('version', coverage.major)} | {run['mode']} | {run.get('scale', '')} |"
                f" {run.get('seed', '')} | {run.get('wal_bytes', 0) >> 20:,} | {run.get('seconds', 0):.0f} |"
                f" {run['records']:,} | {run['page_versions']:,} | {run['pages_shown']:,} |"
            )
        if len(coverage.runs) > 1:
            total = {
                name: sum(run[name] for run in coverage.runs) for name in ("records", "page_versions", "pages_shown")
            }
            wal = sum(run.get("wal_bytes", 0) for run in coverage.runs)
            seconds = sum(run.get("seconds", 0) for run in coverage.runs)
            lines.append(
                f"| **{coverage.major}, all** | | | | {wal >> 20:,} | {seconds:.0f} | {total['records']:,} |"
                f" {total['page_versions']:,} | {total['pages_shown']:,} |"
            )
    columns = [str(coverage.major) for coverage in coverages]
    lines += [
        "",
        f"| manager | info | record | {' | '.join(columns)} | why not |",
        f"|---|---|---|{'--:|' * len(columns)}---|",
    ]
    for rmgr, info, name, *rest in table_rows(coverages):
        shown = f"· {name.strip()}" if name.startswith(" ") else name
        lines.append(f"| {rmgr} | {info} | {shown} | {' | '.join(rest)} |")
    return "\n".join(lines)


def as_json(coverages: list[Coverage]) -> dict[str, Any]:
    """Return everything as plain data, by version."""
    return {
        str(coverage.major): {
            "runs": coverage.runs,
            "kinds": [
                {
                    "rmgr": k.rmgr,
                    "info": k.info,
                    "name": k.name,
                    "count": coverage.count_kind(k),
                    "unreachable": k.unreachable or None,
                }
                for k in kinds_of(coverage.major)
            ],
            "variants": [
                {
                    "rmgr": v.rmgr,
                    "names": list(v.names),
                    "text": v.text,
                    "count": coverage.count_variant(v),
                    "unreachable": v.unreachable or None,
                }
                for v in variants_of(coverage.major)
            ],
            "complaints": coverage.complaints(),
        }
        for coverage in coverages
    }


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="everything as one JSON document")
    shape.add_argument("--markdown", action="store_true", help="the tables of docs/redo-coverage.md")
    arguments = parser.parse_args()
    coverages = measure(arguments.runs)
    if arguments.json:
        print(json.dumps(as_json(coverages), indent=1))
    else:
        print(as_markdown(coverages) if arguments.markdown else as_text(coverages))
    complaints = [f"{coverage.major}: {text}" for coverage in coverages for text in coverage.complaints()]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if not arguments.json and not complaints:
        print("every kind and variant that can occur did", file=sys.stderr)
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
