"""The recorded long run: for each version and mode, makes WAL, proves redo on it, counts what occurred, deletes it.

    python -m tests.redo.long_run OUT [--major 16 …] [--scale 1.7]

What stays in OUT is one file for each run, `<major>-<mode>.json`: what `tests.redo.coverage --json` prints, with the
numbers of `pagectl redo-diff`. One run lies on disk at a time; at the usual scale the largest has 12 GiB of WAL and
more than two million page versions. Ends with status 1 if redo differs anywhere; the whole report of `redo-diff` is
then kept in OUT/differences.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.postgres.provision import MAJORS, MAJORS_WITH_HEADERS, Installation, provision
from tests.redo.make_wal import MODES, compressions, make_run
from tests.redo.record_counts import as_json, measure


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of each version. `share` multiplies the scale: only the first is large, the others differ in kind."""

    mode: str
    share: float
    seed: int
    parts: tuple[str, ...] = ()


PLAN = (
    Planned("checked", 1.0, 1),
    *(Planned(mode, 0.15, 2 + number) for number, mode in enumerate(mode for mode in MODES if mode != "checked")),
)


def prove(run: Path, installation: Installation) -> bool:
    """Leave the report of `pagectl redo-diff` in the run; return whether nothing differs.

    The WAL redo process is a witness where its extension can be built.
    """
    process = "require" if installation.major in MAJORS_WITH_HEADERS else "off"
    command = [sys.executable, "-c", "from pageserver.cli.pagectl import main; main()", "redo-diff", "--json"]
    command += ["--pgdata", str(run / "after"), "--base", str(run / "before"), "--process", process]
    command += ["--pg-installation", str(installation.folder), "--scratch", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (run / "redo-diff.json").write_text(done.stdout)
    if not done.stdout:
        raise RuntimeError(f"redo-diff of {run} printed nothing: {done.stderr.strip()[-2000:]}")
    return done.returncode == 0


def main() -> None:
    """Read the command line and make the runs, version by version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--major", type=int, action="append", choices=MAJORS, help="default: 14 to 18")
    parser.add_argument("--mode", action="append", choices=sorted(MODES), help="default: all that the server can do")
    parser.add_argument("--scale", type=float, default=1.7, help="of the large run; 1.7: two million page versions")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    proven = True
    for major in arguments.major or MAJORS:
        installation = provision(major)
        able = compressions(installation)
        for planned in PLAN:
            if MODES[planned.mode].compression in able and planned.mode in (arguments.mode or MODES):
                proven &= run_once(out, installation, planned, arguments.scale)
    sys.exit(0 if proven else 1)


def run_once(out: Path, installation: Installation, planned: Planned, scale: float) -> bool:
    """Make one run, leave its counts in `out`, and delete it; return whether redo was proven on it."""
    name = f"{installation.major}-{planned.mode}"
    scale = round(scale * planned.share, 3)
    run = make_run(out, installation, planned.mode, scale=scale, seed=planned.seed, parts=planned.parts)
    proven = prove(run, installation)
    (out / f"{name}.json").write_text(json.dumps(as_json(measure([run])), indent=1) + "\n")
    report = json.loads((run / "redo-diff.json").read_text())
    print(f"{name}: {report['compared']} page versions compared, {report['different']} different", flush=True)
    if not proven:
        (out / "differences").mkdir(exist_ok=True)
        shutil.copy(run / "redo-diff.json", out / "differences" / f"{name}.json")
    shutil.rmtree(run)
    return proven


if __name__ == "__main__":
    main()
