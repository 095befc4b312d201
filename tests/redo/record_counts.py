"""Counts which kinds of records occurred in runs, and says what is missing.

The decoder is the product's own, the one of `pagectl wal decode`; `test_coverage.py` compares it with pg_waldump.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageserver._core import decode_wal
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from tests.redo.record_types import Kind, kinds_of
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
        proof = run / "redo-diff.json"
        if proof.exists():
            facts["redo_diff"] = summarise_proof(json.loads(proof.read_text()))
        self.runs.append({**facts, "records": records, "page_versions": page_versions, "pages_shown": shown})

    def add_counted(self, counted: dict[str, Any]) -> None:
        """Add what `as_json` gave for other runs of this version."""
        self.runs += counted["runs"]
        for kind in counted["kinds"]:
            self.kinds[kind["rmgr"], kind["name"], kind["info"]] += kind["count"]
        for variant in counted["variants"]:
            self.variants[variant["rmgr"], tuple(variant["names"]), variant["text"]] += variant["count"]

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


def summarise_proof(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the tables need of a report of `pagectl redo-diff --json`.

    `found` names each kind that differs, how often, and the first difference of it.
    """
    found = []
    for kind in report["kinds"]:
        if kind["different"]:
            first = next(
                (d for d in report["differences"] if d["record"] and _is_of(d["record"], kind)),
                {"witness": "some witness", "detail": "not among those that the report shows"},
            )
            name = f"{kind['rmgr']} {kind['type']}"
            found.append([name, kind["different"], first["witness"], first["detail"]])
    return {name: report[name] for name in ("compared", "different", "unsupported", "witnesses")} | {"found": found}


def _is_of(record: dict[str, Any], kind: dict[str, Any]) -> bool:
    return bool((record["rmgr"], record["type"]) == (kind["rmgr"], kind["type"]))


def label(variant: Variant) -> str:
    """Return the name of a variant for people."""
    return f"{variant.rmgr} {' or '.join(variant.names)}, {variant.text}"


def measure(sources: list[Path]) -> list[Coverage]:
    """Count the records of runs, by version in ascending order. Raises: RunError.

    A source is a run's directory, or a file that `--json` wrote: of runs that were too large to be kept together.
    """
    found: dict[int, Coverage] = {}
    for source in sources:
        if source.is_dir():
            major = major_of(source)
            found.setdefault(major, Coverage(major)).add_run(source)
        else:
            for name, counted in json.loads(source.read_text()).items():
                found.setdefault(int(name), Coverage(int(name))).add_counted(counted)
    return [found[major] for major in sorted(found)]


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
