"""Makes the runs that `cargo test -p pagecore --test consistency -- --ignored` replays.

    python -m tests.redo.make_wal OUT [--major 16 …] [--mode checked|plain …] [--scale N]

A run is a directory `OUT/<major>-<mode>`: `before/` is a cleanly stopped data directory, `after/` the same after the
workload and a clean stop, with all WAL between the two in its `pg_wal`. Mode `checked` writes WAL with
`wal_consistency_checking = all` and `full_page_writes = off`, so that every change carries the page it should lead to;
mode `plain` writes ordinary WAL, with compressed full page images.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from tests.postgres.provision import Installation, provision
from tests.postgres.server import PostgresServer
from tests.redo.workload import run

MODES = {
    "checked": {"wal_consistency_checking": "all", "full_page_writes": "off"},
    "plain": {"full_page_writes": "on", "wal_compression": "on"},
}
KEEP_EVERYTHING = {
    "wal_keep_size": "60GB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "60s",
    "autovacuum_naptime": "5s",
    "wal_recycle": "off",
    "max_parallel_workers_per_gather": "0",
    "default_statistics_target": "10",
}


def make_run(out: Path, major: int, mode: str, scale: int, installation: Installation) -> None:
    """Make one run; replaces an earlier one."""
    began = time.monotonic()
    folder = out / f"{major}-{mode}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out.chmod(0o755)
    folder.chmod(0o755)
    data = folder / "after"
    server = PostgresServer(
        major,
        data,
        checksums=mode == "plain",
        settings={**KEEP_EVERYTHING, **MODES[mode]},
        installation=installation,
    )
    print(f"{major} {mode}", flush=True)
    server.initdb()
    shutil.copytree(data, folder / "before", symlinks=True)
    with server:
        run(lambda: server.connect(), scale)
    wal = sum(path.stat().st_size for path in (data / "pg_wal").iterdir() if path.is_file())
    print(f"{major} {mode}: {wal >> 20} MiB of WAL in {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Read the command line and make the runs asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--major", type=int, action="append", help="default: 14 to 18")
    parser.add_argument("--mode", choices=sorted(MODES), action="append", help="default: both")
    parser.add_argument("--scale", type=int, default=1)
    arguments = parser.parse_args()
    for major in arguments.major or (14, 15, 16, 17, 18):
        installation = provision(major)
        for mode in arguments.mode or sorted(MODES):
            make_run(arguments.out.resolve(), major, mode, arguments.scale, installation)


if __name__ == "__main__":
    main()
