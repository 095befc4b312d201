"""Makes runs: WAL of a real server, with the data directories before and after it.

    python -m tests.redo.make_wal OUT [--major 16 …] [--mode checked …] [--scale 1] [--seed 1] [--part NAME …]

A run is a directory `OUT/<major>-<mode>[-s<seed>]`: `before/` is a cleanly stopped data directory, `after/` the same
after the workload and a clean stop, with all WAL between the two in its `pg_wal`; `run.json` says how it was made.
`tests.redo.coverage` counts what is in it, `pagectl redo-diff` proves redo on it.

Modes differ in what the WAL brings besides the changes (`MODES`). Those named `checked` write it with
`wal_consistency_checking = all`: every change carries the page it should lead to, 8 KiB each unless compressed. Those
named `plain` write ordinary WAL with full page images; `chains` writes none, so that the chains from one image of a
page to the next are as long as they can be. A mode whose compression the server was built without is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.postgres.provision import MAJORS, Installation, provision
from tests.postgres.server import PostgresServer
from tests.redo.workload import ALL_PARTS, run


@dataclass(frozen=True, slots=True)
class Mode:
    """What a server puts into its WAL."""

    checked: bool
    """Pages after each change (`wal_consistency_checking = all`)."""
    images: bool
    """Full page images (`full_page_writes`)."""
    compression: str
    """`off`, `pglz`, `lz4` or `zstd`."""
    checksums: bool

    def settings(self, major: int) -> dict[str, str]:
        """Return the server's settings. Before 15 there is one compression, and the setting is a switch."""
        compression = self.compression if major >= 15 else ("off" if self.compression == "off" else "on")
        return {
            "wal_consistency_checking": "all" if self.checked else "",
            "full_page_writes": "on" if self.images else "off",
            "wal_compression": compression,
        }


MODES = {
    "checked": Mode(checked=True, images=False, compression="off", checksums=False),
    "checked-pglz": Mode(checked=True, images=False, compression="pglz", checksums=True),
    "checked-lz4": Mode(checked=True, images=False, compression="lz4", checksums=True),
    "checked-zstd": Mode(checked=True, images=True, compression="zstd", checksums=False),
    "checked-images": Mode(checked=True, images=True, compression="pglz", checksums=True),
    "plain": Mode(checked=False, images=True, compression="pglz", checksums=True),
    "plain-off": Mode(checked=False, images=True, compression="off", checksums=False),
    "plain-lz4": Mode(checked=False, images=True, compression="lz4", checksums=False),
    "plain-zstd": Mode(checked=False, images=True, compression="zstd", checksums=True),
    "chains": Mode(checked=False, images=False, compression="off", checksums=False),
    "chains-checksums": Mode(checked=False, images=False, compression="off", checksums=True),
}

KEEP_EVERYTHING = {
    "wal_keep_size": "60GB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "60s",
    "autovacuum_naptime": "5s",
    "wal_recycle": "off",
    "max_parallel_workers_per_gather": "0",
    "default_statistics_target": "10",
    "track_commit_timestamp": "on",
}


def compressions(installation: Installation) -> frozenset[str]:
    """Return the kinds of WAL compression that a server can do, found out by asking for each."""
    if installation.major < 15:
        return frozenset(("off", "pglz"))
    return frozenset(kind for kind in ("off", "pglz", "lz4", "zstd") if _accepts(installation, kind))


def _accepts(installation: Installation, compression: str) -> bool:
    """Ask the server's program to show the setting with this value; it refuses one it was not built for."""
    with tempfile.TemporaryDirectory(prefix="pageserver-probe-") as folder:
        (Path(folder) / "postgresql.conf").touch()
        # `-C` must come first: only then may root ask.
        command = [str(installation.bin / "postgres"), "-C", "wal_compression", "-D", folder]
        done = subprocess.run([*command, "-c", f"wal_compression={compression}"], capture_output=True, check=False)
    return done.returncode == 0


def make_run(
    out: Path,
    installation: Installation,
    mode_name: str,
    *,
    scale: float,
    seed: int,
    parts: Sequence[str] = (),
) -> Path:
    """Make one run, `parts` of the workload or all; replaces an earlier one. Returns its directory."""
    began = time.monotonic()
    mode, major = MODES[mode_name], installation.major
    folder = out / (f"{major}-{mode_name}" + (f"-s{seed}" if seed != 1 else ""))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out.chmod(0o755)
    folder.chmod(0o755)
    data = folder / "after"
    server = PostgresServer(
        major,
        data,
        checksums=mode.checksums,
        settings={**KEEP_EVERYTHING, **mode.settings(major)},
        installation=installation,
    )
    server.initdb()
    shutil.copytree(data, folder / "before", symlinks=True)
    with server:
        version = server.value("show server_version").split()[0]
        run(server, scale=scale, seed=seed, only=parts)
    wal_bytes = sum(path.stat().st_size for path in (data / "pg_wal").iterdir() if path.is_file())
    seconds = time.monotonic() - began
    about = {
        "major": major,
        "version": version,
        "mode": mode_name,
        "checksums": mode.checksums,
        "settings": mode.settings(major),
        "scale": scale,
        "seed": seed,
        "parts": list(parts),
        "wal_bytes": wal_bytes,
        "seconds": round(seconds, 1),
    }
    (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def main() -> None:
    """Read the command line and make the runs asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--major", type=int, action="append", choices=MAJORS, help="default: 14 to 18")
    parser.add_argument("--mode", choices=sorted(MODES), action="append", help="default: all that the server can do")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of rows; at least 0.25")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=sorted(ALL_PARTS), action="append", help="default: all but the large ones")
    arguments = parser.parse_args()
    for major in arguments.major or MAJORS:
        installation = provision(major)
        able = compressions(installation)
        for name in arguments.mode or MODES:
            if MODES[name].compression not in able:
                print(f"{major} {name}: left out, the server was built without {MODES[name].compression}", flush=True)
                continue
            folder = make_run(
                arguments.out.resolve(),
                installation,
                name,
                scale=arguments.scale,
                seed=arguments.seed,
                parts=arguments.part or (),
            )
            about = json.loads((folder / "run.json").read_text())
            print(f"{folder.name}: {about['wal_bytes'] >> 20} MiB of WAL in {about['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
