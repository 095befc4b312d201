"""Says what occurred in the WAL of runs, and what is missing.

    python -m tests.redo.coverage RUN_DIR… [--json | --markdown]

A run is what `tests.redo.make_wal` makes; instead of its directory, a file that `--json` wrote will do. Runs of the
same version are taken together. The table has a line for each kind of record (`record_types.py`) and each variant
(`record_variants.py`), and a column for each version. It ends with status 1 if, in a version that is there,

- a kind or variant that is not excused did not occur,
- a kind occurred that the table does not know, or that it calls unreachable.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.redo.coverage_tables import as_markdown, as_text
from tests.redo.record_counts import as_json, measure


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
