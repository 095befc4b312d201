"""`pagectl verify`: compares a cleanly stopped data directory, block by block, with a timeline at an LSN."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show, tenant_option, timeline_option
from pageserver.cli.restore import ResponseReader
from pageserver.errors import CorruptDataError, PageServerError
from pageserver.serve.verify_compare import VERDICTS, Comparison, Report
from pageserver.serve.verify_stream import HEADER

PARTS = 4


def register(group: click.Group) -> None:
    group.add_command(verify)


@click.command()
@tenant_option
@timeline_option
@click.option("--pgdata", required=True, type=click.Path(path_type=Path, exists=True), help="A stopped data directory.")
@click.option("--lsn", help="LSN to compare with; left out, the one at which the server stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify(session: Session, tenant: str | None, timeline: str, pgdata: Path, lsn: str | None, as_json: bool) -> None:
    """Compare a stopped data directory with a timeline. Exit status 1 if anything is different, missing or extra."""
    session.as_json = session.as_json or as_json
    base = f"{session.timeline_path(tenant, timeline)}/data_directory/verify"
    try:
        report = _compare(session, base, pgdata, lsn)
    except PageServerError as error:
        raise click.ClickException(str(error)) from error
    show(session, report.to_json(), lambda: make_table(("pages", *VERDICTS), _rows(report)))
    if not session.as_json:
        _explain(session, report)
    if not report.is_clean():
        raise SystemExit(1)


def _compare(session: Session, base: str, pgdata: Path, lsn: str | None) -> Report:
    comparison = Comparison(pgdata)
    at = lsn or str(comparison.stopped_at)
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} blocks"), TimeElapsedColumn())
    with Progress(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        task = bar.add_task("comparing", total=None)

        def compare_part(part: int) -> None:
            with session.client.stream(f"{base}/{part}", lsn=at, parts=PARTS) as response:
                reader = ResponseReader(response)
                while True:
                    header = json.loads(_exactly(reader, HEADER.unpack(_exactly(reader, HEADER.size))[0]))
                    if "end" in header:
                        return
                    comparison.take(header, _exactly(reader, header["size"]))
                    bar.advance(task, header.get("count", 1))

        with ThreadPoolExecutor(max_workers=PARTS, thread_name_prefix="verify") as pool:
            for done in [pool.submit(compare_part, part) for part in range(PARTS)]:
                done.result()
    return comparison.finish()


def _exactly(reader: ResponseReader, size: int) -> bytes:
    data = reader.read(size)
    if len(data) != size:
        raise CorruptDataError("the server's answer broke off", hint="its log says why")
    return data


def _rows(report: Report) -> list[tuple[str, ...]]:
    kinds = sorted({kind for kind, _ in report.counts})
    rows = [(kind, *(str(report.counts[kind, verdict]) for verdict in VERDICTS)) for kind in kinds]
    return [*rows, ("all", *(str(report.total(verdict)) for verdict in VERDICTS))]


def _explain(session: Session, report: Report) -> None:
    for reason, count in sorted(report.reasons.items()):
        session.console.print(f"masked, {reason}: {count}")
    for difference in report.differences:
        session.console.print(
            f"{difference.verdict}: {difference.path} block {difference.block} ({difference.kind}) {difference.detail}",
            style="red" if difference.verdict != "unsupported" else "yellow",
        )
