"""The long search: `python -m tests.api_search --examples 300`."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tests.api_search.world import search, searched_server
from tests.postgres.provision import provision
from tests.postgres.server import PostgresServer

MAJOR = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=300, help="requests made up for each route")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pageserver-api-search-"))
    folder.chmod(0o755)
    primary = PostgresServer(MAJOR, folder / "primary", installation=provision(MAJOR))
    try:
        primary.initdb()
        primary.start()
        with searched_server(primary, folder) as target:
            done = search(target, examples=arguments.examples, seed=arguments.seed, timeout_seconds=arguments.timeout)
            print(done.stdout, done.stderr)
            assert target.server.is_running(), target.server.log_end()
        return done.returncode
    finally:
        if primary.is_running():
            primary.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
