"""Run a suite: progress on standard error, figures as one line of JSON at the end.

python -m tests.survival lose-machine --seeds 50 --store s3
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.postgres.provision import MAJORS
from tests.survival import faulty_store, full_disk, lose_machine, many_hands, split_brain, split_brain_servers
from tests.survival.bucket import KINDS

SUITES: dict[str, Callable[..., dict[str, Any]]] = {
    "lose-machine": lose_machine.run,
    "faulty-store": faulty_store.run,
    "full-disk": full_disk.run,
    "many-hands": many_hands.run,
    "split-brain": split_brain.run,
    "split-brain-servers": split_brain_servers.run,
}


def main() -> int:
    """Run what the command line says. Whatever is lost or wrong ends in a traceback and a status other than 0."""
    arguments = _parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pageserver-survival-"))
    folder.chmod(0o755)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f}  {text}", file=sys.stderr, flush=True)

    say(f"{arguments.suite}: seeds {arguments.first_seed} to {arguments.first_seed + arguments.seeds - 1} in {folder}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(f"ended by signal {number}"))
    try:
        figures = SUITES[arguments.suite](
            folder,
            seeds=arguments.seeds,
            kind=arguments.store,
            first_seed=arguments.first_seed,
            major=arguments.major,
            say=say,
            deep=arguments.deep,
            **({"trouble": arguments.trouble} if arguments.suite == "faulty-store" else {}),
            **({"seconds": arguments.seconds} if arguments.suite in ("faulty-store", "many-hands") else {}),
        )
    except BaseException:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    run = {"suite": arguments.suite, "store": arguments.store, "seeds": arguments.seeds, "first": arguments.first_seed}
    print(json.dumps({**run, "seconds": round(time.monotonic() - began, 1), **figures}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.survival", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--seeds", type=int, default=5, help="how many repetitions")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--store", choices=KINDS, default="s3")
    parser.add_argument(
        "--major", type=int, choices=MAJORS, help="of the primary; left out, 16, or one after the other"
    )
    parser.add_argument("--trouble", choices=faulty_store.TROUBLES, default="proxy", help="of faulty-store")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of one load of faulty-store or many-hands")
    parser.add_argument("--deep", action="store_true", help="scrub every layer's content at the end")
    parser.add_argument("--keep", action="store_true", help="keep all directories of a run that failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
