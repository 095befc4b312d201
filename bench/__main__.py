"""The command line of the benchmarks; results on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import attach, getpage, ingest, redo
from bench.world import Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks with ceilings and peers.")
    parser.add_argument("which", nargs="?", choices=["getpage", "ingest", "redo", "attach"], help="default: all")
    parser.add_argument("--scale", type=int, default=50, help="of pgbench (default 50)")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of measurements per figure (default 3)")
    parser.add_argument("--seconds", type=float, default=5, help="getpage: of each measurement (default 5)")
    parser.add_argument("--load-seconds", type=int, default=120, help="getpage: of pgbench (default 120)")
    parser.add_argument("--wal-mib", type=int, default=1024, help="ingest: of WAL (default 1024)")
    parser.add_argument("--redo-seconds", type=float, default=3, help="redo: of each line (default 3)")
    parser.add_argument("--pagebench", type=Path, metavar="DIR", help="getpage: use the programs there, build nothing")
    given = parser.parse_args()
    report = Report.of_this_run()
    if given.which in (None, "getpage"):
        getpage.run(
            report, getpage.Options(given.scale, given.load_seconds, given.seconds, given.repeat, given.pagebench)
        )
    if given.which in (None, "ingest"):
        ingest.run(report, ingest.Options(given.scale, given.wal_mib, given.repeat))
    if given.which in (None, "redo"):
        redo.run(report, redo.Options(given.redo_seconds))
    if given.which in (None, "attach"):
        attach.run(report, attach.Options())
    return 0


if __name__ == "__main__":
    sys.exit(main())
