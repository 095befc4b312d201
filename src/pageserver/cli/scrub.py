"""`pagectl scrub`: whether a bucket is whole, without a server (tenants.md 24)."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import click
import structlog
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from pageserver.cli.client import Session
from pageserver.cli.output import make_table, print_table, size_text
from pageserver.clock import SystemClock
from pageserver.config import InvalidSettingError, RemoteStorage, parse_override, parse_settings, read_config
from pageserver.config.durations import Duration
from pageserver.errors import PageServerError
from pageserver.ids import TenantId
from pageserver.remote import open_object_storage
from pageserver.remote.scrub import Progress, Scrubber, ScrubReport

_SHOWN_MAX = 100
"""Rows of one table; JSON has them all."""


def register(group: click.Group) -> None:
    group.add_command(scrub)


@click.command()
@click.option("--remote-storage", "toml", metavar="TOML", help="The store, as in the settings: {local_path='/bucket'}.")
@click.option(
    "-D", "workdir", type=click.Path(path_type=Path, exists=True, file_okay=False), help="The store of this server."
)
@click.option("--tenant", help="Only this tenant, with all of its shards.")
@click.option("--deep", is_flag=True, help="Download every layer and decode all of it.")
@click.option("--purge", is_flag=True, help="Delete orphans.")
@click.option("--min-age", default="3h", show_default=True, help="With --purge: how old an orphan must be.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def scrub(
    session: Session,
    toml: str | None,
    workdir: Path | None,
    tenant: str | None,
    deep: bool,
    purge: bool,
    min_age: str,
    as_json: bool,
) -> None:
    """Check everything a bucket holds, and list what nobody needs. Exit status 1 if there are errors."""
    session.as_json = session.as_json or as_json
    if (toml is None) == (workdir is None):
        raise click.UsageError("name the store: either --remote-storage or -D")
    try:
        settings, base = (_parse_storage(toml), Path.cwd()) if toml is not None else _read_storage(workdir or Path())
        wanted = None if tenant is None else TenantId.parse(tenant)
        age = timedelta(seconds=Duration.parse(min_age).seconds) if purge else None
        report = asyncio.run(_run(session, settings, base, wanted, deep, age))
    except InvalidSettingError as error:
        raise click.UsageError(str(error)) from error
    except ValueError as error:
        raise click.UsageError(f"--min-age: {error}") from error
    except PageServerError as error:
        raise click.ClickException(str(error)) from error
    if session.as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _show(session, report)
    if report.errors:
        raise SystemExit(1)


def _parse_storage(text: str) -> RemoteStorage:
    """Read the table alone, or with its name in front, as `-c` takes it."""
    given = text if text.lstrip().startswith("remote_storage") else f"remote_storage = {text}"
    settings = parse_settings(parse_override(given)).remote_storage
    assert settings is not None, "the override names it"
    return settings


def _read_storage(workdir: Path) -> tuple[RemoteStorage, Path]:
    config = read_config(workdir)
    if config.settings.remote_storage is None:
        raise click.UsageError(f"{workdir} has no [remote_storage]: its layers are on the local disk only")
    return config.settings.remote_storage, config.workdir


async def _run(
    session: Session, settings: RemoteStorage, base: Path, tenant: TenantId | None, deep: bool, age: timedelta | None
) -> ScrubReport:
    if settings.local_path is not None and not (base / settings.local_path).is_dir():
        raise click.UsageError(f"there is no directory {base / settings.local_path}")
    clock = SystemClock()
    log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    storage = open_object_storage(settings, workdir=base, clock=clock, log=log)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        task = bar.add_task("listing tenants", total=None)

        def show_progress(progress: Progress) -> None:
            bar.update(task, description=progress.what, completed=progress.done, total=progress.total)

        scrubber = Scrubber(storage, clock=clock, deep=deep, on_progress=show_progress)
        tenants = await scrubber.tenants()
        if tenant is not None:
            if tenant not in tenants:
                raise click.UsageError(f"the store has nothing of tenant {tenant}")
            tenants = [tenant]
        return await scrubber.scrub(tenants, purge_min_age=age)


def _show(session: Session, report: ScrubReport) -> None:
    rows = [
        ("tenants", str(report.tenants)),
        ("shards", str(report.shards)),
        ("timelines", str(report.timelines)),
        ("layers", f"{report.layers}, {size_text(report.layers_bytes)}"),
    ]
    if report.layers_read:
        rows.append(("read and decoded", f"{report.layers_read} layers, {report.values_read} values"))
    rows += [
        ("errors", str(len(report.errors))),
        ("warnings", str(len(report.warnings))),
        ("orphans", f"{len(report.orphans)}, {size_text(sum(one.size_bytes for one in report.orphans))}"),
        ("in flight", str(len(report.in_flight))),
        ("timelines without an index", str(len(report.relics))),
        ("purged", f"{len(report.purged)}, {size_text(sum(one.size_bytes for one in report.purged))}"),
    ]
    print_table(session.console, make_table(("", ""), rows))
    findings = [(one.level.value, one.where, one.message) for one in (*report.errors, *report.warnings)]
    _show_rows(session, ("level", "where", "what"), findings)
    orphans = [
        (one.kind.value, size_text(one.size_bytes), f"{one.modified_at:%F %T}", one.key) for one in report.orphans
    ]
    _show_rows(session, ("orphan", "size", "written", "object"), orphans)


def _show_rows(session: Session, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    session.console.print()
    print_table(session.console, make_table(columns, rows[:_SHOWN_MAX]))
    if len(rows) > _SHOWN_MAX:
        session.console.print(f"... and {len(rows) - _SHOWN_MAX} more (--json lists all)")
