"""`pagectl redo-diff`: proves, on a log, that redo in process is right."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show
from pageserver.cli.page_dump import print_side_by_side
from pageserver.cli.working import working
from pageserver.errors import PageServerError
from pageserver.keyspace.key import RelTag
from pageserver.lsn import Lsn
from pageserver.wal.redo_diff import Log, ProcessUse, Proof, Settings, decode_record, differing_lines, open_log, prove
from pageserver.wal.redo_diff_live import record_log

_COUNTS: Final = ("records", "versions", "compared", "different", "unsupported", "without_base")
_DUMPED: Final = 10
"""Differences of which both pages are shown; the others are named."""


def register(group: click.Group) -> None:
    group.add_command(redo_diff)


_directory = click.Path(path_type=Path)


@click.command("redo-diff")
@click.option("--pgdata", type=_directory, help="A data directory; stopped, for its files to count.")
@click.option("--wal", type=_directory, help="Directory with the WAL segments; left out, pg_wal of --pgdata.")
@click.option("--base", type=_directory, help="The data directory as it was, stopped, where the WAL begins.")
@click.option("--primary", metavar="CONNINFO", help="Instead of --pgdata: what a live primary writes meanwhile.")
@click.option("--seconds", type=click.FloatRange(min=0), default=10.0, show_default=True, help="With --primary.")
@click.option("--end-lsn", help="With --primary: stop as soon as the WAL reaches this.")
@click.option(
    "--process",
    type=click.Choice(["auto", "require", "off"]),
    default="auto",
    show_default=True,
    help="Compare each version with that of the WAL redo process.",
)
@click.option("--pg-installation", type=_directory, help="PostgreSQL of the same major version for the redo process.")
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Asking the redo process.")
@click.option("--scratch", type=_directory, help="Where pages are kept meanwhile, 8 KiB for each that the WAL touches.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def redo_diff(
    session: Session,
    pgdata: Path | None,
    wal: Path | None,
    base: Path | None,
    primary: str | None,
    seconds: float,
    end_lsn: str | None,
    process: ProcessUse,
    pg_installation: Path | None,
    threads: int,
    scratch: Path | None,
    as_json: bool,
) -> None:
    """Rebuild every page version that WAL describes, and compare it with the WAL redo process, with the images that
    wal_consistency_checking writes, and with the server's files. Exit status 1 if anything differs, or nothing could
    be compared.
    """
    session.as_json = session.as_json or as_json
    settings = Settings(process=process, pg_installation=pg_installation, threads=threads, scratch=scratch)
    if (pgdata is None) == (primary is None):
        raise click.UsageError("give either --pgdata or --primary")
    if primary is not None and (wal is not None or base is not None):
        raise click.UsageError("--wal and --base go with --pgdata")
    try:
        with contextlib.ExitStack() as stack:
            if pgdata is not None:
                log = open_log(pgdata, wal=wal, base=base)
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="redo-diff-wal-", dir=scratch))
                log = _record(session, primary or "", Path(folder), seconds, end_lsn)
            proof = _with_progress(session, log, lambda progress: prove(log, settings, progress))
            show(session, to_json(proof), lambda: make_table(("manager", "type", "info", *_COUNTS), _rows(proof)))
            if not session.as_json:
                _explain(session, proof)
    except (PageServerError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not proof.is_proven:
        raise SystemExit(1)


def _record(session: Session, conninfo: str, folder: Path, seconds: float, end_lsn: str | None) -> Log:
    end = None if end_lsn is None else Lsn.parse(end_lsn)
    with working(session, f"recording the primary's WAL for {seconds:g} s"):
        return record_log(conninfo, folder, seconds=seconds, end=end)


def _with_progress(session: Session, log: Log, work: Callable[[Callable[[Lsn, str], None]], Proof]) -> Proof:
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.fields[at]}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        task = bar.add_task("replaying", total=log.end - log.start, at=str(log.start))
        return work(lambda at, doing: bar.update(task, completed=at - log.start, description=doing, at=str(at)))


def to_json(proof: Proof) -> dict[str, Any]:
    """Return what `--json` prints; docs/operations.md says what the counts mean."""
    witnesses = {name: dict(counts) for name, counts in proof.found["witnesses"].items()}
    return {
        **proof.totals,
        "pg_version": proof.log.version.major,
        "lsn_start": str(proof.log.start),
        "lsn_end": str(proof.end),
        "seconds": round(proof.seconds, 3),
        "witnesses": witnesses,
        "process": {"skipped": proof.process_reason, "given_up": proof.found["process_given_up"]},
        "files": {"skipped": proof.files_reason, **proof.found["files"]},
        "resource_managers": proof.by_manager(),
        "kinds": proof.found["kinds"],
        "differences": [_difference_to_json(proof, difference) for difference in proof.found["differences"]],
    }


def _difference_to_json(proof: Proof, difference: dict[str, Any]) -> dict[str, Any]:
    return {
        "witness": difference["witness"],
        "rel": str(RelTag(*difference["rel"])),
        "block": difference["block"],
        "lsn": str(Lsn(difference["lsn"])),
        "lsn_end": str(Lsn(difference["lsn_end"])),
        "detail": difference["detail"],
        "lines": [
            {"offset": offset, "ours": ours.hex(), "theirs": theirs.hex()}
            for offset, ours, theirs in differing_lines(difference)
        ],
        "record": decode_record(proof.log, Lsn(difference["lsn"]), Lsn(difference["lsn_end"])),
    }


def _rows(proof: Proof) -> list[tuple[str, ...]]:
    rows = [
        (kind["rmgr"], kind["type"], f"{kind['info']:#04x}", *(str(kind[name]) for name in _COUNTS))
        for kind in proof.found["kinds"]
    ]
    return [*rows, ("all", "", "", *(str(proof.totals[name]) for name in _COUNTS))]


def _explain(session: Session, proof: Proof) -> None:
    printed = session.console.print
    printed(f"PostgreSQL {proof.log.version.major}, WAL {proof.log.start} to {proof.end}, {proof.seconds:.1f} s")
    for name, counts in proof.found["witnesses"].items():
        reason = {"process": proof.process_reason, "file": proof.files_reason}.get(name)
        text = f"not asked: {reason}" if reason else f"compared {counts['compared']}, different {counts['different']}"
        printed(f"{name}: {text}", highlight=False)
    if proof.files_reason is None:
        files = proof.found["files"]
        masked = ", ".join(f"{reason} {count}" for reason, count in files["masked"].items())
        printed(f"files: equal {files['equal']}, masked ({masked or 'none'}), not known {files['unknown']}")
    if (given_up := proof.found["process_given_up"]) is not None:
        printed(f"the redo process was given up: {given_up}", style="red")
    differences = proof.found["differences"]
    for difference in differences[:_DUMPED]:
        record = decode_record(proof.log, Lsn(difference["lsn"]), Lsn(difference["lsn_end"]))
        print_side_by_side(session.console, difference, record)
    for difference in differences[_DUMPED:]:
        rel, lsn = RelTag(*difference["rel"]), Lsn(difference["lsn"])
        printed(f"different: {rel} block {difference['block']} at {lsn}, {difference['witness']}", style="red")
    if proof.totals["compared"] == 0:
        printed("nothing was compared: no redo process, no after-images, no files", style="red")
