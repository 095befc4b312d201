"""Builds the WAL redo extension for every PostgreSQL whose headers are here, into the package's data folder.

    python pgext/build.py [PG_CONFIG …]

Without arguments: those of the versions that `make postgres` provides with headers (15, 16, 18). A version that cannot
be had is named and left out; its records are then refused by the page server with a clear error. What is built already
and not older than its sources is left alone. Only the standard library is used.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "pgext" / "walredo"
TARGET = ROOT / "src" / "pageserver" / "postgres" / "walredo"

sys.path.insert(0, str(ROOT))

from tests.postgres.provision import MAJORS_WITH_HEADERS, ProvisionError, provision  # noqa: E402


def main(arguments: list[str]) -> int:
    """Build for each given pg_config, or for each provided version; fail only if something given cannot be built."""
    TARGET.mkdir(parents=True, exist_ok=True)
    if arguments:
        for argument in arguments:
            _build(Path(argument))
        return 0
    for major in MAJORS_WITH_HEADERS:
        try:
            _build(_provided_pg_config(major))
        except (ProvisionError, OSError, subprocess.CalledProcessError) as error:
            print(f"walredo for PostgreSQL {major} is not built: {error}", file=sys.stderr)
    return 0


def _provided_pg_config(major: int) -> Path:
    installation = provision(major)
    assert installation.include_server is not None
    if major == 15:
        return installation.folder / "bin" / "pg_config"
    return installation.tools / "pg_config"


def _build(pg_config: Path) -> None:
    text = subprocess.run([pg_config, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"PostgreSQL (\d+)", text)
    if found is None:
        raise OSError(f"{pg_config} --version says {text!r}")
    target = TARGET / f"walredo-{found[1]}.so"
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if target.exists() and target.stat().st_mtime >= newest:
        return
    # PGXS builds beside the sources; a copy keeps the versions apart and the checkout clean.
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "walredo"
        shutil.copytree(SOURCES, work, ignore=shutil.ignore_patterns("*.o", "*.so"))
        command = ["make", "-s", "-C", str(work), f"PG_CONFIG={pg_config}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.stderr.write(done.stdout + done.stderr)
            raise subprocess.CalledProcessError(done.returncode, command)
        # Not over a file that a running server may have open.
        fresh = target.with_suffix(".new")
        shutil.copyfile(work / "walredo.so", fresh)
        fresh.chmod(0o755)
        fresh.rename(target)
    print(f"walredo for {text.strip()}: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
