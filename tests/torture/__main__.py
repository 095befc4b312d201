"""Run one combination of the acceptance load and print its figures as JSON.

python -m tests.torture --major 17 --seconds 60 --moments 10 --kills 10 --checksums --no-full-page-writes --seed 7
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.postgres.provision import MAJORS, provision
from tests.torture.acceptance import Combination, run


def main() -> int:
    """Run what the command line says. Whatever does not agree ends in a traceback and a status other than 0."""
    arguments = _parser().parse_args()
    combination = Combination(
        major=arguments.major,
        checksums=arguments.checksums,
        full_page_writes=arguments.full_page_writes,
        scale=arguments.scale,
        clients=arguments.clients,
        seconds=arguments.seconds,
        moments=arguments.moments,
        restores=arguments.restores,
        kills=arguments.kills,
        seed=arguments.seed if arguments.seed is not None else time.time_ns() % 1_000_000,
        checkpoint_distance=arguments.checkpoint_distance,
        pause_seconds=arguments.pause_seconds,
    )
    print(f"seed {combination.seed}: {combination}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="pageserver-torture-"))
    folder.chmod(0o755)
    began = time.monotonic()
    keep = arguments.keep

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f}  {text}", file=sys.stderr, flush=True)

    try:
        summary = run(combination, folder, provision(combination.major, progress=say), say)
        print(json.dumps(summary.to_json(), indent=1))
    except BaseException:
        if keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    usual = Combination(major=16)
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--major", type=int, choices=MAJORS, default=usual.major)
    parser.add_argument("--checksums", action=argparse.BooleanOptionalAction, default=usual.checksums)
    parser.add_argument("--full-page-writes", action=argparse.BooleanOptionalAction, default=usual.full_page_writes)
    parser.add_argument("--scale", type=int, default=usual.scale, help="pgbench's scale factor")
    parser.add_argument("--clients", type=int, default=usual.clients, help="of pgbench")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="length of the load after the import")
    parser.add_argument("--moments", type=int, default=usual.moments, help="barriers during the load")
    parser.add_argument("--restores", type=int, help="how many of the moments are restored; left out, all")
    parser.add_argument("--kills", type=int, default=usual.kills, help="of the page server; two more in the import")
    parser.add_argument("--checkpoint-distance", type=int, default=usual.checkpoint_distance, help="of our open layer")
    parser.add_argument("--pause-seconds", type=float, default=usual.pause_seconds, help="between steps of an actor")
    parser.add_argument("--seed", type=int, help="left out, the clock gives one")
    parser.add_argument("--keep", action="store_true", help="keep all directories of a run that failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
